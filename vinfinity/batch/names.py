"""File names from a template such as `{index:04}-{slug}-{seed}.mp4`. Imports no torch."""

import os
import string
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from vinfinity.errors import InputError, did_you_mean

# unique in any batch: rows differ in their index, and the videos of a row in their seed
DEFAULT = "{index:04}-{slug}-{seed}.mp4"
# what a template may name beside the settings of the video
FIELDS = ("index", "sample", "slug")


class _Template(string.Formatter):
    """Replaces fields by values, by their whole names: `{attention.local}` is no attribute of anything."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, str]:
        return kwargs[field_name], field_name


def file_name(field: str, template: str, values: Mapping[str, object], *, origin: str) -> str:
    """The path of a video inside the folder of its batch. field: the setting that holds the template.

    values: those that the template may name. origin: the row in messages. Raises InputError if the template names
    others, or if the path would leave the folder.
    """
    try:
        name = _Template().vformat(template, (), values)
    except KeyError as error:
        unknown = str(error.args[0])
        remedy = did_you_mean(unknown, list(values)) or f"use {', '.join(FIELDS)}, or a setting such as seed"
        problem = f"names {{{unknown}}}, which a video does not have"
        raise InputError(field, template, remedy, problem=problem, source=origin) from None
    except (ValueError, TypeError, IndexError) as error:
        remedy = "write it such as {index:04}-{slug}.mp4, and {{ for a brace"
        raise InputError(
            field, template, remedy, problem=f"is no template ({error})", source=origin
        ) from None
    _check_values(field, template, values, origin=origin)
    path = PurePath(name)
    if path.is_absolute() or ".." in path.parts or name.startswith("~"):
        remedy = "give a name inside it, and the folder as --folder"
        raise InputError(field, name, remedy, problem="leaves the folder of the batch", source=origin)
    return name


def _check_values(field: str, template: str, values: Mapping[str, object], *, origin: str) -> None:
    """Raise InputError if a value with a slash would name a folder."""
    for _, name, _, _ in string.Formatter().parse(template):
        value = str(values[name]) if name else ""
        if "/" in value or "\0" in value:
            problem = f"would make folders of the / in {name}: {value}"
            raise InputError(field, template, "use {slug}, or rename it", problem=problem, source=origin)


class Taken:
    """The files of the videos so far, to find two that would share one."""

    def __init__(self) -> None:
        self._by_path: dict[str, str] = {}

    def add(self, field: str, path: Path, shown: str, *, origin: str) -> None:
        """Raise InputError if another video has this path. shown: the path in messages."""
        place = os.path.normpath(path.absolute())
        if place in self._by_path:
            remedy = "tell them apart by {index}, {seed} or {sample}"
            problem = f"is also the name for {self._by_path[place]}"
            raise InputError(field, shown, remedy, problem=problem, source=origin)
        self._by_path[place] = origin
