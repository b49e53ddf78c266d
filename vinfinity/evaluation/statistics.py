"""Statistics for few or correlated numbers, in NumPy: trends, bootstrap intervals, a paired test."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

CONFIDENCE = 0.95
DRAWS = 9999
# numbers that are drawn at a time, unless a single draw takes more
BLOCK = 2**18
# up to this many pairs, a paired test counts all changes of sign: 2^20 sums for each half of them
MOST_EXACT = 40


@dataclass(frozen=True)
class Trend:
    """How much a curve rises over the whole video by a straight line, with a confidence interval of 95 %.

    steady: whether the interval is entirely above or below 0.
    """

    rise: float
    low: float
    high: float

    @property
    def steady(self) -> bool:
        return self.low > 0 or self.high < 0


def find_trend(curve: np.ndarray) -> Trend | None:
    """Return the least-squares line through a curve; NaN is left out. None for fewer than 4 entries.

    Adjacent frames resemble each other, so residuals count as n (1 - r) / (1 + r) independent ones, r their correlation
    at a lag of one frame (Santer et al. 2000, equation 6).
    """
    places = np.flatnonzero(np.isfinite(curve))
    if len(places) < 4:
        return None
    length = len(curve) - 1
    x, y = places / length, curve[places].astype(np.float64)
    x = x - x.mean()
    spread = float((x**2).sum())
    slope = float((x * y).sum() / spread)
    residuals = y - y.mean() - slope * x
    variance = float((residuals**2).sum())
    if variance <= 1e-18 * max(1.0, float((y**2).sum())):
        return Trend(slope, slope, slope)
    lagged = float((residuals[1:] * residuals[:-1]).sum() / variance)
    effective = max(3.0, len(y) * (1 - max(0.0, lagged)) / (1 + max(0.0, lagged)))
    error = math.sqrt(variance / (effective - 2) / spread)
    margin = t_quantile((1 + CONFIDENCE) / 2, effective - 2) * error
    return Trend(slope, slope - margin, slope + margin)


def t_quantile(probability: float, freedom: float) -> float:
    """Return the quantile of Student's t: its expansion in the normal quantile (Abramowitz and Stegun, 26.7.5).

    Within 1 % from 3 degrees of freedom on; exact for 1 and 2, and on the safe side between.
    """
    if freedom < 2:
        # between Cauchy and t of 2 degrees, on the safe side
        return math.tan(math.pi * (probability - 0.5))
    if freedom < 2.5:
        return (2 * probability - 1) * math.sqrt(2 / (4 * probability * (1 - probability)))
    z, n = NormalDist().inv_cdf(probability), freedom
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * n**4)
    )


@dataclass(frozen=True)
class Paired:
    """The mean of differences between pairs, its bootstrap interval of 95 %, and how likely chance alone makes one as
    large: the p-value of the test that changes signs at random (two-sided)."""

    pairs: int
    mean: float
    low: float
    high: float
    p: float


def paired_test(differences: Sequence[float]) -> Paired | None:
    """Compare pairs by their differences; None for fewer than two. From a fixed seed."""
    values = np.asarray(differences, dtype=np.float64)
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return None
    generator = np.random.default_rng(0)
    low, high = bootstrap_interval(values, generator)
    return Paired(len(values), float(values.mean()), low, high, _sign_test(values, generator))


def bootstrap_interval(values: np.ndarray, generator: np.random.Generator) -> tuple[float, float]:
    """Return the percentile interval of 95 % of the mean of values (n,)."""
    means = np.concatenate(
        [values[block].mean(axis=1) for block in _drawn(len(values), len(values), generator)]
    )
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _sign_test(values: np.ndarray, generator: np.random.Generator) -> float:
    # signs that give the observed sum are counted whatever the order in which it is rounded
    observed = abs(values.sum()) - 1e-12 * np.abs(values).sum()
    if len(values) <= MOST_EXACT:
        return _share_of_signs(values, observed)
    signs = np.array([-1.0, 1.0])
    sums = np.concatenate(
        [(signs[block] * values).sum(axis=1) for block in _drawn(2, len(values), generator)]
    )
    return float((1 + np.count_nonzero(np.abs(sums) >= observed)) / (1 + DRAWS))


def _drawn(below: int, length: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """DRAWS rows of `length` whole numbers from 0 to `below` - 1, in blocks of rows.

    The numbers are those of a single draw of all rows, which would take 80 KB for each number of a row.
    """
    rows = max(1, BLOCK // length)
    for done in range(0, DRAWS, rows):
        yield generator.integers(below, size=(min(rows, DRAWS - done), length))


def _share_of_signs(values: np.ndarray, least: float) -> float:
    """Return the share of all changes of sign whose sum is at least `least` from 0.

    The sums of the first half of the values meet those of the second half, which are sorted: no sum of all is made.
    """
    if least <= 0:
        return 1.0
    half = len(values) // 2
    one, other = _signed_sums(values[:half]), np.sort(_signed_sums(values[half:]))
    above = len(other) - np.searchsorted(other, least - one)
    # for each choice of signs, the opposite one has the opposite sum
    return float(2 * above.sum() / 2 ** len(values))


def _signed_sums(values: np.ndarray) -> np.ndarray:
    """Return the sums (2^n,) of values (n,) with all choices of signs."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return sums
