"""The report of batches: one HTML file with the paired test, the differences of all pairs, and their contact sheets."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vinfinity import __version__
from vinfinity.errors import escaped
from vinfinity.evaluation.compare import Comparison
from vinfinity.evaluation.figures import FIGURES
from vinfinity.evaluation.page import link_to, write_filled
from vinfinity.evaluation.report import (
    SIGNIFICANT,
    fidelity_rows,
    left_out_rows,
    length_of,
    pairs_of,
    tested_rows,
)
from vinfinity.evaluation.result import Evaluation, rounded, short_ends

# characters of all contact sheets together: a page of this size opens at once
SHEETS_SIZE = 16_000_000


def write_batch_page(
    path: Path, comparison: Comparison, sheets: Sequence[str], *, most: int = SHEETS_SIZE
) -> None:
    """Write the report of batches of pairs. sheets: data URLs of all videos' contact sheets, batch by batch.

    most: see SHEETS_SIZE. If the contact sheets are larger, pairs without remarkable differences get none. Raises
    OutputError.
    """
    comparison = replace(comparison, names=tuple(short_ends(comparison.names)))
    count = len(comparison.pairs)
    by_pair = [sheets[number::count] for number in range(count)]
    left = most
    for number in _remarkable(comparison):
        left -= sum(map(len, by_pair[number]))
        if left < 0:
            by_pair[number] = []
    data = {
        "names": comparison.names,
        "pairs": [
            {
                "name": escaped(name),
                "about": length_of(comparison.groups[0][number]),
                "links": [link_to(group[number].subject.path, path.parent) for group in comparison.groups],
                "sheets": by_pair[number],
            }
            for number, name in enumerate(comparison.pairs)
        ],
        "figures": [_figure(comparison, name) for name in FIGURES if _known(comparison, name)],
        "tests": [_tests(comparison, number) for number in range(1, len(comparison.groups))],
        "fidelity": fidelity_rows(comparison),
        "differing": comparison.differing_settings(),
        "left_out": left_out_rows(comparison.left_out, comparison.unpaired),
        "version": __version__,
    }
    write_filled(path, "batch", title=pairs_of(comparison), data=data)


def _remarkable(comparison: Comparison) -> Iterator[int]:
    """Return all pairs: first those with the largest and the smallest difference of each figure, then the next ones."""
    orders = [
        order
        for group in comparison.groups[1:]
        for name in FIGURES
        if (order := _order(comparison, group, name))
    ]
    seen: set[int] = set()
    for rank in range(len(comparison.pairs)):
        for order in orders:
            for pair in (order[rank], order[-1 - rank]) if rank < len(order) else ():
                if pair not in seen:
                    seen.add(pair)
                    yield pair
    yield from (pair for pair in range(len(comparison.pairs)) if pair not in seen)


def _order(comparison: Comparison, group: Sequence[Evaluation], name: str) -> list[int]:
    """Return the pairs that have a figure, by their difference."""
    differences = {}
    for number, (one, other) in enumerate(zip(comparison.groups[0], group, strict=True)):
        a, b = one.figures.get(name), other.figures.get(name)
        if a is not None and b is not None:
            differences[number] = b - a
    return sorted(differences, key=differences.__getitem__)


def _known(comparison: Comparison, name: str) -> bool:
    return any(one.figures.get(name) is not None for group in comparison.groups for one in group)


def _figure(comparison: Comparison, name: str) -> dict[str, Any]:
    """Return a figure with its value for each pair, by batch."""
    figure = FIGURES[name]
    return {
        "name": name,
        "title": figure.title,
        "unit": figure.unit,
        "meaning": figure.meaning,
        "better": figure.better,
        "digits": figure.digits,
        "beside": figure.beside,
        "values": [[rounded(one.figures.get(name)) for one in group] for group in comparison.groups],
    }


def _tests(comparison: Comparison, number: int) -> dict[str, Any]:
    """Return the paired tests of a batch, by figure, as numbers and as the cells of a table."""
    return {
        figure.name: {
            "mean": rounded(test.mean),
            "low": rounded(test.low),
            "high": rounded(test.high),
            "cells": cells,
            "stands_out": test.p < SIGNIFICANT,
        }
        for figure, test, cells in tested_rows(comparison, number)
    }
