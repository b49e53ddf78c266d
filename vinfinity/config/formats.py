"""Video formats: the container that a name asks for, its codecs, and their settings.

Data and arithmetic only: vinfinity.media.encoders finds out whether the installed PyAV has an encoder.
"""

import typing
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import PurePath
from typing import TYPE_CHECKING, Literal

from vinfinity.errors import InputError

if TYPE_CHECKING:
    from vinfinity.config.settings import VideoConfig

PixelFormat = Literal["yuv420p", "yuv422p", "yuv444p"]
# from the fastest to the smallest files
Preset = Literal[
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo"
]
PRESETS: tuple[Preset, ...] = typing.get_args(Preset)
DEFAULT_PRESET: Preset = "medium"
# (columns, rows) of pixels that share a colour sample; the sides of an encoded frame must be multiples of them
CHROMA_BLOCKS: Mapping[PixelFormat, tuple[int, int]] = {
    "yuv420p": (2, 2),
    "yuv422p": (2, 1),
    "yuv444p": (1, 1),
}
# how much crf has to grow to halve the bits: the rule of thumb for x264 and x265
CRF_HALVES = 6


@dataclass(frozen=True, kw_only=True)
class Codec:
    """How frames are encoded.

    name: the value of video.codec. title: the name in messages. encoder: FFmpeg's name of the encoder.
    bit_depths: the possible bits per sample, the default first. chroma: the possible values of video.pixel_format, the
    default first; empty for RGB. rgb: the formats of RGB by bit depth, None for others.
    crf: the accepted values. default_crf: a visually lossless value. crf_halves: see CRF_HALVES. presets: the encoder's
    options for each of PRESETS. options: the encoder options that are always set.
    bits_per_pixel: the estimated size of a pixel at the default quality; real footage takes 0.05 to 0.5 with H.264.
    """

    name: str
    title: str
    encoder: str
    bit_depths: tuple[int, ...]
    bits_per_pixel: float
    chroma: tuple[PixelFormat, ...] = ()
    rgb: Mapping[int, str] | None = None
    crf: range | None = None
    default_crf: int = 0
    crf_halves: int = CRF_HALVES
    presets: tuple[Mapping[str, str], ...] = ()
    options: Mapping[str, str] | None = None

    def pixel_format(self, chroma: str | None, bits: int) -> str:
        """Return FFmpeg's name of a pixel format. chroma: None for the default."""
        if self.rgb is not None:
            return self.rgb[bits]
        return (chroma or self.chroma[0]) + ("" if bits == 8 else f"{bits}le")


def _numbered(option: str, *values: int) -> tuple[Mapping[str, str], ...]:
    return tuple({option: str(value)} for value in values)


def _named() -> tuple[Mapping[str, str], ...]:
    return tuple({"preset": name} for name in PRESETS)


H264 = Codec(
    name="h264",
    title="H.264",
    encoder="libx264",
    bit_depths=(8,),
    bits_per_pixel=0.25,
    chroma=("yuv420p", "yuv422p", "yuv444p"),
    crf=range(52),
    default_crf=18,
    presets=_named(),
    # no key frames at scene changes: groups of equal length make seeking fast
    options={"sc_threshold": "0"},
)
H265 = Codec(
    name="h265",
    title="H.265",
    encoder="libx265",
    bit_depths=(8, 10),
    bits_per_pixel=0.2,
    chroma=("yuv420p", "yuv422p", "yuv444p"),
    crf=range(52),
    default_crf=20,
    presets=_named(),
    # one frame at a time: the file must not depend on the number of cores
    options={"x265-params": "log-level=none:scenecut=0:frame-threads=1"},
)
AV1 = Codec(
    name="av1",
    title="AV1",
    encoder="libsvtav1",
    bit_depths=(8, 10),
    bits_per_pixel=0.2,
    chroma=("yuv420p",),
    crf=range(1, 64),
    default_crf=24,
    crf_halves=10,
    presets=_numbered("preset", 11, 10, 10, 9, 9, 8, 6, 5, 4, 2),
    options={"svtav1-params": "lp=2:scd=0"},
)
VP9 = Codec(
    name="vp9",
    title="VP9",
    encoder="libvpx-vp9",
    bit_depths=(8, 10),
    bits_per_pixel=0.25,
    chroma=("yuv420p", "yuv422p", "yuv444p"),
    crf=range(64),
    default_crf=24,
    crf_halves=10,
    presets=_numbered("cpu-used", 5, 5, 5, 4, 3, 2, 1, 1, 0, 0),
    # constant quality: no limit on the bit rate
    options={"b": "0", "deadline": "good", "row-mt": "1"},
)
PRORES = Codec(
    name="prores",
    title="ProRes 422 HQ",
    encoder="prores_ks",
    bit_depths=(10,),
    bits_per_pixel=3.5,
    chroma=("yuv422p",),
    options={"profile": "hq", "vendor": "apl0"},
)
PNG = Codec(
    name="png",
    title="PNG",
    encoder="png",
    bit_depths=(8, 16),
    bits_per_pixel=14,
    rgb={8: "rgb24", 16: "rgb48be"},
)
GIF = Codec(name="gif", title="GIF", encoder="gif", bit_depths=(8,), bits_per_pixel=4, rgb={8: "pal8"})
WEBP = Codec(
    name="webp", title="WebP", encoder="libwebp_anim", bit_depths=(8,), bits_per_pixel=1, rgb={8: "bgra"}
)


