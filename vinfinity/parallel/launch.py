"""Where a run's ranks come from: this process alone, a launcher (torchrun, srun), or N that it starts itself."""

import contextlib
import ctypes
import json
import math
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType
from typing import Any, Self, TypeVar

import torch.distributed as dist

from vinfinity.errors import InputError, RankError, Stopped, VinfinityError
from vinfinity.parallel.place import Place, find_place
from vinfinity.parallel.ranks import Ranks, joined, pick_device
from vinfinity.system.signals import SIGNALS, Stops

Payload = TypeVar("Payload")
Result = TypeVar("Result")
Worker = Callable[[Payload, Ranks], Result]

SHUTDOWN = 2  # seconds that ranks have to end when one of them failed
PR_SET_PDEATHSIG = 1  # of Linux's prctl


def check_ranks(*, gpus: int | None, device: str, frames: int) -> None:
    """Raises InputError where the ranks asked for cannot be had, before anything is started."""
    place = find_place(os.environ)
    if place is None:
        size = local_size = gpus or 1
    else:
        size, local_size = place.size, place.local_size
        if gpus is not None and gpus != size:
            problem = f"is not the {size} rank{'s' * (size > 1)} that {place.launcher} started"
            raise InputError("gpus", gpus, "leave --gpus out: the launcher decides", problem=problem)
    if size > frames:
        raise InputError(
            "gpus", size, f"use {frames} ranks at most", problem=f"is more than the {frames} frames"
        )
    pick_device(device, local_size=local_size)


def launch(
    worker: Worker[Payload, Result], payload: Payload, *, gpus: int | None, device: str, timeout: float
) -> Result:
    """Runs `worker(payload, ranks)` on every rank and returns what it returned on rank 0, or on this one of torchrun's.

    worker must be a module's function and payload picklable. gpus: ranks to start, None for one or for those of the
    launcher. Raises what a rank raised; RankError where one was killed, is late or gone.
    """
    place = find_place(os.environ)
    if place is not None and place.size > 1:
        picked = pick_device(device, local_rank=place.local_rank, local_size=place.local_size)
        with joined(place, device=picked, timeout=timeout) as ranks:
            return worker(payload, ranks)
    if (gpus or 1) == 1:
        return worker(payload, Ranks(device=pick_device(device)))
    return _spawn(worker, payload, ranks=gpus or 1, device=device, timeout=timeout)


def _spawn(
    worker: Worker[Payload, Result], payload: Payload, *, ranks: int, device: str, timeout: float
) -> Result:
    """Starts the ranks on this node, passes requests to end on to them, and waits for them."""
    context = multiprocessing.get_context("spawn")  # a forked process could not use CUDA
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory(prefix="vinfinity-") as name, _Requests() as requests:
        folder = Path(name)
        receiver, sender = context.Pipe(duplex=False)
        children: list[SpawnProcess] = []
        try:
            for rank in range(ranks):
                place = Place(rank, ranks, rank, ranks, "localhost", store.port, launcher="vinfinity")
                arguments = (worker, payload, place, device, timeout, folder, sender if rank == 0 else None)
                children.append(context.Process(target=_rank_main, args=arguments))
                children[-1].start()
            sender.close()
            return _wait(children, receiver, folder, requests)
        finally:
            for child in children:
                child.kill()
                child.join()


def _wait(children: Sequence[SpawnProcess], receiver: Connection, folder: Path, requests: "_Requests") -> Any:
    """What rank 0 returned, when all have ended. Raises what went wrong first."""
    result, told = None, False
    late: list[SpawnProcess] = []
    deadline = math.inf
    while running := [child for child in children if child.is_alive()]:
        if requests.again:
            raise KeyboardInterrupt
        if requests.asked and not told:
            told = True
            for child in running:
                child.terminate()  # SIGTERM: they end where they can go on later
        wait([child.sentinel for child in running], timeout=0.1)
        if receiver.poll():
            with contextlib.suppress(EOFError):
                result = pickle.loads(receiver.recv_bytes())
        if any(child.exitcode for child in children):
            deadline = min(deadline, time.monotonic() + SHUTDOWN)
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
        if told and fault.exit_code == RankError.exit_code and any(-code in SIGNALS for code in codes):
            raise Stopped(Stops().kept)  # it came before a rank could heed it
        raise fault
    return result


