"""The faults of many rows, reported together."""

import contextlib
from collections.abc import Iterator

from vinfinity.errors import InputError
from vinfinity.system.progress import logger

# the most faults that are shown
MOST = 10


class Faults:
    """Collects the InputErrors of blocks; `check` shows all of them."""

    def __init__(self) -> None:
        self._found: list[InputError] = []

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Go on after the block if it raises InputError."""
        try:
            yield
        except InputError as error:
            self._found.append(error)

    def check(self) -> None:
        """Raise InputError if any fault was found: the last one, after the others were logged as errors."""
        if not self._found:
            return
        *others, last = self._found[:MOST]
        for error in others:
            logger.error("%s", error.message)
        if len(self._found) > MOST:
            logger.error("there are %d more faults", len(self._found) - MOST)
        raise last
