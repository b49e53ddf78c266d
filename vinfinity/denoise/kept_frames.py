"""Steer selected frames to known latents, so that new frames blend into an existing video."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vinfinity.denoise.state import Noise, Sampler, State


@dataclass(frozen=True)
class KeptFrames:
    """A sampler whose kept frames end as the earlier video's latents z, bit for bit.

    In each step, the prediction for a kept frame is replaced by the one that leads to z. Starting from the noise of
    the earlier video, the frame takes nearly the same path as before. So the model sees the whole video at one noise
    level, and fits the other frames to it until the last step. (RePaint, Lugmayr et al. 2022, adds fresh noise to z
    in each step instead; its joins show in still scenes.) A frame that is kept only for the first steps keeps what
    those steps decide, coarse structure rather than detail, and is free afterwards (Differential Diffusion, Levin and
    Fried 2023).

    sampler: samples the other frames. clean: z, (1, c, f, h, w). until: (f,) int, the number of steps for which each
    frame is kept, 0 to len(timesteps).
    """

    sampler: Sampler
    clean: Tensor
    until: Tensor

    @property
    def timesteps(self) -> tuple[float, ...]:
        return self.sampler.timesteps

    def level(self, step: int) -> tuple[float, float]:
        return self.sampler.level(step)

    def implied(self, state: State, clean: Tensor) -> Tensor:
        return self.sampler.implied(state, clean)

    def step(self, state: State, prediction: Tensor, noise: Noise) -> State:
        kept = (self.until > state.step)[:, None, None]
        prediction = torch.where(kept, self.implied(state, self.clean), prediction)
        after = self.sampler.step(state, prediction, noise)
        if after.step < len(self.timesteps):
            return after
        return replace(after, x=torch.where(kept, self.clean, after.x))


def kept_until(
    frames: Sequence[int], *, known: int, redo: range, blend: int, steps: int, loop: bool = False
) -> Tensor:
    """Return the number of steps for which each frame is kept: (f,) int.

    frames: absolute indices. known: number of frames in the earlier video; later frames are new. redo: the span of the
    earlier video to regenerate. Inside the span, the `blend` frames next to each join are kept for fewer steps the
    further they are from it, and never in the last step: the video departs from the earlier one gradually, in its
    details first. In a short span, fewer frames blend. loop: whether the last frame leads into the first; otherwise the
    ends of the video are not joins.
    """
    blend = min(blend, len(redo) // 4)

    def is_kept(frame: int) -> bool:
        frame = frame % known if loop else frame
        return 0 <= frame < known and frame not in redo

    def until(frame: int) -> int:
        if frame >= known:
            return 0
        if frame not in redo:
            return steps
        # distance to the nearest kept frame
        distances = [frame - redo.start] if is_kept(redo.start - 1) else []
        distances += [redo.stop - 1 - frame] if is_kept(redo.stop) else []
        away = (min(distances, default=blend) + 1) / (blend + 1)
        return min(steps - 1, max(0, round(steps * (1 - away**2))))

    return torch.tensor([until(frame) for frame in frames], dtype=torch.int64)
