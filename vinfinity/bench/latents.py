"""Latents in a file, to measure decoding with."""

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from vinfinity.errors import VinfinityError, one_line


@dataclass(frozen=True)
class FileLatents:
    """A `LatentSource`: the tensor (1, c, F, h, w) of a safetensors file.

    The file is mapped again for each block: the parts of a mapping that were read count as memory of this process until
    the mapping ends. Reading raises VinfinityError if the file cannot be read.
    """

    path: Path
    name: str = "latents"

    def read(self, frames: range) -> Tensor:
        """Return the latents of these frames, (c, f, h, w) fp32 on the CPU."""
        try:
            with safe_open(self.path, framework="pt", device="cpu") as file:
                return file.get_slice(self.name)[0, :, frames.start : frames.stop].float().clone()
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or one_line(error)
            raise VinfinityError(f"{self.path}: the latents cannot be read ({reason})") from error
