"""H.264 in MP4, written frame by frame.

Dims: h w height and width in pixels, f frames.
Video frames are (h, w, 3) uint8, full-range RGB with BT.709 primaries. The file has limited-range Y'CbCr by the BT.709
matrix, and its tags say so: without both, most players show shifted colours.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from vinfinity.config import VideoConfig
from vinfinity.errors import OutputError, one_line
from vinfinity.media.fragments import Fragments
from vinfinity.system.files import cannot_write, temporary

# The code of BT.709 in H.264's tags for primaries, transfer and matrix (ITU-T H.264, annex E).
BT709 = 1

# x264 divides its work by the number of threads and decides by the division: it must not depend on the machine.
THREADS = 4

# (columns, rows) of pixels that share a colour sample; the sides of an H.264 frame must be multiples of them.
CHROMA_BLOCK = {"yuv420p": (2, 2), "yuv422p": (2, 1), "yuv444p": (1, 1)}

# x264 shows a frame at most so many frames after decoding it, unless it reorders none.
REORDERED = 2

# Ticks per second of an MP4, at least, as FFmpeg has it.
LEAST_TIMESCALE = 10_000

# Each second is a file of its own; its fragments (moof and mdat) are appended to those of the seconds before. Their
# times count from the start of the video.
MOVFLAGS = "+empty_moov+delay_moov+default_base_moof+frag_keyframe+frag_discont+skip_trailer"
# Boxes that are taken from the first second only.
HEAD_BOXES = (b"ftyp", b"moov")


class Mp4Writer:
    """Writes frames of `width` x `height` pixels one by one; the complete file appears when the block ends.

    Every second is encoded separately and appended to the file `unfinished` as a fragment. Whatever ends the process,
    the fragments are playable, and a new writer with the same `identity` continues after them, with frame number
    `frames`. If the width is a multiple of 128, the file is the same however often it was resumed; otherwise x264 reads
    beyond its rows and spends its bits slightly differently each time. At the end, the fragments are copied without
    encoding them again to a file that begins with its index, so that players can start and seek while it loads. Without
    `unfinished`, the fragments are in the same folder and are deleted if anything fails. An older file at `path` stays
    unchanged until the end.

    fps: an exact rate, such as 24 or Fraction(30000, 1001). Frame number n is shown at n / fps seconds, exactly.

    Sides that the pixel format does not allow (odd ones in yuv420p) are extended by repeating a row or column.
    `metadata` is stored in the MP4 unless `config.metadata` is off; players and `ffprobe` show `title` and `comment`.

        with Mp4Writer(Path("a.mp4"), width=512, height=320, fps=24, config=VideoConfig()) as mp4:
            mp4.write(frame)

    Raises OutputError if the file cannot be written or the encoder fails, ValueError for frames of another shape.
    """

    def __init__(
        self,
        path: Path,
        *,
        width: int,
        height: int,
        fps: Fraction | int,
        config: VideoConfig,
        metadata: Mapping[str, str] | None = None,
        unfinished: Path | None = None,
        identity: str = "",
    ) -> None:
        self.path = path
        self._shape, self._fps, self._config = (height, width, 3), Fraction(fps), config
        # 30 at 30000/1001 fps
        self._frames_per_second = max(1, round(self._fps))
        columns, rows = CHROMA_BLOCK[config.pixel_format]
        self._padding = ((0, -height % rows), (0, -width % columns), (0, 0))
        self._metadata = metadata if config.metadata and metadata else {}
        self._copy = temporary(path, f"{os.getpid()}.part")
        self._resumable = unfinished is not None
        encoding = [config.crf, config.preset, config.pixel_format, av.__version__]
        depends_on = json.dumps([identity, self._shape, str(self._fps), *encoding])
        self._fragments = Fragments(
            unfinished or temporary(path, f"{os.getpid()}.fragments"),
            identity=hashlib.sha256(depends_on.encode()).hexdigest(),
            # users know neither the name nor the purpose of a temporary file
            shown=unfinished or path,
        )
        # the number of frames written so far
        self.frames = self._fragments.frames
        try:
            self._second: _Second | None = self._begin_second()
        except OutputError:
            self._abandon()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._abandon()
            return
        try:
            self._end_second()
            self._copy_seekable()
            os.replace(self._copy, self.path)
            self._fragments.remove()
        except OutputError:
            self._abandon()
            raise
        except (OSError, av.error.FFmpegError) as failure:
            self._abandon()
            raise cannot_write(self.path, failure) from failure

    def write(self, frame: np.ndarray) -> None:
        """Adds one frame, (height, width, 3) uint8."""
        if frame.shape != self._shape or frame.dtype != np.uint8:
            raise ValueError(f"a frame is {self._shape} uint8, not {frame.shape} {frame.dtype}")
        picture = av.VideoFrame.from_ndarray(np.pad(frame, self._padding, mode="edge"), format="rgb24")
        picture = picture.reformat(
            format=self._config.pixel_format,
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            interpolation="BICUBIC",
        )
        picture.pts = self.frames
        self._second = self._second or self._begin_second()
        try:
            self._second.write(picture)
        except (OSError, av.error.FFmpegError) as error:
            raise cannot_write(self.path, error) from error
        self.frames += 1
        if self.frames % self._frames_per_second == 0:
            self._end_second()

    def _begin_second(self) -> "_Second":
        height, width, _ = self._shape
        (_, rows), (_, columns), _ = self._padding
        try:
            return _Second(
                width + columns,
                height + rows,
                first=self.frames,
                frames=self._frames_per_second,
                fps=self._fps,
                config=self._config,
                metadata=self._metadata,
            )
        except (ValueError, av.error.FFmpegError) as error:
            raise OutputError(
                f"{self.path}: cannot be encoded, this build of PyAV has no libx264 ({one_line(error)})"
            ) from error

    def _end_second(self) -> None:
        """Appends the frames since the last fragment, if there are any, as a new one."""
        frames, second, self._second = self.frames - self._fragments.frames, self._second, None
        if not frames or second is None:
            return
        try:
            boxes = second.end()
        except (OSError, av.error.FFmpegError) as error:
            raise cannot_write(self.path, error) from error
        if self._fragments.frames:
            boxes = [(kind, box) for kind, box in boxes if kind not in HEAD_BOXES]
        self._fragments.add(b"".join(box for _, box in boxes), frames=frames)

    def _copy_seekable(self) -> None:
        with (
            av.open(_url(self._fragments.path)) as source,
            av.open(_url(self._copy), "w", format="mp4", options=_options("+faststart", self._fps)) as target,
        ):
            target.metadata.update(self._metadata)
            [stream] = source.streams.video
            copied = target.add_stream_from_template(stream)
            for packet in source.demux(stream):
                # the last packet is empty and marks the end of the stream
                if packet.dts is not None:
                    packet.stream = copied
                    target.mux(packet)
        with self._copy.open("rb") as file:
            os.fsync(file.fileno())

    def _abandon(self) -> None:
        self._copy.unlink(missing_ok=True)
        if not self._resumable:
            self._fragments.remove()


class _Second:
    """One second of video as an MP4 in memory; its first frame is a key frame.

    first: the number of that frame. frames: in a whole second.
    """

    def __init__(
        self,
        width: int,
        height: int,
        *,
        first: int,
        frames: int,
        fps: Fraction,
        config: VideoConfig,
        metadata: Mapping[str, str],
    ) -> None:
        # the number of the next packet: that of a frame, but in the order of decoding
        self._packet = first
        self._file = io.BytesIO()
        self._container = av.open(self._file, "w", format="mp4", options=_options(MOVFLAGS, fps))
        # no key frames at scene changes: with groups of one length, seeking is fast
        options = {"crf": str(config.crf), "preset": config.preset, "sc_threshold": "0"}
        self._stream = self._container.add_stream("libx264", rate=fps, options=options)
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = config.pixel_format
        self._stream.gop_size = frames
        self._stream.codec_context.thread_count = THREADS
        codec = self._stream.codec_context
        codec.color_primaries = codec.color_trc = codec.colorspace = BT709
        codec.color_range = ColorRange.MPEG
        self._container.metadata.update(metadata)

    def write(self, picture: av.VideoFrame) -> None:
        self._mux(self._stream.encode(picture))

    def end(self) -> list[tuple[bytes, bytes]]:
        """Ends the encoding. Returns the boxes of the MP4: (type, the whole box)."""
        self._mux(self._stream.encode())
        self._container.close()
        return list(_boxes(self._file.getvalue()))

    def _mux(self, packets: Iterable[av.Packet]) -> None:
        """Packets are decoded ahead of their time, by as many frames as may be reordered, the same in all seconds.

        x264 leaves this delay out of a second that is shorter than it. But all seconds share the head of the first one,
        whose edit list takes the delay off again: such a second would be shown too early.
        """
        for packet in packets:
            packet.dts = self._packet - REORDERED * self._stream.codec_context.has_b_frames
            packet.duration = 1
            self._packet += 1
            self._container.mux(packet)


def _options(flags: str, fps: Fraction) -> dict[str, str]:
    """The options of an MP4 whose clocks, of the file and of its track, count frames of this rate exactly."""
    timescale = fps.numerator * -(-LEAST_TIMESCALE // fps.numerator)
    return {"movflags": flags, "movie_timescale": str(timescale), "video_track_timescale": str(timescale)}


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The top-level boxes of an MP4: 4 bytes of length, 4 bytes of type, then the content (ISO/IEC 14496-12, 4.2)."""
    start = 0
    while start < len(data):
        length = int.from_bytes(data[start : start + 4])
        yield data[start + 4 : start + 8], data[start : start + length]
        start += length


def _url(path: Path) -> str:
    """A path as FFmpeg takes it: it would read `12:30.mp4` as the protocol `12`."""
    return f"file:{path}"


def read_video(path: Path) -> np.ndarray:
    """All frames of a video file at once, (f, h, w, 3) uint8 full-range RGB."""
    with av.open(_url(path)) as container:
        # via yuv444p: from subsampled formats, swscale takes a shortcut that shifts colours by up to 2
        planes = (
            frame.reformat(format="yuv444p", interpolation="BICUBIC") for frame in container.decode(video=0)
        )
        frames = [
            frame.reformat(format="rgb24", src_colorspace=Colorspace.ITU709).to_ndarray() for frame in planes
        ]
    return np.stack(frames)


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a video file, such as `title` and `comment`."""
    with av.open(_url(path)) as container:
        return dict(container.metadata)
