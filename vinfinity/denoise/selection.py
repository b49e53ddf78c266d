"""Which frames of a video a run computes, and the noise of each."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vinfinity.denoise.noise import INITIAL, frame_noise
from vinfinity.parallel.shards import anchor_frames
from vinfinity.system.transfer import to_device


@dataclass(frozen=True)
class Selection:
    """The frames of a video that a run computes. All indices are absolute and ascending.

    frames: those that are denoised. generated: those of them that go into the video; the others are known from an
    earlier run and only guide them. seeds: the seed of each frame of the video.
    """

    frames: Sequence[int]
    generated: Collection[int]
    seeds: Sequence[int]

    def of(self, held: range) -> list[int]:
        """The frames that a rank denoises. held: their positions in `frames`."""
        return list(self.frames[held.start : held.stop])

    def noise(self, frames: Sequence[int], shape: tuple[int, int, int], *, draw: int = INITIAL) -> Tensor:
        """A draw of noise for some frames, each from its own seed: (1, c, f, h, w) fp32. shape: (c, h, w)."""
        return frame_noise([self.seeds[frame] for frame in frames], frames, shape, draw=draw)


@dataclass(frozen=True)
class StepNoise:
    """The noise that a sampler adds in its steps, for a rank's frames. shape: (c, h, w) of one frame."""

    selection: Selection
    frames: Sequence[int]
    shape: tuple[int, int, int]
    device: torch.device

    def __call__(self, step: int) -> Tensor:
        return to_device(self.selection.noise(self.frames, self.shape, draw=step + 1), self.device)


def select_all(total: int, *, seed: int) -> Selection:
    """All frames of a new video."""
    return Selection(range(total), range(total), (seed,) * total)


def select_around(
    total: int,
    generated: Sequence[int],
    *,
    context: int,
    anchors: int,
    trained_frames: int,
    seeds: Sequence[int],
) -> Selection:
    """The frames to generate, `context` frames on either side of them, and the anchors of the video.

    Frames beyond these hardly affect the generated ones (docs/decisions/0009-redo-and-extend.md), so the cost of an
    edit does not grow with the video. With no more than `trained_frames` in total, every frame sees all others.
    """
    selected = set(range(total)) if total <= trained_frames else {*anchor_frames(total, anchors)}
    for span in spans(generated):
        near = range(span.start - context, span.stop + context)
        selected |= {frame for frame in near if 0 <= frame < total}
    return Selection(tuple(sorted(selected)), frozenset(generated), tuple(seeds))


def spans(frames: Iterable[int]) -> list[range]:
    """Ascending frames as ranges of consecutive ones."""
    found: list[range] = []
    for frame in frames:
        if found and found[-1].stop == frame:
            found[-1] = range(found[-1].start, frame + 1)
        else:
            found.append(range(frame, frame + 1))
    return found
