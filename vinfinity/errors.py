"""The errors that users see: one line each, without a traceback, and an exit code for each class.

docs/reference/exit-codes.md is generated from this module: the first line of a class's docstring says what happened,
and its `advice` what to do about it.
"""

import difflib
import re
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, ClassVar, Self

INTERRUPTED = 130
PACKAGE = Path(__file__).parent
# characters that would break a line or control a terminal, and Python's stand-ins for bytes that are not UTF-8
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
LONGEST_VALUE = 200


class VinfinityError(Exception):
    """Another error occurred, such as a failed download, or a fault that `vinfinity doctor` found.

    message: one line for users. exit_code: the exit code of the process; each class has a default.
    """

    exit_code = 1
    advice: ClassVar[str] = "Read the message; `--debug` adds the traceback of an unexpected error."

    def __init__(self, message: str, exit_code: int | None = None) -> None:
        self.message = one_line(message)
        super().__init__(self.message)
        if exit_code is not None:
            self.exit_code = exit_code

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[object, ...]:
        # pickled when a rank sends an error to the process that started it: class and all attributes must survive
        return _rebuild, (type(self), self.args, dict(self.__dict__))


class UnexpectedError(VinfinityError):
    """An unexpected error occurred: a bug."""

    advice = "Run the command again with `--debug`, and report the error."


class InputError(VinfinityError):
    """The input cannot be used; nothing has been computed.

    The message is `FIELD: VALUE (SOURCE) PROBLEM; REMEDY`. Source and problem are optional, as in
    `frames: 0 (--frames) is less than 1; ask for at least one frame`.
    """

    exit_code = 2
    advice = "Fix the setting named in the message; it says what is accepted."

    def __init__(
        self, field: str, value: object, remedy: str, *, problem: str = "", source: str | None = None
    ) -> None:
        self.field, self.value, self.remedy = field, value, remedy
        self.problem, self.source = problem, source
        parts = [_shown(value), f"({source})" if source else "", problem]
        super().__init__(f"{field}: {' '.join(part for part in parts if part)}; {remedy}")

    def from_source(self, source: str) -> Self:
        """Return this error with the source of the value added (`--frames`, `run.yaml`)."""
        return type(self)(self.field, self.value, self.remedy, problem=self.problem, source=source)

    def about(self, field: str) -> Self:
        """Return this error with another field name, such as the flag that set the value."""
        return type(self)(field, self.value, self.remedy, problem=self.problem, source=self.source)


class WeightsError(InputError):
    """Weights are missing, truncated, or do not fit the network; also what `vinfinity models show` found wrong."""

    advice = "Check the model with `vinfinity models show`, or fetch it again."


class OutOfMemoryError(VinfinityError):
    """A GPU or the host ran out of memory."""

    exit_code = InputError.exit_code
    advice = "Try one of the settings the message suggests."


class RankError(VinfinityError):
    """A rank failed, is late, or differs from the others.

    The message names the rank and what the others were waiting for.
    """

    exit_code = 3
    advice = "Read the end of the run's `log.txt`, then run `vinfinity resume`."


class OutputError(VinfinityError):
    """A file could not be written or read: the disk is full or failing, a codec is missing, or the encoder failed."""

    exit_code = 4
    advice = "Free disk space or fix the permissions, then run `vinfinity resume`."


class DamagedError(VinfinityError):
    """A file of a run, or a video to measure, is missing, truncated or changed."""

    exit_code = OutputError.exit_code
    advice = "Restore the file from a copy, or generate the video again."


class NotFiniteError(VinfinityError):
    """A network produced NaN or infinite values."""

    exit_code = 5
    advice = "Use the dtype that the message suggests, or check the weights, the noise and the LoRAs."


class BusyError(VinfinityError):
    """Another run is using the same folder."""

    exit_code = 6
    advice = "Wait for the other run, or choose another `--out`."


class LimitError(VinfinityError):
    """A video violates a limit given to `vinfinity evaluate`; everything was measured."""

    exit_code = 7
    advice = "No action needed if you only filter videos: the lines above name the video, the figure and the limit."


class BatchError(VinfinityError):
    """Some videos of a batch failed; all others are finished. The code is 100 plus their number, at most 125."""

    exit_code = 101
    advice = "Each failed video has its own line. Run the same command again to retry them."

    def __init__(self, message: str, *, failed: int) -> None:
        super().__init__(message, min(100 + failed, 125))


