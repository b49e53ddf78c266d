"""A frame and what several measures derive from it, computed when the first of them asks.

Dims: h w height and width of the video, H W those at which motion is measured.
"""

from functools import cached_property

import cv2
import numpy as np

# Motion is measured on frames whose short side has at most this many pixels: larger frames are shrunk.
MOTION_SIDE = 192
# colours are measured on frames whose long side has at most this many pixels
COLOUR_SIDE = 128
# (columns, rows) of the thumbnails that are kept of every frame
THUMBNAIL = (24, 16)


class Picture:
    """One frame. rgb: (h, w, 3) uint8. index: its number in the video."""

    def __init__(self, rgb: np.ndarray, index: int) -> None:
        self.rgb, self.index = np.ascontiguousarray(rgb), index

    @cached_property
    def grey(self) -> np.ndarray:
        """Luma by BT.601, (h, w) uint8."""
        return cv2.cvtColor(self.rgb, cv2.COLOR_RGB2GRAY)

    @cached_property
    def motion_rgb(self) -> np.ndarray:
        """(H, W, 3) uint8."""
        height, width = self.rgb.shape[:2]
        shrink = min(1.0, MOTION_SIDE / min(height, width))
        return _shrunk(self.rgb, (max(1, round(width * shrink)), max(1, round(height * shrink))))

    @cached_property
    def motion_grey(self) -> np.ndarray:
        """(H, W) uint8."""
        return cv2.cvtColor(self.motion_rgb, cv2.COLOR_RGB2GRAY)

    @cached_property
    def colour_rgb(self) -> np.ndarray:
        """A small copy, whose long side has at most 128 pixels; uint8."""
        height, width = self.rgb.shape[:2]
        shrink = min(1.0, COLOUR_SIDE / max(height, width))
        return _shrunk(self.rgb, (max(1, round(width * shrink)), max(1, round(height * shrink))))

    @cached_property
    def thumbnail(self) -> np.ndarray:
        """(16, 24, 3) uint8."""
        return cv2.resize(self.colour_rgb, THUMBNAIL, interpolation=cv2.INTER_AREA)


def _shrunk(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """size: (width, height), no larger than the frame."""
    if (rgb.shape[1], rgb.shape[0]) == size:
        return rgb
    return cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
