"""What curves over time reveal about a video: seams at borders, and drift between its beginning and its end.

Pure arithmetic on one number per frame, or per pair of adjacent frames. A curve of pairs has an entry for each frame:
entry t compares frames t - 1 and t, and entry 0 is NaN.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

# the parts of a video that are compared for drift, as in FramePack and HeliosBench
END_SHARE = 0.15
# pairs of frames on either side of a border for its local ratio
NEIGHBOURS = 8
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Seam:
    """A border, and how much larger the change is there than elsewhere.

    frame: the first frame after the border. value: the curve's value there. ratio: the value divided by the mean
    elsewhere. local_ratio: the value divided by the median of the pairs around it. percentile: the percentage of pairs
    elsewhere that change less.
    """

    frame: int
    value: float
    ratio: float | None
    local_ratio: float | None
    percentile: float


@dataclass(frozen=True)
class Seams:
    """All borders of a curve.

    ratio: the mean at borders divided by the mean elsewhere; 1 if borders cannot be told apart, None in a frozen video.
    elsewhere: the mean elsewhere. quantiles: the quantiles elsewhere, at 5, 25, 50, 75 and 95 %. without: pairs that
    count on neither side.
    """

    ratio: float | None
    elsewhere: float
    quantiles: tuple[float, ...]
    seams: tuple[Seam, ...]
    without: tuple[int, ...] = ()

    @property
    def worst(self) -> float | None:
        """The highest ratio of a single border."""
        return max((seam.ratio for seam in self.seams if seam.ratio is not None), default=None)


def find_seams(curve: np.ndarray, borders: Collection[int], *, without: Collection[int] = ()) -> Seams | None:
    """Compare a curve of pairs at borders with elsewhere. Return None if there is no border, or no pair elsewhere.

    borders: the first frame after each border. without: pairs that count on neither side, such as intended cuts.
    """
    counted = _counted(curve, without)
    at = sorted({frame for frame in borders if 0 < frame < len(curve) and counted[frame]})
    usual = counted.copy()
    usual[at] = False
    if not at or not usual.any():
        return None
    rest = curve[usual]
    mean = float(rest.mean())

    def seam(frame: int) -> Seam:
        value = float(curve[frame])
        around = slice(max(1, frame - NEIGHBOURS), frame + NEIGHBOURS + 1)
        near = curve[around][usual[around]]
        local = float(np.median(near)) if len(near) else 0.0
        below = float((rest < value).mean() * 100)
        return Seam(frame, value, _ratio(value, mean), _ratio(value, local), below)

    quantiles = tuple(float(value) for value in np.quantile(rest, QUANTILES))
    ratio, seams = _ratio(float(curve[at].mean()), mean), tuple(seam(frame) for frame in at)
    return Seams(ratio, mean, quantiles, seams, tuple(sorted(without)))


def chance(curve: np.ndarray, seams: Seams, *, draws: int = 1999) -> float:
    """Return how often random pairs have a mean as high as the pairs at borders, between 0 and 1.

    A permutation test with a fixed seed: each draw picks as many pairs as there are borders, among all that count. The
    result is small where borders stand out.
    """
    at = np.array([seam.frame for seam in seams.seams])
    pool = np.flatnonzero(_counted(curve, seams.without))
    observed, generator = curve[at].mean() - 1e-12, np.random.default_rng(0)
    means = [curve[generator.choice(pool, size=len(at), replace=False)].mean() for _ in range(draws)]
    return float((1 + np.count_nonzero(np.array(means) >= observed)) / (1 + draws))


def _counted(curve: np.ndarray, without: Collection[int]) -> np.ndarray:
    """Return which pairs of a curve are known and not excluded, (F,) bool."""
    known = np.isfinite(curve)
    known[[0, *(frame for frame in without if 0 <= frame < len(curve))]] = False
    return known


def ends(length: int) -> tuple[slice, slice]:
    """Return the first and the last 15 % of a curve, at least one entry each."""
    size = max(1, round(length * END_SHARE))
    return slice(0, size), slice(length - size, length)


def end_to_end(curve: np.ndarray | Sequence[float]) -> tuple[float, float]:
    """Return the means of a curve over the first and the last 15 % of the video, ignoring NaN entries."""
    values = np.asarray(curve, dtype=np.float64)
    first, last = (values[part][np.isfinite(values[part])] for part in ends(len(values)))
    return _mean(first), _mean(last)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _ratio(value: float, usual: float) -> float | None:
    # smaller values are rounding errors
    return value / usual if usual > 1e-9 else None
