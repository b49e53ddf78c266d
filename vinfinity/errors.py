"""Errors that users see. The command line prints each as one line, without a traceback.

Exit codes: 0 done, 1 an unexpected error, 2 the input is not usable, 3 a rank failed or is late, 4 a file cannot be
written, 5 values that are no numbers, 6 another run is using the folder, 75 stopped on request and to be resumed, 130
interrupted. docs/runs.md tells what to do about each.
"""

import difflib
from collections.abc import Sequence
from typing import Self


class VinfinityError(Exception):
    """An expected failure: `message` is one line for users, `exit_code` what the process ends with."""

    exit_code = 1

    def __init__(self, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        if exit_code is not None:
            self.exit_code = exit_code

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[object, ...]:
        # errors travel between ranks; the message may have been extended on the way
        return (type(self), (self.message, self.exit_code))


class InputError(VinfinityError):
    """Input that cannot be used, found before any work is done.

    Reads as one line, `FIELD: VALUE (SOURCE) PROBLEM; REMEDY`; source and problem may be left out, as in
    `frames: 0 (--frames) is less than 1; ask for at least one frame`.
    """

    exit_code = 2

    def __init__(
        self, field: str, value: object, remedy: str, *, problem: str = "", source: str | None = None
    ) -> None:
        self.field, self.value, self.remedy = field, value, remedy
        self.problem, self.source = problem, source
        parts = [_shown(value), f"({source})" if source else "", problem]
        super().__init__(one_line(f"{field}: {' '.join(part for part in parts if part)}; {remedy}"))

    def __reduce__(self) -> tuple[object, ...]:
        # Ranks send errors to the parent process; by default pickle rebuilds one from its message alone.
        return (_rebuild, (type(self), self.field, self.value, self.remedy, self.problem, self.source))

    def said_by(self, source: str) -> Self:
        """The same error, naming where the value came from (`--frames`, `run.yaml`)."""
        return type(self)(self.field, self.value, self.remedy, problem=self.problem, source=source)


class WeightsError(InputError):
    """Weights that are missing, truncated, or do not fit the network they are loaded into."""


class OutputError(VinfinityError):
    """A file could not be written: the disk is full, a codec is missing, the encoder failed."""

    exit_code = 4


class NotFiniteError(VinfinityError):
    """The networks gave values that are no numbers."""

    exit_code = 5


class BusyError(VinfinityError):
    """Another run is using the same folder."""

    exit_code = 6


class Stopped(VinfinityError):
    """The run was asked to end and can be resumed. 75 is EX_TEMPFAIL of sysexits.h: try again later."""

    exit_code = 75


class RankError(VinfinityError):
    """A rank failed, differs from the others, or is late. The message names it and what was waited for."""

    exit_code = 3


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The entry of `known` that `name` was most likely meant to be, or None where nothing comes close.

    Besides misspellings it finds a dotted key by its last part: `anchors` gives `attention.anchors`.
    """
    by_last_part = [key for key in known if key.rpartition(".")[2] == name.rpartition(".")[2]]
    if by_last_part:
        return by_last_part[0]
    # "samplr" is as near to "attention.samplr" as users mean it: compare with the last parts too.
    candidates = {key.rpartition(".")[2]: key for key in reversed(known)} | {key: key for key in known}
    matches = difflib.get_close_matches(name, candidates, n=1, cutoff=0.6)
    return candidates[matches[0]] if matches else None


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """`did you mean frames?`, or nothing where no entry of `known` is close to `name`."""
    meant = nearest(name, known)
    return f"did you mean {meant}?" if meant else ""


def one_line(text: object) -> str:
    """Any text, such as an error of another library, on a single line."""
    return " ".join(str(text).split())


def _rebuild(
    kind: type[InputError], field: str, value: object, remedy: str, problem: str, source: str | None
) -> InputError:
    return kind(field, value, remedy, problem=problem, source=source)


def _shown(value: object) -> str:
    """`value` as it stands in a message: quoted where it would not be seen, shortened where it is long."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    if isinstance(value, str) and (not text.strip() or text != text.strip()):
        text = repr(text)
    return text if len(text) <= 200 else f"{text[:197]}..."
