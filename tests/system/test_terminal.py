"""The command line with a stderr that fails: messages may be lost, the video never is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from oracles.video import read_video

from vinfinity.media.mp4 import read_metadata

OPTIONS = ["--frames", "3", "--steps", "2", "--size", "64x40", "--device", "cpu"]


def generate(prompt: str, out: Path) -> list[str]:
    return [sys.executable, "-m", "vinfinity", "generate", "--prompt", prompt, "--out", str(out), *OPTIONS]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_stderr_does_not_end_a_run(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(generate("a red ball", tmp_path / "a.mp4"), stderr=full)
    assert done.returncode == 0
    assert len(read_video(tmp_path / "a.mp4")) == 3


def test_a_closed_stderr_does_not_end_a_run(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(generate("a red ball", tmp_path / "a.mp4"), stderr=writer)
    finally:
        os.close(writer)
    assert done.returncode == 0
    assert len(read_video(tmp_path / "a.mp4")) == 3


def test_a_prompt_that_the_terminal_cannot_show_does_not_end_a_run(tmp_path: Path) -> None:
    prompt = "a red ball 🎈"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(generate(prompt, tmp_path / "a.mp4"), env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr.isascii()
    assert len(read_video(tmp_path / "a.mp4")) == 3
    assert read_metadata(tmp_path / "a.mp4")["title"] == prompt
