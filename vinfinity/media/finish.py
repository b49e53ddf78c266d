"""The complete file, in its container, from frames that were encoded second by second."""

import contextlib
import itertools
import os
import re
import shutil
import struct
import typing
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from xml.sax.saxutils import escape

import av
from av.filter import Graph

from vinfinity.config import VideoFormat
from vinfinity.errors import CONTROL
from vinfinity.media.audio import AudioTrack
from vinfinity.media.filters import pulled
from vinfinity.media.mp4 import ONE_THREAD, TAGS, clock_options, file_url
from vinfinity.system.files import sync

PNG_SIGNATURE_AND_HEADER = 8 + 25
# digits of the frame number in the names of a folder's files
DIGITS = 6
PICTURES = re.compile(r"[0-9]{6,}\.png")
# one palette for the whole video: it does not flicker, and unchanged areas take no space
DITHER = "dither=sierra2_4a:diff_mode=rectangle"
CENTISECONDS = 100
# the offset of the flags in a WebP's chunk VP8X, and the flag of metadata (RFC 9649, section 2.7)
RIFF_FLAGS, XMP_FLAG = 20, 0x04
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/">{}</rdf:Description>'
    "</rdf:RDF></x:xmpmeta>"
)
XMP_NAMES = {"comment": "description"}


@dataclass(frozen=True)
class EncodedVideo:
    """A video that is complete except for its container.

    source: the file of fragments. size: (width, height) in pixels. frames: the number of frames in the source.
    metadata: the tags. audio: the file with the audio of the video, or None.
    """

    source: Path
    video: VideoFormat
    size: tuple[int, int]
    frames: int
    fps: Fraction
    metadata: Mapping[str, str]
    audio: Path | None

    @property
    def seconds(self) -> Fraction:
        """The length of the video."""
        return self.frames / self.fps


def finish(encoded: EncodedVideo, target: Path) -> None:
    """Write the complete file, or folder, and flush it to disk. Raises OSError or an error of FFmpeg."""
    write: dict[str, Callable[[EncodedVideo, Path], None]] = {"gif": _gif, "webp": _webp, "image2": _pictures}
    write.get(encoded.video.container.muxer, _copy)(encoded, target)
    for path in [*target.iterdir(), target] if target.is_dir() else [target]:
        sync(path)


def _copy(encoded: EncodedVideo, target: Path) -> None:
    """Copy the encoded frames to a file with its index at the front, and encode the audio."""
    muxer = encoded.video.container.muxer
    # without bitexact, a WebM's track gets a random number
    webm = {"cues_to_front": "1", "fflags": "+bitexact"}
    options = webm if muxer == "webm" else clock_options("+faststart", encoded.fps)
    with (
        av.open(file_url(encoded.source)) as source,
        av.open(file_url(target), "w", format=muxer, options=options) as container,
    ):
        container.metadata.update(encoded.metadata)
        [stream] = source.streams.video
        # opaque: do not look for an encoder with the name of the decoder
        copied = container.add_stream_from_template(stream, opaque=True)
        if encoded.video.codec.name in TAGS:
            copied.codec_context.codec_tag = TAGS[encoded.video.codec.name]
        with _audio_track(encoded, container) as track:
            for packet in source.demux(stream):
                # the last packet is empty and marks the end of the stream
                if packet.dts is None:
                    continue
                if track is not None and packet.time_base is not None:
                    track.write(until=packet.dts * packet.time_base)
                packet.stream = copied
                container.mux(packet)
            if track is not None:
                track.write(until=encoded.seconds)


def _audio_track(
    encoded: EncodedVideo, container: av.container.OutputContainer
) -> contextlib.AbstractContextManager[AudioTrack | None]:
    if encoded.audio is None:
        return contextlib.nullcontext()
    return AudioTrack(container, encoded.audio, encoded.video, encoded.seconds)


# ---- pictures ----


def _pictures(encoded: EncodedVideo, target: Path) -> None:
    """Write a folder with a PNG per frame: 000000.png, 000001.png, ..."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    with av.open(file_url(encoded.source)) as source:
        packets = (packet for packet in source.demux(video=0) if packet.size)
        for index, packet in enumerate(packets):
            (target / f"{index:0{DIGITS}}.png").write_bytes(_tagged(bytes(packet), encoded.metadata))


def _tagged(png: bytes, metadata: Mapping[str, str]) -> bytes:
    """Return a PNG with texts and its colour space, sRGB, which has the primaries of BT.709."""
    # 0: perceptual, the intent for pictures
    chunks = [_chunk(b"sRGB", b"\0")]
    for keyword, text in metadata.items():
        # no compression, no language, no translation of the keyword
        chunks.append(_chunk(b"iTXt", keyword.capitalize().encode() + b"\0\0\0\0\0" + text.encode()))
    return png[:PNG_SIGNATURE_AND_HEADER] + b"".join(chunks) + png[PNG_SIGNATURE_AND_HEADER:]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


# ---- animations ----


def _frames(encoded: EncodedVideo) -> Iterator[av.VideoFrame]:
    """Yield the frames, numbered in the video's own clock."""
    with av.open(file_url(encoded.source)) as source:
        for index, frame in enumerate(source.decode(video=0)):
            frame.pts, frame.time_base = index, 1 / encoded.fps
            yield frame


