"""The latents of a whole video, read one block at a time.

Dims: c channels, F latent frames of the video, f latent frames that are read, h w latent height and width.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vinfinity.parallel.spans import spans


class LatentSource(Protocol):
    """A place that latents are read from."""

    def read(self, frames: range) -> Tensor:
        """Return the latents of some frames, (c, f, h, w) fp32 on the CPU. frames: contiguous, absolute."""
        ...


@dataclass(frozen=True)
class TensorLatents:
    """Latents in memory: (1, c, F, h, w)."""

    latents: Tensor

    def read(self, frames: range) -> Tensor:
        return self.latents[0, :, frames.start : frames.stop].float().cpu()


def pick_latents(source: LatentSource, frames: Iterable[int]) -> Tensor:
    """Return the latents of any frames, (1, c, f, h, w) fp32 on the CPU."""
    return torch.cat([source.read(span) for span in spans(frames)], dim=1)[None]
