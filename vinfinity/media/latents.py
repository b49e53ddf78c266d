"""The latents of a whole video, read a stretch of frames at a time."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor

from vinfinity.errors import VinfinityError


class LatentSource(Protocol):
    """Where latents come from."""

    def read(self, frames: range) -> Tensor:
        """The latents of these frames, (c, f, h, w) fp32 on the CPU. frames: contiguous, absolute."""
        ...


@dataclass(frozen=True)
class TensorLatents:
    """Latents in memory: (1, c, F, h, w)."""

    latents: Tensor

    def read(self, frames: range) -> Tensor:
        return self.latents[0, :, frames.start : frames.stop].float().cpu()


@dataclass(frozen=True)
class FileLatents:
    """Latents in a safetensors file: a tensor (1, c, F, h, w).

    The file is mapped anew for each stretch: what was read of a mapping counts as this process's memory until it ends.
    Reading raises VinfinityError where the file cannot be read.
    """

    path: Path
    name: str = "latents"

    def read(self, frames: range) -> Tensor:
        try:
            with safe_open(self.path, framework="pt", device="cpu") as file:
                return file.get_slice(self.name)[0, :, frames.start : frames.stop].float().clone()
        except (OSError, SafetensorError) as error:
            said = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise VinfinityError(f"{self.path}: the latents cannot be read ({said})") from error
