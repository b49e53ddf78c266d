"""Numbers in settings and options: decimal, and nothing else."""

import re

# without leading zeros, which other programs take for octal, and no longer than what Python converts
INTEGER = r"[-+]?(?:0|[1-9][0-9]{0,99})"
FLOAT = rf"(?:{INTEGER}(?:\.[0-9]*)?|[-+]?\.[0-9]+)(?:[eE][-+]?[0-9]{{1,9}})?"
NOT_FINITE = r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"


def read_number(text: str) -> int | float | None:
    """The decimal number that a text is: 24, -3, 7.5, .5, 1e-3, .inf, .nan. None for all else, such as 010 or 1:30."""
    if re.fullmatch(INTEGER, text):
        return int(text)
    if re.fullmatch(FLOAT, text):
        return float(text)
    return float(text.replace(".", "")) if re.fullmatch(NOT_FINITE, text) else None
