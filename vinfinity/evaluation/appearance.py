"""The look of single frames: sharpness, brightness, saturation and colour; their drift and pulsing."""

from collections.abc import Collection
from dataclasses import dataclass

import cv2
import numpy as np

from vinfinity.evaluation.picture import Picture
from vinfinity.media.curves import end_to_end, ends

# of the histogram of each channel
BINS = 32
# pixels: the standard deviation of the blur before the Laplacian
BLUR = 1.0


@dataclass(frozen=True)
class Appearance:
    """A number per frame.

    sharpness: standard deviation of the Laplacian of the slightly blurred luma, in levels. brightness: mean luma, 0 to
    255. saturation: mean saturation of HSV, 0 to 100.

    lab: (F, 3), mean colour in CIE L*a*b*. rgb: (F, 3), mean levels. histograms: (F, 3 * BINS) of L*, a* and b*, which
    sum to 3.
    """

    sharpness: np.ndarray
    brightness: np.ndarray
    saturation: np.ndarray
    lab: np.ndarray
    rgb: np.ndarray
    histograms: np.ndarray

    @property
    def colour_shift(self) -> np.ndarray:
        """Distance of each frame's mean colour from that of the first 15 % (CIE76 ΔE)."""
        first, _ = ends(len(self.lab))
        return np.linalg.norm(self.lab - self.lab[first].mean(axis=0), axis=1)

    @property
    def pulsing(self) -> np.ndarray:
        """How far each frame's mean colour is from the middle between its neighbours', in levels; NaN at both ends.

        Motion and fades hardly change it: it is flicker in the narrow sense.
        """
        curve = np.full(len(self.rgb), np.nan)
        if len(self.rgb) > 2:
            middle = (self.rgb[:-2] + self.rgb[2:]) / 2
            curve[1:-1] = np.abs(self.rgb[1:-1] - middle).mean(axis=1)
        return curve

    def mean_pulsing(self, *, without: Collection[int] = ()) -> float | None:
        """Return the mean of `pulsing`; None without any. without: cuts; the frames on either side are left out."""
        beside = {frame for cut in without for frame in (cut - 1, cut)}
        curve = np.array([value for frame, value in enumerate(self.pulsing) if frame not in beside])
        known = curve[np.isfinite(curve)]
        return float(known.mean()) if len(known) else None

    @property
    def drift(self) -> dict[str, float | None]:
        """Last 15 % against first 15 %: sharpness in percent of the first, brightness in levels, saturation in points
        of percent, colour as ΔE between mean colours, histogram as the share that would have to move, in percent."""
        sharp_first, sharp_last = end_to_end(self.sharpness)
        first, last = ends(len(self.lab))
        colour = self.lab[last].mean(axis=0) - self.lab[first].mean(axis=0)
        histogram = self.histograms[last].mean(axis=0) - self.histograms[first].mean(axis=0)
        changes = {name: np.subtract(*end_to_end(curve)[::-1]) for name, curve in self._levels.items()}
        return {
            "sharpness": (sharp_last / sharp_first - 1) * 100 if sharp_first > 1e-9 else None,
            "brightness": float(changes["brightness"]),
            "saturation": float(changes["saturation"]),
            "colour": float(np.linalg.norm(colour)),
            "histogram": float(np.abs(histogram).sum() / 2 / 3 * 100),
        }

    @property
    def _levels(self) -> dict[str, np.ndarray]:
        return {"brightness": self.brightness, "saturation": self.saturation}


class AppearanceMeasure:
    """Measures appearance, given the frames one at a time; keeps about 500 bytes of each."""

    def __init__(self) -> None:
        self._numbers: list[tuple[float, float, float]] = []
        self._colours: list[np.ndarray] = []
        self._histograms: list[np.ndarray] = []

    def add(self, picture: Picture) -> None:
        small = picture.colour_rgb
        # without the blur, the rounding to 8 bits would pass for detail
        smooth = cv2.GaussianBlur(picture.grey.astype(np.float32), (5, 5), BLUR)
        sharpness = float(cv2.meanStdDev(cv2.Laplacian(smooth, cv2.CV_32F))[1][0, 0])
        saturation = float(cv2.mean(cv2.cvtColor(small, cv2.COLOR_RGB2HSV))[1]) / 255 * 100
        self._numbers.append((sharpness, float(cv2.mean(picture.grey)[0]), saturation))
        lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
        self._colours.append(np.array([*cv2.mean(lab)[:3], *cv2.mean(picture.rgb)[:3]]))
        self._histograms.append(_histogram(lab))

    def result(self) -> Appearance:
        colours = np.array(self._colours)
        sharpness, brightness, saturation = np.array(self._numbers).T
        return Appearance(
            sharpness, brightness, saturation, colours[:, :3], colours[:, 3:], np.array(self._histograms)
        )


def _histogram(lab: np.ndarray) -> np.ndarray:
    """lab: (h, w, 3) float32."""
    limits = ((0.0, 100.0), (-110.0, 110.0), (-110.0, 110.0))
    counts = [
        cv2.calcHist([lab], [channel], None, [BINS], [low, high + 1e-3]).ravel()
        for channel, (low, high) in enumerate(limits)
    ]
    return (np.concatenate(counts) / (lab.shape[0] * lab.shape[1])).astype(np.float32)
