"""The rows of a batch: one prompt per line, or any settings in YAML, JSON, JSON lines or CSV. Imports no torch."""

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vinfinity.batch.faults import Faults
from vinfinity.config import Layer, parse_yaml, read_row
from vinfinity.errors import InputError

# the remedy for a row that is neither a prompt nor settings
REMEDY = "write a prompt, or settings such as `prompt: a red ball`"

# maximum number of values in a YAML file, with its aliases expanded
MOST_VALUES = 1_000_000


@dataclass(frozen=True)
class Row:
    """A row: its number, from 1, and its settings, whose origin is like `prompts.csv, row 3, line 4`."""

    number: int
    layer: Layer

    @property
    def origin(self) -> str:
        return self.layer.origin


@dataclass(frozen=True)
class _Entry:
    """A row as read from a file.

    content: a prompt, or settings by name. line: the line where the row begins, from 1; None if unknown. written:
    whether values are text, as in CSV.
    """

    content: object
    line: int | None = None
    written: bool = False


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a file: .csv, .tsv, .jsonl, .json or .yaml; any other file has one prompt per line.

    The first line of a CSV file names the columns, and an empty cell leaves its setting open. Raises InputError, after
    logging further faults, each with its row and column.
    """
    readers: Mapping[str, Callable[[Path, str], Iterator[_Entry]]] = {
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".jsonl": _read_json_lines,
        ".ndjson": _read_json_lines,
        ".json": _read_json,
        ".yaml": _read_yaml,
        ".yml": _read_yaml,
    }
    read = readers.get(path.suffix.lower(), _read_lines)
    entries = list(read(path, _read_text(path)))
    if not entries:
        raise InputError("FILE", path, "write one prompt per line", problem="has no rows")
    return rows_of(entries, name=path.name)


def python_rows(given: Sequence[str | Mapping[str, Any]]) -> list[Row]:
    """Return the rows given in Python: prompts, or settings by name. Raises InputError."""
    if isinstance(given, str | Mapping) or not given:
        problem = "is not a list of rows" if given else "has no rows"
        raise InputError(
            "rows", given or "an empty list", "pass prompts, or mappings of settings", problem=problem
        )
    return rows_of([_Entry(content) for content in given], name="rows")


def rows_of(entries: Sequence[_Entry], *, name: str) -> list[Row]:
    """Return rows with their settings by dotted key. name: the file's name. Raises InputError, see `read_rows`."""
    rows, faults = [], Faults()
    for number, entry in enumerate(entries, 1):
        line = f", line {entry.line}" if entry.line is not None else ""
        origin = f"{name}, row {number}{line}"
        with faults.noted():
            rows.append(Row(number, _layer(entry, origin)))
    faults.check()
    return rows


def _layer(entry: _Entry, origin: str) -> Layer:
    content = entry.content
    if isinstance(content, str):
        content = {"prompt": content}
    if not isinstance(content, Mapping):
        raise InputError("row", content, REMEDY, problem="is not a row", source=origin)
    layer = read_row(content, origin=origin, written=entry.written)
    if not str(layer.values.get("prompt", "a prompt for all")).strip():
        raise InputError("prompt", "", "describe the video", problem="is blank", source=origin)
    return layer


# ---- formats ----


def _read_text(path: Path) -> str:
    if not os.path.isfile(path):
        problem = "is not a file" if os.path.exists(path) else "does not exist"
        raise InputError("FILE", path, "check the path", problem=problem)
    try:
        # Excel writes a byte order mark
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        remedy = "check its permissions and encoding (UTF-8)"
        raise InputError("FILE", path, remedy, problem="cannot be read") from error


def _read_lines(_: Path, text: str) -> Iterator[_Entry]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _Entry(line.strip(), number)


def _read_json_lines(path: Path, text: str) -> Iterator[_Entry]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _Entry(_parse_json(path, line, first_line=number), number)


def _read_json(path: Path, text: str) -> Iterator[_Entry]:
    yield from _entries(path, _parse_json(path, text) if text.strip() else [])


def _read_yaml(path: Path, text: str) -> Iterator[_Entry]:
    rows = parse_yaml(path, text, field="FILE", most=MOST_VALUES)
    yield from _entries(path, [] if rows is None else rows)


def _entries(path: Path, rows: object) -> Iterator[_Entry]:
    if not isinstance(rows, list):
        remedy = "write a list of rows; put settings of all rows into a file for --config"
        raise InputError("FILE", path, remedy, problem="is not a list of rows")
    yield from (_Entry(row) for row in rows)


def _parse_json(path: Path, text: str, *, first_line: int = 1) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        line = first_line + getattr(error, "lineno", 1) - 1
        reason = getattr(error, "msg", "not JSON")
        problem = f"is not valid JSON at line {line} ({reason})"
        raise InputError("FILE", path, "correct the line", problem=problem) from None


def _read_csv(path: Path, text: str) -> Iterator[_Entry]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            if columns is None and any(cell.strip() for cell in cells):
                columns = _check_columns(path, [cell.strip() for cell in cells])
            elif columns is not None and any(cell.strip() for cell in cells):
                yield _Entry(_by_column(path, columns, cells, line), line, written=True)
            line = reader.line_num + 1
    except csv.Error as error:
        problem = f"is not valid CSV at line {reader.line_num} ({error})"
        raise InputError("FILE", path, "correct the line", problem=problem) from None


def _check_columns(path: Path, columns: list[str]) -> list[str]:
    """Return the names of the columns. Raises InputError if they cannot be used."""
    source = f"{path.name}, line 1"
    for column in columns:
        if columns.count(column) > 1:
            raise InputError("column", column, "keep one of them", problem="appears twice", source=source)
    if len(columns) == 1 and any(mark in columns[0] for mark in ";\t"):
        remedy = "separate columns with commas, or with tabs in a file that ends in .tsv"
        raise InputError("column", columns[0], remedy, problem="is not the name of a setting", source=source)
    return columns


def _by_column(path: Path, columns: list[str], cells: list[str], line: int) -> dict[str, str]:
    """Return the nonempty cells by column. Raises InputError if a row has more cells than columns."""
    extra = [cell for cell in cells[len(columns) :] if cell.strip()]
    if extra:
        problem = f"is in no column: the row has {len(cells)} cells, and there are {len(columns)} columns"
        remedy = "put text with commas in double quotes"
        raise InputError("cell", extra[0], remedy, problem=problem, source=f"{path.name}, line {line}")
    return {column: cell.strip() for column, cell in zip(columns, cells, strict=False) if cell.strip()}
