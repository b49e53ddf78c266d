"""MP4 in fragments of one second, each with its own encoder.

The file of fragments plays at any moment and can be continued; see docs/decisions/0010. ProRes and PNG are in MOV,
which has the same boxes.
"""

import io
import typing
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from vinfinity.config import VideoFormat
from vinfinity.config.formats import H264, H265
from vinfinity.media.encoders import machine_options, quiet, same_priority

# the code of BT.709 for primaries, transfer and matrix (ITU-T H.273)
BT709 = 1
# the output of encoders depends on how they divide the work among threads: the number must not depend on the machine
THREADS = 4
# the most frames between decoding and showing a frame, in encoders that reorder frames
REORDER_DELAY = 2
# FFmpeg's minimum of ticks per second in an MP4
LEAST_TIMESCALE = 10_000
# Fragments (moof and mdat) are appended to those of the seconds before. Their times count from the start of the video.
MOVFLAGS = "+empty_moov+delay_moov+default_base_moof+frag_keyframe+frag_discont+skip_trailer"
# when swscale converts 16-bit RGB to Y'CbCr, it takes 255 * 256 for white, not 65535
SWSCALE_WHITE = np.float32(65280 / 65535)
# with more threads, swscale corrupts rows where their parts meet, in pictures of more than 8 bits
ONE_THREAD = 1
# boxes that only the first second contributes
HEAD_BOXES = (b"ftyp", b"moov")
# codec tags: H.265 is tagged as Apple's players expect
TAGS = {"h265": "hvc1"}


class Second:
    """One second of video as an MP4 or MOV in memory; its first frame is a key frame.

    first: the number of that frame. frames: the number of frames in a whole second. Raises ValueError or an error of
    FFmpeg.
    """

    def __init__(
        self,
        video: VideoFormat,
        *,
        width: int,
        height: int,
        first: int,
        frames: int,
        fps: Fraction,
        metadata: Mapping[str, str],
    ) -> None:
        # the number of the next packet, counted in decoding order
        self._packet, self._codec = first, video.codec
        self._file = io.BytesIO()
        muxer = "mp4" if video.container.muxer in ("mp4", "webm") else "mov"
        self._container = av.open(self._file, "w", format=muxer, options=clock_options(MOVFLAGS, fps))
        quiet()
        options = {**video.options, **machine_options(video.codec.encoder)}
        stream = self._container.add_stream(video.codec.encoder, rate=fps, options=options)
        self._stream = typing.cast(av.VideoStream, stream)
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = video.pixel_format
        self._stream.gop_size = frames
        codec = self._stream.codec_context
        codec.thread_count = THREADS
        if video.codec.name in TAGS:
            codec.codec_tag = TAGS[video.codec.name]
        if video.codec.chroma:
            codec.color_primaries = codec.color_trc = codec.colorspace = BT709
            codec.color_range = ColorRange.MPEG
        self._container.metadata.update(metadata)

    def write(self, picture: av.VideoFrame) -> None:
        """Add a frame."""
        if self._stream.codec_context.is_open:
            packets = self._stream.encode(picture)
        else:
            # the first frame opens the encoder
            with same_priority():
                packets = self._stream.encode(picture)
        self._mux(packets)

    def end(self) -> list[tuple[bytes, bytes]]:
        """Finish the encoding. Return the boxes of the file: (type, the whole box)."""
        self._mux(self._stream.encode())
        self._container.close()
        return list(_boxes(self._file.getvalue()))

    def _mux(self, packets: Iterable[av.Packet]) -> None:
        """Write packets, each decoded ahead of its time by a delay that is the same in all seconds.

        The delay covers the frames that the encoder may reorder. Encoders omit it from a second that is shorter than
        the delay, or set no valid time there. But all seconds share the head of the first one, whose edit list
        subtracts the delay: such a second would be shown too early.
        """
        delay = 0
        if self._codec is H265 or (self._codec is H264 and self._stream.codec_context.has_b_frames):
            delay = REORDER_DELAY
        for packet in packets:
            packet.dts = self._packet - delay
            packet.duration = 1
            self._packet += 1
            self._container.mux(packet)


def to_picture(frame: np.ndarray, video: VideoFormat) -> av.VideoFrame:
    """Convert a frame for the encoder. frame: (h, w, 3) full-range RGB, uint8, or uint16 for more than 8 bits.

    Y'CbCr is limited-range with the BT.709 matrix, and the file is tagged so: otherwise most players show shifted
    colours.
    """
    source = "rgb24" if frame.dtype == np.uint8 else "rgb48le"
    if not video.codec.chroma:
        picture = av.VideoFrame.from_ndarray(frame, format=source)
        return (
            picture
            if source == video.pixel_format
            else picture.reformat(format=video.pixel_format, threads=ONE_THREAD)
        )
    if frame.dtype == np.uint16:
        frame = (frame * SWSCALE_WHITE + 0.5).astype(np.uint16)
    picture = av.VideoFrame.from_ndarray(frame, format=source).reformat(
        format=video.pixel_format,
        dst_colorspace=Colorspace.ITU709,
        src_color_range=ColorRange.JPEG,
        dst_color_range=ColorRange.MPEG,
        interpolation="BICUBIC",
        threads=ONE_THREAD,
    )
    # prores_ks writes the tags of its frames
    picture.color_primaries = picture.color_trc = BT709
    return picture


def clock_options(flags: str, fps: Fraction) -> dict[str, str]:
    """Return options for an MP4 whose clocks, of the file and of its track, count frames of this rate exactly."""
    timescale = fps.numerator * -(-LEAST_TIMESCALE // fps.numerator)
    return {"movflags": flags, "movie_timescale": str(timescale), "video_track_timescale": str(timescale)}


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the top-level boxes of an MP4: 4 bytes of length, 4 bytes of type, the content (ISO/IEC 14496-12, 4.2)."""
    start = 0
    while start < len(data):
        length = int.from_bytes(data[start : start + 4])
        yield data[start + 4 : start + 8], data[start : start + length]
        start += length


def file_url(path: Path) -> str:
    """Return a path as FFmpeg takes it: it would read `12:30.mp4` as the protocol `12`."""
    return f"file:{path}"


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a video file, such as `title` and `comment`."""
    with av.open(file_url(path)) as container:
        return dict(container.metadata)
