"""Which frames of a video may see each other: scenes apart from each other, and a last frame that leads into the first.

Frames are counted from 0 in the video. In a loop, frames before 0 and from F on stand for those at the other end of the
video, F frames further: neighbours of a frame are consecutive numbers then, too.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from vinfinity.parallel.spans import intersection


@dataclass(frozen=True)
class Scene:
    """Consecutive frames that see each other, and no others.

    anchors: global frames of its attention, ascending. plain: whether every frame attends to all others. whole: frames
    of the scene in the whole video, of which an edit computes a part; None if these are all.
    """

    frames: range
    anchors: tuple[int, ...] = ()
    plain: bool = False
    whole: int | None = None

    @property
    def length(self) -> int:
        """Frames of the scene in the whole video."""
        return len(self.frames) if self.whole is None else self.whole


@dataclass(frozen=True)
class Timeline:
    """The scenes of a video, in order and without gaps; the first begins at frame 0.

    loop: whether the last frame leads into the first; such a video is one scene. places: in an edit, which computes a
    part of the video, the frame of the whole video that each number stands for; None if they are the same. Raises
    ValueError for scenes that do not follow each other.
    """

    scenes: tuple[Scene, ...]
    loop: bool = False
    video_frames: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        joined = [0, *(scene.frames.stop for scene in self.scenes)]
        if [scene.frames.start for scene in self.scenes] != joined[:-1] or not all(
            start < stop for start, stop in pairwise(joined)
        ):
            raise ValueError("scenes follow each other without gaps, each with frames of its own")
        if self.loop and len(self.scenes) > 1:
            raise ValueError("a loop is one scene")

    @property
    def frames(self) -> int:
        """Frames of the video."""
        return self.scenes[-1].frames.stop

    @property
    def borders(self) -> tuple[int, ...]:
        """The first frames of all scenes but the first one."""
        return tuple(scene.frames.start for scene in self.scenes[1:])

    def number(self, frame: int) -> int:
        """The number of the scene that a frame belongs to."""
        return bisect_right(self.borders, self.real(frame))

    def numbers(self, frames: Iterable[int]) -> list[int]:
        """The numbers of the scenes that some frames belong to."""
        return [self.number(frame) for frame in frames]

    def real(self, frame: int) -> int:
        """The frame of the video that a number stands for."""
        return frame % self.frames if self.loop else frame

    def video_frame(self, number: int) -> int:
        """The frame of the whole video that a number stands for; in a loop, those beyond the ends go on counting."""
        if self.video_frames is None:
            return number
        lap, at = divmod(number, self.frames) if self.loop else (0, number)
        return self.video_frames[at] + lap * self.scenes[0].length

    def distance(self, query: int, key: int) -> int:
        """From one frame to another, in frames of the whole video; negative if the key comes first."""
        return self.video_frame(key) - self.video_frame(query)

    def clip(self, frames: range, scene: Scene) -> range:
        """Those of some frames that exist in a scene; in a loop, all do."""
        return frames if self.loop else intersection(frames, scene.frames)

    def neighbour(self, frame: int, step: int) -> int | None:
        """The frame before (step -1) or after (1) in the same scene; None at its ends."""
        other = frame + step
        if self.loop:
            return self.real(other)
        exists = 0 <= other < self.frames and self.number(other) == self.number(frame)
        return other if exists else None

    def unit(self, frame: int, size: int) -> range:
        """The unit that a frame is in: spans of `size` frames from frame 0 on, the last one shorter.

        In a loop, units of frames beyond the ends are those of the frames that they stand for.
        """
        base = frame // self.frames * self.frames if self.loop else 0
        start = base + (frame - base) // size * size
        return range(start, min(start + size, base + self.frames))

    def units(self, span: range, size: int) -> list[range]:
        """The units that cover a span, in order."""
        units, at = [], span.start
        while at < span.stop:
            units.append(self.unit(at, size))
            at = units[-1].stop
        return units


def one_scene(frames: int, *, anchors: Sequence[int] = (), plain: bool = False) -> Timeline:
    """The timeline of a video without cuts that does not loop."""
    return Timeline((Scene(range(frames), tuple(anchors), plain),))
