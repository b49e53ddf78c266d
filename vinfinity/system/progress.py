"""Progress on stderr: a bar with time left on a terminal, now and then a line elsewhere."""

import contextlib
import datetime
import time
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

T = TypeVar("T")

LOG_INTERVAL = 10.0  # seconds between the lines of a log


class Progress:
    """Shows how far a run is. With `enabled` off, as on ranks other than 0, it says nothing.

        with Progress() as progress:
            for step in progress.track(steps, label="denoising", unit="step"):
                ...

    On a terminal there is one bar per `track`; otherwise one line at most every `interval` seconds, and one
    when an iterable is done. `console` is where to write, stderr unless told. What is said in lines is also added to
    the file `log`, with the time of day.
    """

    def __init__(
        self,
        *,
        enabled: bool = True,
        console: Console | None = None,
        interval: float = LOG_INTERVAL,
        log: Path | None = None,
    ) -> None:
        self.enabled = enabled
        self._file = log
        self._console = console if console is not None else Console(stderr=True)
        self._interval = interval
        self._bars: RichProgress | None = None
        if enabled and self._console.is_terminal:
            self._bars = RichProgress(
                SpinnerColumn(finished_text="[green]✓[/]"),
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[unit]}"),
                _TimeColumn(),
                console=self._console,
            )

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def track(
        self, iterable: Iterable[T], *, label: str, total: int | None = None, unit: str = "step"
    ) -> Iterator[T]:
        """Passes the items on, and counts each as done when the next is asked for.

        total: how many there are, where the iterable does not know. unit: the singular of what is counted.
        """
        if total is None and isinstance(iterable, Sized):
            total = len(iterable)
        if not self.enabled:
            yield from iterable
        elif self._bars is not None:
            yield from self._track_by_bar(iterable, total=total, label=label, unit=unit)
        else:
            yield from self._track_by_lines(iterable, total=total, label=label, unit=unit)

    def note(self, message: str) -> None:
        """One line of information, above the bar; silent where progress is."""
        if self.enabled:
            note(message, console=self._console)
            self._log(message)

    def warn(self, message: str) -> None:
        """One line of warning, above the bar; silent where progress is."""
        if self.enabled:
            warn(message, console=self._console)
            self._log(f"warning: {message}")

    def _track_by_bar(
        self, iterable: Iterable[T], *, total: int | None, label: str, unit: str
    ) -> Iterator[T]:
        assert self._bars is not None
        task = self._bars.add_task(escape(label), total=total, unit=_plural(unit, total or 2))
        for item in iterable:
            yield item
            self._bars.advance(task)
        self._log(f"{label}: done")

    def _track_by_lines(
        self, iterable: Iterable[T], *, total: int | None, label: str, unit: str
    ) -> Iterator[T]:
        start = said = time.monotonic()
        done = 0
        for item in iterable:
            yield item
            done += 1
            now = time.monotonic()
            if now - said >= self._interval and done != total:
                said = now
                self._line(
                    f"{label}: {_count(done, total=total, unit=unit)}{_left(done, total, now - start)}"
                )
        self._line(f"{label}: {_count(done, total=None, unit=unit)} in {duration(time.monotonic() - start)}")

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        self._log(text)

    def _log(self, text: str) -> None:
        if self._file is not None:
            add_line(self._file, text)


def add_line(log: Path, text: str) -> None:
    """Adds a line with the time of day to a log. One that cannot be written is no reason to end a run."""
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    with contextlib.suppress(OSError), log.open("a", encoding="utf-8") as file:
        file.write(f"{now} {text}\n")


def note(message: str, *, console: Console | None = None) -> None:
    """Prints one line of information on stderr."""
    (console or Console(stderr=True)).print(message, markup=False, highlight=False, soft_wrap=True)


def warn(message: str, *, console: Console | None = None) -> None:
    """Prints `warning: MESSAGE` on stderr, in yellow where there is colour."""
    text = Text.assemble(("warning: ", "bold yellow"), message)
    (console or Console(stderr=True)).print(text, highlight=False, soft_wrap=True)


def fail(message: str) -> None:
    """Prints `error: MESSAGE` on stderr, in red where there is colour."""
    Console(stderr=True).print(
        Text.assemble(("error: ", "bold red"), message), highlight=False, soft_wrap=True
    )


def duration(seconds: float) -> str:
    """A time span for people: `0.8 s`, `41 s`, `3 min 07 s`, `2 h 05 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class _TimeColumn(ProgressColumn):
    """Time left by the mean pace so far (steps are few and even), then the time taken."""

    def render(self, task: Task) -> Text:
        elapsed = task.finished_time if task.finished else task.elapsed
        if elapsed is None or (not task.finished and not task.completed):
            return Text("")
        if task.finished:
            return Text(f"in {duration(elapsed)}", style="progress.elapsed")
        return Text(_left(task.completed, task.total, elapsed).lstrip(", "), style="progress.remaining")


def _left(done: float, total: float | None, elapsed: float) -> str:
    return f", {duration((total - done) * elapsed / done)} left" if total is not None else ""


def _count(done: int, *, total: int | None, unit: str) -> str:
    return f"{done} {_plural(unit, done)}" if total is None else f"{done} of {total} {_plural(unit, total)}"


def _plural(unit: str, count: float) -> str:
    return unit if count == 1 else f"{unit}s"
