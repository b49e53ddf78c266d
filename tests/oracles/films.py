"""Small videos and pictures to start from, of any rate, codec and shape."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Colorspace

from vinfinity.media.sheet import encode_png


def frames_of(count: int, *, size: tuple[int, int] = (32, 24), seed: int = 0) -> np.ndarray:
    """Frames in slowly changing colours, (count, height, width, 3) uint8. Frame k has the mean brightness 20 + 4 k."""
    width, height = size
    x = np.linspace(-8, 8, width)[None, None, :, None]
    y = np.linspace(-8, 8, height)[None, :, None, None]
    tint = np.array([0, 5, -5])[None, None, None, :]
    level = 20 + 4 * (np.arange(count) % 50)[:, None, None, None]
    return np.clip(level + x + y + tint + seed, 0, 255).round().astype(np.uint8)


def write_film(
    path: Path,
    frames: np.ndarray,
    *,
    fps: Fraction | int = 8,
    codec: str = "ffv1",
    pixel_format: str = "bgr0",
    times: Sequence[int] | None = None,
    tick: Fraction | None = None,
    rotation: int | None = None,
    aspect: Fraction | None = None,
    matrix: Colorspace | None = None,
    options: dict[str, str] | None = None,
    **tags: Any,
) -> Path:
    """Write a video, lossless by default. times: of the frames, in units of `tick`, if their rate varies.
    matrix: from RGB to Y'CbCr. tags: attributes of the codec context."""
    with av.open(f"file:{path}", "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_format
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        if tick is not None:
            stream.codec_context.time_base = tick
        container.start_encoding()
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            if matrix is not None:
                picture = picture.reformat(format=pixel_format, dst_colorspace=matrix)
            picture.pts = index if times is None else times[index]
            picture.time_base = tick or 1 / Fraction(fps)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def write_picture(path: Path, picture: np.ndarray) -> Path:
    """Write a PNG. picture: (height, width, 3) uint8."""
    path.write_bytes(encode_png(picture))
    return path


def write_sound(path: Path) -> Path:
    """Write a file that has sound and nothing else."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        assert isinstance(stream, av.AudioStream)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    return path


def write_film_with_sound(
    path: Path, frames: np.ndarray, *, sound: Path, fps: int = 8, cut: bool = True
) -> Path:
    """Write a video with the sound of a file. cut: whether the sound is as long as the video: cut, or followed by
    silence.
    """
    with av.open(f"file:{path}", "w") as container, av.open(str(sound)) as source:
        stream = container.add_stream("libx264", rate=fps)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        track = container.add_stream("aac", rate=48_000, layout="mono")
        assert isinstance(track, av.AudioStream)
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=48_000)
        heard = [part for frame in source.decode(audio=0) for part in resampler.resample(frame)]
        samples = np.concatenate([part.to_ndarray() for part in [*heard, *resampler.resample(None)]], axis=1)
        if cut:
            length = round(len(frames) * 48_000 / fps)
            samples = np.pad(samples, ((0, 0), (0, max(0, length - samples.shape[1]))))[:, :length]
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
        for start in range(0, samples.shape[1], 1024):
            piece = np.ascontiguousarray(samples[:, start : start + 1024])
            block = av.AudioFrame.from_ndarray(piece, format="fltp", layout="mono")
            block.sample_rate, block.pts = 48_000, start
            container.mux(track.encode(block))
        container.mux(track.encode())
    return path
