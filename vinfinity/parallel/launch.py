"""Where a run's ranks come from: this process alone, a launcher (torchrun, srun), or N that it starts itself."""

import contextlib
import dataclasses
import json
import logging
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from vinfinity.errors import InputError, RankError, VinfinityError
from vinfinity.parallel.ranks import Place, Ranks, find_place, joined, pick_device

Payload = TypeVar("Payload")
Result = TypeVar("Result")
Worker = Callable[[Payload, Ranks], Result]

SHUTDOWN = 2  # seconds that ranks have to end when one of them failed or Ctrl-C was pressed


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
    """Starts the ranks on this node with torch's elastic launcher and waits for them."""
    options: dict[str, Any] = {}
    if "shutdown_timeout" in {field.name for field in dataclasses.fields(LaunchConfig)}:
        options["shutdown_timeout"] = SHUTDOWN
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=f"vinfinity-{os.getpid()}",
        max_restarts=0,
        monitor_interval=0.1,
        **options,
    )
    with tempfile.TemporaryDirectory(prefix="vinfinity-") as folder:
        logging.disable(logging.CRITICAL)  # torch's own account of ending ranks; users get one line of ours
        try:
            results = elastic_launch(config, _rank_main)(worker, payload, device, timeout, folder)
        except ChildFailedError as error:
            raise _fault(Path(folder), error) from None
        except SignalException as error:
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            raise VinfinityError(f"ended by {error.sigval.name}", exit_code=128 + error.sigval) from None
        finally:
            logging.disable(logging.NOTSET)
    return results[0]


def _rank_main(
    worker: Worker[Payload, Result], payload: Payload, device: str, timeout: float, folder: str
) -> Result:
    """A started rank: does its part, or leaves word of what went wrong in `folder` and ends with that exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the launcher, which ends all ranks
    place = find_place(os.environ)
    assert place is not None
    (Path(folder) / f"{place.rank}.pid").write_text(str(os.getpid()))
    try:
        picked = pick_device(device, local_rank=place.local_rank, local_size=place.local_size)
        with joined(place, device=picked, timeout=timeout) as ranks:
            try:
                return worker(payload, ranks)
            except RankError:
                raise
            except Exception as error:
                # before the others notice that this rank is gone
                _leave_word(Path(folder), place, *_say(error, place))
                raise
    except Exception as error:
        message, code = _say(error, place)
        _leave_word(Path(folder), place, message, code)
        if not isinstance(error, VinfinityError):
            traceback.print_exc()
        sys.exit(code)


def _say(error: Exception, place: Place) -> tuple[str, int]:
    """One line for an error, and the exit code that goes with it."""
    if isinstance(error, VinfinityError):
        return error.message, error.exit_code
    call = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(call.filename).name}:{call.lineno}"
    return f"rank {place.rank}: {type(error).__name__}: {' '.join(str(error).split())} ({where})", 1


def _leave_word(folder: Path, place: Place, message: str, code: int) -> None:
    word = {"message": message, "code": code, "time": time.time()}
    file = folder / f"rank-{place.rank}.json"
    if not file.exists():
        file.write_text(json.dumps(word), encoding="utf-8")
    for file in folder.glob("*.pid"):
        # a stopped rank would hold up the end of all: woken, it heeds the launcher's signal to end
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(file.read_text()), signal.SIGCONT)


def _fault(folder: Path, error: ChildFailedError) -> VinfinityError:
    """What went wrong first. A rank's own fault comes before what the others noticed of it."""
    words = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("rank-*.json")]
    words.sort(key=lambda word: word["time"])
    if words and words[0]["code"] != RankError.exit_code:
        return VinfinityError(words[0]["message"], exit_code=words[0]["code"])
    rank, failure = error.get_first_failure()
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        hint = ": the machine may have run out of memory" if name == "SIGKILL" else ""
        return RankError(f"rank {rank} was killed by {name}{hint}")
    if words:
        return RankError(words[0]["message"])
    return RankError(f"rank {rank} ended with exit code {failure.exitcode} and left no word why")
