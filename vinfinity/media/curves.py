"""What curves over time say of a video: seams at borders, and drift between its beginning and its end.

Pure arithmetic on one number per frame, or per pair of adjacent frames. Curves of pairs have an entry for each frame:
entry t compares frames t - 1 and t, and entry 0 is NaN.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

# the parts of a video that are compared for drift, as in FramePack and HeliosBench
END_SHARE = 0.15
# pairs of frames on either side of a border that show what is usual there
NEIGHBOURS = 8
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Seam:
    """A border and how much more changes there than elsewhere.

    frame: the first after the border. value: of the curve. ratio: to the mean elsewhere. local_ratio: to the median of
    the pairs around it. percentile: the share of pairs elsewhere that change less, in percent.
    """

    frame: int
    value: float
    ratio: float | None
    local_ratio: float | None
    percentile: float


@dataclass(frozen=True)
class Seams:
    """All borders of one curve.

    ratio: the mean at borders to the mean elsewhere; 1 where nobody could tell them apart, None in a frozen video.
    elsewhere: the mean. quantiles: of elsewhere, at 5, 25, 50, 75 and 95 %. without: pairs that count on neither side.
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
    """Compares a curve of pairs at borders with elsewhere. None if there is no border, or no pair elsewhere.

    borders: the first frame after each. without: pairs that count on neither side, such as intended cuts.
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
    """The share of random choices of as many pairs, among those at borders and elsewhere, whose mean is as high.

    A test by permutation from a fixed seed: small where borders stand out.
    """
    at = np.array([seam.frame for seam in seams.seams])
    pool = np.flatnonzero(_counted(curve, seams.without))
    observed, generator = curve[at].mean() - 1e-12, np.random.default_rng(0)
    means = [curve[generator.choice(pool, size=len(at), replace=False)].mean() for _ in range(draws)]
    return float((1 + np.count_nonzero(np.array(means) >= observed)) / (1 + draws))


def _counted(curve: np.ndarray, without: Collection[int]) -> np.ndarray:
    """Which pairs of a curve are known, and not among those to leave out: (F,) bool."""
    known = np.isfinite(curve)
    known[[0, *(frame for frame in without if 0 <= frame < len(curve))]] = False
    return known


def ends(length: int) -> tuple[slice, slice]:
    """The first and the last 15 % of a curve, at least an entry each."""
    size = max(1, round(length * END_SHARE))
    return slice(0, size), slice(length - size, length)


def end_to_end(curve: np.ndarray | Sequence[float]) -> tuple[float, float]:
    """The means of a curve over the first and the last 15 % of the video; entries that are NaN are left out."""
    values = np.asarray(curve, dtype=np.float64)
    first, last = (values[part][np.isfinite(values[part])] for part in ends(len(values)))
    return _mean(first), _mean(last)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _ratio(value: float, usual: float) -> float | None:
    # below, a difference is rounding
    return value / usual if usual > 1e-9 else None
