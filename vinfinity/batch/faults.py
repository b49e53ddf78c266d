"""The faults of many rows, reported together."""

import contextlib
from collections.abc import Iterator

from vinfinity.errors import InputError
from vinfinity.system.progress import logger

# the most faults that are shown
MOST = 10


class Faults:
    """Collects the InputErrors of blocks, one for each row; `check` shows them, and the same fault only once."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str, str], InputError] = {}
        self._counts: dict[tuple[str, str, str], int] = {}

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Go on after the block if it raises InputError."""
        try:
            yield
        except InputError as error:
            fault = error.field, str(error.value), error.problem
            self._found.setdefault(fault, error)
            self._counts[fault] = self._counts.get(fault, 0) + 1

    def check(self) -> None:
        """Raise InputError if any fault was found: the last one, after the others were logged as errors."""
        if not self._found:
            return
        self._add_counts()
        *before, last = list(self._found.values())[:MOST]
        for error in before:
            logger.error("%s", error.message)
        if len(self._found) > MOST:
            logger.error("there are %d more faults", len(self._found) - MOST)
        raise last

    def warn(self) -> None:
        """Log what was found as warnings, if anything was."""
        self._add_counts()
        for error in list(self._found.values())[:MOST]:
            logger.warning("%s", error.message)
        if len(self._found) > MOST:
            logger.warning("there are %d more like these", len(self._found) - MOST)

    def _add_counts(self) -> None:
        for fault, error in self._found.items():
            if (others := self._counts[fault] - 1) > 0:
                error.message += f" (and {others} more row{'s' * (others > 1)})"
