"""Limits on figures, which sort the videos of a batch."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from vinfinity.errors import InputError, did_you_mean
from vinfinity.evaluation.figures import FIGURES, Figures
from vinfinity.evaluation.subject import Subject
from vinfinity.system.numbers import FLOAT

# options, and the figure that each limits
OPTIONS: Mapping[str, tuple[str, Literal["<=", ">="]]] = {
    "max_drift": ("drift.largest", "<="),
    "max_seam": ("seams.worst", "<="),
    "max_pulsing": ("flicker.pulsing", "<="),
    "max_cuts": ("cuts.count", "<="),
    "max_repetition": ("repetition.strength", "<="),
    "max_frozen": ("frozen.share", "<="),
    "min_motion": ("motion.length", ">="),
}


@dataclass(frozen=True)
class Limit:
    """A maximum or minimum for a figure. A figure without a value, such as seams without borders, is within it."""

    figure: str
    sign: Literal["<=", ">="]
    value: float

    def __str__(self) -> str:
        return f"{self.figure}{self.sign}{self.value:g}"

    def holds(self, figures: Figures) -> bool:
        """Return whether the figures of a video are within the limit."""
        value = figures.get(self.figure)
        if value is None:
            return True
        # a drift to either side counts
        value = abs(value) if self.figure.startswith("drift.") else value
        return value <= self.value if self.sign == "<=" else value >= self.value

    def complaint(self, figures: Figures) -> str:
        """Which figure is beyond it, and how far: `drift.largest 12.3 %, limit 10`."""
        figure = FIGURES[self.figure]
        word = "at most" if self.sign == "<=" else "at least"
        return f"{figure.title} is {figure.shown(figures[self.figure])}, allowed {word} {self.value:g}"


def collect_limits(options: Mapping[str, float | None], written: Sequence[str]) -> list[Limit]:
    """Return the limits of options by name, and those written as `drift.brightness<=3`. Raises InputError."""
    limits = [
        Limit(*OPTIONS[name], value)
        for name, value in options.items()
        if name in OPTIONS and value is not None
    ]
    for text in written:
        match = re.fullmatch(rf"\s*([a-z_.]+)\s*(<=|>=)\s*({FLOAT})\s*", text)
        if match is None:
            remedy = "write a figure, <= or >=, and a number, as in drift.brightness<=3"
            raise InputError("--limit", text, remedy, problem="is not a limit")
        if match[1] not in FIGURES:
            remedy = did_you_mean(match[1], list(FIGURES)) or f"known are {', '.join(FIGURES)}"
            raise InputError("--limit", text, remedy, problem="names an unknown figure")
        limit = Limit(match[1], "<=" if match[2] == "<=" else ">=", float(match[3]))
        if limit.figure.startswith("drift.") and limit.value < 0:
            remedy = f"a drift to either side counts: write {limit.figure}<={-limit.value:g}"
            raise InputError("--limit", text, remedy, problem="is a negative drift")
        limits.append(limit)
    return limits


def check_limits(
    limits: Iterable[Limit], subjects: Sequence[Subject], *, clip: bool, dino: bool, prompt: bool
) -> None:
    """Raise InputError for a limit on a figure that no video can have. clip, dino, prompt: whether they were given."""
    prompted = prompt or any(subject.prompts for subject in subjects)
    for limit in limits:
        if limit.figure.startswith("consistency.subject"):
            needed, given = "--dino", dino
        elif limit.figure.startswith("consistency."):
            needed, given = "--clip", clip
        else:
            continue
        if given and limit.figure == "consistency.prompt":
            needed, given = "--prompt", prompted
        if not given:
            raise InputError("--limit", limit, "add it, or leave the limit out", problem=f"needs {needed}")


def complaints(figures: Figures, limits: Iterable[Limit]) -> list[str]:
    """Return what is beyond its limit."""
    return [limit.complaint(figures) for limit in limits if not limit.holds(figures)]
