"""The Python of the README and of the guide runs, with short videos in place of long ones."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from oracles.synthetic import panning, save

ROOT = Path(__file__).parents[2]


def python_of(page: Path) -> str:
    """Return the Python blocks of a page as one program, with 4 frames and 2 steps wherever a length is given."""
    blocks = re.findall(
        r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    code = re.sub(r", steps=\d+", "", "\n".join(blocks))
    return re.sub(r"frames=\d+", "frames=4, steps=2", code)


def run(code: str, folder: Path) -> str:
    """Return what a program prints, in a folder of its own."""
    program = [sys.executable, "-c", code]
    # one thread: several spin on each other's cores where other work runs
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        program, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    printed = run(python_of(ROOT / "README.md"), tmp_path)
    assert [line.split()[0] for line in printed.splitlines()] == ["1", "2"]
    assert (tmp_path / "ball.mp4").stat().st_size > 0


@pytest.mark.slow
def test_the_python_of_the_guide_runs(tmp_path: Path) -> None:
    code = python_of(ROOT / "docs" / "guides" / "python.md")
    configuration = tmp_path / "short.yaml"
    configuration.write_text("prompt: a red ball\nframes: 4\nsteps: 2\n", encoding="utf-8")
    code = code.replace('"configs/long.yaml"', repr(str(configuration))).replace(
        "gpus=2", 'gpus=2, device="cpu"'
    )
    # this call gives no length, and the default is too long for a test
    code = code.replace('**{"attention', 'frames=4, steps=2, **{"attention')
    run(code, tmp_path)
    made = {path.name for path in tmp_path.glob("*.mp4")}
    assert made == {"ball.mp4", "small.mp4", "long.mp4", *(f"boat-{seed}.mp4" for seed in range(4))}


def test_the_loop_that_filters_a_batch_moves_only_what_is_beyond_a_limit(tmp_path: Path) -> None:
    save(tmp_path / "videos" / "still.mp4", np.repeat(panning(1, height=16, width=16), 24, axis=0))
    (tmp_path / "videos" / "damaged.mp4").write_text("not a video")
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "vinfinity"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m vinfinity "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}:{os.environ['PATH']}"
    text = (ROOT / "docs" / "guides" / "evaluate.md").read_text(encoding="utf-8")
    [loop] = [
        block for block in re.findall(r"^```sh\n(.*?)^```", text, flags=re.M | re.S) if "rejected" in block
    ]

    def rejected_by(script: str) -> list[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path}
        subprocess.run(["sh", "-c", script], cwd=tmp_path, env=environment, check=True, timeout=600)
        return [video.name for video in (tmp_path / "rejected").iterdir()]

    assert rejected_by(loop.replace("--max-drift", "--max-drfit")) == []
    assert rejected_by(loop) == ["still.mp4"]
