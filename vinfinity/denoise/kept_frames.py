"""A sampler under which some frames follow a known way: those of an earlier video, that others are to fit to."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vinfinity.denoise.samplers import Noise, Sampler, State


@dataclass(frozen=True)
class KeptFrames:
    """Samples with `sampler`; kept frames come out as the earlier video's latents z, to the bit.

    In each step the model's prediction for a kept frame is replaced by the one that leads to z. With the noise that the
    earlier video was made from, the frame goes close to the way it went then, and the model sees the whole video at one
    noise level and makes the other frames fit to it, down to what is left of the noise at the end. (RePaint, Lugmayr et
    al. 2022, noises z anew in each step instead: joins are then seen in still scenes.) A frame that is kept for some of
    the steps alone keeps what these decide, from the coarse to the fine, and is then free (Differential Diffusion,
    Levin and Fried 2023).

    clean: z, (1, c, f, h, w). until: (f,) int, steps for which each frame is kept: none at 0, all at len(timesteps).
    """

    sampler: Sampler
    clean: Tensor
    until: Tensor

    @property
    def timesteps(self) -> tuple[int, ...]:
        return self.sampler.timesteps

    def implied(self, state: State, clean: Tensor) -> Tensor:
        return self.sampler.implied(state, clean)

    def step(self, state: State, prediction: Tensor, noise: Noise) -> State:
        kept = (self.until > state.step)[:, None, None]
        prediction = torch.where(kept, self.implied(state, self.clean), prediction)
        after = self.sampler.step(state, prediction, noise)
        if after.step < len(self.timesteps):
            return after
        return State(after.step, torch.where(kept, self.clean, after.x), after.clean)


def kept_until(frames: Sequence[int], *, known: int, redo: range, blend: int, steps: int) -> Tensor:
    """For how many steps each frame is kept: (f,) int.

    frames: absolute. known: frames of the earlier video; those behind it are new. redo: the stretch of it that is made
    anew. Inside it, the `blend` frames next to each join are kept for fewer and fewer steps, at most for all but the
    last: the stretch departs from the earlier video gradually, in its details first. They are fewer than `blend` where
    the stretch is short.
    """
    blend = min(blend, len(redo) // 4)

    def until(frame: int) -> int:
        if frame >= known:
            return 0
        if frame not in redo:
            return steps
        # how many frames it is away from those that stay; an end of the video is no join
        distances = [frame - redo.start] if redo.start > 0 else []
        distances += [redo.stop - 1 - frame] if redo.stop < known else []
        away = (min(distances, default=blend) + 1) / (blend + 1)
        return min(steps - 1, max(0, round(steps * (1 - away**2))))

    return torch.tensor([until(frame) for frame in frames], dtype=torch.int64)
