"""This process among the other ranks: its number, its device, and messages outside the networks."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from vinfinity.errors import RankError
from vinfinity.parallel.devices import named_if_taken, pick_device, settle_allocator
from vinfinity.parallel.exchange import named_peers
from vinfinity.parallel.liveness import Liveness
from vinfinity.parallel.teams import Team, team_of
from vinfinity.parallel.waits import Waits
from vinfinity.system.out_of_memory import GPU_REMEDY, named_out_of_memory
from vinfinity.system.signals import Shutdown
from vinfinity.system.transfer import to_host

Fact = TypeVar("Fact")
# seconds that ranks may differ in loading and compiling, or rank 0 may take to write a block of pictures
PATIENCE = 1800.0
# seconds between two looks at a GPU that is waited for
POLL = 0.0005


@dataclass(frozen=True)
class Ranks:
    """rank: number of this process, 0 <= rank < size. local_size: ranks on this node. device: what it computes on.
    shutdown: requests to end; there are none where vinfinity is used as a library. waits: what this rank waits for.
    liveness: watches over the other ranks; None for a rank alone.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    local_size: int = 1
    shutdown: Shutdown = field(default_factory=Shutdown)
    waits: Waits = field(default_factory=Waits, compare=False, repr=False)
    liveness: Liveness | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        """This rank in messages."""
        return f"rank {self.rank} on {self.device}" if self.size > 1 else str(self.device)

    @classmethod
    def of_one(cls, device: str, *, shutdown: Shutdown | None = None) -> "Ranks":
        """The rank of a process that shares its work with no other, on the device for "auto", "cuda" or "cpu".

        Where vinfinity is a library, the current device is the program's: it stays. Initialises CUDA, which resetting
        the counts of a GPU's memory does not. Raises InputError, also if another process has the GPU to itself,
        and OutOfMemoryError if it has no room for this one.
        """
        alone = cls(device=pick_device(device), shutdown=shutdown or Shutdown())
        with named_out_of_memory(str(alone), remedy=GPU_REMEDY), named_if_taken(alone.device):
            settle_allocator(alone.device)
        return alone

    @property
    def first(self) -> bool:
        """Whether this rank writes the files and shows messages."""
        return self.rank == 0

    def alone(self) -> "Ranks":
        """This rank for work that it does without the others."""
        return Ranks(device=self.device, shutdown=self.shutdown)

    def team(self, frames: int, *, split: bool, grouped: bool = False) -> Team:
        """The ranks that share a video with this one; see `team_of`."""
        team = team_of(self.rank, self.size, frames=frames, split=split, grouped=grouped)
        return dataclasses.replace(team, waits=self.waits)

    def agree(self, facts: Mapping[str, str]) -> None:
        """Raise RankError, on every rank, if the facts of a rank differ from those of rank 0."""
        everyone = self.collect(dict(facts))
        for rank, other in enumerate(everyone):
            for name, value in everyone[0].items():
                if other.get(name) != value:
                    raise RankError(
                        f"rank {rank} differs from rank 0 in its {name}: {other.get(name)}, not {value}"
                    )

    def collect(self, fact: Fact) -> list[Fact]:
        """Every rank's fact, in the order of ranks, on every rank."""
        if self.size == 1:
            return [fact]
        everyone: list[Any] = [None] * self.size
        others = [rank for rank in range(self.size) if rank != self.rank]
        with self.waits.on_host("collecting facts"), named_peers("collecting facts", *others):
            dist.all_gather_object(everyone, fact)
        return everyone

    def from_first(self, find: Callable[[], Fact]) -> Fact:
        """What rank 0 finds, on every rank; waits for as long as planning, or reading files, may take.

        Raises RankError if a rank is late or gone.
        """
        found = find() if self.first else None
        self.gather()
        return cast(Fact, self.collect(found)[0])

    def gather(self) -> None:
        """Wait until all ranks have come here, for as long as loading and compiling may take.

        Ranks that hang are found by their missing signs of life. Raises RankError if one is late or gone.
        """
        token = torch.zeros(1)
        for source, to in ((rank, 0) for rank in range(1, self.size)):
            self._pass(token, source, to)
        for source, to in ((0, rank) for rank in range(1, self.size)):
            self._pass(token, source, to)

    def _pass(self, token: Tensor, source: int, to: int) -> None:
        if self.rank == to:
            self.receive(token, source, label="waiting for all ranks")
        elif self.rank == source:
            self.send(token, to, label="waiting for all ranks")

    def read(self, flag: Tensor) -> bool:
        """The value of a boolean on the device.

        Waits for a GPU by looking at it again and again, so that requests to end and lost ranks are noticed meanwhile.
        Raises the error of a rank that does not answer.
        """
        copy = to_host(flag)
        while copy.ready is not None and not copy.ready.query():
            time.sleep(POLL)
            if self.liveness is not None:
                self.liveness.check()
        return bool(copy.tensor)

    def share(self, x: Tensor | None, *, shape: tuple[int, ...], dtype: torch.dtype, label: str) -> Tensor:
        """Rank 0's tensor, on every rank's device; waits for as long as loading may take.

        x: the tensor on rank 0, None on the others. Raises RankError if rank 0 is late or gone.
        """
        if self.size == 1:
            assert x is not None
            return x
        if x is None:
            return self.receive(torch.empty(shape, dtype=dtype), 0, label=label).to(self.device)
        assert x.shape == shape and x.dtype == dtype
        sent = x.cpu().contiguous()
        for rank in range(1, self.size):
            self.send(sent, rank, label=label)
        return x

    def check_shutdown(self) -> None:
        """Raise Stopped, on every rank, if any of them was asked to end."""
        if any(self.collect(self.shutdown.requested is not None)):
            self.shutdown.stop()

    def send(self, x: Tensor, to: int, *, label: str) -> None:
        """Send a CPU tensor; return when it is on its way. Raises RankError if `to` is late or gone."""
        with self.waits.on_host(label), named_peers(label, to):
            _wait(dist.isend(x, to))

    def receive(self, into: Tensor, source: int, *, label: str) -> Tensor:
        """Wait for a CPU tensor of that shape and type. Raises RankError if `source` is late or gone."""
        with self.waits.on_host(label), named_peers(label, source):
            _wait(dist.irecv(into, source))
        return into


def _wait(work: dist.Work | None) -> None:
    assert work is not None
    work.wait(timedelta(seconds=PATIENCE))
