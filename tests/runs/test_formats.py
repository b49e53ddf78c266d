"""Runs that write other formats than MP4: to the end, after a kill, and again from the latents."""

import json
import os
import re
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from oracles.runs import config_of, exit_code, when_exists
from oracles.video import assert_exact_times, loudness, pictures_in, tone
from PIL import Image

from vinfinity.run import run

FORMATS = {
    "h265.mp4": ("video.codec=h265", "video.bit_depth=10"),
    "av1.mp4": ("video.codec=av1",),
    "a.mov": (),
    "a.webm": (),
    "a.gif": (),
    "a.webp": (),
    "frames/": ("video.bit_depth=16",),
}
FRAMES = 58


def frames_of(path: Path) -> int:
    if path.is_dir():
        return len(list(path.glob("[0-9]*.png")))
    if path.suffix == ".webp":
        with Image.open(path) as image:
            return pictures_in(image)
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.mark.parametrize("name", FORMATS)
def test_a_run_killed_while_decoding_resumes_in_every_format(
    name: str, model_folder: Path, tmp_path: Path
) -> None:
    out = f"{tmp_path}/{name}"
    folder = tmp_path / f"{Path(name).stem}.run"
    command = [sys.executable, "-m", "vinfinity", "generate", "-p", "a ball", "--model", str(model_folder)]
    command += ["--out", out, "--frames", str(FRAMES), "--steps", "1", "--size", "128x64", "--device", "cpu"]
    process = subprocess.Popen(
        [*command, "decode.frames=1", *FORMATS[name]], stderr=subprocess.PIPE, text=True
    )
    with when_exists(folder / "decoded.json", lambda: os.kill(process.pid, signal.SIGKILL)):
        _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    assert not (tmp_path / name).exists()
    before = json.loads((folder / "decoded.json").read_text())["frames"]
    assert 8 <= before < FRAMES
    assert exit_code("resume", str(folder)) == 0
    # none of the frames that were kept is decoded again
    log = (folder / "log.txt").read_text()
    assert f"{before} of {FRAMES} frames have already been decoded" in log
    assert frames_of(tmp_path / name) == FRAMES
    assert not any(path.name.startswith("decoded") for path in folder.iterdir())
    left = {folder.name, Path(name).name, f"{folder.stem}.png"}
    assert {path.name for path in tmp_path.iterdir()} == left
    # the run and its video name each other
    assert exit_code("resume", str(tmp_path / name)) == 0


def test_latents_are_decoded_again_in_another_format(model_folder: Path, tmp_path: Path) -> None:
    run(config_of(model_folder, tmp_path / "a.mp4", steps=2, size="64x64", frames=9, fps="23.976"))
    assert_exact_times(tmp_path / "a.mp4", frames=9, fps=Fraction(24000, 1001))
    # a.gif has the contact sheet of a.mp4
    for name in ("a.gif", "b.gif", "c/"):
        assert exit_code("decode", str(tmp_path / "a.run"), "--out", f"{tmp_path}/{name}") == 0
        assert frames_of(tmp_path / name) == 9
    # the folder exists, and is replaced only on request and only if it holds nothing else
    again = (
        "decode",
        str(tmp_path / "a.run"),
        "--out",
        f"{tmp_path}/c/",
        "video.bit_depth=16",
        "video.sheet=false",
    )
    assert exit_code(*again) == 2
    assert exit_code(*again, "--overwrite") == 0
    (tmp_path / "c" / "thesis.tex").touch()
    assert exit_code(*again, "--overwrite") == 2
    with av.open(str(tmp_path / "c" / "000003.png")) as container:
        picture = next(container.decode(video=0)).to_ndarray()
    # values between the levels of 8 bits
    assert picture.dtype == np.uint16
    assert len(np.unique(picture % 257)) > 100


def test_edits_keep_the_format(model_folder: Path, tmp_path: Path) -> None:
    for name in ("a.gif", "b/"):
        stem = name[0]
        run(config_of(model_folder, f"{tmp_path}/{name}", steps=1, size="32x32", frames=4))
        assert exit_code("extend", str(tmp_path / f"{stem}.run"), "--frames", "+3") == 0
        extended = tmp_path / f"{stem}-extend{name[1:]}"
        assert frames_of(extended) == 7
        assert (tmp_path / f"{stem}-extend.run").is_dir()


def test_frames_of_16_bits_are_the_same_from_several_ranks(model_folder: Path, tmp_path: Path) -> None:
    for ranks in (1, 2):
        out = f"{tmp_path}/{ranks}/"
        settings = ("video.bit_depth=16", "decode.where=ranks", "decode.frames=2", "video.metadata=false")
        run(config_of(model_folder, out, *settings, steps=1, size="32x32", frames=9, gpus=ranks))
    one, two = (sorted((tmp_path / str(ranks)).iterdir()) for ranks in (1, 2))
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in two]


@pytest.mark.parametrize("seconds", [0.4, 5.0])
@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.webm"])
def test_sound_is_cut_or_followed_by_silence(
    name: str, seconds: float, model_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sound = tone(tmp_path / "tone.wav", seconds=seconds)
    arguments = ["generate", "-p", "a ball", "--model", str(model_folder), "--device", "cpu", "--frames", "9"]
    arguments += ["--steps", "1", "--size", "32x32", "--fps", "8", "--audio", str(sound)]
    assert exit_code(*arguments, "--out", str(tmp_path / name)) == 0
    warned = re.search(r"tone.wav lasts 0.40 s, the video 1.12 s; the rest is silent", capfd.readouterr().err)
    assert (warned is not None) == (seconds < 1)
    samples, rate = loudness(tmp_path / name)
    # a frame of Opus is 20 ms
    assert len(samples) / rate == pytest.approx(9 / 8, abs=0.021)
    loud = np.abs(samples[round(0.05 * rate) : round(0.35 * rate)])
    assert loud.max() == pytest.approx(0.5, abs=0.03)
    late = np.abs(samples[round(0.5 * rate) : round(1.0 * rate)]).max()
    assert late < 0.01 if seconds < 1 else late > 0.4
    assert frames_of(tmp_path / name) == 9
