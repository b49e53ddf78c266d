"""How a causal decoder starts in the middle of a video: which layers need which earlier latent frames, and their cost.

A layer that sees two earlier frames needs correct input from two frames before its first output that matters. Working
back from the picture to the latents gives each layer its first latent frame; the layer need not run before that. Its
earlier output would be wrong, but is never used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from vinfinity.models.wan.causal import CausalConv3d, FrameCache, Upsample
from vinfinity.models.wan.vae_config import LevelLayout


@dataclass(frozen=True)
class Step:
    """A layer of the decoder.

    run: runs the layer. reach: number of earlier input frames that it sees. doubles: whether it then doubles the
    frames. frames: input frames per latent frame. cost: multiplications per latent frame and pixel of the picture.
    """

    run: Callable[[Tensor, FrameCache], Tensor]
    reach: int
    doubles: bool
    frames: int
    cost: float

    @classmethod
    def of(cls, layer: nn.Module, run: Callable[[Tensor, FrameCache], Tensor], level: LevelLayout) -> "Step":
        """Describe a layer whose input is at the resolution of `level`."""
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
    """The latent frames that a decoder must run before the one at which it starts.

    steps: the decoder's layers. time_downscale: frames per latent frame.
    """

    steps: Sequence[Step]
    time_downscale: int

    def starts(self, latent: int) -> list[int]:
        """Return, for each step, the first latent frame that it must see for exact frames from `latent` on."""
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
        """The receptive field: number of earlier latent frames on which a frame depends."""
        far = 1000 * len(self.steps)
        return far - self.starts(far)[0]

    @property
    def cost(self) -> float:
        """The time it takes to start in the middle of a video, in latent frames.

        This is the work before the first frame, divided by the work for one latent frame.
        """
        far = 1000 * len(self.steps)
        work = sum(
            step.cost * (far - start) for step, start in zip(self.steps, self.starts(far), strict=True)
        )
        return work / sum(step.cost for step in self.steps)


def _first_frame(latent: int, frames: int) -> int:
    """Return the first frame of a latent frame, with `frames` frames per latent frame."""
    return 0 if latent == 0 else 1 + (latent - 1) * frames


def reach_of(layer: nn.Module) -> int:
    """Return how many earlier frames a layer sees, not counting those of a change of the frame rate."""
    return sum(part.reach for part in layer.modules() if isinstance(part, CausalConv3d))


def latent_of(frame: int, frames: int) -> int:
    """Return the latent frame of a frame, with `frames` frames per latent frame."""
    return 0 if frame == 0 else 1 + (frame - 1) // frames
