"""Videos and pictures that a run starts from: what a file holds, and its frames, fitted to a size one after the other.

Dims: h w height and width in pixels. Pictures are (h, w, 3) uint8, full-range RGB. Imports no torch.
"""

import contextlib
import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from vinfinity.errors import InputError, one_line
from vinfinity.system.files import missing_problem, reason
from vinfinity.system.folders import expanded

if TYPE_CHECKING:
    import av
    import numpy as np

# transfer functions of HDR video (ITU-T H.273): PQ and HLG
HDR = {16: "PQ", 18: "HLG"}
# the range of the setting `fps`
SLOWEST, FASTEST = 1, 240
COMPLETE_COPY = "use a complete copy, or remux it, as with ffmpeg -i FILE -c copy NEW"
# the largest relative difference of aspect ratios that count as equal
SAME_SHAPE = 0.02


@dataclass(frozen=True)
class Source:
    """What a video or picture file holds. Only its first frame was decoded.

    field: the setting that names it. size: (width, height) in pixels as displayed. aspect: width over height of a
    stored pixel. times: when each frame begins, in seconds from the first. tick: the file's unit of time, in seconds.
    rate: frames per second, the mean if the rate varies. steady: whether it is constant. hdr: the HDR transfer
    function, or "".
    """

    field: str
    path: Path
    size: tuple[int, int]
    aspect: Fraction
    times: tuple[Fraction, ...]
    tick: Fraction
    rate: Fraction
    steady: bool
    hdr: str

    def frames_at(self, fps: Fraction) -> int:
        """Return the number of frames at another rate, for a video of the same length."""
        if self.steady:
            return max(1, round(len(self.times) * fps / self.rate))
        length = self.times[-1] + self.times[-1] / (len(self.times) - 1)
        return max(1, round(length * fps))

    def concerns(self) -> list[str]:
        """Return what users should know before they wait."""
        concerns = []
        if not self.steady:
            mean = f"{float(self.rate):.4g}"
            concerns.append(
                f"{self.field}: {self.path} has a variable frame rate, {mean} fps on average; frames are "
                "picked by time"
            )
        if self.hdr:
            concerns.append(
                f"{self.field}: {self.path} is HDR ({self.hdr}); it is read as SDR, so its colours look pale. "
                "Convert it to SDR first"
            )
        return concerns


def open_video(path: str, *, field: str = "input.video") -> Source:
    """Return what a video holds. Raises InputError if it cannot be read, or has no frames."""
    return _opened(expanded(path, field=field).absolute(), field, "video")


def open_picture(path: str, *, field: str) -> Source:
    """Return what a picture file holds. Raises InputError if it cannot be read, or is a video."""
    source = _opened(expanded(path, field=field).absolute(), field, "picture")
    if len(source.times) > 1:
        problem = f"has {len(source.times)} frames"
        raise InputError(field, path, "use a picture, such as a PNG or a JPEG", problem=problem)
    return source


def video_defaults(path: str, fps: Fraction | None) -> tuple[Mapping[str, object], str]:
    """Return frames, size and fps of a video as settings, and the name of the video as their origin.

    fps: the rate of the run; None for the video's own. Raises InputError.
    """
    source = open_video(path)
    own = own_fps(source.rate)
    width, height = source.size
    values = {"frames": source.frames_at(fps or own), "size": f"{width}x{height}", "fps": rate_value(own)}
    return values, f"video {one_line(source.path.name)}"


def own_fps(rate: Fraction) -> Fraction:
    """Return the fps of a video made from one of this rate: the rate itself, within the range of the setting `fps`."""
    return min(max(rate.limit_denominator(1001), Fraction(SLOWEST)), Fraction(FASTEST))


def rate_value(rate: Fraction) -> int | str:
    """Return a frame rate as a value of the setting `fps`."""
    return rate.numerator if rate.denominator == 1 else str(rate)


def check_shape(source: Source, size: tuple[int, int], *, fit: str | None) -> None:
    """Raise InputError if a picture's aspect ratio is not the video's, and no setting says how to fit it.

    size: (width, height) of the video.
    """
    (width, height), (own_width, own_height) = size, source.size
    if fit is None and abs(own_width * height / (own_height * width) - 1) > SAME_SHAPE:
        problem = f"is {own_width}x{own_height}, with another aspect ratio than the video's {width}x{height}"
        remedy = "add --fit cover, contain or stretch"
        raise InputError(source.field, source.path, remedy, problem=problem)


def read_frames(
    source: Source, *, fps: Fraction, frames: range, size: tuple[int, int], fit: str
) -> "Iterator[np.ndarray]":
    """Yield pictures at `fps`, fitted to `size`: for each of `frames`, the picture that is shown at that time.

    frames: contiguous, absolute. One picture is in memory at a time. Raises InputError if the file is damaged.
    """
    from vinfinity.media.fit import fitted

    wanted = iter(frames)
    number = next(wanted, None)
    previous: av.VideoFrame | None = None
    for time, picture in itertools.chain(_decoded(source), [(None, None)]):
        # the previous picture is shown until this one begins, up to the rounding of the file's times
        if previous is not None:
            shown: np.ndarray | None = None
            while number is not None and (time is None or number / fps + source.tick / 2 < time):
                shown = fitted(previous, size, fit=fit, aspect=source.aspect) if shown is None else shown
                yield shown
                number = next(wanted, None)
        if number is None:
            return
        previous = picture