class _Requests:
    """Signals to end that come while ranks are at work: whether one came, and whether Ctrl-C came after it."""

    def __init__(self) -> None:
        self.asked = self.again = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, _: FrameType | None) -> None:
        self.again |= self.asked and number == signal.SIGINT
        self.asked = True


def _rank_main(
    worker: Worker[Payload, Result],
    payload: Payload,
    place: Place,
    device: str,
    timeout: float,
    folder: Path,
    sender: Connection | None,
) -> None:
    """A started rank: does its part, or leaves word of what went wrong in `folder` and ends with that exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the launcher, which tells the ranks
    _end_with_parent()
    (folder / f"{place.rank}.pid").write_text(str(os.getpid()))
    code = 0
    try:
        picked = pick_device(device, local_rank=place.local_rank, local_size=place.local_size)
        with joined(place, device=picked, timeout=timeout) as ranks:
            try:
                result = worker(payload, ranks)
            except RankError:
                raise
            except Exception as error:
                # before the others notice that this rank is gone
                _leave_word(folder, place, *_say(error, place))
                raise
        if sender is not None:
            # bytes: tensors in a message of multiprocessing's would be fetched from this process, soon gone
            sender.send_bytes(pickle.dumps(result))
    except Exception as error:
        message, code = _say(error, place)
        _leave_word(folder, place, message, code)
        if not isinstance(error, VinfinityError):
            traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    # at the interpreter's own end, threads of torch.distributed that still run may abort the process (seen once)
    os._exit(code)


def _end_with_parent() -> None:
    """Has the kernel end this process when the launcher is gone, whatever ended it: ranks alone would go on."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    launcher = multiprocessing.parent_process()
    if launcher is not None and os.getppid() != launcher.pid:
        os._exit(RankError.exit_code)  # it ended while this rank was starting, before the kernel was told


def _say(error: Exception, place: Place) -> tuple[str, int]:
    """One line for an error, and the exit code that goes with it."""
    if isinstance(error, VinfinityError):
        return error.message, error.exit_code
    call = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(call.filename).name}:{call.lineno}"
    return f"rank {place.rank}: {type(error).__name__}: {' '.join(str(error).split())} ({where})", 1


def _leave_word(folder: Path, place: Place, message: str, code: int) -> None:
    word = {"message": message, "code": code, "time": time.monotonic()}
    file = folder / f"rank-{place.rank}.json"
    if not file.exists():
        file.write_text(json.dumps(word), encoding="utf-8")
    for file in folder.glob("*.pid"):
        # a stopped rank would hold up the end of all: woken, it heeds the launcher's signal to end
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(file.read_text()), signal.SIGCONT)


def _fault(folder: Path, codes: Sequence[int]) -> VinfinityError:
    """What went wrong first. A rank's own fault comes before what the others noticed of it.

    codes: the exit codes of the ranks, a signal that killed one as its negative number.
    """
    words = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("rank-*.json")]
    words.sort(key=lambda word: word["time"])
    if words and words[0]["code"] != RankError.exit_code:
        return VinfinityError(words[0]["message"], exit_code=words[0]["code"])
    silent = [rank for rank, code in enumerate(codes) if code and not (folder / f"rank-{rank}.json").exists()]
    killed = [rank for rank in silent if codes[rank] < 0]
    if killed:
        name = signal.Signals(-codes[killed[0]]).name
        hint = ": the machine may have run out of memory" if name == "SIGKILL" else ""
        return RankError(f"rank {killed[0]} was killed by {name}{hint}")
    if words:
        return RankError(words[0]["message"])
    return RankError(f"rank {silent[0]} ended with exit code {codes[silent[0]]} and left no word why")
