"""Ranks that a launcher started: how they end with it, and with a request."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from oracles.processes import ranks_of, vinfinity, wait_for_ranks, wait_until_gone


def launch(model: Path, folder: Path, *more: str) -> subprocess.Popen[str]:
    """Return a run on two ranks, in a process group of its own."""
    options = ["--model", str(model), "--prompt", "a red ball", "--device", "cpu", "--gpus", "2"]
    return subprocess.Popen(
        vinfinity("generate", *options, "--out", str(folder / "a.mp4"), *more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("count", [1, 2])
def test_ranks_end_without_a_word_if_the_launcher_is_killed_while_they_start(
    count: int, model_folder: Path, tmp_path: Path
) -> None:
    launcher = launch(model_folder, tmp_path)
    ranks = wait_for_ranks(launcher, count)
    launcher.kill()
    ranks = sorted({*ranks, *ranks_of(launcher.pid)})
    # until all who could write to it are gone
    _, stderr = launcher.communicate()
    wait_until_gone(ranks)
    assert stderr == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_a_signal_to_all_processes_while_ranks_start_ends_the_run_with_one_line(
    number: signal.Signals, model_folder: Path, tmp_path: Path
) -> None:
    launcher = launch(model_folder, tmp_path)
    ranks = wait_for_ranks(launcher, 2)
    os.killpg(launcher.pid, number)
    _, stderr = launcher.communicate()
    wait_until_gone(ranks)
    assert (launcher.returncode, stderr) == (75, "error: stopped before anything was computed\n")
    assert not (tmp_path / "a.mp4").exists()


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_ranks(model_folder: Path, tmp_path: Path) -> None:
    launcher = launch(model_folder, tmp_path, "--frames", "6", "steps=1000", "checkpoint.every=1 steps")
    ranks = wait_for_ranks(launcher, 2)
    while not list((tmp_path / "a.run" / "checkpoints").glob("*")):
        assert launcher.poll() is None
        time.sleep(0.01)
    os.kill(ranks[1], signal.SIGUSR1)
    _, stderr = launcher.communicate()
    wait_until_gone(ranks)
    assert launcher.returncode == 75
    assert "stopped after step" in stderr.splitlines()[-1]
