"""From a published config.json to the keyword arguments of a dataclass."""

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

# Values that switch a feature off.
OFF: tuple[object, ...] = (None, False, 0, "", "default", [], {})


def known_fields(
    cls: type, values: Mapping[str, object], *, ignore: Collection[str] | None = ()
) -> dict[str, Any]:
    """The entries of `values` that are fields of the dataclass `cls`; lists become tuples, null means the default.

    Entries that `cls` does not have must be off (null, false, 0, empty or "default"), start with an underscore, or be
    listed in `ignore`. `ignore=None` skips all of them. Raises ValueError naming the first entry that is not supported.
    """
    known = {field.name for field in fields(cls)}
    if ignore is not None:
        for key, value in values.items():
            if key not in known and key not in ignore and not key.startswith("_") and value not in OFF:
                raise ValueError(f"{key}: {value!r} is not supported")
    return {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in values.items()
        if key in known and value is not None
    }
