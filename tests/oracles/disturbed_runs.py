"""Runs as processes of their own: started, watched, disturbed, and waited for."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

# seconds after which a process counts as hung
HUNG = 300.0


@dataclass(frozen=True)
class Ended:
    """How a process ended. seconds: from the disturbance to the end."""

    code: int
    seconds: float
    stderr: str

    @property
    def last_line(self) -> str:
        return ([line for line in self.stderr.splitlines() if line.strip()] or [""])[-1]


def start(arguments: Sequence[str], **environment: str) -> subprocess.Popen[str]:
    """Start `vinfinity ARGUMENTS`."""
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return subprocess.Popen(
        [sys.executable, "-m", "vinfinity", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=variables,
    )


def finish(process: "subprocess.Popen[str]", *, seconds: float = HUNG) -> Ended:
    """Wait for the end of a process. Raises TimeoutExpired, with the process killed, if it takes longer."""
    started = time.monotonic()
    try:
        _, stderr = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return Ended(process.returncode, time.monotonic() - started, stderr)


def disturb(
    process: "subprocess.Popen[str]", when: Path, action: Callable[[], object], *, seconds: float = HUNG
) -> Ended:
    """Call `action` as soon as the file `when` exists, then wait for the end of the process.

    Raises AssertionError if the process ends, or `seconds` pass, before that.
    """
    deadline = time.monotonic() + seconds
    while not when.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            _, stderr = process.communicate()
            raise AssertionError(f"ended before {when.name} existed: {stderr.strip()[-300:]}")
        time.sleep(0.001)
    action()
    return finish(process, seconds=seconds)
