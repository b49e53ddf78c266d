"""Where the ranks of a run come from: this process alone, a launcher (torchrun, srun), or processes started here."""

import contextlib
import ctypes
import math
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from vinfinity.errors import InputError, RankError, Stopped, VinfinityError, one_line
from vinfinity.parallel.devices import check_nccl, pick_device
from vinfinity.parallel.place import Place, find_place
from vinfinity.parallel.ranks import Ranks, joined
from vinfinity.system.signals import SIGNALS, Shutdown

Payload = TypeVar("Payload")
Result = TypeVar("Result")
Worker = Callable[[Payload, Ranks], Result]

# seconds that ranks have to end after one of them failed
SHUTDOWN_SECONDS = 2
# of Linux's prctl
PR_SET_PDEATHSIG = 1


def check_ranks(*, gpus: int | None, device: str, frames: int) -> None:
    """Raise InputError if the requested ranks are not available; starts nothing."""
    place = find_place(os.environ)
    if place is None:
        size = local_size = gpus or 1
    else:
        size, local_size = place.size, place.local_size
        if gpus is not None and gpus != size:
            problem = f"is not the {size} rank{'s' * (size > 1)} that {place.launcher} started"
            raise InputError("gpus", gpus, "leave --gpus out: the launcher decides", problem=problem)
    if size > frames:
        problem = f"is more than the {frames} frames"
        raise InputError("gpus", size, f"use {frames} ranks at most", problem=problem)
    launcher = None if place is None else place.launcher
    check_nccl(size, pick_device(device, local_size=local_size, launcher=launcher))


def rank_device(place: Place, wanted: str) -> torch.device:
    """The device of the rank at `place`. Raises InputError."""
    return pick_device(
        wanted, local_rank=place.local_rank, local_size=place.local_size, launcher=place.launcher
    )


def launch(
    worker: Worker[Payload, Result],
    payload: Payload,
    *,
    gpus: int | None,
    device: str,
    timeout: float,
    handle_signals: bool = False,
) -> Result:
    """Run `worker(payload, ranks)` on every rank; return the result of rank 0, or of this process under a launcher.

    worker must be a function of an importable module, and payload picklable. gpus: ranks to start; None for one, or for
    those of the launcher. handle_signals: whether this process may take over shutdown signals; processes that are
    started here always do. Raises what a rank raised, and RankError if a rank was killed, is late or gone.
    """
    place = find_place(os.environ)
    if place is not None and place.size > 1:
        picked = rank_device(place, device)
        with joined(place, device=picked, timeout=timeout, handle_signals=handle_signals) as ranks:
            return worker(payload, ranks)
    if (gpus or 1) == 1:
        return worker(payload, Ranks(device=pick_device(device), handle_signals=handle_signals))
    shutdown = Shutdown()
    with shutdown.handled(enabled=handle_signals), shutdown.deferred():
        return _spawn(worker, payload, shutdown, ranks=gpus or 1, device=device, timeout=timeout)


def _spawn(
    worker: Worker[Payload, Result],
    payload: Payload,
    shutdown: Shutdown,
    *,
    ranks: int,
    device: str,
    timeout: float,
) -> Result:
    """Start the ranks on this node, pass shutdown requests on to them, and wait for them."""
    # a forked process could not use CUDA
    context = multiprocessing.get_context("spawn")
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory(prefix="vinfinity-") as name:
        folder = Path(name)
        receiver, sender = context.Pipe(duplex=False)
        children: list[SpawnProcess] = []
        try:
            for rank in range(ranks):
                place = Place(rank, ranks, rank, ranks, "localhost", store.port, launcher="vinfinity")
                arguments = (worker, payload, place, device, timeout, folder, sender if rank == 0 else None)
                children.append(context.Process(target=_rank_main, args=arguments))
                with _without_main_module():
                    children[-1].start()
            sender.close()
            return _wait(children, receiver, folder, shutdown)
        finally:
            for child in children:
                child.kill()
                child.join()