def _opened(path: Path, field: str, kind: str) -> Source:
    if not os.path.isfile(path):
        problem = "is not a file" if os.path.exists(path) else missing_problem(path)
        raise InputError(field, path, "check the path", problem=problem)
    if not os.access(path, os.R_OK):
        raise InputError(field, path, "check its permissions", problem="cannot be read")
    status = path.stat()
    if status.st_size == 0:
        raise InputError(field, path, f"use another {kind}", problem="is empty")
    return _probed(path, field, kind, (status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=8)
def _probed(path: Path, field: str, kind: str, version: tuple[int, int]) -> Source:
    """Read a file once for all callers. version: changes when the file does."""
    from vinfinity.media.fit import shown_size
    from vinfinity.media.reader import ends_early, lacks_bytes, stated_end

    with _named(field, path, f"is not a {kind} that can be read"), _container(path) as container:
        stream = _stream(container)
        if stream is None:
            raise InputError(field, path, f"use a {kind}", problem="has no frames")
        tick = Fraction(stream.time_base or Fraction(1, 1000))
        packets = [
            (packet.pts if packet.pts is not None else packet.dts, packet.duration or 0, packet.is_discard)
            for packet in container.demux(stream)
            if packet.size
        ]
        stamps = [stamp for stamp, _, discarded in packets if not discarded]
        ends = [stamp + duration for stamp, duration, _ in packets if stamp is not None]
        stated = stated_end(stream)
        rates = [stream.average_rate, stream.guessed_rate, stream.base_rate]
    if not stamps:
        raise InputError(field, path, f"use another {kind}", problem="has no frames")
    first, aspect = _first_frame(path, field, kind)
    known = [Fraction(rate) for rate in rates if rate]
    times = _times(stamps, known, tick)
    rate, steady = _rate(times, known, tick)
    if ends and ends_early(stated, end := max(ends) * tick, rate):
        raise InputError(
            field,
            path,
            COMPLETE_COPY,
            problem=f"is cut off: it ends at {float(end):.2f} of {float(stated or 0):.2f} s",
        )
    if lacks_bytes(path):
        raise InputError(
            field, path, COMPLETE_COPY, problem=f"is cut off: it ends at {float(times[-1]):.2f} s"
        )
    return Source(
        field=field,
        path=path,
        size=shown_size(first, aspect),
        aspect=aspect,
        times=tuple(times),
        tick=tick,
        rate=rate,
        steady=steady,
        hdr=HDR.get(int(first.color_trc or 0), ""),
    )


def _first_frame(path: Path, field: str, kind: str) -> "tuple[av.VideoFrame, Fraction]":
    """Return the first frame of a file, and width over height of its stored pixels. Raises InputError."""
    with _named(field, path, f"is not a {kind} that can be read"), _container(path) as container:
        stream = _stream(container)
        first: av.VideoFrame | None = next(iter(container.decode(stream)), None) if stream else None
        if first is None:
            raise InputError(field, path, f"use another {kind}", problem="has no frames")
        assert stream is not None
        return first, Fraction(stream.sample_aspect_ratio or 1)


def _times(stamps: list[int | None], known: list[Fraction], tick: Fraction) -> list[Fraction]:
    """Return when each frame begins, in seconds from the first. known: the rates that the file states."""
    if any(stamp is None for stamp in stamps):
        # a format without times
        return [Fraction(index) / (known or [Fraction(25)])[0] for index in range(len(stamps))]
    ordered = sorted(stamp for stamp in stamps if stamp is not None)
    return [(stamp - ordered[0]) * tick for stamp in ordered]


def _rate(times: list[Fraction], known: list[Fraction], tick: Fraction) -> tuple[Fraction, bool]:
    """Return frames per second, and whether all frames keep to this rate. known: the rates that the file states."""
    for rate in known:
        if all(abs(time - index / rate) <= tick for index, time in enumerate(times)):
            return rate, True
    if len(times) == 1 or times[-1] == 0:
        return (known or [Fraction(SLOWEST)])[0], len(times) == 1
    mean = Fraction(len(times) - 1) / times[-1]
    steady = all(abs(time - index / mean) <= tick for index, time in enumerate(times))
    return mean, steady


def _decoded(source: Source) -> "Iterator[tuple[Fraction, av.VideoFrame]]":
    """Yield all frames in order, with their times. Raises InputError if not all of them can be decoded."""
    last = Fraction(-1)
    begin: int | None = None
    problem = "is damaged: it cannot be decoded to its end"
    with _named(source.field, source.path, problem), _container(source.path) as container:
        stream = _stream(container)
        assert stream is not None
        stream.thread_type = "AUTO"
        for index, picture in enumerate(container.decode(stream)):
            if picture.pts is None:
                last = source.times[min(index, len(source.times) - 1)]
            else:
                begin = picture.pts if begin is None else begin
                last = (picture.pts - begin) * source.tick
            yield last, picture
    if last < source.times[-1] - source.tick:
        problem = (
            f"is damaged: nothing after {float(last):.2f} s of {float(source.times[-1]):.2f} s can be decoded"
        )
        raise InputError(source.field, source.path, "repair it, or use fewer --frames", problem=problem)


def _container(path: Path) -> "av.container.InputContainer":
    import av

    from vinfinity.media.mp4 import file_url

    return av.open(file_url(path))


def _stream(container: "av.container.InputContainer") -> "av.VideoStream | None":
    """Return the first stream of moving pictures, or else of a still picture, but not the cover of a piece of music."""
    from av.stream import Disposition

    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    return streams[0] if streams else None


@contextlib.contextmanager
def _named(field: str, path: Path, problem: str) -> Iterator[None]:
    """Turn FFmpeg's errors into one that names the file."""
    import av

    try:
        yield
    except (av.error.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        if isinstance(error, av.error.EOFError):
            # the container ends before its first frame
            raise InputError(field, path, "use another file", problem="has no frames") from error
        detail = f"{problem} ({reason(error)})"
        raise InputError(field, path, "check the file, or convert it", problem=detail) from error
