"""Numbers in settings and options: decimal only; also frame rates as fractions."""

import math
import re
from fractions import Fraction

# without leading zeros, which other programs read as octal, and short enough for Python to convert
INTEGER = r"[-+]?(?:0|[1-9][0-9]{0,99})"
FLOAT = rf"(?:{INTEGER}(?:\.[0-9]*)?|[-+]?\.[0-9]+)(?:[eE][-+]?[0-9]{{1,9}})?"
RATE = r"([1-9][0-9]{0,8})/([1-9][0-9]{0,8})"
# nominal rates of NTSC; the exact ones are 1000/1001 of them, such as 23.976
NTSC = (24, 30, 48, 60, 120)
# wide enough for 23.98
NTSC_ROUNDING = Fraction(5, 1000)
# video files count time in 32 bits
LARGEST_DENOMINATOR = 100_000
NOT_FINITE = r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"


def read_number(text: str) -> int | float | None:
    """Parse a decimal number: 24, -3, 7.5, .5, 1e-3, .inf, .nan. Return None for anything else, such as 010 or 1:30."""
    if re.fullmatch(INTEGER, text):
        return int(text)
    if re.fullmatch(FLOAT, text):
        return float(text)
    return float(text.replace(".", "")) if re.fullmatch(NOT_FINITE, text) else None


def read_rate(value: object) -> Fraction | None:
    """Return the exact frame rate for a number or a text such as 30000/1001; None for anything else.

    The rounded NTSC rates, such as 23.976, 23.98, 29.97 and 59.94, become the exact ones.
    """
    if isinstance(value, str):
        if match := re.fullmatch(RATE, value):
            return Fraction(int(match[1]), int(match[2])).limit_denominator(LARGEST_DENOMINATOR)
        value = read_number(value)
    if isinstance(value, bool) or not isinstance(value, int | float | Fraction):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    rate = Fraction(str(value)) if isinstance(value, float) else Fraction(value)
    for nominal in NTSC:
        exact = Fraction(nominal * 1000, 1001)
        if isinstance(value, float) and abs(rate - exact) <= NTSC_ROUNDING:
            return exact
    return rate.limit_denominator(LARGEST_DENOMINATOR)


def shown_rate(fps: Fraction | int) -> str:
    """Format a frame rate for people: 24, 12.5, 23.976."""
    return f"{float(fps):.5g}"
