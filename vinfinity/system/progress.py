"""Messages and progress bars. As a library the package only logs; the command line shows its log on stderr."""

import contextlib
import copy
import datetime
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self, TypeVar, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from vinfinity.errors import one_line

if TYPE_CHECKING:
    from vinfinity.system.overall import Overall

T = TypeVar("T")

# seconds between two lines of progress without a terminal
LOG_INTERVAL = 10.0

logger = logging.getLogger("vinfinity")
# without a handler, logging's last resort would print the warnings of a library
logger.addHandler(logging.NullHandler())


class ForgivingStderr:
    """stderr for messages: a full disk, a closed pipe or a narrow encoding loses the message, never the run."""

    @property
    def encoding(self) -> str:
        return getattr(sys.stderr, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(text.encode(self.encoding, "replace").decode(self.encoding))
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.flush()

    def isatty(self) -> bool:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return sys.stderr.isatty()
        return False

    def fileno(self) -> int:
        return sys.stderr.fileno()


def stderr_console() -> Console:
    """Return a console on stderr that never raises."""
    return Console(file=cast(IO[str], ForgivingStderr()))


class TerminalHandler(logging.Handler):
    """Prints log records on a console: warnings as `warning: MESSAGE`, errors as `error: MESSAGE`."""

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(logging.INFO)
        self.console = console if console is not None else stderr_console()

    def emit(self, record: logging.LogRecord) -> None:
        _print(record.getMessage(), level=record.levelno, console=self.console)


@contextlib.contextmanager
def messages_shown(console: Console | None = None) -> Iterator[None]:
    """Show what the package logs until the block ends, unless it is shown already."""
    if terminal_console() is not None:
        yield
        return
    handler, level = TerminalHandler(console), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def terminal_console() -> Console | None:
    """Return the console that messages are shown on, or None where the package is used as a library."""
    handlers = (handler for handler in logger.handlers if isinstance(handler, TerminalHandler))
    return next((handler.console for handler in handlers), None)


class Progress:
    """The progress of a run.

        with Progress() as progress:
            for step in progress.track(steps, label="denoising", unit="step"):
                ...

    Where messages are shown on a terminal, each `track` draws a bar. Elsewhere a line is logged at most every
    `interval` seconds, and one when an iterable is exhausted. Notes, warnings and lines are also added to the file
    `log`, with the time of day. If `enabled` is False, as on ranks other than 0, nothing is shown or logged.

    overall: shows the progress instead of bars and lines, if the run is one of several. share: the part of the run's
    work that this progress covers, from and to, between 0 and 1.
    """

    def __init__(
        self,
        *,
        enabled: bool = True,
        interval: float = LOG_INTERVAL,
        log: Path | None = None,
        overall: "Overall | None" = None,
        share: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        self.enabled = enabled
        self._name, self._share = "", share
        self._warned: set[str] = set()
        self._file, self._interval, self._overall = log, interval, overall
        console = terminal_console()
        self._bars: RichProgress | None = None
        if enabled and overall is None and console is not None and console.is_terminal:
            self._bars = RichProgress(
                SpinnerColumn(finished_text="[green]✓[/]"),
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[unit]}"),
                _TimeColumn(),
                console=console,
            )

    def of_part(self, name: str, *, log: Path) -> "Progress":
        """Return the progress of a first part of the run: under its own name and log, within the display of the run.

        log: the part's own file.
        """
        part = copy.copy(self)
        part._name, part._share, part._file = f"{name}: ", (0.0, self._share[0]), log
        return part

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
        """Yield the items, and count each as done when the next one is requested.

        total: the number of items, for iterables without a length. unit: a singular noun for what is counted.
        """
        label = self._name + label
        if total is None and isinstance(iterable, Sized):
            total = len(iterable)
        if not self.enabled:
            yield from iterable
        elif self._overall is not None:
            for done, item in enumerate(iterable, 1):
                yield item
                self._overall.show(label, done, total, unit=unit, share=self._share)
            self._log(f"{label}: done")
        elif self._bars is not None:
            yield from self._track_by_bar(self._bars, iterable, total=total, label=label, unit=unit)
        else:
            yield from self._track_by_lines(iterable, total=total, label=label, unit=unit)

    def note(self, message: str) -> None:
        """Log one line of information."""
        if self.enabled:
            logger.info("%s", message)
            self._log(message)

    def warn(self, message: str) -> None:
        """Log one warning; if several runs, or parts of one, give the same warning, only the first."""
        if not self.enabled:
            return
        self._log(f"warning: {message}")
        if message not in self._warned and (self._overall is None or self._overall.is_news(message)):
            logger.warning("%s", message)
        self._warned.add(message)

    def _track_by_bar(
        self, bars: RichProgress, iterable: Iterable[T], *, total: int | None, label: str, unit: str
    ) -> Iterator[T]:
        task = bars.add_task(label, total=total, unit=_plural(unit, total or 2))
        for item in iterable:
            yield item
            bars.advance(task)
        self._log(f"{label}: done")

    def _track_by_lines(
        self, iterable: Iterable[T], *, total: int | None, label: str, unit: str
    ) -> Iterator[T]:
        start = last_line = time.monotonic()
        done = 0
        for item in iterable:
            yield item
            done += 1
            now = time.monotonic()
            if now - last_line >= self._interval and done != total:
                last_line = now
                self.note(
                    f"{label}: {_count(done, total=total, unit=unit)}{time_left(done, total, now - start)}"
                )
        self.note(f"{label}: {_count(done, total=None, unit=unit)} in {duration(time.monotonic() - start)}")

    def _log(self, text: str) -> None:
        if self._file is not None:
            add_line(self._file, text)


def add_line(log: Path, text: str) -> None:
    """Append a line with the time of day to a log file. A line that cannot be written never ends a run."""
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    with contextlib.suppress(OSError), log.open("a", encoding="utf-8") as file:
        file.write(f"{now} {one_line(text)}\n")


def note(message: str) -> None:
    """Print one line of information on stderr."""
    _print(message, level=logging.INFO)


def warn(message: str) -> None:
    """Print `warning: MESSAGE` on stderr, in yellow if colour is available."""
    _print(message, level=logging.WARNING)


def fail(message: str) -> None:
    """Print `error: MESSAGE` on stderr, in red if colour is available."""
    _print(message, level=logging.ERROR)


def _print(message: str, *, level: int, console: Console | None = None) -> None:
    label = ("error: ", "bold red") if level >= logging.ERROR else ("warning: ", "bold yellow")
    text = Text.assemble(label, message) if level >= logging.WARNING else Text(message)
    (console or terminal_console() or stderr_console()).print(text, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Format a duration for people: `0.8 s`, `41 s`, `3 min 07 s`, `2 h 05 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class _TimeColumn(ProgressColumn):
    """Time left at the mean pace so far (steps are few and even), then the time taken."""

    def render(self, task: Task) -> Text:
        elapsed = task.finished_time if task.finished else task.elapsed
        if elapsed is None or (not task.finished and not task.completed):
            return Text("")
        if task.finished:
            return Text(f"in {duration(elapsed)}", style="progress.elapsed")
        return Text(time_left(task.completed, task.total, elapsed).lstrip(", "), style="progress.remaining")


def time_left(done: float, total: float | None, elapsed: float) -> str:
    """Format the time left at the mean pace so far, such as `, 41 s left`; "" if the total is unknown."""
    return f", {duration((total - done) * elapsed / done)} left" if total is not None else ""


def _count(done: int, *, total: int | None, unit: str) -> str:
    return f"{done} {_plural(unit, done)}" if total is None else f"{done} of {total} {_plural(unit, total)}"


def _plural(unit: str, count: float) -> str:
    return unit if count == 1 else f"{unit}s"
