"""From a published config.json to the keyword arguments of a dataclass."""

import math
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import field, fields
from typing import Any

# Values that switch a feature off.
OFF: tuple[object, ...] = (None, False, 0, "", "default", [], {})

# The types of fields, as a message names them.
NAMES: Mapping[object, str] = {bool: "true or false", str: "text"}


def from_zero(default: Any) -> Any:
    """A dataclass field of whole numbers that may be 0; all others are read from 1 on."""
    return field(default=default, metadata={"least": 0})


def above_zero(default: Any) -> Any:
    """A dataclass field of numbers above 0; all others may be any number."""
    return field(default=default, metadata={"above": 0.0})


def known_fields(
    cls: type, values: Mapping[str, object], *, ignore: Collection[str] | None = ()
) -> dict[str, Any]:
    """The entries of `values` that are fields of the dataclass `cls`; lists become tuples, null means the default.

    Entries that `cls` does not have must be off (null, false, 0, empty or "default"), start with an underscore, or be
    listed in `ignore`. `ignore=None` skips all of them. Raises ValueError naming the first entry that is not supported,
    or that is not of its field's type.
    """
    # fields that do not count in comparisons say where a config comes from: no file has them
    known = {one.name: one for one in fields(cls) if one.compare}
    if ignore is not None:
        for key, value in values.items():
            if key not in known and key not in ignore and not key.startswith("_") and value not in OFF:
                raise ValueError(f"{key}: {value!r} is not supported")
    kinds = typing.get_type_hints(cls)
    return {
        key: _read(value, kinds[key], key=key, **known[key].metadata)
        for key, value in values.items()
        if key in known and value is not None
    }


def _read(value: object, kind: Any, *, key: str, least: int = 1, above: float | None = None) -> object:
    """A value from a JSON file as the type `kind`; lists become tuples. Raises ValueError.

    least: of whole numbers. above: what other numbers have to exceed, if anything.
    """
    if isinstance(kind, types.UnionType):
        options = [option for option in typing.get_args(kind) if option is not types.NoneType]
        lists = [option for option in options if typing.get_origin(option) is tuple]
        kind = lists[0] if lists and isinstance(value, list | tuple) else options[0]
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{key}: {value!r} is not a list")
        items = typing.get_args(kind)
        items = items[:1] * len(value) if items[-1] is ... else items
        if len(items) != len(value):
            raise ValueError(f"{key}: {value!r} is not a list of {len(items)}")
        return tuple(
            _read(item, kind, key=f"{key}[{index}]", least=least, above=above)
            for index, (item, kind) in enumerate(zip(value, items, strict=True))
        )
    if kind is int:
        fits, expected = type(value) is int and value >= least, f"a whole number from {least} on"
    elif kind is float:
        number = typing.cast(float, value)
        fits = type(value) in (int, float) and not math.isnan(number) and (above is None or number > above)
        expected = "a number" if above is None else f"a number above {above:g}"
    else:
        fits, expected = type(value) is kind, NAMES[kind]
    if not fits:
        raise ValueError(f"{key}: {value!r} is not {expected}")
    return value