@contextlib.contextmanager
def _without_main_module() -> Iterator[None]:
    """Hide the caller's script from a process that is started: it would run the script again, and start more processes,
    unless the script is guarded by `if __name__ == "__main__"`. Ranks need only modules that can be imported.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _wait(children: Sequence[SpawnProcess], receiver: Connection, folder: Path, shutdown: Shutdown) -> Any:
    """The result of rank 0 when all ranks have ended. Raises the first error of any rank."""
    result, passed_on = None, False
    late: list[SpawnProcess] = []
    deadline = math.inf
    while running := [child for child in children if child.is_alive()]:
        if shutdown.interrupted_again:
            raise KeyboardInterrupt
        if shutdown.requested and not passed_on:
            passed_on = True
            for child in running:
                # SIGTERM: ranks end where the run can resume
                child.terminate()
        wait([child.sentinel for child in running], timeout=0.1)
        if receiver.poll():
            with contextlib.suppress(EOFError):
                result = pickle.loads(receiver.recv_bytes())
        if any(child.exitcode for child in children):
            deadline = min(deadline, time.monotonic() + SHUTDOWN_SECONDS)
        if time.monotonic() > deadline:
            late += [child for child in running if child.is_alive()]
            for child in late:
                child.kill()
                child.join()
    if receiver.poll():
        with contextlib.suppress(EOFError):
            result = pickle.loads(receiver.recv_bytes())
    codes = [0 if child in late else child.exitcode or 0 for child in children]
    if any(codes):
        fault = _fault(folder, codes)
        if passed_on and fault.exit_code == RankError.exit_code and any(-code in SIGNALS for code in codes):
            # the request came before a rank could handle signals
            raise Stopped(shutdown.message)
        raise fault
    return result


def _rank_main(
    worker: Worker[Payload, Result],
    payload: Payload,
    place: Place,
    device: str,
    timeout: float,
    folder: Path,
    sender: Connection | None,
) -> None:
    """A started rank: does its part, or reports its error in `folder` and ends with that error's exit code."""
    # Ctrl-C also reaches the launcher, which passes it on
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent()
    (folder / f"{place.rank}.pid").write_text(str(os.getpid()))
    code = 0
    try:
        picked = rank_device(place, device)
        with joined(place, device=picked, timeout=timeout, handle_signals=True) as ranks:
            try:
                result = worker(payload, ranks)
            except RankError:
                raise
            except Exception as error:
                # before the other ranks notice that this one is gone
                _report(folder, place, error)
                raise
        if sender is not None:
            # as bytes: multiprocessing would fetch tensors from this process later, when it is gone
            sender.send_bytes(pickle.dumps(result))
    except Exception as error:
        code = _report(folder, place, error)
        if not isinstance(error, VinfinityError):
            traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    # while the interpreter shuts down, running threads of torch.distributed may abort the process (seen once)
    os._exit(code)


def _end_with_parent() -> None:
    """Have the kernel end this process when the launcher is gone: ranks must not outlive it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    launcher = multiprocessing.parent_process()
    if launcher is not None and os.getppid() != launcher.pid:
        # the launcher ended while this rank was starting, before the kernel knew
        os._exit(RankError.exit_code)


def _report(folder: Path, place: Place, error: Exception) -> int:
    """Write an error for the launcher, unless this rank reported one before. Returns its exit code."""
    if not isinstance(error, VinfinityError):
        call = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(call.filename).name}:{call.lineno}"
        reason = one_line(error)
        error = VinfinityError(f"rank {place.rank}: {type(error).__name__}: {reason} ({where})")
    report = folder / f"rank-{place.rank}.pickle"
    if not report.exists():
        unfinished = report.with_suffix(".part")
        unfinished.write_bytes(pickle.dumps((time.monotonic(), error)))
        unfinished.rename(report)
    for file in folder.glob("*.pid"):
        # a suspended rank would delay the end of all; once continued, it receives the launcher's signal
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(file.read_text()), signal.SIGCONT)
    return error.exit_code


def _fault(folder: Path, codes: Sequence[int]) -> VinfinityError:
    """The first error of any rank. A rank's own error comes before what other ranks noticed of it.

    codes: exit codes of the ranks; for a rank that a signal killed, the negative signal number.
    """
    reports = [pickle.loads(file.read_bytes()) for file in folder.glob("rank-*.pickle")]
    errors: list[VinfinityError] = [error for _, error in sorted(reports, key=lambda report: report[0])]
    if errors and not isinstance(errors[0], RankError):
        return errors[0]
    silent = [
        rank for rank, code in enumerate(codes) if code and not (folder / f"rank-{rank}.pickle").exists()
    ]
    killed = [rank for rank in silent if codes[rank] < 0]
    if killed:
        name = signal.Signals(-codes[killed[0]]).name
        hint = ": the machine may have run out of memory" if name == "SIGKILL" else ""
        return RankError(f"rank {killed[0]} was killed by {name}{hint}")
    if errors:
        return errors[0]
    return RankError(f"rank {silent[0]} exited with code {codes[silent[0]]} without reporting an error")
