"""H.264 in MP4, written frame by frame.

Video frames are (h, w, 3) uint8, full-range RGB with BT.709 primaries. The file holds limited-range Y'CbCr by
the BT.709 matrix and says so in its tags: most tools that do neither come out with shifted colours at one
end.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from vinfinity.config import VideoConfig
from vinfinity.errors import OutputError

BT709 = 1  # the code of BT.709 in H.264's tags for primaries, transfer and matrix (ITU-T H.264, annex E)

THREADS = 4
FRAGMENT = 8  # frames that are written at once, at most

# (columns, rows) of pixels that share a colour sample; H.264 wants sides that are multiples of them.
CHROMA_BLOCK = {"yuv420p": (2, 2), "yuv422p": (2, 1), "yuv444p": (1, 1)}


class Mp4Writer:
    """Writes frames of `width` x `height` pixels as they come; the file appears, whole, when the block ends.

    Until then they go to the file `unfinished`, in fragments: whatever ends the process, the fragments written so far
    play, and the file stays. At the end they are copied, without being encoded again, to a file whose index comes
    first, so that players start and seek before they have all of it. Without `unfinished` it is a file in the same
    folder, which is removed if anything fails. A file that was at `path` before stays as it was until the end.

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
    ) -> None:
        self.path = path
        self.frames = self.encoded = 0  # taken so far, and of these, handed on by the encoder
        self._shape = (height, width, 3)
        self._pixel_format = config.pixel_format
        columns, rows = CHROMA_BLOCK[config.pixel_format]
        self._padding = ((0, -height % rows), (0, -width % columns), (0, 0))
        self._copy = path.with_name(f".{path.name}.{os.getpid()}.part")
        self._unfinished = unfinished or path.with_name(f".{path.name}.{os.getpid()}.fragments")
        self._stays = unfinished is not None
        self._metadata = metadata if config.metadata and metadata else {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._container = av.open(
                str(self._unfinished),
                "w",
                format="mp4",
                options={
                    "movflags": "+empty_moov+default_base_moof+frag_keyframe",
                    "frag_duration": str(round(1e6 * FRAGMENT / fps)),
                    "flush_packets": "1",
                },
            )
        except (OSError, av.error.FFmpegError) as error:
            raise OutputError(f"{self._unfinished}: cannot be written ({_reason(error)})") from error
        try:
            self._stream = self._add_stream(width, height, fps=fps, config=config)
        except (ValueError, av.error.FFmpegError) as error:
            self._abandon()
            raise OutputError(
                f"{path}: this build of PyAV has no libx264 encoder ({_reason(error)})"
            ) from error
        self._container.metadata.update(self._metadata)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._abandon()
            return
        try:
            self._container.mux(self._stream.encode())
            self._container.close()
            self._copy_seekable()
            os.replace(self._copy, self.path)
            self._unfinished.unlink(missing_ok=True)
        except (OSError, av.error.FFmpegError) as failure:
            self._abandon()
            raise OutputError(f"{self.path}: cannot be written ({_reason(failure)})") from failure

    def _copy_seekable(self) -> None:
        with (
            av.open(str(self._unfinished)) as source,
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

    def write(self, frame: np.ndarray) -> None:
        """Adds one frame, (height, width, 3) uint8."""
        if frame.shape != self._shape or frame.dtype != np.uint8:
            raise ValueError(f"a frame is {self._shape} uint8, not {frame.shape} {frame.dtype}")
        picture = av.VideoFrame.from_ndarray(np.pad(frame, self._padding, mode="edge"), format="rgb24")
        picture = picture.reformat(
            format=self._pixel_format,
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            interpolation="BICUBIC",
        )
        picture.pts = self.frames
        try:
            packets = self._stream.encode(picture)
            self._container.mux(packets)
        except (OSError, av.error.FFmpegError) as error:
            raise OutputError(f"{self.path}: cannot be written ({_reason(error)})") from error
        self.frames += 1
        self.encoded += len(packets)

    def _add_stream(self, width: int, height: int, *, fps: int, config: VideoConfig) -> av.VideoStream:
        # A key frame each second, at fixed places: seeking is quick, and scene changes do not move them.
        options = {"crf": str(config.crf), "preset": config.preset, "sc_threshold": "0"}
        stream = self._container.add_stream("libx264", rate=fps, options=options)
        stream.height = height + self._padding[0][1]
        stream.width = width + self._padding[1][1]
        stream.pix_fmt = config.pixel_format
        stream.gop_size = fps
        # x264 cuts its work by the number of threads and decides by it: let that not depend on the machine
        stream.codec_context.thread_count = THREADS
        codec = stream.codec_context
        codec.color_primaries = codec.color_trc = codec.colorspace = BT709
        codec.color_range = ColorRange.MPEG
        return stream

    def _abandon(self) -> None:
        try:
            self._container.close()
        except (OSError, av.error.FFmpegError):
            pass  # what is reported is the failure that came first
        finally:
            self._copy.unlink(missing_ok=True)
            if not self._stays:
                self._unfinished.unlink(missing_ok=True)


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
