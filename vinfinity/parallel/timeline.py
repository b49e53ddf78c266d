"""Which frames of a video see each other: only those of a scene, and across the ends of a loop.

Frames are numbered from 0. In a loop of F frames, numbers below 0 and from F on stand for frames at the other end, so
that neighbours always have consecutive numbers.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from vinfinity.parallel.spans import intersection


@dataclass(frozen=True)
class Scene:
    """Consecutive frames that see each other, and no others.

    anchors: global frames of its attention, ascending. plain: whether every frame attends to all others. whole: in an
    edit, which computes part of the video, the number of frames of the scene in the whole video; None if `frames` are
    all.
    """

    frames: range
    anchors: tuple[int, ...] = ()
    plain: bool = False
    whole: int | None = None

    @property
    def length(self) -> int:
        """Number of frames of the scene in the whole video."""
        return len(self.frames) if self.whole is None else self.whole


@dataclass(frozen=True)
class Timeline:
    """The scenes of a video, in order and without gaps; the first begins at frame 0.

    loop: whether the last frame leads into the first; such a video is one scene. video_frames: in an edit, which
    computes part of the video, the frame of the whole video that each number stands for; None if they are the same.
    Raises ValueError for scenes with gaps or overlaps.
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
        """Number of frames in the video."""
        return self.scenes[-1].frames.stop

    @property
    def borders(self) -> tuple[int, ...]:
        """The first frames of all scenes but the first one."""
        return tuple(scene.frames.start for scene in self.scenes[1:])

    def number(self, frame: int) -> int:
        """Return the number of the scene that a frame belongs to."""
        return bisect_right(self.borders, self.real(frame))

    def numbers(self, frames: Iterable[int]) -> list[int]:
        """Return the numbers of the scenes that some frames belong to."""
        return [self.number(frame) for frame in frames]

    def real(self, frame: int) -> int:
        """Return the frame of the video that a number stands for."""
        return frame % self.frames if self.loop else frame

    def video_frame(self, number: int) -> int:
        """Return the frame of the whole video that a number stands for; in a loop, possibly beyond its ends."""
        if self.video_frames is None:
            return number
        lap, at = divmod(number, self.frames) if self.loop else (0, number)
        return self.video_frames[at] + lap * self.scenes[0].length

    def distance(self, query: int, key: int) -> int:
        """Return the distance from query to key in frames of the whole video; negative if the key comes first."""
        return self.video_frame(key) - self.video_frame(query)

    def within(self, scene: Scene, frames: range) -> range:
        """Limit frames to those of a scene; in a loop, all numbers stand for frames of the scene."""
        return frames if self.loop else intersection(frames, scene.frames)

    def neighbour(self, frame: int, step: int) -> int | None:
        """Return the frame before (step -1) or after (step 1) in the same scene; None at the scene's ends."""
        other = frame + step
        if self.loop:
            return self.real(other)
        exists = 0 <= other < self.frames and self.number(other) == self.number(frame)
        return other if exists else None

    def unit(self, frame: int, size: int) -> range:
        """Return the unit that a frame is in. Units have `size` frames, counted from frame 0; the last may be shorter.

        In a loop, units beyond the ends correspond to those of the frames that they stand for.
        """
        base = frame // self.frames * self.frames if self.loop else 0
        start = base + (frame - base) // size * size
        return range(start, min(start + size, base + self.frames))

    def units(self, span: range, size: int) -> list[range]:
        """Return the units that cover a span, in order."""
        units, at = [], span.start
        while at < span.stop:
            units.append(self.unit(at, size))
            at = units[-1].stop
        return units


def one_scene(frames: int, *, anchors: Sequence[int] = (), plain: bool = False) -> Timeline:
    """Return the timeline of a video without cuts that does not loop."""
    return Timeline((Scene(range(frames), tuple(anchors), plain),))
