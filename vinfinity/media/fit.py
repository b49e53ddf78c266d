"""From a decoded frame of any video to an upright RGB picture of a given size.

Dims: h w height and width in pixels. Pictures are (h, w, 3) uint8, full-range RGB.
"""

from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

# the fewest lines of HD: untagged video with this many is read with the matrix of BT.709
HD_LINES = 720
# the second code of the matrix of BT.601 (ITU-T H.273)
BT601 = 6


def shown_size(frame: av.VideoFrame, aspect: Fraction) -> tuple[int, int]:
    """Return (width, height) of an upright frame with square pixels. aspect: width over height of a stored pixel."""
    width, height = max(1, round(frame.width * aspect)), frame.height
    return (height, width) if _turns(frame) % 2 else (width, height)


def fitted(frame: av.VideoFrame, size: tuple[int, int], *, fit: str, aspect: Fraction) -> np.ndarray:
    """Return a frame as a picture of `size`, (width, height).

    fit: "cover" crops, "contain" adds black bars, "stretch" distorts. aspect: see `shown_size`.
    """
    turns = _turns(frame)
    picture = np.rot90(to_rgb(frame), turns)
    height, width, _ = picture.shape
    # the sides of the picture once its pixels are square
    shown = (width, height * aspect) if turns % 2 else (width * aspect, Fraction(height))
    if fit == "stretch":
        return _scaled(picture, *size)
    factor = (max if fit == "cover" else min)(size[0] / shown[0], size[1] / shown[1])
    return _centred(_scaled(picture, *(max(1, round(side * factor)) for side in shown)), size)


def to_rgb(frame: av.VideoFrame) -> np.ndarray:
    """Convert a frame as stored to (h, w, 3), by the matrix and the range in its tags."""
    name = frame.format.name
    if not name.startswith("yuv"):
        return frame.reformat(format="rgb24").to_ndarray()
    space = int(frame.colorspace)
    if space not in {int(known) for known in Colorspace}:
        sd = frame.height < HD_LINES or space == BT601
        space = int(Colorspace.ITU601 if sd else Colorspace.ITU709)
    full = name.startswith("yuvj") or frame.color_range == ColorRange.JPEG
    stored = ColorRange.JPEG if full else ColorRange.MPEG
    # via yuv444p: from subsampled formats, swscale takes a shortcut that shifts colours by up to 2
    planes = frame.reformat(
        format="yuv444p", interpolation="BICUBIC", src_color_range=stored, dst_color_range=stored
    )
    return planes.reformat(
        format="rgb24",
        src_colorspace=Colorspace(space),
        src_color_range=stored,
        dst_color_range=ColorRange.JPEG,
    ).to_ndarray()


def _turns(frame: av.VideoFrame) -> int:
    """Return the number of quarter turns, anticlockwise, that make a frame upright."""
    return round(frame.rotation / 90) % 4


def _scaled(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    picture = np.ascontiguousarray(picture)
    if picture.shape[:2] == (height, width):
        return picture
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    return frame.reformat(width=width, height=height, interpolation="BICUBIC").to_ndarray()


def _centred(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the middle of a picture, or the picture in the middle of black bars."""
    for axis, length in ((0, size[1]), (1, size[0])):
        surplus = picture.shape[axis] - length
        if surplus > 0:
            picture = np.take(picture, range(surplus // 2, surplus // 2 + length), axis=axis)
        elif surplus < 0:
            padding = [(0, 0)] * 3
            padding[axis] = (-surplus // 2, -surplus - -surplus // 2)
            picture = np.pad(picture, padding)
    return np.ascontiguousarray(picture)
