"""The times of an MP4's frames: frame n is shown at n / fps seconds exactly, however the file came about."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from oracles.video import assert_exact_times, times_of_frames

from vinfinity.config import Preset, VideoConfig, choose_format
from vinfinity.media.writer import VideoWriter

PICTURES = [np.full((16, 16, 3), 37 * index % 256, dtype=np.uint8) for index in range(70)]
FILM, TELEVISION, ROUNDED = Fraction(24000, 1001), Fraction(30000, 1001), Fraction("23.976")
RATES = [Fraction(rate) for rate in ("1", "2", "3", "7", "8", "24", "25/2", "1/2")] + [
    FILM,
    TELEVISION,
    ROUNDED,
]


def write(path: Path, frames: int, fps: Fraction, *, preset: Preset = "medium") -> Path:
    video = choose_format(None, VideoConfig(preset=preset))
    with VideoWriter(path, video, width=16, height=16, fps=fps) as mp4:
        for picture in PICTURES[:frames]:
            mp4.write(picture)
    return path


def lengths(fps: Fraction) -> Iterable[int]:
    """Videos shorter than a second, and those whose last second has one, two, three or all frames."""
    second = max(1, round(fps))
    return sorted({1, 2, 3, second, *(2 * second + rest for rest in (-1, 0, 1, 2, 3))})


@pytest.mark.parametrize("fps", RATES, ids=str)
def test_every_frame_has_its_time(fps: Fraction, tmp_path: Path) -> None:
    for frames in lengths(fps):
        assert_exact_times(write(tmp_path / "a.mp4", frames, fps), frames=frames, fps=fps)


@pytest.mark.slow
@pytest.mark.parametrize("fps", [*map(Fraction, range(1, 61)), *RATES[6:]], ids=str)
def test_every_frame_has_its_time_in_all_short_videos(fps: Fraction, tmp_path: Path) -> None:
    for frames in range(1, len(PICTURES) + 1):
        assert_exact_times(write(tmp_path / "a.mp4", frames, fps), frames=frames, fps=fps)


@pytest.mark.parametrize(("preset", "delay"), [("ultrafast", 0), ("veryfast", 2), ("veryslow", 2)])
def test_frames_have_their_times_with_and_without_b_frames(
    preset: Preset, delay: int, tmp_path: Path
) -> None:
    fps = Fraction(8)
    for frames in lengths(fps):
        path = write(tmp_path / "a.mp4", frames, fps, preset=preset)
        assert_exact_times(path, frames=frames, fps=fps)
        # without the edit list, all are later by the frames that may be reordered
        assert times_of_frames(path, edit_list=False) == [(index + delay) / fps for index in range(frames)]


def test_frames_have_their_times_after_any_interruption(tmp_path: Path) -> None:
    """Each round writes one frame more than before and is then abandoned: whole seconds are kept."""
    for fps in (Fraction(3), TELEVISION / 10, Fraction(4)):
        unfinished = tmp_path / f"{fps.numerator}.mp4"
        for frames in range(1, 20):
            # never closed, as in a process that is killed
            abandoned = resumed(tmp_path / "a.mp4", unfinished, fps=fps)
            for picture in PICTURES[abandoned.frames : frames]:
                abandoned.write(picture)
            whole = frames - frames % round(fps)
            if whole:
                assert_exact_times(unfinished, frames=whole, fps=fps, complete=False)
        with resumed(tmp_path / "a.mp4", unfinished, fps=fps) as mp4:
            assert mp4.frames == 19 - 19 % round(fps)
            for picture in PICTURES[mp4.frames : 20]:
                mp4.write(picture)
        assert_exact_times(tmp_path / "a.mp4", frames=20, fps=fps)


def resumed(path: Path, unfinished: Path, *, fps: Fraction) -> VideoWriter:
    video = choose_format(None, VideoConfig())
    return VideoWriter(path, video, width=16, height=16, fps=fps, unfinished=unfinished)
