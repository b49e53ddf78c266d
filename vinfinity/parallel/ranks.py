"""This process among the other ranks: its number, its device, and messages outside the networks."""

import contextlib
import json
import os
import re
import resource
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from vinfinity.errors import InputError, RankError, Stopped, one_line
from vinfinity.parallel.exchange import lost_rank
from vinfinity.parallel.place import Place
from vinfinity.parallel.teams import Team, team_of
from vinfinity.system.progress import logger
from vinfinity.system.signals import Shutdown

Fact = TypeVar("Fact")
# seconds that a rank waits for the others before it says so
NOTED_WAIT = 10.0
# entries of the store: the first error of any rank, and the number of ranks that have left
FIRST_ERROR, LEFT = "first error", "left"
# seconds in which the store must answer ranks that leave, and the last of them must have left
FAREWELL_SECONDS = 2


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
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        because = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible!r})"
        problem = f"finds {found} CUDA GPU{'s' * (found != 1)}{because} for {local_size}"
        raise InputError("device", wanted, remedy, problem=problem)
    return torch.device("cuda", local_rank)


@dataclass(frozen=True)
class Ranks:
    """rank: number of this process, 0 <= rank < size. local_size: ranks on this node. device: what it computes on.
    shutdown: requests to end; there are none where vinfinity is used as a library.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    local_size: int = 1
    shutdown: Shutdown = field(default_factory=Shutdown)

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

    def check_shutdown(self) -> None:
        """Raise Stopped, on every rank, if any of them was asked to end."""
        if any(self.collect(self.shutdown.requested is not None)):
            self.shutdown.stop()

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
def joined(place: Place, *, device: torch.device, timeout: float, shutdown: Shutdown) -> Iterator[Ranks]:
    """Join the other ranks, and leave at the end. timeout: seconds to wait for any of them.

    The first rank that fails or is asked to end decides how all others end: a RankError raised inside, which only says
    that another rank is gone, is replaced by the first RankError or Stopped of any rank.
    """
    chosen = re.match(r"[1-9]", os.environ.get("OMP_NUM_THREADS", "").strip())
    if place.local_size > 1 and device.type == "cpu" and not chosen:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // place.local_size))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    limit = timedelta(seconds=timeout)
    waiting = threading.Timer(NOTED_WAIT, _note_waiting, [place])
    waiting.daemon = True
    # torchrun and vinfinity's launcher host the store themselves
    hosts_store = place.launcher == "srun" and place.rank == 0
    waiting.start()
    try:
        if place.launcher == "torchrun":
            store, _, _ = next(dist.rendezvous("env://", place.rank, place.size, timeout=limit))
        else:
            store = dist.TCPStore(place.address, place.port, is_master=hosts_store, timeout=limit)
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
        reason = f"{one_line(error)}{_way_out(place)}"
        raise RankError(f"not all of the {place.size} ranks joined within {timeout:g} s: {reason}") from error
    finally:
        waiting.cancel()
    try:
        yield Ranks(
            device=device, rank=place.rank, size=place.size, local_size=place.local_size, shutdown=shutdown
        )
    except (RankError, Stopped) as error:
        first = _first_to_leave(store, error)
        raise Stopped(shutdown.message) if shutdown.requested else first from error
    finally:
        dist.destroy_process_group()
        if place.launcher == "srun":
            _leave(store, hosts_store=hosts_store, others=place.size - 1)


def _note_waiting(place: Place) -> None:
    if place.local_rank == 0:
        logger.info("rank %d waits for the other ranks%s", place.rank, _way_out(place))


def _way_out(place: Place) -> str:
    return "" if place.launcher == "vinfinity" else f"; {place.way_out}"


def _first_to_leave(store: dist.Store, error: RankError | Stopped) -> RankError | Stopped:
    """The first error of any rank; this one if it is the first, or if the store cannot be reached."""
    try:
        store.set_timeout(timedelta(seconds=FAREWELL_SECONDS))
        kind, message = json.loads(
            store.compare_set(FIRST_ERROR, "", json.dumps([error.exit_code, error.message]))
        )
    except RuntimeError:
        return error
    return Stopped(message) if kind == Stopped.exit_code else RankError(message)


def _leave(store: dist.Store, *, hosts_store: bool, others: int) -> None:
    """Leave the store, which ends with the rank that hosts it: that one waits until the others have left, at most
    FAREWELL_SECONDS.
    """
    deadline = time.monotonic() + FAREWELL_SECONDS
    with contextlib.suppress(RuntimeError):
        if not hosts_store:
            store.add(LEFT, 1)
        while hosts_store and store.add(LEFT, 0) < others and time.monotonic() < deadline:
            time.sleep(0.02)


def peak_memory(device: torch.device) -> int:
    """The most memory that this process has held, in bytes: of the device if it is a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
