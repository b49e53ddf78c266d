"""Probes of the machine: each returns what it found, or why it failed. None of them raises or hangs."""

import base64
import dataclasses
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from vinfinity.errors import one_line

Found = TypeVar("Found")
Given = ParamSpec("Given")

# characters of a reason
LONGEST = 240
# seconds; importing torch from a slow network file system takes a minute
CHILD_SECONDS = 180.0
TOOL_SECONDS = 30.0
# what comes before the answer of a child, since libraries print to stdout as well
MARK = "vinfinity-answer:"


@dataclass(frozen=True)
class Failed:
    """A probe that failed. reason: one line."""

    reason: str


class ProbeError(Exception):
    """Why a probe failed, as one line."""


def attempt(probe: Callable[Given, Found], *given: Given.args, **named: Given.kwargs) -> Found | Failed:
    """Return what `probe` returns, or why it failed."""
    try:
        return probe(*given, **named)
    except Exception as error:
        return Failed(reason_of(error))


def known(found: Found | Failed | None) -> Found | None:
    """Return what was found; None if the probe failed."""
    return None if isinstance(found, Failed) else found


def plain(value: Any) -> Any:
    """Return a finding as JSON."""
    if isinstance(value, Failed):
        return {"failed": value.reason}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [plain(entry) for entry in value]
    return value


def reason_of(error: BaseException) -> str:
    """Return an exception as one line of bounded length."""
    text = one_line(error)
    if not isinstance(error, ProbeError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def run_tool(command: Sequence[str], *, seconds: float = TOOL_SECONDS) -> str:
    """Return a command's output. Raises ProbeError if it fails or is too slow, FileNotFoundError if it is missing."""
    code, out, err = _output(command, os.environ, seconds=seconds)
    if code:
        # some tools report errors on stdout
        lines = [line for line in (err + "\n" + out).splitlines() if line.strip()]
        said = lines[0].strip() if lines else _ending(code)
        raise ProbeError(f"{os.path.basename(command[0])}: {said}")
    return out


def in_child(probe: Callable[[], Found], *, seconds: float = CHILD_SECONDS) -> Found:
    """Return what `probe`, a function of a module or a partial of one, returns in a process of its own.

    A broken library may crash or hang the process that loads it, and so may a file system that does not answer. Raises
    ProbeError for that, and if `probe` raises.
    """
    request = base64.b64encode(pickle.dumps(probe)).decode()
    program = f"from {__name__} import child; child()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    code, out, err = _output([sys.executable, "-c", program, request], environment, seconds=seconds)
    for line in out.splitlines():
        if line.startswith(MARK):
            answer = pickle.loads(base64.b64decode(line.removeprefix(MARK)))
            if isinstance(answer, Failed):
                raise ProbeError(answer.reason)
            return answer
    last = [line.strip() for line in err.splitlines() if line.strip()][-1:]
    raise ProbeError("; ".join([f"the process {_ending(code)}", *last]))


def child() -> None:
    """Carry out the request in the last argument, in the process that `in_child` starts."""
    try:
        answer = pickle.loads(base64.b64decode(sys.argv[-1]))()
    except BaseException as error:
        answer = Failed(reason_of(error))
    print(f"\n{MARK}{base64.b64encode(pickle.dumps(answer)).decode()}", flush=True)
    # a broken library may also crash when it is unloaded
    os._exit(0)


def _output(
    command: Sequence[str], environment: Mapping[str, str], *, seconds: float
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command. Raises ProbeError if it takes too long."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(environment),
        text=True,
        errors="replace",
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        # not waited for: a process inside a hung driver does not even end when it is killed
        raise ProbeError(f"{os.path.basename(command[0])} did not answer within {seconds:g} s") from None
    except BaseException:
        process.kill()
        raise
    return process.returncode, out, err


def _ending(code: int) -> str:
    """Return how a process ended, in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
