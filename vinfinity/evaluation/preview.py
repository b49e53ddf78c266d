"""What reports show of a video's frames: a small H.264 copy that every browser plays and seeks, and thumbnails; of each
video of a batch, a contact sheet."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import av
import cv2
import numpy as np

from vinfinity.config import VideoConfig, choose_format
from vinfinity.evaluation.picture import Picture
from vinfinity.media.encoders import machine_options
from vinfinity.media.mp4 import BT709, THREADS, ColorRange, to_picture

# Pixels of the long side; larger frames are shrunk.
PREVIEW_SIDE = 640
THUMBNAIL_SIDE = 200
THUMBNAILS = 16
# of a contact sheet: its thumbnails' long side, columns and rows
SHEET_SIDE, SHEET_COLUMNS, SHEET_ROWS = 160, 4, 2
# visually close, about 1 MB per minute of a small video
CRF = "23"
# seconds between key frames: browsers seek from one
KEY_SECONDS = Fraction(1, 2)
JPEG_QUALITY = 80


@dataclass(frozen=True)
class Preview:
    """The copy of a video in a report. size: (width, height) of the copy. video: the copy, base64 of an MP4.

    thumbnails: data URLs of JPEGs, by frame.
    """

    size: tuple[int, int]
    video: str
    thumbnails: Mapping[int, str]


class PreviewMaker:
    """Makes a preview from the frames of a video. frames: their number. fps: the video's frame rate.

    Until `result`, it holds an encoder, which takes much more memory than the preview.
    """

    def __init__(self, *, size: tuple[int, int], frames: int, fps: Fraction) -> None:
        self._size = _even(size)
        self._frames = _spread(frames, THUMBNAILS)
        self._thumbnails: dict[int, str] = {}
        self._format = choose_format(None, VideoConfig())
        self._file = io.BytesIO()
        self._container = av.open(self._file, "w", format="mp4")
        options = {"crf": CRF, "preset": "veryfast", **machine_options("libx264")}
        stream = self._container.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height = self._size
        stream.pix_fmt = "yuv420p"
        stream.gop_size = max(1, round(fps * KEY_SECONDS))
        codec = stream.codec_context
        codec.thread_count = THREADS
        codec.color_primaries = codec.color_trc = codec.colorspace = BT709
        codec.color_range = ColorRange.MPEG
        self._stream, self._rate = stream, fps

    def add(self, picture: Picture) -> None:
        small = picture.rgb
        if (small.shape[1], small.shape[0]) != self._size:
            small = cv2.resize(small, self._size, interpolation=cv2.INTER_AREA)
        frame = to_picture(small, self._format)
        frame.pts, frame.time_base = picture.index, 1 / self._rate
        self._container.mux(self._stream.encode(frame))
        if picture.index in self._frames:
            self._thumbnails[picture.index] = _jpeg(_shrunk(small, THUMBNAIL_SIDE))

    def result(self) -> Preview:
        self._container.mux(self._stream.encode())
        self._container.close()
        return Preview(self._size, base64.b64encode(self._file.getvalue()).decode(), self._thumbnails)


class SheetMaker:
    """Makes a contact sheet from a few of the frames of a video. frames: the number of frames."""

    def __init__(self, *, frames: int) -> None:
        self._frames = _spread(frames, SHEET_COLUMNS * SHEET_ROWS)
        self._thumbnails: list[np.ndarray] = []

    def add(self, picture: Picture) -> None:
        if picture.index in self._frames:
            self._thumbnails.append(_shrunk(picture.rgb, SHEET_SIDE))

    def result(self) -> str:
        """Return the sheet as a data URL of a JPEG; empty if no frame was shown."""
        if not self._thumbnails:
            return ""
        height, width = self._thumbnails[0].shape[:2]
        columns = min(SHEET_COLUMNS, len(self._thumbnails))
        rows = -(-len(self._thumbnails) // columns)
        sheet = np.zeros((rows * height, columns * width, 3), np.uint8)
        for number, thumbnail in enumerate(self._thumbnails):
            row, column = divmod(number, columns)
            sheet[row * height : (row + 1) * height, column * width : (column + 1) * width] = thumbnail
        return _jpeg(sheet)


def _spread(frames: int, most: int) -> list[int]:
    """Return the numbers of at most `count` frames of a video: the middles of equal parts."""
    count = min(most, frames)
    return [(2 * k + 1) * frames // (2 * count) for k in range(count)]


def _even(size: tuple[int, int]) -> tuple[int, int]:
    """H.264 with colours at half resolution needs even sides."""
    shrink = min(1.0, PREVIEW_SIDE / max(size))
    width, height = (max(2, round(side * shrink / 2) * 2) for side in size)
    return width, height


def _shrunk(rgb: np.ndarray, side: int) -> np.ndarray:
    """Return a frame shrunk so that its long side has at most `side` pixels."""
    shrink = min(1.0, side / max(rgb.shape[:2]))
    size = (max(1, round(rgb.shape[1] * shrink)), max(1, round(rgb.shape[0] * shrink)))
    return cv2.resize(rgb, size, interpolation=cv2.INTER_AREA) if shrink < 1 else rgb


def _jpeg(rgb: np.ndarray) -> str:
    _, data = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"
