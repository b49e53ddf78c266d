"""Shutdown signals, acted on only where no work is lost."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, Self

from vinfinity.errors import Stopped

# SLURM's warning before a time limit, the usual request to end, and Ctrl-C.
SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)


class Shutdown:
    """Whether this process was asked to end, and what happens then.

    A request is a state: `requested` holds the first signal and stays set. While signals are handled, a signal also
    raises Stopped at once, unless handling is deferred. Since library code may swallow an exception raised from a
    signal handler, `check` raises Stopped again at the start of each phase. Ctrl-C after any other request raises
    KeyboardInterrupt.

    message: what Stopped tells the user; it changes as work is saved.
    """

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self.interrupted_again = False
        self.message = "stopped before anything was computed"
        self._deferred = 0

    @contextlib.contextmanager
    def handled(self, *, enabled: bool = True) -> Iterator[Self]:
        """Take over the shutdown signals until the block ends, except those that the process ignores.

        enabled: False leaves all signals as they are, as a library must.
        """
        before: dict[int, Any] = {}
        # Python can take signals over in the main thread only
        if enabled and threading.current_thread() is threading.main_thread():
            for name in SIGNALS:
                if signal.getsignal(name) is not signal.SIG_IGN:
                    before[name] = signal.signal(name, self._receive)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Until the block ends, a signal only sets `requested`."""
        self._deferred += 1
        try:
            yield
        finally:
            self._deferred -= 1

    def check(self) -> None:
        """Raise Stopped if the process was asked to end."""
        if self.requested is not None:
            raise Stopped(self.message)

    def _receive(self, number: int, _: FrameType | None) -> None:
        again = self.requested is not None
        self.requested = self.requested or signal.Signals(number)
        if again and number == signal.SIGINT:
            self.interrupted_again = True
            raise KeyboardInterrupt
        if not self._deferred:
            raise Stopped(self.message)
