"""A rank that vinfinity's launcher started: its process from the first line to the exit code.

The module itself does not import torch: first, the process handles signals and is tied to its launcher.
"""

import contextlib
import ctypes
import json
import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vinfinity.errors import RankError, UnexpectedError, VinfinityError, described, error_of
from vinfinity.parallel.place import Place
from vinfinity.system.signals import Shutdown

# an option of Linux's prctl
PR_SET_PDEATHSIG = 1
# the launcher's sys.path, from which this module is imported, is the first argument
PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv.pop(1))
from vinfinity.parallel.started import main
main()
"""


@dataclass(frozen=True)
class RankFiles:
    """The folder through which the launcher and its ranks exchange files.

    assignment.pickle   what all ranks do            RANK.pid     the process id of a rank
    result.pickle       the result of rank 0         RANK.error   the first error of a rank, and its time
    """

    path: Path

    @property
    def assignment(self) -> Path:
        return self.path / "assignment.pickle"

    @property
    def result(self) -> Path:
        return self.path / "result.pickle"

    def pid(self, rank: int) -> Path:
        return self.path / f"{rank}.pid"

    def error(self, rank: int) -> Path:
        return self.path / f"{rank}.error"

    def errors(self) -> dict[int, VinfinityError]:
        """Return the error of each rank that reported one, in order of time."""
        reports = [(*pickle.loads(path.read_bytes()), int(path.stem)) for path in self.path.glob("*.error")]
        return {rank: error for _, error, rank in sorted(reports, key=lambda report: report[0])}


@dataclass(frozen=True)
class Assignment:
    """What the launcher tells all ranks.

    worker, payload, device, timeout: see `launch`. ranks: number of ranks. port: the port of the launcher's store.
    arguments: the launcher's sys.argv.
    """

    worker: Callable[..., Any]
    payload: Any
    ranks: int
    port: int
    device: str
    timeout: float
    arguments: list[str]


def start(rank: int, folder: Path) -> "subprocess.Popen[bytes]":
    """Start the process of a rank, which reads its `Assignment` from the folder."""
    path = json.dumps([str(entry) for entry in sys.path])
    command = [sys.executable, "-P", "-c", PROGRAM, path, str(folder), str(rank), str(os.getpid())]
    # a terminal's Ctrl-C also reaches the ranks, but the launcher passes it on. So ranks ignore it from the start:
    # blocked signals stay blocked in a new process
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def main() -> None:
    """Run the process of a rank."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    folder, rank, launcher = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    _end_with(launcher)
    files = RankFiles(folder)
    shutdown = Shutdown(report=lambda code, message: report(files, rank, error_of(code, message)))
    with shutdown.handled(afterwards=signal.SIG_IGN):
        code = _work(files, rank, shutdown)
    sys.stdout.flush()
    sys.stderr.flush()
    # while the interpreter shuts down, running threads of torch.distributed may abort the process (seen once)
    os._exit(code)


def _end_with(launcher: int) -> None:
    """Have the kernel kill this process when the launcher is gone: ranks must not outlive it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher:
        # the launcher ended before prctl took effect
        os._exit(RankError.exit_code)


def _work(files: RankFiles, rank: int, shutdown: Shutdown) -> int:
    """Do this rank's part of the work, or report its error; return the exit code."""
    try:
        files.pid(rank).write_text(str(os.getpid()))
        from vinfinity.parallel.devices import rank_device
        from vinfinity.parallel.join import call_worker, joined

        job: Assignment = pickle.loads(files.assignment.read_bytes())
        sys.argv[:] = job.arguments
        place = Place(rank, job.ranks, rank, job.ranks, "localhost", job.port, launcher="vinfinity")
        with joined(
            place, device=rank_device(place, job.device), timeout=job.timeout, shutdown=shutdown
        ) as ranks:
            try:
                result = call_worker(job.worker, job.payload, ranks)
            except RankError:
                raise
            except Exception as error:
                # report it before the other ranks notice that this one is gone
                report(files, rank, error)
                raise
        if ranks.is_first:
            files.result.write_bytes(pickle.dumps(result))
    except Exception as error:
        if isinstance(described(error, rank), UnexpectedError):
            traceback.print_exc()
        return report(files, rank, error)
    return 0


def report(files: RankFiles, rank: int, error: Exception) -> int:
    """Write an error for the launcher, unless this rank has already reported one; return the error's exit code."""
    error = described(error, rank)
    path = files.error(rank)
    if not path.exists():
        unfinished = path.with_suffix(".part")
        unfinished.write_bytes(pickle.dumps((time.monotonic(), error)))
        unfinished.rename(path)
    for file in files.path.glob("*.pid"):
        # a suspended rank would delay the end of all ranks; once continued, it receives the launcher's signal
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(file.read_text()), signal.SIGCONT)
    return error.exit_code
