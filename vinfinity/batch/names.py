"""File names from a template such as `{index:04}-{slug}-{seed}.mp4`. Imports no torch."""

import os
import string
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from vinfinity.errors import InputError, did_you_mean

# unique in any batch: rows differ in index, and the videos of a row in seed
DEFAULT = "{index:04}-{slug}-{seed}.mp4"
# what a template may name in addition to the settings of the video
FIELDS = ("index", "sample", "slug")


class _Template(string.Formatter):
    """A formatter that looks up fields by their full names: `{attention.local}` is a key, not an attribute."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, str]:
        return kwargs[field_name], field_name


def file_name(field: str, template: str, values: Mapping[str, object], *, origin: str) -> str:
    """Return the path of a video inside the folder of its batch.

    field: the setting that holds the template. values: what the template may name. origin: how messages name the row.
    Raises InputError if the template names something else, or if the path would leave the folder.
    """
    try:
        name = _Template().vformat(template, (), values)
    except KeyError as error:
        unknown = str(error.args[0])
        remedy = did_you_mean(unknown, list(values)) or f"use {', '.join(FIELDS)}, or a setting such as seed"
        problem = f"names {{{unknown}}}, which a video does not have"
        raise InputError(field, template, remedy, problem=problem, source=origin) from None
    except (ValueError, TypeError, IndexError) as error:
        remedy = "write it like {index:04}-{slug}.mp4, with {{ for a brace"
        raise InputError(
            field, template, remedy, problem=f"is not a valid template ({error})", source=origin
        ) from None
    _check_values(field, template, values, origin=origin)
    path = PurePath(name)
    if path.is_absolute() or ".." in path.parts or name.startswith("~"):
        remedy = "use a name inside it, and set the folder with --folder"
        raise InputError(field, name, remedy, problem="leaves the folder of the batch", source=origin)
    return name


def _check_values(field: str, template: str, values: Mapping[str, object], *, origin: str) -> None:
    """Raise InputError if a value contains a slash, which would name a folder."""
    for _, name, _, _ in string.Formatter().parse(template):
        value = str(values[name]) if name else ""
        if "/" in value or "\0" in value:
            problem = f"would create folders at each / of {name}: {value}"
            raise InputError(field, template, "use {slug}, or rename it", problem=problem, source=origin)


class Taken:
    """The files of the videos so far, to find two videos that would share a file."""

    def __init__(self) -> None:
        self._by_path: dict[str, str] = {}

    def add(self, field: str, path: Path, shown: str, *, origin: str) -> None:
        """Add a path; raise InputError if another video has it. shown: how messages name the path."""
        normal = os.path.normpath(path.absolute())
        if normal in self._by_path:
            remedy = "add {index}, {seed} or {sample} to tell them apart"
            problem = f"is also the name for {self._by_path[normal]}"
            raise InputError(field, shown, remedy, problem=problem, source=origin)
        self._by_path[normal] = origin
