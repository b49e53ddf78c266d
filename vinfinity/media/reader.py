"""Videos read one frame at a time: files of any format that FFmpeg decodes, and folders of PNG."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np

from vinfinity.errors import DamagedError, InputError
from vinfinity.media.finish import DIGITS, PICTURES
from vinfinity.media.fit import to_rgb
from vinfinity.media.mp4 import file_url
from vinfinity.system.files import missing_problem, reason

# the identifiers of the first two elements of a Matroska or WebM file
EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
# the rate of folders of pictures, which state none
FALLBACK_RATE = 24


class UnusableVideo(InputError):
    """A video that exists but cannot be used, such as a damaged file. Commands that take several videos skip it."""


@dataclass(frozen=True)
class VideoReader:
    """A video on disk. Iterating over it decodes its frames: (h, w, 3) uint8 full-range RGB each.

    size: (width, height) in pixels. frames: the number of frames. fps: the average rate. codec: FFmpeg's name.

    Iterating raises DamagedError where the file cannot be decoded, or ends early.
    """

    path: Path
    size: tuple[int, int]
    frames: int
    fps: Fraction
    codec: str

    def __iter__(self) -> Iterator[np.ndarray]:
        width, height = self.size
        count, end = 0, Fraction(0)
        try:
            with _opened(self.path) as container:
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                for frame in container.decode(stream):
                    count, end = count + 1, max(end, _end(frame, self.fps))
                    picture = to_rgb(frame)
                    if picture.shape[:2] != (height, width):
                        raise DamagedError(f"{self.path}: changes its size within the video")
                    yield picture
                self._check_end(stream, count, end)
        except (OSError, av.error.FFmpegError) as error:
            raise DamagedError(f"{self.path}: cannot be decoded ({reason(error)})") from error

    def _check_end(self, stream: av.VideoStream, count: int, end: Fraction) -> None:
        """Raise DamagedError if frames are missing after the `count` that were decoded, which end at second `end`."""
        if count < self.frames and (self.path.is_dir() or ends_early(stated_end(stream), end, self.fps)):
            raise DamagedError(f"{self.path}: ends after {count} of {self.frames} frames")
        if lacks_bytes(self.path):
            raise DamagedError(f"{self.path}: is cut off after {count} frames")


def _end(frame: av.VideoFrame, fps: Fraction) -> Fraction:
    """Return the second at which a frame ends."""
    if frame.pts is None or frame.time_base is None:
        return Fraction(0)
    duration = frame.duration * frame.time_base if frame.duration else 1 / fps
    return Fraction(frame.pts * frame.time_base + duration)


def ends_early(stated: Fraction | None, end: Fraction, fps: Fraction) -> bool:
    """Return whether the last frame, which ends at second `end`, ends well before its stream should: see `stated_end`.

    FFmpeg treats the end of a file as the end of the video. The number of frames in the header is no evidence: it
    includes frames that players skip after a video was trimmed. The duration accounts for those.
    """
    return stated is not None and stated - end > Fraction(3, 2) / fps


def stated_end(stream: av.VideoStream) -> Fraction | None:
    """Return the second at which a stream ends by the header of its file; None if the header does not state it."""
    if not stream.duration or stream.time_base is None:
        return None
    return Fraction(((stream.start_time or 0) + stream.duration) * stream.time_base)


def lacks_bytes(path: Path) -> bool:
    """Return whether a Matroska or WebM file is shorter than the header of its first segment says (RFC 8794, 9559).

    The format counts no frames, and its duration may include a last picture that is shown for long. A recording whose
    header states no length never lacks any bytes. Raises OSError.
    """
    if path.is_dir():
        return False
    with path.open("rb") as file:
        if file.read(len(EBML)) != EBML:
            return False
        file.seek(_element_size(file) or 0, os.SEEK_CUR)
        if file.read(len(SEGMENT)) != SEGMENT:
            return False
        size = _element_size(file)
        return size is not None and file.tell() + size > path.stat().st_size


def _element_size(file: BinaryIO) -> int | None:
    """Read the size of an EBML element; None if it is unknown. The zeros at its start count its further bytes."""
    first = file.read(1)[0]
    length = 9 - first.bit_length()
    size = int.from_bytes(bytes([first]) + file.read(length - 1)) & (2 ** (7 * length) - 1)
    return None if size == 2 ** (7 * length) - 1 else size


def open_reader(path: Path, *, field: str = "video", fps: Fraction | int | None = None) -> VideoReader:
    """Open a video file, or a folder of PNG. fps: the rate of a folder.

    Raises InputError; UnusableVideo if it exists and no video can be read from it.
    """
    other = "name a video file, such as an MP4, or a folder of PNG named 000000.png, 000001.png, ..."
    if not os.path.exists(path):
        raise InputError(field, path, "check the path", problem=missing_problem(path))
    if path.is_dir() and not _pictures(path):
        raise InputError(field, path, other, problem="is a folder without a frame 000000.png")
    try:
        with _opened(path) as container:
            if not container.streams.video:
                raise UnusableVideo(field, path, other, problem="has no video stream")
            stream = container.streams.video[0]
            frames = len(_pictures(path)) if path.is_dir() else stream.frames
            if not frames:
                # not every format states the number of frames
                frames = sum(1 for packet in container.demux(stream) if packet.size)
            if not frames:
                raise UnusableVideo(field, path, other, problem="has no frames")
            rate = Fraction(fps or FALLBACK_RATE) if path.is_dir() else stream.average_rate
            size = (stream.codec_context.width, stream.codec_context.height)
            codec = stream.codec_context.name
    except (OSError, av.error.FFmpegError, ValueError) as error:
        raise UnusableVideo(
            field, path, other, problem=f"cannot be read as a video ({reason(error)})"
        ) from None
    if not all(size):
        # for instance an animated WebP
        raise UnusableVideo(
            field, path, other, problem="is of a format that the installed FFmpeg cannot decode"
        )
    return VideoReader(path, size, frames, rate or Fraction(FALLBACK_RATE), codec)


def _opened(path: Path) -> av.container.InputContainer:
    if path.is_dir():
        # only the file name has a number to fill in, not the path
        folder = file_url(path).replace("%", "%%")
        return av.open(f"{folder}/%0{DIGITS}d.png", format="image2", options={"start_number": "0"})
    return av.open(file_url(path))


def _pictures(folder: Path) -> list[str]:
    """Return the names of the pictures in a folder, in order, if they begin with number 0."""
    names = sorted(name for name in os.listdir(folder) if PICTURES.fullmatch(name))
    return names if names and int(names[0].partition(".")[0]) == 0 else []
