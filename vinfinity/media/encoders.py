"""What the installed PyAV can encode, and what its encoders need on this machine."""

import contextlib
import os
from collections.abc import Iterator, Mapping

import av

from vinfinity.config import VideoFormat
from vinfinity.config.formats import CONTAINERS
from vinfinity.errors import InputError
from vinfinity.system.processor import instruction_sets

# the log level at which SVT-AV1 prints nothing
SILENT = "-1"


def pixel_formats(encoder: str) -> tuple[str, ...] | None:
    """Return the pixel formats of an encoder, as FFmpeg names them; None if this build of PyAV lacks the encoder."""
    try:
        codec = av.Codec(encoder, "w")
    except ValueError:
        # av.codec.codec.UnknownCodecError is a ValueError
        return None
    return tuple(known.name for known in codec.video_formats or ())


def check_encoders(video: VideoFormat, *, field: str = "out") -> None:
    """Raise InputError if this build of PyAV cannot write a format: its codec, its pixel format or its audio.

    field: what chose the format, if no setting did.
    """
    codec, build = video.codec, f"this build of PyAV ({av.__version__})"
    found = pixel_formats(codec.encoder)
    if found is None:
        known = {
            codec.name for container in CONTAINERS for codec in container.codecs if _known(codec.encoder)
        }
        remedy = f"install PyAV from PyPI, or use a codec that this build has: {', '.join(sorted(known)) or 'nothing'}"
        raise InputError(
            "video.codec", codec.name, remedy, problem=f"needs {codec.encoder}, which {build} lacks"
        )
    if video.pixel_format not in found:
        key, value = ("video.bit_depth", video.bits) if video.bits > 8 else ("video.codec", codec.name)
        remedy = f"it has {', '.join(found)}"
        problem = f"needs {video.pixel_format} of {codec.encoder}, which {build} lacks"
        raise InputError(key, value, remedy, problem=problem)
    audio = video.container.audio
    if audio is not None and not _known(audio):
        problem = f"needs {audio} for its audio, which {build} lacks"
        raise InputError(field, video.container.suffix, "install PyAV from PyPI", problem=problem)


def _known(encoder: str) -> bool:
    return pixel_formats(encoder) is not None


def machine_options(encoder: str) -> Mapping[str, str]:
    """Return options that make an encoder give the same bytes for the same frames, each time and on any processor.

    With AVX-512, x264's macroblock tree reads uninitialised memory unless the width is a multiple of 128
    (docs/decisions/0010). All other instruction sets give the results of its C code.
    """
    if encoder == "libx264" and "avx512f" in instruction_sets():
        return {"x264-params": "asm=AVX2"}
    return {}


def quiet() -> None:
    """Keep SVT-AV1 from printing to the terminal, unless the user has set its log level."""
    os.environ.setdefault("SVT_LOG", SILENT)


@contextlib.contextmanager
def same_priority() -> Iterator[None]:
    """Undo the real-time priority that SVT-AV1 gives this thread and its own threads, where it may (as root).

    Otherwise this process, and all processes that it starts later, would keep other programs from running.
    """
    if not hasattr(os, "sched_getscheduler"):
        # not on Linux
        yield
        return
    policy, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        for thread in map(int, os.listdir("/proc/self/task")):
            # a thread may have ended, or may not be changed
            with contextlib.suppress(OSError):
                if os.sched_getscheduler(thread) != policy:
                    os.sched_setscheduler(thread, policy, parameter)
