"""Processes that tests start: the ranks of a run, by /proc. Threads that they must not leave."""

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

# enough for any process under load
SECONDS = 60.0


@contextlib.contextmanager
def no_thread_left() -> Iterator[None]:
    """No thread that starts inside the block outlives it. Those of earlier tests may end meanwhile."""
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def command_line(pid: int) -> str:
    """Return the command line of a process; empty if it is gone or a zombie."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def ranks_of(launcher: int) -> list[int]:
    """Return the process ids of the ranks that a launcher has started so far, in order."""
    with contextlib.suppress(OSError):
        children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
        return [int(child) for child in children if is_rank(int(child))]
    return []


def is_rank(pid: int) -> bool:
    """Whether a process is a rank that a launcher of vinfinity started, and runs."""
    return "vinfinity.parallel.started" in command_line(pid)


def wait_for_ranks(launcher: subprocess.Popen[str], count: int) -> list[int]:
    """Return the process ids of the ranks, as soon as all of them have been started."""
    deadline = time.monotonic() + SECONDS
    while len(ranks := ranks_of(launcher.pid)) < count:
        assert launcher.poll() is None, "the launcher ended"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return ranks


def wait_until_gone(pids: list[int]) -> None:
    """Wait until none of these ranks runs any more."""
    deadline = time.monotonic() + SECONDS
    while any(is_rank(pid) for pid in pids):
        assert time.monotonic() < deadline, "ranks outlive their launcher"
        time.sleep(0.01)


def vinfinity(*arguments: str) -> list[str]:
    """Return the command `vinfinity ARGUMENTS`."""
    return [sys.executable, "-m", "vinfinity", *arguments]
