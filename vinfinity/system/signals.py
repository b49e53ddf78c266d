"""Requests to end a run: signals from a scheduler, a user or a launcher, heeded where nothing is lost by it."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Self

from vinfinity.errors import Stopped

# What SLURM sends before a job's time is over, what it and launchers end processes with, and Ctrl-C.
SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)


class Stops:
    """Whether this process was asked to end.

    Within `heeded`, a request raises Stopped at once, with what `kept` says; within `noted` it is only noted in
    `asked`, for the block to act on where it can go on later. Ctrl-C after any other request is a KeyboardInterrupt
    at once.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self.kept = "stopped before anything was computed"
        self._only_noted = False

    @contextlib.contextmanager
    def heeded(self) -> Iterator[Self]:
        """Takes over the signals until the block ends, but for those that this process was told to ignore."""
        before = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere Python cannot take them over
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    before[number] = signal.signal(number, self._hear)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Until the block ends, requests wait in `asked`."""
        self._only_noted = True
        try:
            yield
        finally:
            self._only_noted = False

    def _hear(self, number: int, _: FrameType | None) -> None:
        again = self.asked is not None
        self.asked = self.asked or signal.Signals(number)
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self._only_noted:
            raise Stopped(self.kept)
