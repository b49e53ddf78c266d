"""The faults of many rows, reported together."""

import contextlib
from collections.abc import Iterator

from vinfinity.errors import InputError
from vinfinity.system.progress import logger

# maximum number of faults to show
MOST_SHOWN = 10


class Faults:
    """The InputErrors of rows. A fault that several rows have in common is shown once."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str, str], InputError] = {}
        self._counts: dict[tuple[str, str, str], int] = {}

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Collect an InputError of the block, and continue after it."""
        try:
            yield
        except InputError as error:
            fault = error.field, str(error.value), error.problem
            self._found.setdefault(fault, error)
            self._counts[fault] = self._counts.get(fault, 0) + 1

    def check(self) -> None:
        """Raise the last InputError that was collected, if any, after logging the others as errors."""
        if not self._found:
            return
        self._add_counts()
        *before, last = list(self._found.values())[:MOST_SHOWN]
        for error in before:
            logger.error("%s", error.message)
        if len(self._found) > MOST_SHOWN:
            logger.error("there are %d more faults", len(self._found) - MOST_SHOWN)
        raise last

    def warn(self) -> None:
        """Log what was collected as warnings."""
        self._add_counts()
        for error in list(self._found.values())[:MOST_SHOWN]:
            logger.warning("%s", error.message)
        if len(self._found) > MOST_SHOWN:
            logger.warning("there are %d more like these", len(self._found) - MOST_SHOWN)

    def _add_counts(self) -> None:
        for fault, error in self._found.items():
            if (others := self._counts[fault] - 1) > 0:
                error.message += f" (and {others} more row{'s' * (others > 1)})"
