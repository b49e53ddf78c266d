"""How a causal decoder begins in the middle of a video: which layers need which earlier latent frames, and their cost.

A layer that sees two earlier frames needs the right input from two frames before its first output that matters. Going
back from the picture to the latents, every layer gets a first latent frame; it need not run before that. What happens
before is wrong and never used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from vinfinity.models.wan.causal import CausalConv3d, FrameCache, Upsample
from vinfinity.models.wan.vae_config import LevelLayout


@dataclass(frozen=True)
class Step:
    """A layer of the decoder.

    run: the layer. reach: earlier input frames that it sees. doubles: whether it doubles the frames, after that.
    frames: input frames per latent frame. cost: multiplications per latent frame and pixel of the picture.
    """

    run: Callable[[Tensor, FrameCache], Tensor]
    reach: int
    doubles: bool
    frames: int
    cost: float

    @classmethod
    def of(cls, layer: nn.Module, run: Callable[[Tensor, FrameCache], Tensor], level: LevelLayout) -> "Step":
        """A layer whose input is at the resolution of `level`."""
        doubles, cost = False, 0.0
        for part in layer.modules():
            if not isinstance(part, nn.Conv2d | nn.Conv3d):
                continue
            positions = level.area * level.frames
            if isinstance(layer, Upsample) and isinstance(part, nn.Conv2d):
                positions *= 4 * (1 + level.doubles)
            cost += positions * part.weight.numel()
        if isinstance(layer, Upsample):
            doubles = level.doubles
        return cls(run, reach_of(layer), doubles, level.frames, cost)


@dataclass(frozen=True)
class WarmUp:
    """steps: of the decoder. time_downscale: frames per latent frame."""

    steps: Sequence[Step]
    time_downscale: int

    def starts(self, latent: int) -> list[int]:
        """For each step, the first latent frame that it must see so that the frames from `latent` on are exact."""
        starts: list[int] = []
        needed = _first_frame(latent, self.time_downscale)
        for step in reversed(self.steps):
            if step.doubles and needed > 0:
                # input frame j > 0 becomes the frames 2 j - 1 and 2 j
                needed = (needed + 1) // 2
            needed = max(0, needed - step.reach)
            starts.append(latent_of(needed, step.frames))
        return starts[::-1]

    @property
    def latents(self) -> int:
        """The receptive field: the earlier latent frames on which a frame depends."""
        far = 1000 * len(self.steps)
        return far - self.starts(far)[0]

    @property
    def cost(self) -> float:
        """The time to begin in the middle of a video, in latent frames: work before the first frame over that of a
        latent frame.
        """
        far = 1000 * len(self.steps)
        work = sum(
            step.cost * (far - start) for step, start in zip(self.steps, self.starts(far), strict=True)
        )
        return work / sum(step.cost for step in self.steps)


def _first_frame(latent: int, frames: int) -> int:
    """The first frame of a latent frame, at `frames` frames a latent frame."""
    return 0 if latent == 0 else 1 + (latent - 1) * frames


def reach_of(layer: nn.Module) -> int:
    """The frames before its own that a layer sees, not counting those of a change of the frame rate."""
    return sum(part.reach for part in layer.modules() if isinstance(part, CausalConv3d))


def latent_of(frame: int, frames: int) -> int:
    """The latent frame of a frame, at `frames` frames a latent frame."""
    return 0 if frame == 0 else 1 + (frame - 1) // frames
