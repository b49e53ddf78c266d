"""The audio of a video, from any file: trimmed to the length of the video, or padded with silence."""

import contextlib
import itertools
import typing
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
from av.filter import Graph

from vinfinity.config import VideoFormat
from vinfinity.errors import DamagedError, InputError
from vinfinity.media.filters import pulled
from vinfinity.media.mp4 import file_url
from vinfinity.system.files import missing_problem, reason

# samples per second: usual in videos, and the only rate of Opus
SAMPLE_RATE = 48_000
# bits per second; PCM has none
BIT_RATE = 192_000
MOST_CHANNELS = 2
# the errors of FFmpeg for files that are missing, of an unknown format, or damaged
READ_ERRORS = (OSError, av.error.FFmpegError, ValueError)


def check_audio(
    path: Path,
    *,
    field: str = "audio",
    other: str = "use a file with audio, such as a WAV, FLAC, MP3 or MP4",
) -> Fraction | None:
    """Return the length of a file's audio in seconds, or None if the file does not state it.

    field: the setting that names the file. other: the remedy for a file without audio. Raises InputError if the file
    has no audio.
    """
    if not path.is_file():
        problem = "is not a file" if path.exists() else missing_problem(path)
        raise InputError(field, path, "check the path", problem=problem)
    try:
        with av.open(file_url(path)) as container:
            if not container.streams.audio:
                raise InputError(field, path, other, problem="has no audio")
            stream = container.streams.audio[0]
            if next(container.decode(stream), None) is None:
                raise InputError(field, path, other, problem="has an empty audio stream")
            if stream.duration is not None and stream.time_base is not None:
                return stream.duration * stream.time_base
            return None if container.duration is None else Fraction(container.duration, av.time_base)
    except READ_ERRORS as error:
        raise InputError(field, path, other, problem=_problem(error)) from None


def _problem(error: Exception) -> str:
    return f"cannot be read as audio ({reason(error)})"


class AudioTrack:
    """The audio track of a container, from a file: trimmed or padded with silence to `seconds`.

    The audio keeps its times within the file. Parts that cannot be decoded are silent. Raises DamagedError if the file
    can no longer be read.
    """

    def __init__(
        self, container: av.container.OutputContainer, path: Path, video: VideoFormat, seconds: Fraction
    ) -> None:
        assert video.container.audio is not None
        self._container, self._path = container, path
        with self._reading():
            self._file = av.open(file_url(path))
        if not self._file.streams.audio:
            raise DamagedError(f"{path}: no longer has audio")
        source = self._file.streams.audio[0]
        stereo = source.codec_context.layout.nb_channels >= MOST_CHANNELS
        layout = "stereo" if stereo else "mono"
        stream = container.add_stream(video.container.audio, rate=SAMPLE_RATE, layout=layout)
        self._stream = typing.cast(av.AudioStream, stream)
        codec = self._stream.codec_context
        if not video.container.audio.startswith("pcm_"):
            codec.bit_rate = BIT_RATE
        self._samples = self._filtered(source, codec.format.name, layout, round(seconds * SAMPLE_RATE))
        self._written = Fraction(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._container.mux(self._stream.encode(None))
        finally:
            self._file.close()

    def write(self, *, until: Fraction) -> None:
        """Add the audio up to a time in seconds, or slightly beyond it."""
        while self._written < until:
            frame = next(self._samples, None)
            if frame is None:
                return
            self._container.mux(self._stream.encode(frame))
            self._written += Fraction(frame.samples, SAMPLE_RATE)

    def _filtered(
        self, source: av.AudioStream, sample_format: str, layout: str, total: int
    ) -> Iterator[av.AudioFrame]:
        """Yield the track: the file's samples at their times, with silence before and after, `total` samples in all."""
        graph = Graph()
        entry = graph.add_abuffer(template=source)
        steps = [
            ("aresample", f"{SAMPLE_RATE}:async=1:first_pts=0"),
            ("aformat", f"sample_fmts={sample_format}:channel_layouts={layout}:sample_rates={SAMPLE_RATE}"),
            ("apad", f"whole_len={total}"),
            ("atrim", f"end_sample={total}"),
            ("asetpts", "N"),
            ("abuffersink", None),
        ]
        chain = [graph.add(name, arguments) for name, arguments in steps]
        for upstream, downstream in itertools.pairwise([entry, *chain]):
            upstream.link_to(downstream)
        graph.configure()
        sink, written = chain[-1], 0
        for frame in itertools.chain(self._decoded(source), [None]):
            entry.push(frame)
            for ready in pulled(sink):
                assert isinstance(ready, av.AudioFrame)
                written += ready.samples
                yield ready
            if written >= total:
                return

    def _decoded(self, source: av.AudioStream) -> Iterator[av.AudioFrame]:
        start = Fraction(self._file.start_time or 0, av.time_base)
        with self._reading():
            for packet in self._file.demux(source):
                try:
                    frames = packet.decode()
                except av.error.InvalidDataError:
                    continue
                for frame in frames:
                    if frame.pts is not None and frame.time_base is not None:
                        frame.pts -= round(start / frame.time_base)
                    yield frame

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Raise DamagedError for read errors: the file was checked before the run, and may have changed since."""
        try:
            yield
        except READ_ERRORS as error:
            raise DamagedError(f"{self._path}: {_problem(error)}") from error
