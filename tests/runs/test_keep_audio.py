"""The sound of the video that a run starts from, kept with --keep-audio."""

from pathlib import Path

import av
import numpy as np
import pytest
from oracles.command_line import Cli
from oracles.films import frames_of, write_film, write_film_with_sound
from oracles.runs import exit_code
from oracles.video import loudness, tone

from vinfinity import Pipeline
from vinfinity.errors import InputError


def arguments(model: Path, film: Path, *more: str) -> list[str]:
    flags = [
        "-p",
        "a red ball",
        "--model",
        str(model),
        "--device",
        "cpu",
        "--steps",
        "2",
        "--from",
        str(film),
    ]
    return ["generate", *flags, *more]


def is_loud(samples: np.ndarray, rate: int, start: float) -> bool:
    return bool(np.abs(samples[round(start * rate) : round((start + 0.2) * rate)]).max() > 0.4)


@pytest.mark.parametrize("seconds", [0.5, 1.5, 4.0])
def test_sound_is_that_of_the_video_cut_or_followed_by_silence(
    seconds: float, cli: Cli, model_folder: Path, tmp_path: Path
) -> None:
    """Of a film of 16 frames at 8 fps, the first 12 are used: 1.5 s."""
    sound = tone(tmp_path / "tone.wav", seconds=seconds)
    film = write_film_with_sound(tmp_path / "film.mp4", frames_of(16), sound=sound)
    out = tmp_path / "a.mp4"
    code, _, err = cli(*arguments(model_folder, film, "--frames", "12", "--keep-audio", "--out", str(out)))
    assert code == 0
    # the file's own sound is as long as the film
    assert "the rest is silent" not in err
    samples, rate = loudness(out)
    assert len(samples) / rate == pytest.approx(1.5, abs=0.03)
    assert [is_loud(samples, rate, start) for start in (0.1, 1.2)] == [True, seconds > 1]


def test_sound_that_ends_before_the_video_is_followed_by_silence_with_a_warning(
    cli: Cli, model_folder: Path, tmp_path: Path
) -> None:
    sound = tone(tmp_path / "tone.wav", seconds=0.5)
    film = write_film_with_sound(tmp_path / "film.mp4", frames_of(16), sound=sound, cut=False)
    code, _, err = cli(*arguments(model_folder, film, "--keep-audio", "--out", str(tmp_path / "a.mp4")))
    assert code == 0
    assert "film.mp4 lasts 0.5" in err
    assert "s, the video 2.00 s; the rest is silent" in err
    samples, rate = loudness(tmp_path / "a.mp4")
    assert len(samples) / rate == pytest.approx(2.0, abs=0.03)
    assert [is_loud(samples, rate, start) for start in (0.1, 1.2)] == [True, False]


def test_without_it_the_video_is_silent(model_folder: Path, tmp_path: Path) -> None:
    sound = tone(tmp_path / "tone.wav", seconds=1)
    film = write_film_with_sound(tmp_path / "film.mp4", frames_of(8), sound=sound)
    assert exit_code(*arguments(model_folder, film, "--out", str(tmp_path / "a.mp4"))) == 0
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert not container.streams.audio


def test_sound_goes_on_in_an_extended_video(model_folder: Path, tmp_path: Path) -> None:
    sound = tone(tmp_path / "tone.wav", seconds=2)
    film = write_film_with_sound(tmp_path / "film.mp4", frames_of(16), sound=sound)
    given = ["--frames", "8", "--keep-audio", "--out", str(tmp_path / "a.mp4")]
    assert exit_code(*arguments(model_folder, film, *given)) == 0
    assert exit_code("extend", str(tmp_path / "a.run"), "--frames", "+6") == 0
    samples, rate = loudness(tmp_path / "a-extend.mp4")
    assert len(samples) / rate == pytest.approx(14 / 8, abs=0.03)
    assert is_loud(samples, rate, 1.4)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("--from", "SILENT"), "--keep-audio: SILENT has no audio; remove --keep-audio"),
        ((), "--keep-audio: true has no source video; add --from VIDEO"),
        (
            ("--from", "SILENT", "--audio", "TONE"),
            "audio: TONE (--audio) conflicts with input.keep_audio; remove one of the two",
        ),
        (
            ("--from", "SILENT", "--out", "a.gif"),
            "GIF holds no audio; use .mp4, .mov, .webm, or set input.keep_audio=false",
        ),
    ],
    ids=["silent", "no video", "other sound", "silent format"],
)
def test_what_has_no_sound_is_refused(
    given: tuple[str, ...], expected: str, cli: Cli, model_folder: Path, tmp_path: Path
) -> None:
    files = {
        "SILENT": str(write_film(tmp_path / "silent.mkv", frames_of(4))),
        "TONE": str(tone(tmp_path / "tone.wav", seconds=1)),
    }
    flags = ["generate", "-p", "a red ball", "--model", str(model_folder), "--keep-audio"]
    line = cli.refused(*flags, *(files.get(argument, argument) for argument in given))
    for name, path in files.items():
        expected = expected.replace(name, path)
    assert expected in line


def test_a_pipeline_which_writes_no_files_takes_no_sound(model_folder: Path, tmp_path: Path) -> None:
    sound = tone(tmp_path / "tone.wav", seconds=1)
    film = write_film_with_sound(tmp_path / "film.mp4", frames_of(8), sound=sound)
    pipe = Pipeline.from_pretrained(model_folder, device="cpu")
    with pytest.raises(InputError, match=r"input.keep_audio: true belongs to runs that write files"):
        pipe("a red ball", input={"video": film, "keep_audio": True})
