"""Where the ranks of a run come from: this process alone, a launcher (torchrun, srun), or processes started here."""

import math
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch.distributed as dist

from vinfinity.errors import InputError, RankError, Stopped, VinfinityError
from vinfinity.parallel.devices import check_nccl, pick_device, rank_device
from vinfinity.parallel.join import call_worker, joined, prefixed
from vinfinity.parallel.liveness import Heartbeat, last_heartbeats
from vinfinity.parallel.place import Place, find_place
from vinfinity.parallel.ranks import Ranks
from vinfinity.parallel.started import Assignment, RankFiles, start
from vinfinity.system.files import cannot_write
from vinfinity.system.folders import temporary_folder
from vinfinity.system.rank_count import check_rank_count
from vinfinity.system.signals import SIGNALS, Reaction, Shutdown

Payload = TypeVar("Payload")
Result = TypeVar("Result")
Worker = Callable[[Payload, Ranks], Result]

# seconds for the other ranks to end after one of them failed
SHUTDOWN_SECONDS = 2
# seconds between two checks of the ranks' processes
POLL_SECONDS = 0.02


def check_ranks(*, gpus: int | None, device: str, frames: int, place: Place | None = None) -> None:
    """Raise InputError if the requested ranks are not available; start nothing.

    place: this process's place among the ranks of a launcher; None if it is alone.
    """
    size, local_size = (gpus or 1, gpus or 1) if place is None else (place.size, place.local_size)
    way_out = "" if place is None else f"; {place.way_out}"
    if gpus is not None and gpus != size:
        problem = f"is not the {size} ranks that {place.launcher if place else ''} started"
        raise InputError("gpus", gpus, f"remove --gpus{way_out}", problem=problem)
    check_rank_count(size, frames, advice=way_out)
    try:
        picked = pick_device(device, local_size=local_size, place=place)
        check_nccl(size, picked)
    except InputError as error:
        raise InputError(
            error.field, error.value, f"{error.remedy}{way_out}", problem=error.problem
        ) from None


def launch(
    worker: Worker[Payload, Result],
    payload: Payload,
    *,
    gpus: int | None,
    device: str,
    timeout: float,
    shutdown: Shutdown | None = None,
    on_error: Callable[[VinfinityError], object] = lambda error: None,
) -> Result:
    """Run `worker(payload, ranks)` on every rank; return the result of rank 0, or of this process under a launcher.

    worker must be a function of an importable module, and payload picklable. gpus: number of ranks to start; None for
    one, or for those of the launcher. shutdown: shutdown requests (signals), which are passed on to the ranks; None if
    the caller handles no signals, as in a library. on_error: called with the error before a thread ends this process
    because another rank is lost and the main thread cannot raise; only under a launcher. Raises the first error of any
    rank, and RankError if a rank was killed, is late or gone.
    """
    watched, lasting = shutdown or Shutdown(), shutdown is None
    place = find_place(os.environ)
    if place is not None and place.size > 1:
        picked = rank_device(place, device)

        def end(error: VinfinityError) -> None:
            on_error(error)
            watched.end(error.exit_code, error.message)

        with joined(
            place, device=picked, timeout=timeout, shutdown=watched, lasting=lasting, end=end
        ) as ranks:
            return call_worker(worker, payload, ranks)
    if (gpus or 1) == 1:
        return call_worker(worker, payload, Ranks.of_one(device, shutdown=watched))
    # from here on, `_wait` handles shutdown requests
    watched.reaction = Reaction.WAIT
    with temporary_folder() as folder:
        files = RankFiles(folder)
        return _start_ranks(worker, payload, files, watched, ranks=gpus or 1, device=device, timeout=timeout)


def _start_ranks(
    worker: Worker[Payload, Result],
    payload: Payload,
    files: RankFiles,
    shutdown: Shutdown,
    *,
    ranks: int,
    device: str,
    timeout: float,
) -> Result:
    """Start the ranks on this node, pass shutdown requests on to them, and wait until they end."""
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    assignment = Assignment(worker, payload, ranks, store.port, device, timeout, arguments=sys.argv)
    try:
        files.assignment.write_bytes(pickle.dumps(assignment))
    except OSError as error:
        raise cannot_write(files.assignment, error) from error
    children: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(ranks):
            children.append(start(rank, files.path))
        codes = _wait(children, shutdown)
        if any(codes):
            raise _fault(files, codes, last_heartbeats(prefixed(store), ranks), shutdown)
        return pickle.loads(files.result.read_bytes())
    finally:
        _kill(children)


def _wait(children: Sequence["subprocess.Popen[bytes]"], shutdown: Shutdown) -> list[int | None]:
    """Wait until all ranks have ended, and return their exit codes.

    The code is the negative signal number for a rank that a signal killed, and None for a rank that had to be killed
    here after others had failed.
    """
    passed_on = False
    late: list[subprocess.Popen[bytes]] = []
    deadline = math.inf
    while running := [child for child in children if child.poll() is None]:
        if shutdown.requested and not passed_on:
            passed_on = True
            for child in running:
                # after SIGTERM, ranks end at a point from which the run can resume
                child.terminate()
        if any(child.returncode for child in children):
            deadline = min(deadline, time.monotonic() + SHUTDOWN_SECONDS)
        if time.monotonic() > deadline:
            late += running
            _kill(running)
        time.sleep(POLL_SECONDS)
    return [None if child in late else child.returncode for child in children]


def _kill(children: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Kill processes and wait until they are gone: all at once, since each may need seconds to free its GPU."""
    for child in children:
        child.kill()
    for child in children:
        child.wait()


def _fault(
    files: RankFiles, codes: Sequence[int | None], heartbeats: Sequence[Heartbeat], shutdown: Shutdown
) -> VinfinityError:
    """Return the first error of any rank. A rank's own error takes precedence over the RankErrors of other ranks.

    codes: the ranks' exit codes, as `_wait` returns them. heartbeats: the last heartbeat of each rank.
    """
    errors = files.errors()
    first = next(iter(errors.values()), None)
    if first is not None and not isinstance(first, RankError):
        return first
    silent = {rank: code for rank, code in enumerate(codes) if code and rank not in errors}
    if shutdown.requested and any(-code in SIGNALS for code in silent.values()):
        # the shutdown request came before a rank could handle signals
        return Stopped(shutdown.message)
    killed = [rank for rank, code in silent.items() if code < 0]
    # NCCL's watchdog aborts ranks that waited too long; the rank they waited for is at fault
    gave_up = [rank for rank in killed if codes[rank] == -signal.SIGABRT and heartbeats[rank].waits_for]
    late = [rank for rank, code in enumerate(codes) if code is None and rank not in errors]
    if gave_up and killed == gave_up and late:
        waited = heartbeats[gave_up[0]].waits_for
        return RankError(f"rank {late[0]} did not answer in time (waited for it in: {waited})")
    killed = [rank for rank in killed if rank not in gave_up] + gave_up
    if killed:
        name = signal.Signals(-silent[killed[0]]).name
        hint = ": the machine may have run out of memory" if name == "SIGKILL" else ""
        return RankError(f"rank {killed[0]} was killed by {name}{hint}")
    if first is not None:
        return first
    [(rank, code), *_] = silent.items()
    return RankError(f"rank {rank} exited with code {code} without reporting an error")
