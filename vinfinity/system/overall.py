"""The progress of several videos, made one after the other, in a single line."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as RichProgress

from vinfinity.system.progress import LOG_INTERVAL, logger, terminal_console, time_left


class Overall:
    """The progress of several videos: `video 13 of 50 (2 failed): denoising, 3 of 8 steps, 12 min 07 s left`.

    A bar where messages are shown on a terminal; elsewhere a log line at most every `interval` seconds.

    work: the work of each remaining video, in order, in any unit; the time left is estimated from it. total: the number
    of all videos. failed: how many have failed so far. enabled: False on ranks other than 0, which show nothing.
    """

    def __init__(
        self,
        work: Sequence[float],
        *,
        total: int,
        failed: int = 0,
        enabled: bool = True,
        interval: float = LOG_INTERVAL,
    ) -> None:
        self._work, self._total, self._failed = work, total, failed
        self._enabled, self._interval = enabled, interval
        self._finished = 0
        self._share = 0.0
        self._started = self._last_line = time.monotonic()
        self._warned: set[str] = set()
        console = terminal_console()
        self._bar: RichProgress | None = None
        if enabled and console is not None and console.is_terminal:
            self._bar = RichProgress(
                SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), console=console
            )
            self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self) -> None:
        """Begin the next video."""
        self._share = 0.0
        self._say("starting")

    def show(
        self,
        label: str,
        done: int,
        count: int | None,
        *,
        unit: str,
        share: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        """Show how far the current video is.

        label: for instance `denoising`. count: the total of the units, such as steps, if known. share: the part of the
        video's work that the label covers.
        """
        if count:
            # the other phases are short: encoding before denoising, decoding after it
            phase = label.rpartition(": ")[2]
            part = {"encoding": 0.0, "denoising": done / count}.get(phase, 1.0)
            self._share = share[0] + part * (share[1] - share[0])
        progress = f"{done} of {count} {unit}s" if count else f"{done} {unit}s"
        self._say(f"{label}, {progress}")

    def end(self, *, failed: bool = False) -> None:
        """End the current video."""
        self._finished += 1
        self._failed += failed
        self._share = 0.0

    def is_news(self, message: str) -> bool:
        """Return whether a warning is new, and remember it."""
        is_new = message not in self._warned
        self._warned.add(message)
        return is_new

    def line(self, state: str) -> str:
        """Return the line for a state of the current video."""
        before = self._total - len(self._work)
        failed = f" ({self._failed} failed)" if self._failed else ""
        return f"video {before + self._finished + 1} of {self._total}{failed}: {state}{self._time_left()}"

    def _time_left(self) -> str:
        done = sum(self._work[: self._finished]) + self._share * sum(
            self._work[self._finished : self._finished + 1]
        )
        return time_left(done, sum(self._work), time.monotonic() - self._started) if done else ""

    def _say(self, state: str) -> None:
        if not self._enabled:
            return
        if self._bar is not None:
            completed = self._total - len(self._work) + self._finished + self._share
            self._bar.update(self._task, description=self.line(state), completed=completed)
        elif time.monotonic() - self._last_line >= self._interval:
            self._last_line = time.monotonic()
            logger.info("%s", self.line(state))
