"""The keyword arguments of a dataclass, from a published config.json."""

import math
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import field, fields
from typing import Any

# Values that disable a feature.
OFF_VALUES: tuple[object, ...] = (None, False, 0, "", "default", [], {})

# The types of fields, as messages name them.
TYPE_NAMES: Mapping[object, str] = {bool: "true or false", str: "text"}


def from_zero(default: Any) -> Any:
    """Declare a dataclass field of whole numbers that may be 0; in other fields they start at 1."""
    return field(default=default, metadata={"least": 0})


def above_zero(default: Any) -> Any:
    """Declare a dataclass field of numbers above 0; in other fields they may be any number."""
    return field(default=default, metadata={"above": 0.0})


def known_fields(
    cls: type, values: Mapping[str, object], *, ignore: Collection[str] | None = ()
) -> dict[str, Any]:
    """Return the entries of `values` that are fields of the dataclass `cls`, with lists as tuples and without nulls.

    Entries that `cls` lacks must be off (null, false, 0, empty or "default"), start with an underscore, or be listed in
    `ignore`. `ignore=None` skips all of them. Raises ValueError naming the first entry that is not supported, or that
    does not have its field's type.
    """
    # fields excluded from comparisons record where a config comes from, and appear in no file
    known = {field.name: field for field in fields(cls) if field.compare}
    if ignore is not None:
        for key, value in values.items():
            if key not in known and key not in ignore and not key.startswith("_") and value not in OFF_VALUES:
                raise ValueError(f"{key}: {value!r} is not supported")
    kinds = typing.get_type_hints(cls)
    return {
        key: _read(value, kinds[key], key=key, **known[key].metadata)
        for key, value in values.items()
        if key in known and value is not None
    }


def _read(value: object, kind: Any, *, key: str, least: int = 1, above: float | None = None) -> object:
    """Return a value from a JSON file as the type `kind`; lists become tuples. Raises ValueError.

    least: the smallest whole number allowed. above: a bound that other numbers must exceed, if any.
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
            _read(item, item_kind, key=f"{key}[{index}]", least=least, above=above)
            for index, (item, item_kind) in enumerate(zip(value, items, strict=True))
        )
    if kind is int:
        fits, expected = type(value) is int and value >= least, f"a whole number >= {least}"
    elif kind is float:
        number = typing.cast(float, value)
        fits = type(value) in (int, float) and not math.isnan(number) and (above is None or number > above)
        expected = "a number" if above is None else f"a number above {above:g}"
    else:
        fits, expected = type(value) is kind, TYPE_NAMES[kind]
    if not fits:
        raise ValueError(f"{key}: {value!r} is not {expected}")
    return value
