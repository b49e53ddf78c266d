"""What was measured of a video."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from vinfinity.errors import escaped
from vinfinity.evaluation.figures import Figures
from vinfinity.evaluation.statistics import Trend
from vinfinity.evaluation.subject import Subject
from vinfinity.media.curves import Seams

# digits of numbers in JSON, after the point
DIGITS = 6


@dataclass(frozen=True)
class Evaluation:
    """What was measured of a video.

    figures: by name, such as `motion.length`; see docs/guides/evaluate.md. None where a figure has no meaning.
    curves: a number per frame, NaN where there is none; those of pairs compare each frame with the one before it.
    seams: measured on the difference of adjacent frames; None without borders. cuts: the first frame after each
    unplanned cut. frozen: spans of identical frames. trends: those of the curves of appearance. autocorrelation: by
    lag in frames. matrix: the similarity of frames spread over the video, (n, n) uint8. frames, size: the video's.
    """

    subject: Subject
    frames: int
    size: tuple[int, int]
    fps: Fraction
    figures: Figures
    curves: Mapping[str, np.ndarray]
    seams: Seams | None
    cuts: tuple[int, ...]
    frozen: tuple[range, ...]
    trends: Mapping[str, Trend]
    autocorrelation: np.ndarray = field(repr=False)
    matrix: np.ndarray = field(repr=False)

    @property
    def name(self) -> str:
        """The path that named the video."""
        return self.subject.name

    def __getitem__(self, name: str) -> float | None:
        """Return a figure by its name."""
        return self.figures[name]

    def as_json(self) -> dict[str, Any]:
        """Everything but the matrix, as JSON has it."""
        borders = [asdict(border) for border in self.subject.borders]
        return {
            "video": self.name,
            "frames": self.frames,
            "size": list(self.size),
            "fps": str(self.fps),
            "figures": {name: rounded(value) for name, value in self.figures.items()},
            "borders": borders,
            "seams": None if self.seams is None else rounded_all(asdict(self.seams)),
            "cuts": list(self.cuts),
            "frozen": [[span.start, span.stop] for span in self.frozen],
            "trends": {name: rounded_all(asdict(trend)) for name, trend in self.trends.items()},
            "curves": {name: [rounded(value) for value in curve] for name, curve in self.curves.items()},
            "autocorrelation": [rounded(value) for value in self.autocorrelation],
        }


def rounded(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else round(float(value), DIGITS)


def rounded_all(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded_all(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded_all(inner) for inner in value]
    return rounded(value) if isinstance(value, float) else value


def short_names(evaluations: Sequence[Evaluation]) -> list[str]:
    """Return the shortest ends of the paths that tell the videos apart, as text that any terminal and page can show."""
    return short_ends([escaped(evaluation.name) for evaluation in evaluations])


def short_ends(paths: Sequence[str]) -> list[str]:
    """Return the shortest ends of paths that tell them apart."""
    parts = [path.rstrip("/").split("/") for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len({*names}) == len(names):
            return names
    return list(paths)
