"""Contact sheets: a whole video at a glance, in one PNG."""

import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from vinfinity.system.files import write_whole

MOST_FRAMES = 16
COLUMNS = 4

# In pixels. Frames smaller than a thumbnail keep their size; the gap is also the margin.
THUMBNAIL_SIDE = 256
GAP = 4

# The grey level between thumbnails.
BACKGROUND = 24


class ContactSheet:
    """A grid of evenly spread frames of a video, at most 16, for a PNG.

    It reads from left to right and top to bottom. The video is divided into equally long parts; each thumbnail is the
    middle frame of one part and keeps its aspect ratio. Only the thumbnails are in memory.

    frames: the indices of the frames on the sheet, ascending.
    """

    def __init__(self, path: Path, *, frames_total: int) -> None:
        self.path = path
        count = min(MOST_FRAMES, frames_total)
        self.frames = tuple((2 * k + 1) * frames_total // (2 * count) for k in range(count))
        self._thumbnails: list[np.ndarray] = []

    def add(self, frame: np.ndarray) -> None:
        """Add the next one of `frames`, (h, w, 3) uint8."""
        self._thumbnails.append(_thumbnail(frame))

    def grid(self) -> np.ndarray:
        """Return the sheet so far, (h, w, 3) uint8. Raises ValueError before the first frame."""
        if not self._thumbnails:
            raise ValueError("a contact sheet needs at least one frame")
        height, width, _ = self._thumbnails[0].shape
        columns = min(COLUMNS, len(self._thumbnails))
        rows = math.ceil(len(self._thumbnails) / columns)
        shape = (rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3)
        sheet = np.full(shape, BACKGROUND, dtype=np.uint8)
        for index, thumbnail in enumerate(self._thumbnails):
            row, column = divmod(index, columns)
            top, left = GAP + row * (height + GAP), GAP + column * (width + GAP)
            sheet[top : top + height, left : left + width] = thumbnail
        return sheet

    def save(self) -> None:
        """Write the PNG; an older file is replaced once the new one is complete. Raises OutputError."""
        write_whole(self.path, encode_png(self.grid()))


def encode_png(image: np.ndarray) -> bytes:
    """Return the bytes of a PNG file. image: (h, w, 3) uint8."""
    codec = av.CodecContext.create("png", "w")
    assert isinstance(codec, av.VideoCodecContext)
    codec.height, codec.width, _ = image.shape
    codec.pix_fmt = "rgb24"
    codec.framerate = Fraction(1)
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    return b"".join(bytes(packet) for packet in [*codec.encode(picture), *codec.encode()])


def to_8_bits(frame: np.ndarray) -> np.ndarray:
    """Convert a frame of 16 bits per sample to 8; return a frame of 8 bits as it is."""
    if frame.dtype == np.uint8:
        return frame
    return (frame / np.float32(257)).round().astype(np.uint8)


def _thumbnail(frame: np.ndarray) -> np.ndarray:
    height, width, _ = frame.shape
    shrink = THUMBNAIL_SIDE / max(height, width)
    if shrink >= 1:
        return frame.copy()
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
    size = {"width": max(1, round(width * shrink)), "height": max(1, round(height * shrink))}
    return picture.reformat(**size, interpolation="AREA").to_ndarray()
