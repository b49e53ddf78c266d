"""Whether a video repeats itself, from thumbnails of its frames: periods, frames that return, a matrix to look at.

Dims: F frames of the video, d numbers of a thumbnail.
"""

from dataclasses import dataclass

import numpy as np

from vinfinity.evaluation.picture import THUMBNAIL, Picture

# of a thumbnail: red, green and blue of every pixel
NUMBERS = 3 * THUMBNAIL[0] * THUMBNAIL[1]
# a period is one where the autocorrelation rises again by so much after it has fallen
LEAST_RISE = 0.2
# by so much a longer period has to be stronger
BETTER = 0.02
# a video varies if its thumbnails differ by this many levels on average
LEAST_VARIATION = 0.5
# seconds between a frame and one that counts as its return
RETURN_SECONDS = 1.0
# frames, spread over the video, that are compared with all earlier ones
MOST_COMPARED = 2048
MATRIX_SIDE = 240
BLOCK = 256


@dataclass(frozen=True)
class Repetition:
    """strength: the autocorrelation at the period, 1 where the video repeats exactly, 0 where it has no period.

    period: in frames. returning: percent of the frames that were seen before, at least a second and two frames
    earlier: as similar to that frame as adjacent frames are. autocorrelation: by lag, from 0 to half of the video.
    matrix: (n, n) uint8, the similarity of n frames spread over the video, 255 where they are equal. All but the
    matrix are None or empty in a video without variation.
    """

    strength: float | None
    period: int | None
    returning: float | None
    autocorrelation: np.ndarray
    matrix: np.ndarray


class RepetitionMeasure:
    """Measures repetition, given the frames one at a time; keeps 1,152 bytes of each."""

    def __init__(self) -> None:
        self._thumbnails = bytearray()

    def add(self, picture: Picture) -> None:
        self._thumbnails += picture.thumbnail.tobytes()

    def result(self, *, fps: float) -> Repetition:
        thumbnails = np.frombuffer(self._thumbnails, np.uint8).reshape(-1, NUMBERS)
        matrix = _matrix(thumbnails)
        correlation = autocorrelation(thumbnails)
        if correlation is None:
            return Repetition(None, None, None, np.zeros(0), matrix)
        period, strength = _period(correlation)
        return Repetition(strength, period, _returning(thumbnails, fps=fps), correlation, matrix)


def autocorrelation(thumbnails: np.ndarray) -> np.ndarray | None:
    """1 - D(lag) / (2 variance), D the mean squared difference of thumbnails at that lag; None without variation.

    thumbnails: (F, d). By Fourier transforms, a number of thumbnails at a time.
    """
    frames, numbers = thumbnails.shape
    size = 1 << (2 * frames - 1).bit_length()
    products = np.zeros(frames)
    energy, variance = np.zeros(frames), 0.0
    for start in range(0, numbers, BLOCK):
        part = thumbnails[:, start : start + BLOCK]
        means = part.mean(axis=0, dtype=np.float32)
        for first in range(0, frames, BLOCK):
            rows = slice(first, first + BLOCK)
            energy[rows] += ((part[rows] - means).astype(np.float64) ** 2).sum(axis=1)
        spectrum = np.zeros(size // 2 + 1)
        for column, mean in zip(part.T, means, strict=True):
            spectrum += np.abs(np.fft.rfft(column.astype(np.float32) - mean, size)) ** 2
        products += np.fft.irfft(spectrum, size)[:frames]
    variance = energy.mean()
    if variance <= numbers * LEAST_VARIATION**2:
        return None
    lags = np.arange(frames // 2 + 1)
    pairs = frames - lags
    total = np.concatenate([[0.0], np.cumsum(energy)])
    both = total[pairs] + (total[-1] - total[lags])
    distances = np.maximum(0.0, (both - 2 * products[lags]) / pairs)
    return 1 - distances / (2 * variance)


def _period(correlation: np.ndarray) -> tuple[int | None, float]:
    """Return lag and height of the highest peak after the autocorrelation has fallen; (None, 0) without one."""
    lowest = np.minimum.accumulate(correlation)
    rise = correlation - lowest
    # a longer period must be better than its parts
    lag: int | None = None
    for candidate in np.flatnonzero(rise >= LEAST_RISE).tolist():
        if correlation[candidate] > (correlation[lag] if lag is not None else 0.0) + BETTER:
            lag = candidate
    if lag is None:
        return None, 0.0
    # up to the top of its hill
    while lag + 1 < len(correlation) and correlation[lag + 1] > correlation[lag]:
        lag += 1
    return lag, float(correlation[lag])


def _returning(thumbnails: np.ndarray, *, fps: float) -> float | None:
    # neighbours are no returns, however few frames a second has
    gap = max(RETURN_SECONDS * fps, 2)
    usual = float(np.median(_steps(thumbnails)))
    chosen = _spread(len(thumbnails), MOST_COMPARED)
    chosen = chosen[chosen >= gap]
    if usual <= 0 or not len(chosen):
        return None
    # levels around their mean, in doubles: squares of levels are large, and their differences small
    mean = thumbnails.mean(axis=0)
    values = thumbnails[chosen] - mean
    squares = np.einsum("ij,ij->i", values, values)
    returned = np.zeros(len(chosen), bool)
    # a frame may resemble any earlier one, not only those that were chosen
    for start in range(0, len(thumbnails), BLOCK):
        block = thumbnails[start : start + BLOCK] - mean
        places = np.arange(start, start + len(block))
        later = slice(int(np.searchsorted(chosen, start + gap)), None)
        distances = squares[later, None] + (block**2).sum(axis=1) - 2 * (values[later] @ block.T)
        earlier = places <= chosen[later, None] - gap
        returned[later] |= (earlier & (distances <= usual**2 * (1 + 1e-4))).any(axis=1)
    return float(returned.mean() * 100)


def _steps(thumbnails: np.ndarray) -> np.ndarray:
    """Return the distance of each thumbnail but the first from the one before it, computed a number at a time."""
    steps = np.zeros(len(thumbnails) - 1, np.float32)
    for start in range(0, len(steps), BLOCK):
        values = thumbnails[start : start + BLOCK + 1].astype(np.float32)
        steps[start : start + BLOCK] = np.sqrt((np.diff(values, axis=0) ** 2).sum(axis=1))
    return steps


def _matrix(thumbnails: np.ndarray) -> np.ndarray:
    values = thumbnails[_spread(len(thumbnails), MATRIX_SIDE)].astype(np.float32)
    squares = (values**2).sum(axis=1)
    distances = np.sqrt(np.maximum(0, squares[:, None] + squares[None] - 2 * values @ values.T))
    largest = distances.max()
    similar = 1 - distances / largest if largest > 0 else np.ones_like(distances)
    return (similar * 255).round().astype(np.uint8)


def _spread(frames: int, most: int) -> np.ndarray:
    """At most `most` frame indices, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, frames - 1, min(frames, most)).round().astype(int))
