"""Compare adjacent frames pixel by pixel: flicker, frozen spans, and whether the end leads into the beginning."""

from dataclasses import dataclass

import cv2
import numpy as np

from vinfinity.evaluation.picture import Picture

# A pair of frames is frozen if the mean difference is below FROZEN_MEAN levels and at most FROZEN_PIXELS of all pixels
# differ by more than FROZEN_LEVELS: encoders change still pictures a little, and small things may move.
FROZEN_MEAN = 0.2
FROZEN_LEVELS = 8
FROZEN_PIXELS = 0.0005
# At a key frame, encoders draw a still picture anew. Between LEAST_AROUND frozen pairs on either side, such a pair
# counts as frozen: its mean difference is below KEY_MEAN, and few pixels differ by more than KEY_LEVELS.
KEY_MEAN = 3.0
KEY_LEVELS = 24
LEAST_AROUND = 2
# seconds that a frozen span has at least
FROZEN_SECONDS = 0.5


@dataclass(frozen=True)
class Differences:
    """Curves of pairs, see media/curves.py. difference: mean absolute difference in levels of 0 to 255.

    frozen: spans of frames that show one picture. closing: the difference between the last and the first frame.
    """

    difference: np.ndarray
    frozen: tuple[range, ...]
    closing: float

    @property
    def flicker_score(self) -> float:
        """VBench's temporal flickering: (255 - mean difference) / 255, higher is calmer."""
        return (255.0 - float(np.nanmean(self.difference))) / 255.0

    @property
    def closing_ratio(self) -> float | None:
        """The closing difference to the mean one: about 1 in a loop."""
        mean = float(np.nanmean(self.difference))
        return self.closing / mean if mean > 1e-9 else None


class DifferenceMeasure:
    """Measures differences, given the frames one at a time."""

    def __init__(self) -> None:
        self._first: Picture | None = None
        self._before: Picture | None = None
        self._differences: list[float] = []
        self._frozen: list[bool] = []
        self._redrawn: list[bool] = []

    def add(self, picture: Picture) -> None:
        if self._before is None:
            self._first = picture
            self._differences.append(float("nan"))
            self._frozen.append(False)
            self._redrawn.append(False)
        else:
            self._differences.append(mean_difference(self._before.rgb, picture.rgb))
            self._frozen.append(self._is_still(self._before, picture, FROZEN_MEAN, FROZEN_LEVELS))
            self._redrawn.append(self._is_still(self._before, picture, KEY_MEAN, KEY_LEVELS))
        self._before = picture

    def result(self, *, fps: float) -> Differences:
        assert self._first is not None
        assert self._before is not None
        spans = _spans(self._with_key_frames(), least=max(2, round(FROZEN_SECONDS * fps)))
        return Differences(
            np.array(self._differences), spans, mean_difference(self._first.rgb, self._before.rgb)
        )

    def _is_still(self, before: Picture, after: Picture, mean: float, levels: int) -> bool:
        if self._differences[-1] >= mean:
            return False
        changed = np.count_nonzero(cv2.absdiff(before.grey, after.grey) > levels)
        return bool(changed <= FROZEN_PIXELS * after.grey.size)

    def _with_key_frames(self) -> list[bool]:
        frozen = self._frozen
        around = [
            all(frozen[max(0, t - LEAST_AROUND) : t]) and all(frozen[t + 1 : t + 1 + LEAST_AROUND])
            for t in range(len(frozen))
        ]
        inside = range(LEAST_AROUND + 1, len(frozen) - LEAST_AROUND)
        return [still or (t in inside and around[t] and self._redrawn[t]) for t, still in enumerate(frozen)]


def mean_difference(before: np.ndarray, after: np.ndarray) -> float:
    """Return the mean absolute difference of two frames (h, w, 3) uint8, in levels."""
    return float(np.mean(cv2.mean(cv2.absdiff(before, after))[:3]))


def _spans(pairs: list[bool], *, least: int) -> tuple[range, ...]:
    """Return the spans of frames within which all pairs are frozen, of `least` pairs or more."""
    found, start = [], None
    for index, frozen in enumerate([*pairs, False]):
        if frozen and start is None:
            start = index
        elif not frozen and start is not None:
            if index - start >= least:
                # a pair t joins the frames t - 1 and t
                found.append(range(start - 1, index))
            start = None
    return tuple(found)
