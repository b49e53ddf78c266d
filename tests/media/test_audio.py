"""Sound: which files have it, and where it is in the video."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from oracles.video import loudness, tone

from vinfinity.config import VideoConfig, choose_format
from vinfinity.errors import DamagedError, InputError
from vinfinity.media.audio import check_audio
from vinfinity.media.writer import VideoWriter


def video(path: Path, *, seconds: int, audio: Path | None) -> Path:
    made = choose_format(path.name, VideoConfig())
    kind = np.uint8 if made.sample_bits == 8 else np.uint16
    with VideoWriter(path, made, width=16, height=16, fps=10, audio=audio) as writer:
        for _ in range(10 * seconds):
            writer.write(np.zeros((16, 16, 3), kind))
    return path


def silence(sound: Path) -> None:
    """Replace a sound by a video without any."""
    video(sound.with_suffix(".mp4"), seconds=1, audio=None).replace(sound)


def test_the_length_of_a_file_is_read(tmp_path: Path) -> None:
    assert check_audio(tone(tmp_path / "a.wav", seconds=1.5)) == Fraction(3, 2)


def test_files_without_usable_sound_are_refused(tmp_path: Path) -> None:
    silent = video(tmp_path / "silent.mp4", seconds=1, audio=None)
    empty, text = tmp_path / "empty.wav", tmp_path / "text.wav"
    empty.touch()
    text.write_text("not a sound " * 100)
    cut = tone(tmp_path / "cut.wav", seconds=1)
    cut.write_bytes(cut.read_bytes()[:44])
    for path, message in (
        (silent, "has no audio"),
        (empty, "cannot be read as audio"),
        (text, "cannot be read as audio"),
        (cut, "has an empty audio stream|cannot be read as audio"),
        (tmp_path / "nowhere.wav", "does not exist"),
        (tmp_path, "is not a file"),
    ):
        with pytest.raises(InputError, match=message):
            check_audio(path)


@pytest.mark.parametrize("change", [Path.unlink, lambda sound: sound.write_text("text " * 100), silence])
def test_sound_that_changes_while_frames_are_written_is_named(
    change: Callable[[Path], object], tmp_path: Path
) -> None:
    sound = tone(tmp_path / "tone.wav", seconds=1)

    def write() -> None:
        path, made = tmp_path / "a.mp4", choose_format(None, VideoConfig())
        with VideoWriter(path, made, width=16, height=16, fps=8, audio=sound) as writer:
            writer.write(np.zeros((16, 16, 3), np.uint8))
            change(sound)

    with pytest.raises(
        DamagedError, match=r"^\S+tone\.wav: (cannot be read as audio \(|no longer has audio)"
    ):
        write()
    assert {path.name for path in tmp_path.iterdir()} <= {"tone.wav"}


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.webm"])
def test_sound_of_a_video_is_taken_where_it_was(name: str, tmp_path: Path) -> None:
    """The sound of a video whose first half is silent goes through a second file unchanged."""
    sound = tone(tmp_path / "tone.wav", seconds=2)
    samples = bytearray(sound.read_bytes())
    half = 44 + (len(samples) - 44) // 4 * 2
    samples[44:half] = bytes(half - 44)
    sound.write_bytes(samples)
    first = video(tmp_path / f"first{name[1:]}", seconds=3, audio=sound)
    heard, rate = loudness(video(tmp_path / name, seconds=3, audio=first))
    assert len(heard) / rate == pytest.approx(3, abs=0.021)
    volume = [
        np.abs(heard[round(start * rate) : round((start + 0.3) * rate)]).max() for start in (0.3, 1.3, 2.3)
    ]
    assert volume[0] < 0.01
    assert volume[1] == pytest.approx(0.5, abs=0.03)
    assert volume[2] < 0.01
    # the tone begins within a few milliseconds of its place
    begin = int(np.argmax(np.abs(heard) > 0.2)) / rate
    assert begin == pytest.approx(1, abs=0.03)
