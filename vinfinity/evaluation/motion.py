"""Optical flow between adjacent frames, by OpenCV's DIS (Kroeger et al. 2016): how much moves, and what else changes.

Dims: H W height and width at which motion is measured (picture.py).
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from vinfinity.evaluation.picture import Picture

# A pixel moves if its flow is longer than one pixel would be in a frame with a short side of 256.
UNIT_SIDE = 256
# Forward and backward flow must cancel out, up to this share of their squared lengths plus this many squared pixels
# (Sundaram et al. 2010, equation 5); elsewhere something was uncovered or hidden.
OCCLUSION_SHARE, OCCLUSION_PIXELS = 0.01, 0.5
# with fewer pixels that are visible in both frames, all count
LEAST_VISIBLE = 0.1
# mean squared lengths below this are rounding: there is no motion to divide by
LEAST_MOTION = 1e-4
LEAST_SIDE = 32
# for OpenCV: both coordinates are in one array
ONE_MAP: Any = None


@dataclass(frozen=True)
class Motion:
    """Curves of pairs, see media/curves.py, over the pixels that are visible in both frames.

    length: mean flow in pixels of the video. moving: percent of the pixels.

    warp_error: mean squared difference, in units of full scale, between a frame and the one after it moved back by the
    flow. squared: mean squared flow in units of 1/256 of the short side.
    """

    length: np.ndarray
    moving: np.ndarray
    warp_error: np.ndarray
    squared: np.ndarray

    def means(self, *, without: frozenset[int] = frozenset()) -> dict[str, float | None]:
        """Return the figures of the whole video. without: pairs to leave out, as flow across a cut means nothing."""
        kept = np.array([index not in without for index in range(len(self.length))])
        kept[0] = False
        if not kept.any():
            return {"length": None, "moving": None, "warp_error": None, "warp_over_motion": None}
        error, squared = float(self.warp_error[kept].mean()), float(self.squared[kept].mean())
        return {
            "length": float(self.length[kept].mean()),
            "moving": float(self.moving[kept].mean()),
            "warp_error": error,
            "warp_over_motion": error / squared if squared > LEAST_MOTION else None,
        }


class MotionMeasure:
    """Measures motion, given the frames one at a time."""

    def __init__(self) -> None:
        self._flow: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._before: Picture | None = None
        self._rows = [(np.nan, np.nan, np.nan, np.nan)]
        self._grid = np.zeros((0, 0, 2), np.float32)

    def add(self, picture: Picture) -> None:
        if self._before is not None:
            self._rows.append(self._compare(self._before, picture))
        self._before = picture

    def result(self) -> Motion:
        return Motion(*np.array(self._rows).T)

    def _compare(self, before: Picture, after: Picture) -> tuple[float, float, float, float]:
        height, width = after.motion_grey.shape
        if np.array_equal(before.motion_rgb, after.motion_rgb):
            return 0.0, 0.0, 0.0, 0.0
        forward = self._flow_between(before.motion_grey, after.motion_grey)
        backward = self._flow_between(after.motion_grey, before.motion_grey)
        lengths = cv2.magnitude(forward[..., 0], forward[..., 1])
        unit = min(height, width) / UNIT_SIDE
        scale = after.rgb.shape[1] / width
        visible, places = self._visible(forward, backward)
        moved = cv2.remap(
            after.motion_rgb, places, ONE_MAP, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        difference = cv2.absdiff(moved, before.motion_rgb).astype(np.float32) / 255
        errors = (difference**2).mean(axis=2)
        if visible.mean() >= LEAST_VISIBLE:
            # elsewhere flow is a guess
            errors, lengths = errors[visible], lengths[visible]
        return (
            float(lengths.mean()) * scale,
            float((lengths > unit).mean() * 100),
            float(errors.mean()),
            float((lengths**2).mean()) / unit**2,
        )

    def _flow_between(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """(H, W, 2) float32. DIS crashes on smaller frames than LEAST_SIDE: they are continued by their edges."""
        height, width = before.shape
        more = (0, max(0, LEAST_SIDE - height), 0, max(0, LEAST_SIDE - width))
        if any(more):
            before, after = (
                cv2.copyMakeBorder(grey, *more, cv2.BORDER_REPLICATE) for grey in (before, after)
            )
        return self._flow.calc(before, after, None)[:height, :width]

    def _visible(self, forward: np.ndarray, backward: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where both frames show the same thing, (H, W) bool, and where each pixel goes, (H, W, 2)."""
        height, width = forward.shape[:2]
        if self._grid.shape[:2] != (height, width):
            columns, rows = np.meshgrid(
                np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
            )
            self._grid = np.dstack([columns, rows])
        places = self._grid + forward
        back = cv2.remap(backward, places, ONE_MAP, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        gap = ((forward + back) ** 2).sum(axis=2)
        most = OCCLUSION_SHARE * ((forward**2).sum(axis=2) + (back**2).sum(axis=2)) + OCCLUSION_PIXELS
        x, y = places[..., 0], places[..., 1]
        inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
        return (gap < most) & inside, places
