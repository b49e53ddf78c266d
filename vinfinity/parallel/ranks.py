"""This process among the others: its number, its device and its way to talk to them."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vinfinity.errors import InputError
from vinfinity.parallel.exchange import FrameExchange, LocalExchange
from vinfinity.parallel.shards import FrameShards


@dataclass(frozen=True)
class Ranks:
    """rank: this process, 0 <= rank < size. exchange: how temporal layers reach the other ranks."""

    device: torch.device
    rank: int = 0
    size: int = 1
    exchange: FrameExchange = field(default_factory=LocalExchange)

    @property
    def first(self) -> bool:
        """Whether this rank writes the files and speaks to the user."""
        return self.rank == 0

    def gather(self, frames: Tensor, shards: FrameShards) -> Tensor | None:
        """All frames in order on rank 0, None elsewhere. frames: (1, c, f, h, w), those held here."""
        return frames


def pick_device(wanted: str) -> torch.device:
    """The device for "auto", "cuda" or "cpu". Raises InputError where there is none of that kind."""
    found = torch.cuda.is_available()
    if wanted == "cuda" and not found:
        raise InputError("device", wanted, "use --device cpu", problem="is not available: no CUDA GPU was found")
    return torch.device("cuda" if wanted == "cuda" or (wanted == "auto" and found) else "cpu")
