"""FFmpeg as it comes with PyAV: the encoders for videos and pictures."""

from dataclasses import dataclass

# encoders of FFmpeg builds that are worth knowing of; runs need the first
ENCODERS = (
    "libx264",
    "libx265",
    "libsvtav1",
    "libaom-av1",
    "libvpx-vp9",
    "prores_ks",
    "ffv1",
    "h264_nvenc",
    "hevc_nvenc",
    "av1_nvenc",
    "libwebp_anim",
    "gif",
    "png",
    "aac",
    "libopus",
)
NEEDED = "libx264"


@dataclass(frozen=True)
class Video:
    """The video libraries. pyav, ffmpeg: their versions. encoders: those of ENCODERS that this build has."""

    pyav: str
    ffmpeg: str
    encoders: tuple[str, ...]


def find_video() -> Video:
    """Return the video libraries."""
    import av

    version = getattr(av, "ffmpeg_version_info", "")
    return Video(pyav=av.__version__, ffmpeg=version, encoders=tuple(name for name in ENCODERS if _has(name)))


def _has(encoder: str) -> bool:
    import av

    try:
        av.Codec(encoder, "w")
    except ValueError:
        # av.codec.codec.UnknownCodecError is one
        return False
    return True
