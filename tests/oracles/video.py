"""What players read from an MP4, by FFmpeg's demuxer and decoder."""

import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Colorspace
from PIL import ImageSequence
from PIL.ImageFile import ImageFile

from vinfinity.media.mp4 import ONE_THREAD, file_url


def exactly(ticks: int | None, tick: Fraction | None) -> Fraction:
    """Return a time in seconds."""
    assert ticks is not None
    assert tick is not None
    return ticks * Fraction(tick)


def times_of_frames(path: Path, *, edit_list: bool = True) -> list[Fraction]:
    """Return the times of the decoded frames, in seconds. edit_list: whether the player has heard of edit lists."""
    with av.open(str(path), options={} if edit_list else {"ignore_editlist": "1"}) as container:
        return [exactly(frame.pts, frame.time_base) for frame in container.decode(video=0)]


def assert_exact_times(path: Path, *, frames: int, fps: Fraction | int, complete: bool = True) -> None:
    """Frame n of a file is shown at n / fps seconds, as its packets, the decoder and the container all say.

    complete: whether the file is finished; one that still grows does not know its length yet.
    """
    period = 1 / Fraction(fps)
    expected = [index * period for index in range(frames)]
    with av.open(str(path)) as container:
        [stream] = container.streams.video
        packets = [packet for packet in container.demux(stream) if packet.dts is not None]
        tick = stream.time_base
        shown = [exactly(packet.pts, tick) for packet in packets]
        decoded = [exactly(packet.dts, tick) for packet in packets]
        assert sorted(shown) == expected
        assert decoded == [decoded[0] + time for time in expected]
        assert all(late >= early for late, early in zip(shown, decoded, strict=True))
        assert {exactly(packet.duration, tick) for packet in packets} == {period}
        if complete:
            assert (stream.frames, stream.start_time, stream.average_rate) == (frames, 0, 1 / period)
            assert exactly(stream.duration, tick) == frames * period
            # in microseconds
            assert abs(exactly(container.duration, Fraction(1, 10**6)) - frames * period) <= Fraction(
                1, 10**6
            )
    assert times_of_frames(path) == expected


def read_video(path: Path) -> np.ndarray:
    """Return all frames of a video file at once, (f, h, w, 3) uint8 full-range RGB."""
    with av.open(file_url(path)) as container:
        # via yuv444p: from subsampled formats, swscale takes a shortcut that shifts colours by up to 2
        planes = (
            frame.reformat(format="yuv444p", interpolation="BICUBIC", threads=ONE_THREAD)
            for frame in container.decode(video=0)
        )
        frames = [
            frame.reformat(format="rgb24", src_colorspace=Colorspace.ITU709, threads=ONE_THREAD).to_ndarray()
            for frame in planes
        ]
    return np.stack(frames)


def rgb_by_formula(path: Path) -> np.ndarray:
    """Return the frames of a Y'CbCr video, (f, h, w, 3) in 0 to 1, by BT.709 for limited range, in float64."""
    frames = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            bits = frame.format.components[0].bits
            name = "yuv444p" if bits == 8 else f"yuv444p{bits}le"
            full = frame.reformat(format=name, interpolation="BICUBIC", threads=1)
            kind = np.uint8 if bits == 8 else np.uint16
            y, u, v = (
                np.frombuffer(bytes(plane), kind).reshape(plane.height, -1)[:, : plane.width]
                / 2 ** (bits - 8)
                for plane in full.planes
            )
            luma, blue, red = (y - 16) / 219, (u - 128) / 224 * 1.8556, (v - 128) / 224 * 1.5748
            green = -(0.2126 * red + 0.0722 * blue) / 0.7152
            frames.append(np.stack([luma + red, luma + green, luma + blue], axis=-1).clip(0, 1))
    return np.stack(frames)


def pictures_in(image: ImageFile) -> int:
    """Return the number of pictures in an animation."""
    return sum(1 for _ in ImageSequence.Iterator(image))


def tone(path: Path, *, seconds: float, rate: int = 22_050, frequency: float = 440) -> Path:
    """Return a WAV of a sine at half of full scale."""
    samples = np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate) * 2**14
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return path


def loudness(path: Path) -> tuple[np.ndarray, int]:
    """Return the samples of a file's sound, mono, in -1 to 1, and their rate."""
    with av.open(str(path)) as container:
        resampler = av.AudioResampler(format="flt", layout="mono", rate=48_000)
        frames = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
        frames += resampler.resample(None)
    return np.concatenate([frame.to_ndarray().ravel() for frame in frames]), 48_000
