"""This process among the ranks of a run: its number, its device, and messages outside the networks."""

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
# longest wait, in seconds, for a rank that is still loading or compiling, or for rank 0 to write a block
LOADING_SECONDS = 1800.0
# seconds between two queries of a CUDA event
POLL_SECONDS = 0.0005


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks of a run, and the messages it exchanges with them outside the networks.

    device: the device it computes on. rank: its number, 0 <= rank < size. local_size: number of ranks on this node.
    shutdown: shutdown requests; there are none if vinfinity is used as a library. waits: the operations in which this
    rank waits for others. liveness: monitors the other ranks; None for a single rank.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    local_size: int = 1
    shutdown: Shutdown = field(default_factory=Shutdown)
    waits: Waits = field(default_factory=Waits, compare=False, repr=False)
    liveness: Liveness | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        """Name this rank in messages."""
        return f"rank {self.rank} on {self.device}" if self.size > 1 else str(self.device)

    @classmethod
    def of_one(cls, device: str, *, shutdown: Shutdown | None = None) -> "Ranks":
        """Make the rank of a process that works alone, on the device for "auto", "cuda" or "cpu".

        In a library, the current device belongs to the program, and stays. CUDA is initialised here; resetting its
        memory counts later would not do that. Raises InputError, also if another process has the GPU to itself, and
        OutOfMemoryError if the GPU has no room for CUDA.
        """
        alone = cls(device=pick_device(device), shutdown=shutdown or Shutdown())
        with named_out_of_memory(str(alone), remedy=GPU_REMEDY), named_if_taken(alone.device):
            settle_allocator(alone.device)
        return alone

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes the files and shows messages."""
        return self.rank == 0

    def alone(self) -> "Ranks":
        """Return this rank for work that it does without the others."""
        return Ranks(device=self.device, shutdown=self.shutdown)

    def team(self, frames: int, *, split: bool, grouped: bool = False) -> Team:
        """Return the ranks that share a video with this one; see `team_of`."""
        team = team_of(self.rank, self.size, frames=frames, split=split, grouped=grouped)
        return dataclasses.replace(team, waits=self.waits)

    def agree(self, facts: Mapping[str, str]) -> None:
        """Raise RankError, on every rank, if the facts of a rank differ from those of rank 0."""
        everyone = self.all_gather(dict(facts))
        for rank, other in enumerate(everyone):
            for name, value in everyone[0].items():
                if other.get(name) != value:
                    raise RankError(
                        f"rank {rank} differs from rank 0 in its {name}: {other.get(name)}, not {value}"
                    )

    def all_gather(self, fact: Fact) -> list[Fact]:
        """Return every rank's fact, in the order of ranks, on every rank."""
        if self.size == 1:
            return [fact]
        everyone: list[Any] = [None] * self.size
        others = [rank for rank in range(self.size) if rank != self.rank]
        with self.waits.on_host("collecting facts"), named_peers("collecting facts", *others):
            dist.all_gather_object(everyone, fact)
        return everyone

    def on_first(self, compute: Callable[[], Fact]) -> Fact:
        """Compute something on rank 0 and return it on every rank; wait for as long as planning or reading files takes.

        Raises RankError if a rank is late or gone.
        """
        computed = compute() if self.is_first else None
        self.barrier()
        return cast(Fact, self.all_gather(computed)[0])

    def barrier(self) -> None:
        """Wait until all ranks have reached this call, for as long as loading and compiling may take.

        A rank that hangs is found by its missing heartbeat. Raises RankError if a rank is late or gone.
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

    def wait_for(self, flag: Tensor) -> bool:
        """Wait for a boolean on the device, and return its value.

        Polls a GPU, so that shutdown requests and lost ranks are noticed in the meantime. Raises the error of a rank
        that does not answer.
        """
        copy = to_host(flag)
        while copy.ready is not None and not copy.ready.query():
            time.sleep(POLL_SECONDS)
            if self.liveness is not None:
                self.liveness.check()
        return bool(copy.tensor)

    def broadcast(
        self, x: Tensor | None, *, shape: tuple[int, ...], dtype: torch.dtype, label: str
    ) -> Tensor:
        """Send rank 0's tensor to every rank and return it on the rank's device; wait for as long as loading takes.

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
        """Raise Stopped, on every rank, if a shutdown was requested on any of them."""
        if any(self.all_gather(self.shutdown.requested is not None)):
            self.shutdown.stop()

    def send(self, x: Tensor, to: int, *, label: str) -> None:
        """Send a CPU tensor; return when it is on its way. Raise RankError if `to` is late or gone."""
        with self.waits.on_host(label), named_peers(label, to):
            _wait(dist.isend(x, to))

    def receive(self, into: Tensor, source: int, *, label: str) -> Tensor:
        """Wait for a CPU tensor with the shape and type of `into`. Raise RankError if `source` is late or gone."""
        with self.waits.on_host(label), named_peers(label, source):
            _wait(dist.irecv(into, source))
        return into


def _wait(work: dist.Work | None) -> None:
    assert work is not None
    work.wait(timedelta(seconds=LOADING_SECONDS))
