"""What commands print, and how errors are reported."""

import contextlib
import os
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from vinfinity.errors import UnexpectedError, described
from vinfinity.system.folders import check_temporary_directory, check_working_directory
from vinfinity.system.pytorch import prefer_expandable_segments, require_torch
from vinfinity.system.signals import Shutdown

# maximum width of a column, in characters; a longer cell overflows
WIDEST_CELL = 44


@dataclass
class Invocation:
    """The `obj` of Typer's context: shutdown requests, and whether --debug was given before the command."""

    shutdown: Shutdown
    debug: bool = False


Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def print_columns(rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows of equal length on stdout. On a terminal, the first column is bold, and all from the third dim."""
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


def import_engine() -> None:
    """Import torch and everything built on it, which takes seconds; later imports of the package are instant.

    Raises InputError if torch is too old or the working directory was deleted, OutputError if there is no directory for
    temporary files.
    """
    check_working_directory()
    check_temporary_directory()
    require_torch()
    prefer_expandable_segments(os.environ)
    import vinfinity.run  # noqa: F401


@contextlib.contextmanager
def reported(context: typer.Context, *, debug: bool) -> Iterator[Shutdown]:
    """Turn errors of the block into one line on stderr and an exit code; yield the shutdown requests.

    debug: show the traceback of an error above its line.
    """
    from vinfinity.system.progress import fail

    invocation: Invocation = context.obj
    debug = debug or invocation.debug
    try:
        yield invocation.shutdown
    except (typer.Exit, typer.Abort, BrokenPipeError):
        # these are not errors; Typer handles them
        raise
    except KeyboardInterrupt:
        code, message = invocation.shutdown.outcome()
        fail(message)
        raise typer.Exit(code) from None
    except Exception as error:
        if debug:
            traceback.print_exc()
        shown = described(error)
        # the errors of started ranks have no cause here: those ranks have already printed their tracebacks
        hidden = isinstance(shown, UnexpectedError) and shown.__cause__ is not None and not debug
        hint = "; run again with --debug for the traceback" if hidden else ""
        fail(f"{shown.message}{hint}")
        raise typer.Exit(shown.exit_code) from error
