"""The latents of a whole video, read a block at a time.

Dims: c channels, F latent frames of the video, f latent frames that are read, h w latent height and width.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class LatentSource(Protocol):
    """Where latents are read from."""

    def read(self, frames: range) -> Tensor:
        """The latents of some frames, (c, f, h, w) fp32 on the CPU. frames: contiguous, absolute."""
        ...


@dataclass(frozen=True)
class TensorLatents:
    """Latents in memory: (1, c, F, h, w)."""

    latents: Tensor

    def read(self, frames: range) -> Tensor:
        return self.latents[0, :, frames.start : frames.stop].float().cpu()