def _gif(encoded: EncodedVideo, target: Path) -> None:
    """Write a GIF in two passes: all frames are reduced to one palette, then each frame is dithered to it."""
    # 256 colours, as a picture of 16x16
    [palette] = _filtered(_frames(encoded), encoded, ("palettegen", "reserve_transparent=0:stats_mode=full"))
    # the last frame ends when the video does
    last = round(encoded.seconds * CENTISECONDS) - round((encoded.frames - 1) / encoded.fps * CENTISECONDS)
    options = {"loop": "0" if encoded.video.repeat else "-1", "final_delay": str(last)}
    dithered = _filtered(_frames(encoded), encoded, ("paletteuse", DITHER), palette=palette)
    _animation(encoded, target, dithered, encoding={}, options=options)
    _insert_comment(target, encoded.metadata)


def _filtered(
    frames: Iterable[av.VideoFrame],
    encoded: EncodedVideo,
    filter: tuple[str, str],
    *,
    palette: av.VideoFrame | None = None,
) -> Iterator[av.VideoFrame]:
    """Yield frames from a filter, which may also take a palette."""
    graph, clock = Graph(), 1 / encoded.fps
    width, height = encoded.size
    source = graph.add_buffer(width=width, height=height, format=av.VideoFormat("rgb24"), time_base=clock)
    use, sink = graph.add(*filter), graph.add("buffersink")
    source.link_to(use, 0, 0)
    use.link_to(sink)
    if palette is not None:
        colours = graph.add_buffer(
            width=palette.width, height=palette.height, format=palette.format, time_base=clock
        )
        colours.link_to(use, 0, 1)
    graph.configure()
    if palette is not None:
        palette.pts, palette.time_base = 0, clock
        colours.push(palette)
        colours.push(None)
    for frame in itertools.chain(frames, [None]):
        source.push(frame)
        for ready in pulled(sink):
            assert isinstance(ready, av.VideoFrame)
            yield ready


def _webp(encoded: EncodedVideo, target: Path) -> None:
    encoding = {"quality": str(encoded.video.quality)}
    options = {"loop": "0" if encoded.video.repeat else "1"}
    frames = (
        frame.reformat(format=encoded.video.pixel_format, threads=ONE_THREAD) for frame in _frames(encoded)
    )
    _animation(encoded, target, frames, encoding=encoding, options=options)
    _insert_xmp(target, encoded.metadata)


def _animation(
    encoded: EncodedVideo,
    target: Path,
    frames: Iterator[av.VideoFrame],
    *,
    encoding: Mapping[str, str],
    options: Mapping[str, str],
) -> None:
    video = encoded.video
    with av.open(file_url(target), "w", format=video.container.muxer, options=dict(options)) as container:
        stream = typing.cast(
            av.VideoStream,
            container.add_stream(video.codec.encoder, rate=encoded.fps, options=dict(encoding)),
        )
        stream.width, stream.height = encoded.size
        stream.pix_fmt = video.pixel_format
        stream.codec_context.time_base = 1 / encoded.fps
        for frame in frames:
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _insert_comment(path: Path, metadata: Mapping[str, str]) -> None:
    """Add the metadata to a GIF, as a comment before its end (GIF89a, section 24)."""
    if not metadata:
        return
    data = "\n".join(f"{name}: {text}" for name, text in metadata.items()).encode()
    parts = (data[start : start + 255] for start in range(0, len(data), 255))
    block = b"\x21\xfe" + b"".join(bytes([len(part)]) + part for part in parts) + b"\0"
    with path.open("r+b") as file:
        # before the trailer, which is one byte
        file.seek(-1, os.SEEK_END)
        file.write(block + b"\x3b")


def _insert_xmp(path: Path, metadata: Mapping[str, str]) -> None:
    """Add the metadata to a WebP, as the chunk XMP at its end, announced by a flag of the chunk VP8X."""
    if not metadata:
        return
    # control characters cannot be represented in XML
    texts = {name: CONTROL.sub(" ", text) for name, text in metadata.items()}
    items = "".join(
        f'<dc:{XMP_NAMES.get(name, name)}><rdf:Alt><rdf:li xml:lang="x-default">{escape(text)}</rdf:li></rdf:Alt>'
        f"</dc:{XMP_NAMES.get(name, name)}>"
        for name, text in texts.items()
    )
    data = XMP.format(items).encode()
    data += b" " * (len(data) % 2)
    with path.open("r+b") as file:
        head = file.read(RIFF_FLAGS + 1)
        if head[12:16] != b"VP8X":
            raise ValueError("not an animated WebP")
        file.seek(RIFF_FLAGS)
        file.write(bytes([head[RIFF_FLAGS] | XMP_FLAG]))
        end = file.seek(0, os.SEEK_END)
        file.write(b"XMP " + struct.pack("<I", len(data)) + data)
        file.seek(4)
        file.write(struct.pack("<I", end + len(data)))
