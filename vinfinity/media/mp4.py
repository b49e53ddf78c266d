"""H.264 in MP4, written frame by frame.

Video frames are (h, w, 3) uint8, full-range RGB with BT.709 primaries. The file holds limited-range Y'CbCr by
the BT.709 matrix and says so in its tags: most tools that do neither come out with shifted colours at one
end.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from vinfinity.config import VideoConfig
from vinfinity.errors import OutputError
from vinfinity.media.fragments import Fragments

BT709 = 1  # the code of BT.709 in H.264's tags for primaries, transfer and matrix (ITU-T H.264, annex E)

THREADS = 4

# (columns, rows) of pixels that share a colour sample; H.264 wants sides that are multiples of them.
CHROMA_BLOCK = {"yuv420p": (2, 2), "yuv422p": (2, 1), "yuv444p": (1, 1)}

# Of a second's file, only fragments (moof and mdat) follow those of the second before; their times are absolute.
MOVFLAGS = "+empty_moov+delay_moov+default_base_moof+frag_keyframe+frag_discont+skip_trailer"
HEAD = (b"ftyp", b"moov")  # what only the first second's file gives


class Mp4Writer:
    """Writes frames of `width` x `height` pixels as they come; the file appears, whole, when the block ends.

    Each second is encoded by itself and, once it is, added to the file `unfinished` as a fragment: whatever ends the
    process, these play and stay, and a writer of a video of the same `of` goes on behind them: `frames` says with which
    frame. The file is the same, however often it was gone on with, where the width is a multiple of 128; of others,
    x264 reads beyond its rows, and spends its bits a little differently each time. At the end the fragments are copied,
    without being encoded again, to a file whose index comes first, so that players start and seek before they have all
    of it. Without `unfinished` they are in the same folder, and removed if anything fails. A file that was at `path`
    before stays as it was until the end.

    Sides that the pixel format cannot hold (odd ones, in yuv420p) are enlarged by one repeated row or column.
    `metadata` is kept in the MP4, unless `config.metadata` is off; players and `ffprobe` show `title` and `comment`.

        with Mp4Writer(Path("a.mp4"), width=512, height=320, fps=24, config=VideoConfig()) as mp4:
            mp4.write(frame)

    Raises OutputError where the file cannot be written or the encoder fails, ValueError for frames of another
    shape.
    """

    def __init__(
        self,
        path: Path,
        *,
        width: int,
        height: int,
        fps: int,
        config: VideoConfig,
        metadata: Mapping[str, str] | None = None,
        unfinished: Path | None = None,
        of: str = "",
    ) -> None:
        self.path = path
        self._shape, self._fps, self._config = (height, width, 3), fps, config
        columns, rows = CHROMA_BLOCK[config.pixel_format]
        self._padding = ((0, -height % rows), (0, -width % columns), (0, 0))
        self._metadata = metadata if config.metadata and metadata else {}
        self._copy = path.with_name(f".{path.name}.{os.getpid()}.part")
        self._stays = unfinished is not None
        depends = [of, self._shape, fps, config.crf, config.preset, config.pixel_format, av.__version__]
        self._fragments = Fragments(
            unfinished or path.with_name(f".{path.name}.{os.getpid()}.fragments"),
            of=hashlib.sha256(json.dumps(depends).encode()).hexdigest(),
        )
        self.frames = self._fragments.frames  # taken so far
        try:
            self._second: _Second | None = self._begin()
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
            self._keep()
            self._copy_seekable()
            os.replace(self._copy, self.path)
            self._fragments.remove()
        except OutputError:
            self._abandon()
            raise
        except (OSError, av.error.FFmpegError) as failure:
            self._abandon()
            raise self._cannot(failure) from failure

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
        self._second = self._second or self._begin()
        try:
            self._second.write(picture)
        except (OSError, av.error.FFmpegError) as error:
            raise self._cannot(error) from error
        self.frames += 1
        if self.frames % self._fps == 0:
            self._keep()

    def _begin(self) -> "_Second":
        height, width, _ = self._shape
        (_, rows), (_, columns), _ = self._padding
        try:
            return _Second(
                width + columns, height + rows, fps=self._fps, config=self._config, metadata=self._metadata
            )
        except (ValueError, av.error.FFmpegError) as error:
            raise OutputError(
                f"{self.path}: this build of PyAV has no libx264 encoder ({_reason(error)})"
            ) from error

    def _keep(self) -> None:
        """Adds the frames since the last fragment, if there are any, as one."""
        frames, second, self._second = self.frames - self._fragments.frames, self._second, None
        if not frames or second is None:
            return
        try:
            boxes = second.end()
        except (OSError, av.error.FFmpegError) as error:
            raise self._cannot(error) from error
        if self._fragments.frames:
            boxes = [(kind, box) for kind, box in boxes if kind not in HEAD]
        self._fragments.add(b"".join(box for _, box in boxes), frames=frames)

    def _copy_seekable(self) -> None:
        with (
            av.open(str(self._fragments.path)) as source,
            av.open(str(self._copy), "w", format="mp4", options={"movflags": "+faststart"}) as target,
        ):
            target.metadata.update(self._metadata)
            [stream] = source.streams.video
            copied = target.add_stream_from_template(stream)
            for packet in source.demux(stream):
                if packet.dts is not None:  # the last one is empty: it ends the stream
                    packet.stream = copied
                    target.mux(packet)
        with self._copy.open("rb") as file:
            os.fsync(file.fileno())

    def _abandon(self) -> None:
        self._copy.unlink(missing_ok=True)
        if not self._stays:
            self._fragments.remove()

    def _cannot(self, error: Exception) -> OutputError:
        return OutputError(f"{self.path}: cannot be written ({_reason(error)})")


class _Second:
    """An MP4 in memory of a second's frames, the first of them a key frame."""

    def __init__(
        self, width: int, height: int, *, fps: int, config: VideoConfig, metadata: Mapping[str, str]
    ) -> None:
        self._file = io.BytesIO()
        self._container = av.open(self._file, "w", format="mp4", options={"movflags": MOVFLAGS})
        # of fixed length, so that seeking is quick: scene changes do not add key frames
        options = {"crf": str(config.crf), "preset": config.preset, "sc_threshold": "0"}
        self._stream = self._container.add_stream("libx264", rate=fps, options=options)
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = config.pixel_format
        self._stream.gop_size = fps
        # x264 cuts its work by the number of threads and decides by it: let that not depend on the machine
        self._stream.codec_context.thread_count = THREADS
        codec = self._stream.codec_context
        codec.color_primaries = codec.color_trc = codec.colorspace = BT709
        codec.color_range = ColorRange.MPEG
        self._container.metadata.update(metadata)

    def write(self, picture: av.VideoFrame) -> None:
        self._container.mux(self._stream.encode(picture))

    def end(self) -> list[tuple[bytes, bytes]]:
        """The boxes of the MP4: (type, all of it)."""
        self._container.mux(self._stream.encode())
        self._container.close()
        return list(_boxes(self._file.getvalue()))


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The outermost boxes of an MP4: a length of 4 bytes, a type of 4, and what is in it (ISO/IEC 14496-12, 4.2)."""
    at = 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4])
        yield data[at + 4 : at + 8], data[at : at + length]
        at += length


def read_video(path: Path) -> np.ndarray:
    """All frames of a video file, (f, h, w, 3) uint8 full-range RGB. Holds them all in memory."""
    with av.open(str(path)) as container:
        # By way of yuv444p: straight from subsampled formats, swscale takes a shortcut that shifts colours by
        # up to 2.
        planes = (
            frame.reformat(format="yuv444p", interpolation="BICUBIC") for frame in container.decode(video=0)
        )
        frames = [
            frame.reformat(format="rgb24", src_colorspace=Colorspace.ITU709).to_ndarray() for frame in planes
        ]
    return np.stack(frames)


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a video file, such as `title` and `comment`."""
    with av.open(str(path)) as container:
        return dict(container.metadata)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