@dataclass(frozen=True, kw_only=True)
class Container:
    """A file format that holds encoded frames.

    suffix: the ending of its names. muxer: FFmpeg's name of the muxer. codecs: the codecs that it may hold, the default
    first. audio: FFmpeg's encoder of its audio, None if it holds none. repeats: whether it can ask players to repeat
    it. most_fps: the highest frame rate that browsers play at full speed, None for no limit.
    """

    title: str
    suffix: str
    muxer: str
    codecs: tuple[Codec, ...]
    audio: str | None = None
    repeats: bool = False
    most_fps: int | None = None

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder with a file per frame."""
        return self.suffix == "/"

    @property
    def holds_codec(self) -> bool:
        """Whether frames are encoded once, with its codec; otherwise they are kept losslessly until the last one."""
        return not self.repeats


MP4 = Container(title="MP4", suffix=".mp4", muxer="mp4", codecs=(H264, H265, AV1), audio="aac")
CONTAINERS = (
    MP4,
    Container(title="MOV", suffix=".mov", muxer="mov", codecs=(PRORES, H264, H265), audio="pcm_s16le"),
    Container(title="WebM", suffix=".webm", muxer="webm", codecs=(VP9, AV1), audio="libopus"),
    # browsers show frames shorter than 20 ms for 100 ms
    Container(title="GIF", suffix=".gif", muxer="gif", codecs=(GIF,), repeats=True, most_fps=50),
    # for WebP, the limit is 11 ms
    Container(title="WebP", suffix=".webp", muxer="webp", codecs=(WEBP,), repeats=True, most_fps=90),
    Container(title="a folder of PNG", suffix="/", muxer="image2", codecs=(PNG,)),
)
ENDINGS = ", ".join(container.suffix for container in CONTAINERS[:-1]) + " or / (a folder of PNG)"
# of WebP: almost indistinguishable from the original
DEFAULT_QUALITY = 90


@dataclass(frozen=True, kw_only=True)
class VideoFormat:
    """The format of one video, chosen once.

    bits: the number per sample. pixel_format: FFmpeg's name of the format of encoded frames. chroma: (columns, rows) of
    pixels that share a colour sample. options: the encoder's options. quality: WebP's quality. repeat: whether players
    loop the video forever.
    """

    container: Container
    codec: Codec
    bits: int
    pixel_format: str
    chroma: tuple[int, int]
    options: Mapping[str, str]
    quality: int
    repeat: bool
    crf: int

    @property
    def sample_bits(self) -> int:
        """Bits per sample of the frames passed to the writer: 8, or 16 for all higher depths."""
        return 8 if self.bits == 8 else 16

    @property
    def encoded(self) -> "VideoFormat":
        """The format in which frames are kept until the video is complete: this one, or PNG."""
        if self.container.holds_codec:
            return self
        png = CONTAINERS[-1]
        return replace(
            self, container=png, codec=PNG, pixel_format=PNG.pixel_format(None, self.bits), options={}
        )

    def bytes(self, pixels: int) -> int:
        """Estimate the size of a video roughly. pixels: the number in all frames together."""
        quality = 1.0
        if self.codec.crf is not None:
            quality = 2 ** ((self.codec.default_crf - self.crf) / self.codec.crf_halves)
        return round(pixels * self.codec.bits_per_pixel / 8 * self.bits / self.codec.bit_depths[0] * quality)


def container_of(path: str) -> Container | None:
    """Return the container that a name asks for by its ending, in upper or lower case, or None.

    The name of a folder ends in a slash.
    """
    name = PurePath(path).name
    if path.endswith("/"):
        return CONTAINERS[-1] if name not in ("", "..") else None
    suffix = PurePath(name).suffix.lower()
    return next((container for container in CONTAINERS if container.suffix == suffix), None)


def check_ending(field: str, path: str) -> Container:
    """Return the container of a video of that name. Raises InputError if there is none."""
    container = container_of(path)
    if container is None:
        if path.endswith("/"):
            raise InputError(
                field, path, "name a new folder, such as frames/", problem="does not name a folder of its own"
            )
        stem = PurePath(path).name.strip(" .")
        known = next((c.suffix for c in CONTAINERS[:-1] if stem.lower() == c.suffix[1:]), "")
        stem = "video" if known else PurePath(stem).stem or "video"
        raise InputError(
            field, path, f"rename it to {stem}{known or '.mp4'}", problem=f"does not end in {ENDINGS}"
        )
    return container


def choose_format(path: str | None, config: "VideoConfig", *, field: str = "out") -> VideoFormat:
    """Choose the format that a name and the settings ask for. path: None for an MP4.

    Raises InputError if the name has another ending, or if settings contradict each other or have no effect.
    """
    container = MP4 if path is None else check_ending(field, path)
    codec = _codec(container, config)
    for name, applies in (
        ("crf", codec.crf is not None),
        ("preset", bool(codec.presets)),
        ("pixel_format", bool(codec.chroma)),
        ("quality", codec is WEBP),
        ("repeat", container.repeats),
    ):
        value = getattr(config, name)
        if value is not None and not applies:
            raise _without_effect(name, value, container, codec)
    bits = config.bit_depth or codec.bit_depths[0]
    _one_of("bit_depth", bits, codec.bit_depths, codec, others=container.codecs)
    chroma = config.pixel_format or (codec.chroma[0] if codec.chroma else None)
    if chroma is not None:
        _one_of("pixel_format", chroma, codec.chroma, codec)
    crf = codec.default_crf if config.crf is None else config.crf
    options = dict(codec.options or {})
    if codec.crf is not None:
        if crf not in codec.crf:
            remedy = (
                f"{codec.title} takes {codec.crf[0]} to {codec.crf[-1]}; {codec.default_crf} is the default"
            )
            raise InputError("video.crf", crf, remedy, problem="is out of range")
        options["crf"] = str(crf)
    if codec.presets:
        options |= codec.presets[PRESETS.index(config.preset or DEFAULT_PRESET)]
    return VideoFormat(
        container=container,
        codec=codec,
        bits=bits,
        pixel_format=codec.pixel_format(chroma, bits),
        chroma=(1, 1) if chroma is None else CHROMA_BLOCKS[chroma],
        options=options,
        quality=DEFAULT_QUALITY if config.quality is None else config.quality,
        repeat=config.repeat is not False,
        crf=crf,
    )


def check_rate(video: VideoFormat, fps: Fraction | int) -> None:
    """Raise InputError if browsers cannot play that format at this frame rate."""
    most = video.container.most_fps
    if most is not None and fps > most:
        problem = f"is more than the {most} frames per second that browsers show of a {video.container.title}"
        raise InputError("fps", fps, f"use at most {most}, or write an MP4", problem=problem)


def check_holds_audio(video: VideoFormat, audio: str, *, field: str = "audio") -> None:
    """Raise InputError if the format cannot hold audio. audio: the path of the requested audio."""
    if video.container.audio is None:
        silent = video.container.title
        sounding = ", ".join(container.suffix for container in CONTAINERS if container.audio)
        none = f"{field}={'null' if field == 'audio' else 'false'}"
        problem = f"cannot be stored: {silent} holds no audio"
        raise InputError(field, audio, f"use {sounding}, or set {none}", problem=problem)


def _codec(container: Container, config: "VideoConfig") -> Codec:
    if config.codec is None:
        return container.codecs[0]
    for codec in container.codecs:
        if codec.name == config.codec:
            return codec
    names = [codec.name for codec in container.codecs]
    if names[0] == container.suffix[1:] or container.is_folder:
        raise _without_effect("codec", config.codec, container, container.codecs[0])
    others = [other.suffix for other in CONTAINERS if config.codec in [codec.name for codec in other.codecs]]
    remedy = f"choose from {', '.join(names)}, or rename the file to {' or '.join(others)}"
    raise InputError(
        "video.codec", config.codec, remedy, problem=f"cannot be stored in a {container.title} file"
    )


def _without_effect(name: str, value: object, container: Container, codec: Codec) -> InputError:
    what = codec.title if container.holds_codec and not container.is_folder else container.title
    remedy = f"remove it, or set video.{name}=null"
    return InputError(f"video.{name}", value, remedy, problem=f"has no effect on {what}")


def _one_of(
    name: str,
    value: object,
    known: tuple[object, ...],
    codec: Codec,
    *,
    others: tuple[Codec, ...] = (),
) -> None:
    """Raise InputError if a codec does not accept a value. others: codecs of the container that may accept it."""
    if value in known:
        return
    remedy = f"{codec.title} takes {' or '.join(map(str, known))}"
    better = [other.name for other in others if value in typing.cast(tuple[object, ...], other.bit_depths)]
    if better:
        remedy += f"; or use video.codec={better[0]}"
    raise InputError(f"video.{name}", value, remedy, problem=f"is not possible with {codec.title}")
