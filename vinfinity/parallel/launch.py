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
from vinfinity.parallel.join import carry_out, entries, joined
from vinfinity.parallel.liveness import Line, last_lines
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

# seconds that ranks have to end after one of them failed
SHUTDOWN_SECONDS = 2
# seconds between two looks at them
POLL_SECONDS = 0.02


def check_ranks(*, gpus: int | None, device: str, frames: int, place: Place | None = None) -> None:
    """Raise InputError if the requested ranks are not available; starts nothing.

    place: this process's place among the ranks of a launcher; None if it is alone.
    """
    size, local_size = (gpus or 1, gpus or 1) if place is None else (place.size, place.local_size)
    way_out = "" if place is None else f"; {place.way_out}"
    if gpus is not None and gpus != size:
        problem = f"is not the {size} ranks that {place.launcher if place else ''} started"
        raise InputError("gpus", gpus, f"leave --gpus out{way_out}", problem=problem)
    check_rank_count(size, frames, advice=way_out)
    try:
        picked = pick_device(
            device, local_size=local_size, launcher=None if place is None else place.launcher
        )
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

    worker must be a function of an importable module, and payload picklable. gpus: ranks to start; None for one, or for
    those of the launcher. shutdown: requests to end this process, which is passed on to the ranks; None if the caller
    handles none, as a library. on_error: called before a thread ends this process, which a launcher started, because
    another rank is lost and the main thread cannot raise. Raises what a rank raised, and RankError if a rank was
    killed, is late or gone.
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
            return carry_out(worker, payload, ranks)
    if (gpus or 1) == 1:
        return carry_out(worker, payload, Ranks.of_one(device, shutdown=watched))
    # from now on `_wait` looks at requests
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
    """Start the ranks on this node, pass requests to end on to them, and wait for them."""
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
            lines = last_lines(entries(store), ranks)
            raise _fault(files, codes, lines, shutdown)
        return pickle.loads(files.result.read_bytes())
    finally:
        _kill(children)


def _wait(children: Sequence["subprocess.Popen[bytes]"], shutdown: Shutdown) -> list[int | None]:
    """The exit codes of all ranks, once they have ended: the negative signal number of a rank that a signal killed, and
    None for one that had to be ended here after others had failed.
    """
    passed_on = False
    late: list[subprocess.Popen[bytes]] = []
    deadline = math.inf
    while running := [child for child in children if child.poll() is None]:
        if shutdown.requested and not passed_on:
            passed_on = True
            for child in running:
                # SIGTERM: ranks end where the run can resume
                child.terminate()
        if any(child.returncode for child in children):
            deadline = min(deadline, time.monotonic() + SHUTDOWN_SECONDS)
        if time.monotonic() > deadline:
            late += running
            _kill(running)
        time.sleep(POLL_SECONDS)
    return [None if child in late else child.returncode for child in children]


def _kill(children: Sequence["subprocess.Popen[bytes]"]) -> None:
    """End processes at once, and wait until they are gone. They go at the same time: each may need seconds to give its
    GPU back.
    """
    for child in children:
        child.kill()
    for child in children:
        child.wait()


def _fault(
    files: RankFiles, codes: Sequence[int | None], lines: Sequence[Line], shutdown: Shutdown
) -> VinfinityError:
    """The first error of any rank. A rank's own error comes before what other ranks noticed of it.

    codes: as `_wait` returns them. lines: the last sign of life of each rank.
    """
    errors = files.errors()
    first = next(iter(errors.values()), None)
    if first is not None and not isinstance(first, RankError):
        return first
    silent = {rank: code for rank, code in enumerate(codes) if code and rank not in errors}
    if shutdown.requested and any(-code in SIGNALS for code in silent.values()):
        # the request came before a rank could handle signals
        return Stopped(shutdown.message)
    killed = [rank for rank, code in silent.items() if code < 0]
    # NCCL's watchdog aborts ranks that have waited too long: not they are at fault, but the one they waited for
    gave_up = [rank for rank in killed if codes[rank] == -signal.SIGABRT and lines[rank].waits_for]
    late = [rank for rank, code in enumerate(codes) if code is None and rank not in errors]
    if gave_up and killed == gave_up and late:
        waited = lines[gave_up[0]].waits_for
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
