"""Printing the measurements of videos, and how videos compare."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import typer

from vinfinity.errors import DamagedError, LimitError, escaped

if TYPE_CHECKING:
    from rich.console import Console

    from vinfinity.evaluation.api import Measured
    from vinfinity.evaluation.compare import Comparison
    from vinfinity.evaluation.limits import Limit
    from vinfinity.evaluation.result import Evaluation


def print_evaluations(measured: "Measured", limits: "Sequence[Limit]", *, as_json: bool) -> None:
    """Print the measurements. Raises LimitError if a video violates a limit.

    Raises DamagedError if one of several videos could not be measured.
    """
    from vinfinity.evaluation.limits import complaints

    evaluations = measured.evaluations
    beyond = {number: complaints(evaluation.figures, limits) for number, evaluation in enumerate(evaluations)}
    if as_json:
        objects = [
            {**evaluation.as_json(), "beyond": beyond[number]}
            for number, evaluation in enumerate(evaluations)
        ]
        alone = len(objects) == 1 and not measured.failures
        json.dump(objects[0] if alone else objects, sys.stdout, indent=1)
        typer.echo()
    elif evaluations:
        _print_tables(evaluations, beyond)
    failed = [number for number, lines in beyond.items() if lines]
    if not as_json:
        for number in failed:
            for line in beyond[number]:
                typer.echo(f"limit violated: {escaped(evaluations[number].name)}: {line}")
    if measured.failures:
        total = len(evaluations) + len(measured.failures)
        raise _some_failed(f"{len(measured.failures)} of {total} videos cannot be measured", measured)
    if failed:
        which = f"{len(failed)} of {len(evaluations)} videos" if len(evaluations) > 1 else "the video"
        verb = "violates" if len(failed) == 1 else "violate"
        first = evaluations[failed[0]].name
        raise LimitError(f"{which} {verb} a limit, such as {first}: {beyond[failed[0]][0]}")


def print_comparison(comparison: "Comparison", measured: "Measured", *, as_json: bool) -> None:
    """Print how videos or batches compare. Raises DamagedError if pairs were left out."""
    if as_json:
        json.dump(comparison.as_json(), sys.stdout, indent=1)
        typer.echo()
    else:
        _print_comparison(comparison)
    if comparison.left_out:
        left = len(comparison.left_out)
        total = len(comparison.pairs) + left
        raise _some_failed(f"{left} of {total} pairs of videos cannot be compared", measured)


def _some_failed(head: str, measured: "Measured") -> DamagedError:
    first = next(iter(measured.failures.values()))
    return DamagedError(f"{head}, such as {first.message}")


def _console() -> "Console":
    """Return a console that prints names and settings literally, including brackets and colons."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)


def _print_comparison(comparison: "Comparison") -> None:
    from vinfinity.evaluation import report

    console = _console()
    if comparison.pairs:
        console.print(report.pairs_of(comparison))
        for line in report.left_out_rows(comparison.left_out, comparison.unpaired):
            # paths must not be wrapped
            console.print(line, soft_wrap=True)
        for number in range(1, len(comparison.groups)):
            console.print(report.test_table(comparison, number))
    else:
        _print_tables(comparison.evaluations, {})
    for line in report.fidelity_rows(comparison):
        console.print(line)
    settings = report.settings_table(comparison)
    if settings is not None:
        console.print(settings)


def _print_tables(evaluations: "Sequence[Evaluation]", beyond: Mapping[int, Sequence[str]]) -> None:
    from vinfinity.evaluation import report

    console = _console()
    if len(evaluations) == 1:
        console.print(report.length_of(evaluations[0]))
    for table in report.tables(evaluations, beyond=beyond):
        console.print(table)
    if len(evaluations) > report.MOST_COLUMNS:
        return
    for evaluation in evaluations:
        head = f"{escaped(evaluation.name)}: " if len(evaluations) > 1 else ""
        for line in report.notes(evaluation):
            console.print(f"{head}{line}")