class Stopped(VinfinityError):
    """A shutdown was requested; if the run had begun, it can be resumed."""

    # EX_TEMPFAIL of sysexits.h: try again later
    exit_code = 75
    advice = "Run `vinfinity resume`, or the same command if the run had not begun; batch systems may requeue the job."


def nearest(name: str, known: Sequence[str]) -> str | None:
    """Return the entry of `known` that `name` most likely stands for, or None if none is close.

    A dotted key is also found by its last part: `anchors` gives `attention.anchors`.
    """
    by_last_part = [key for key in known if key.rpartition(".")[2] == name.rpartition(".")[2]]
    if by_last_part:
        return by_last_part[0]
    # users leave out the group of a setting: compare with the last parts as well
    candidates = {key.rpartition(".")[2]: key for key in reversed(known)} | {key: key for key in known}
    matches = difflib.get_close_matches(name, candidates, n=1, cutoff=0.6)
    return candidates[matches[0]] if matches else None


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return a hint such as `did you mean frames?`, or "" if no entry of `known` is close to `name`."""
    meant = nearest(name, known)
    return f"did you mean {meant}?" if meant else ""


def one_line(text: object) -> str:
    """Return any text, such as another library's error, as a single line without control characters."""
    return escaped(" ".join(str(text).split()))


def escaped(text: str) -> str:
    """Return text with the characters of `CONTROL` escaped as in Python, JSON and YAML: `\\u2028`."""
    return CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def described(error: Exception, rank: int | None = None) -> VinfinityError:
    """Return any error as users see it. An unexpected error becomes the cause of an UnexpectedError.

    rank: the rank to name in the message, if there are several.
    """
    if isinstance(error, VinfinityError):
        return error
    whose = "" if rank is None else f"rank {rank}: "
    unexpected = UnexpectedError(f"{whose}{type(error).__name__}: {one_line(error)} ({_place(error)})")
    unexpected.__cause__ = error
    return unexpected


def error_of(exit_code: int, message: str) -> VinfinityError:
    """Return the error of another rank, which sends only its exit code and its message.

    A class that shares its exit code arrives as another one: DamagedError as OutputError, and InputError as
    VinfinityError with the same exit code, because an InputError has more attributes than a message.
    """
    kinds: list[type[VinfinityError]] = [RankError, OutputError, NotFiniteError, BusyError, Stopped]
    kind = next((kind for kind in kinds if kind.exit_code == exit_code), VinfinityError)
    return kind(message, exit_code)


def exit_codes() -> list[tuple[int, str, str]]:
    """Return rows of (exit code, what happened, what to do), by ascending exit code."""
    kinds: list[type[VinfinityError]] = [
        VinfinityError,
        UnexpectedError,
        InputError,
        WeightsError,
        OutOfMemoryError,
        RankError,
        OutputError,
        DamagedError,
    ]
    kinds += [NotFiniteError, BusyError, LimitError, Stopped, BatchError]
    rows = [(kind.exit_code, _meaning(kind), kind.advice) for kind in kinds]
    rows += [
        (0, "Success.", "Nothing to do."),
        (
            INTERRUPTED,
            "Ctrl-C interrupted the command before a run had begun, or was pressed twice during a run.",
            "Run the command again, or `vinfinity resume`.",
        ),
    ]
    return sorted(rows, key=lambda row: row[0])


def _place(error: Exception) -> str:
    """Return the file and line of the innermost call within the package."""
    calls = traceback.extract_tb(error.__traceback__)
    call = next((call for call in reversed(calls) if call.filename.startswith(str(PACKAGE))), calls[-1])
    return f"{Path(call.filename).name}:{call.lineno}"


def _meaning(kind: type[VinfinityError]) -> str:
    """Return the first line of a class's docstring."""
    return (kind.__doc__ or "").partition("\n")[0]


def _rebuild(
    kind: type[VinfinityError], args: tuple[Any, ...], attributes: Mapping[str, Any]
) -> VinfinityError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


def _shown(value: object) -> str:
    """Return `value` as a message shows it: quoted if it would be invisible, truncated if it is long."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    if isinstance(value, str | PurePath) and (not text or text != text.strip() or CONTROL.search(text)):
        text = repr(text)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."
