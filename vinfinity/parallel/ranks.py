"""This process among the other ranks: its number, its device, and messages outside the networks."""

import contextlib
import os
import resource
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from vinfinity.errors import InputError, RankError, one_line
from vinfinity.parallel.exchange import lost_rank
from vinfinity.parallel.place import Place
from vinfinity.parallel.teams import Team, team_of

Fact = TypeVar("Fact")
FAULT = "fault"


def pick_device(wanted: str, *, local_rank: int = 0, local_size: int = 1) -> torch.device:
    """The device of a rank for "auto", "cuda" or "cpu": the GPU with the rank's number on the node.

    With "auto", a single rank falls back to the CPU. Raises InputError if the node has fewer GPUs than ranks.
    """
    if wanted == "cpu":
        return torch.device("cpu")
    found = torch.cuda.device_count()
    if wanted == "auto" and local_size == 1 and found == 0:
        return torch.device("cpu")
    if local_size > found:
        remedy = f"add --device cpu to run {local_size} rank{'s' * (local_size > 1)} on the CPU"
        problem = f"finds {found} CUDA GPU{'s' * (found != 1)} for {local_size}"
        raise InputError("device", wanted, remedy, problem=problem)
    return torch.device("cuda", local_rank)


@dataclass(frozen=True)
class Ranks:
    """rank: number of this process, 0 <= rank < size. device: what it computes on. handle_signals: whether it may take
    over shutdown signals, as the command line and started processes do.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    handle_signals: bool = False

    @property
    def first(self) -> bool:
        """Whether this rank writes the files and shows messages."""
        return self.rank == 0

    def team(self, frames: int, *, split: bool, grouped: bool = False) -> Team:
        """The ranks that share a video with this one; see `team_of`."""
        return team_of(self.rank, self.size, frames=frames, split=split, grouped=grouped)

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
        with _named("collecting facts"):
            dist.all_gather_object(everyone, fact)
        return everyone

    def send(self, x: Tensor, to: int, *, label: str) -> None:
        """Send a CPU tensor; return when it is on its way. Raises RankError if `to` is late or gone."""
        with _named(label, to):
            dist.send(x, to)

    def receive(self, into: Tensor, source: int, *, label: str) -> Tensor:
        """Wait for a CPU tensor of that shape and type. Raises RankError if `source` is late or gone."""
        with _named(label, source):
            dist.recv(into, source)
        return into


@contextlib.contextmanager
def _named(label: str, *peers: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if peers:
            raise lost_rank(peers, label, error) from error
        raise RankError(f"a rank is late or gone ({label}): {' '.join(str(error).split())}") from error


@contextlib.contextmanager
def joined(
    place: Place, *, device: torch.device, timeout: float, handle_signals: bool = False
) -> Iterator[Ranks]:
    """Join the other ranks, and leave at the end. timeout: seconds to wait for any of them.

    A RankError raised inside is replaced by the first one of any rank, so that all ranks name the same culprit.
    """
    if place.local_size > 1 and device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // place.local_size))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    limit = timedelta(seconds=timeout)
    try:
        if place.launcher == "torchrun":
            store, _, _ = next(dist.rendezvous("env://", place.rank, place.size, timeout=limit))
        else:
            # under srun rank 0 hosts the store; for ranks that vinfinity started, the launcher does
            keeper = place.launcher == "srun" and place.rank == 0
            store = dist.TCPStore(place.address, place.port, is_master=keeper, timeout=limit)
        # torchrun's store outlives the ranks: entries of an earlier attempt must not be found
        store = dist.PrefixStore(f"vinfinity/{place.attempt}", store)
        store.set_timeout(limit)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=place.rank,
            world_size=place.size,
            timeout=limit,
        )
    except (RuntimeError, ValueError) as error:
        reason = one_line(error)
        raise RankError(f"not all of the {place.size} ranks joined within {timeout:g} s: {reason}") from error
    try:
        yield Ranks(device=device, rank=place.rank, size=place.size, handle_signals=handle_signals)
    except RankError as error:
        raise RankError(_first_fault(store, error.message)) from error
    finally:
        dist.destroy_process_group()


def _first_fault(store: dist.Store, message: str) -> str:
    """The first fault that any rank reported; this one if it is the first, or if the store cannot be reached."""
    try:
        store.set_timeout(timedelta(seconds=2))
        return store.compare_set(FAULT, "", message).decode()
    except RuntimeError:
        return message


def peak_memory(device: torch.device) -> int:
    """The most memory that this process has held, in bytes: of the device if it is a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
