"""Numbers in settings and options: decimal, and nothing else; frame rates as fractions, too."""

import math
import re
from fractions import Fraction

# without leading zeros, which other programs take for octal, and no longer than what Python converts
INTEGER = r"[-+]?(?:0|[1-9][0-9]{0,99})"
FLOAT = rf"(?:{INTEGER}(?:\.[0-9]*)?|[-+]?\.[0-9]+)(?:[eE][-+]?[0-9]{{1,9}})?"
RATE = r"([1-9][0-9]{0,8})/([1-9][0-9]{0,8})"
# what rates such as 23.976 stand for: the rates of NTSC are these, times 1000/1001
NTSC = (24, 30, 48, 60, 120)
# 23.98 is within it
NTSC_ROUNDING = Fraction(5, 1000)
# clocks of files count in 32 bits
LARGEST_DENOMINATOR = 100_000
NOT_FINITE = r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"


def read_number(text: str) -> int | float | None:
    """The decimal number that a text is: 24, -3, 7.5, .5, 1e-3, .inf, .nan. None for all else, such as 010 or 1:30."""
    if re.fullmatch(INTEGER, text):
        return int(text)
    if re.fullmatch(FLOAT, text):
        return float(text)
    return float(text.replace(".", "")) if re.fullmatch(NOT_FINITE, text) else None


def read_rate(value: object) -> Fraction | None:
    """The exact frame rate that a number or a text such as 30000/1001 stands for; None for all else.

    The rounded rates of NTSC, such as 23.976, 23.98, 29.97 and 59.94, are the exact ones.
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
    """A frame rate for people: 24, 12.5, 23.976."""
    return f"{float(fps):.5g}"
