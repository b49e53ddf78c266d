"""The errors that users see: one line each, without a traceback, and an exit code per class.

docs/reference/exit-codes.md is generated from this module: the first sentence of a class's docstring says what
happened, its `advice` what to do about it.
"""

import difflib
import re
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, ClassVar, Self

INTERRUPTED = 130
PACKAGE = Path(__file__).parent
# Characters that would break a line or steer a terminal, and Python's stand-ins for bytes that are not UTF-8.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
LONGEST_VALUE = 200


class VinfinityError(Exception):
    """An error of another kind, such as a download that failed, or a fault that `vinfinity doctor` found.

    `message` is one line for users. `exit_code` is what the process exits with; a class has its own.
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
        # Ranks send errors to the process that started them: class, message and every other attribute arrive.
        return _rebuild, (type(self), self.args, dict(self.__dict__))


class UnexpectedError(VinfinityError):
    """An unexpected error occurred: a bug."""

    advice = "Run the command again with `--debug` and report it."


class InputError(VinfinityError):
    """The input cannot be used; nothing has been computed.

    Reads as one line, `FIELD: VALUE (SOURCE) PROBLEM; REMEDY`. Source and problem are optional, as in
    `frames: 0 (--frames) is less than 1; ask for at least one frame`.
    """

    exit_code = 2
    advice = "Change what the line names; it says what would be accepted."

    def __init__(
        self, field: str, value: object, remedy: str, *, problem: str = "", source: str | None = None
    ) -> None:
        self.field, self.value, self.remedy = field, value, remedy
        self.problem, self.source = problem, source
        parts = [_shown(value), f"({source})" if source else "", problem]
        super().__init__(f"{field}: {' '.join(part for part in parts if part)}; {remedy}")

    def from_source(self, source: str) -> Self:
        """The same error with the source of the value added (`--frames`, `run.yaml`)."""
        return type(self)(self.field, self.value, self.remedy, problem=self.problem, source=source)

    def about(self, field: str) -> Self:
        """The same error about a field of another name, such as the flag that set it."""
        return type(self)(field, self.value, self.remedy, problem=self.problem, source=self.source)


class WeightsError(InputError):
    """Weights are missing, truncated, or do not fit the network; also what `vinfinity models show` found wrong."""

    advice = "Check the model with `vinfinity models show`, or fetch it again."


class OutOfMemoryError(VinfinityError):
    """A GPU or the host ran out of memory."""

    exit_code = InputError.exit_code
    advice = "Do one of the things that the line proposes."


class RankError(VinfinityError):
    """A rank failed, is late, or differs from the others.

    The message names the rank and what the others were waiting for.
    """

    exit_code = 3
    advice = "Read the end of the run's `log.txt`, then run `vinfinity resume`."


class OutputError(VinfinityError):
    """A file could not be written or read: the disk is full or fails, a codec is missing, or the encoder failed."""

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
    """A video is beyond a limit that was given to `vinfinity evaluate`; everything was measured."""

    exit_code = 7
    advice = "Nothing, if the command was to sort videos: the lines before it name the video, the figure and the limit."


class BatchError(VinfinityError):
    """Videos of a batch failed; all others are made. The code is 100 plus their number, at most 125."""

    exit_code = 101
    advice = "Read the line of each, and run the same command to try them again."

    def __init__(self, message: str, *, failed: int) -> None:
        super().__init__(message, min(100 + failed, 125))


class Stopped(VinfinityError):
    """The run was asked to stop; if it had begun, it can be resumed."""

    # EX_TEMPFAIL of sysexits.h: try again later
    exit_code = 75
    advice = "Run `vinfinity resume`, or the same command if the run had not begun; batch systems may requeue the job."


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The entry of `known` that `name` was most likely meant to be, or None where nothing is close.

    Also finds a dotted key by its last part: `anchors` gives `attention.anchors`.
    """
    by_last_part = [key for key in known if key.rpartition(".")[2] == name.rpartition(".")[2]]
    if by_last_part:
        return by_last_part[0]
    # "samplr" is close to "attention.samplr" in a user's mind: compare with the last parts too.
    candidates = {key.rpartition(".")[2]: key for key in reversed(known)} | {key: key for key in known}
    matches = difflib.get_close_matches(name, candidates, n=1, cutoff=0.6)
    return candidates[matches[0]] if matches else None


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """`did you mean frames?`, or nothing where no entry of `known` is close to `name`."""
    meant = nearest(name, known)
    return f"did you mean {meant}?" if meant else ""


def one_line(text: object) -> str:
    """Any text, such as an error of another library, on a single line without control characters."""
    return escaped(" ".join(str(text).split()))


def escaped(text: str) -> str:
    """Text with each character of `CONTROL` as Python, JSON and YAML write it: `\\u2028`."""
    return CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def described(error: Exception, rank: int | None = None) -> VinfinityError:
    """Any error as users see it; an unexpected one is the cause of what is returned. rank: if there are several."""
    if isinstance(error, VinfinityError):
        return error
    whose = "" if rank is None else f"rank {rank}: "
    described = UnexpectedError(f"{whose}{type(error).__name__}: {one_line(error)} ({_place(error)})")
    described.__cause__ = error
    return described


def error_of(exit_code: int, message: str) -> VinfinityError:
    """The error that another rank has described by its exit code and its message."""
    # of exit code 2 there are several kinds, which need more than a message
    kinds: list[type[VinfinityError]] = [RankError, OutputError, NotFiniteError, BusyError, Stopped]
    kind = next((kind for kind in kinds if kind.exit_code == exit_code), VinfinityError)
    return kind(message, exit_code)


def exit_codes() -> list[tuple[int, str, str]]:
    """(exit code, what happened, what to do), in ascending order of the codes."""
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
        (0, "The command has done its work.", "Nothing."),
        (
            INTERRUPTED,
            "Ctrl-C interrupted the command before a run had begun, or a run for the second time.",
            "Run the command again, or `vinfinity resume`.",
        ),
    ]
    return sorted(rows, key=lambda row: row[0])


def _place(error: Exception) -> str:
    """File and line of the innermost call within the package."""
    calls = traceback.extract_tb(error.__traceback__)
    call = next((call for call in reversed(calls) if call.filename.startswith(str(PACKAGE))), calls[-1])
    return f"{Path(call.filename).name}:{call.lineno}"


def _meaning(kind: type[VinfinityError]) -> str:
    """The first line of a class's docstring."""
    return (kind.__doc__ or "").partition("\n")[0]


def _rebuild(
    kind: type[VinfinityError], args: tuple[Any, ...], attributes: Mapping[str, Any]
) -> VinfinityError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


def _shown(value: object) -> str:
    """`value` as a message shows it: quoted where it would be invisible, cut where it is long."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    if isinstance(value, str | PurePath) and (not text or text != text.strip() or CONTROL.search(text)):
        text = repr(text)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."
