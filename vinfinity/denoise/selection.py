"""Which frames of a video a run computes, and the noise of each."""

import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch
from torch import Tensor

from vinfinity.denoise.noise import INITIAL, frame_noise
from vinfinity.parallel.shards import anchor_frames
from vinfinity.parallel.spans import spans
from vinfinity.system.transfer import to_device


@dataclass(frozen=True)
class Selection:
    """The frames of a video that a run computes. All indices are absolute and ascending.

    frames: the frames that are denoised. generated: those that go into the video; the others are known from an earlier
    run and only guide them. seeds: the seed of each frame of the video.
    """

    frames: Sequence[int]
    generated: Collection[int]
    seeds: Sequence[int]

    def of(self, held: range) -> list[int]:
        """Return the frames that a rank denoises. held: their positions in `frames`."""
        return list(self.frames[held.start : held.stop])

    def noise(self, frames: Sequence[int], shape: tuple[int, int, int], *, draw: int = INITIAL) -> Tensor:
        """Draw noise for some frames, each from its own seed: (1, c, f, h, w) fp32. shape: one frame's (c, h, w)."""
        return frame_noise([self.seeds[frame] for frame in frames], frames, shape, draw=draw)


class StepNoise:
    """The noise that a sampler adds in its steps, for a rank's frames.

    shape: one frame's (c, h, w). steps: the sampler's number of steps. ahead: whether to draw the noise of the next
    step in a thread while the network runs; by default on GPUs, which would otherwise wait for it.
    """

    def __init__(
        self,
        selection: Selection,
        frames: Sequence[int],
        shape: tuple[int, int, int],
        device: torch.device,
        *,
        steps: int,
        ahead: bool | None = None,
    ) -> None:
        self._selection, self._frames, self._shape = selection, frames, shape
        self._device, self._steps = device, steps
        self._ahead = device.type == "cuda" if ahead is None else ahead
        self._next: tuple[int, Future[Tensor]] | None = None

    def __call__(self, step: int) -> Tensor:
        drawn = (
            self._next[1].result() if self._next is not None and self._next[0] == step else self._draw(step)
        )
        self._next = None
        if self._ahead and step + 1 < self._steps:
            self._next = step + 1, in_thread(self._draw, step + 1)
        return to_device(drawn, self._device)

    def _draw(self, step: int) -> Tensor:
        return self._selection.noise(self._frames, self._shape, draw=step + 1)


def in_thread(function: Callable[[int], Tensor], argument: int) -> "Future[Tensor]":
    """Call a function in a daemon thread; return its future result."""
    future: Future[Tensor] = Future()

    def run() -> None:
        try:
            future.set_result(function(argument))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def select_all(total: int, *, seed: int) -> Selection:
    """Select all frames of a new video."""
    return Selection(range(total), range(total), (seed,) * total)


def select_around(
    total: int,
    generated: Sequence[int],
    *,
    context: int,
    anchors: int,
    trained_frames: int,
    seeds: Sequence[int],
    scenes: Sequence[range] | None = None,
    loop: bool = False,
) -> Selection:
    """Select the frames to generate, `context` frames on either side of them, and the anchors of their scenes.

    Other frames hardly affect the generated ones (docs/decisions/0009-redo-and-extend.md), so the cost of an edit does
    not grow with the video. A scene of at most `trained_frames` is selected as a whole, since every frame in it sees
    all others. scenes: spans that do not see each other; None for one scene. loop: whether the last frame leads into
    the first.
    """
    selected: set[int] = set()
    for scene in scenes or [range(total)]:
        own = spans(frame for frame in generated if frame in scene)
        if own and len(scene) <= trained_frames:
            selected |= set(scene)
        elif own:
            selected |= {scene.start + anchor for anchor in anchor_frames(len(scene), anchors)}
        for span in own:
            near = range(span.start - context, span.stop + context)
            selected |= {frame % total if loop else frame for frame in near if loop or frame in scene}
    return Selection(tuple(sorted(selected)), frozenset(generated), tuple(seeds))
