"""`FILE[:WEIGHT]`, as the setting `lora` names a file. Imports no torch."""

import math
from pathlib import Path

from vinfinity.errors import InputError
from vinfinity.system.folders import expanded
from vinfinity.system.numbers import read_number


def split_weight(text: str) -> tuple[Path, float]:
    """File and weight of `FILE[:WEIGHT]`. Raises InputError for a weight that is no finite decimal number."""
    name, colon, number = text.rpartition(":")
    if not colon:
        return expanded(text, field="lora"), 1.0
    try:
        float(number)
    except ValueError:
        # the colon is part of the file's name
        return expanded(text, field="lora"), 1.0
    weight = read_number(number)
    if weight is None or not math.isfinite(weight):
        problem = "has a weight that is not a finite decimal number"
        raise InputError("lora", text, "write it as in FILE:0.8", problem=problem)
    return expanded(name, field="lora"), weight
