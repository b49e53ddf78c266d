"""What commands print, and how errors are reported."""

import contextlib
import signal
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from vinfinity.errors import VinfinityError
from vinfinity.system.signals import SIGNALS

WIDEST_CELL = 44  # characters; longer ones stand out of their column
INTERRUPTED = 130  # the exit code that shells give Ctrl-C
HERE = Path(__file__).parent.parent

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of unexpected errors.")]


def print_columns(rows: Sequence[tuple[str, ...]]) -> None:
    """Rows of equal length on stdout, the first column bold and those after the second dim where there is colour."""
    styles: list[dict[str, Any]] = [{"bold": True}, {}, *[{"dim": True}] * (len(rows[0]) - 2)]
    widths = [
        max((len(row[column]) for row in rows if len(row[column]) <= WIDEST_CELL), default=0)
        for column in range(len(rows[0]))
    ]
    for row in rows:
        padding = [*(width - len(cell) for width, cell in zip(widths[:-1], row, strict=False)), 0]
        cells = [
            (typer.style(cell, **style) if cell and style else cell) + " " * spaces
            for cell, spaces, style in zip(row, padding, styles, strict=False)
        ]
        typer.echo("  ".join(cells))


def shown(value: object) -> str:
    """A setting as it is written in YAML, short ones on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(shown(entry) for entry in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {shown(entry)}" for key, entry in value.items()) + "}"
    return str(value) or "(none)"


@contextlib.contextmanager
def held_interrupts() -> Iterator[None]:
    """Keeps Ctrl-C and other requests to end until the block ends: in the midst of importing torch they may be
    swallowed, or end in a crash."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def reported(*, debug: bool) -> Iterator[None]:
    """Turns errors into one line on stderr and an exit code. `debug` shows the traceback before it."""
    from vinfinity.system.progress import fail

    try:
        yield
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise  # no errors: Typer knows what to do with them
    except KeyboardInterrupt:
        fail("interrupted")
        raise typer.Exit(INTERRUPTED) from None
    except VinfinityError as error:
        if debug:
            traceback.print_exc()
        fail(error.message)
        raise typer.Exit(error.exit_code) from error
    except Exception as error:
        if debug:
            traceback.print_exc()
        again = "" if debug else "; run again with --debug for the traceback"
        fail(f"{type(error).__name__}: {' '.join(str(error).split())} ({_place(error)}){again}")
        raise typer.Exit(1) from error


def _place(error: Exception) -> str:
    """File and line of the innermost of our own calls on the way to an error."""
    here = str(HERE)
    calls = traceback.extract_tb(error.__traceback__)
    call = next((call for call in reversed(calls) if call.filename.startswith(here)), calls[-1])
    return f"{Path(call.filename).name}:{call.lineno}"
