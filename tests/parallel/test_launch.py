"""Starting ranks: which numbers are possible, and how all of them end if one fails or a signal arrives."""

import dataclasses
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from oracles.launchers import TORCHRUN
from oracles.processes import vinfinity, wait_for_ranks, wait_until_gone
from oracles.rank_work import crash, die, differ

from vinfinity.errors import InputError, RankError, VinfinityError
from vinfinity.parallel import launch as launching
from vinfinity.parallel.devices import pick_device
from vinfinity.parallel.launch import check_ranks, launch
from vinfinity.parallel.place import find_place
from vinfinity.runs.parts import read_manifest
from vinfinity.system.signals import Shutdown

TIMEOUT = 60.0


def test_ranks_that_do_not_fit_their_launcher_are_refused() -> None:
    place = find_place(TORCHRUN)
    assert place is not None
    way_out = "; if torchrun did not start this process, unset RANK WORLD_SIZE"
    with pytest.raises(
        InputError, match=f"gpus: 4 is not the 8 ranks that torchrun started; remove .*{way_out}"
    ):
        check_ranks(gpus=4, device="cpu", frames=96, place=place)
    with pytest.raises(InputError, match=f"gpus: 8 is more than the 7 frames; use at most 7{way_out}"):
        check_ranks(gpus=None, device="cpu", frames=7, place=place)
    many = dataclasses.replace(place, local_size=99)
    with pytest.raises(InputError, match=f"found .* for 99 ranks; add --device cpu .*{way_out}"):
        check_ranks(gpus=None, device="cuda", frames=96, place=many)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs here")
@pytest.mark.parametrize(("device", "gpus"), [("cuda", 1), ("auto", 2), ("cuda", 2)])
def test_missing_gpus_are_refused(device: str, gpus: int) -> None:
    with pytest.raises(InputError, match=rf"found 0 CUDA GPUs for {gpus} ranks?; add --device cpu"):
        pick_device(device, local_size=gpus)


def test_a_single_rank_falls_back_to_the_cpu() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert pick_device("auto").type == expected


def test_a_rank_with_different_weights_is_named() -> None:
    with pytest.raises(RankError, match="rank 1 differs from rank 0 in its weights") as caught:
        launch(differ, None, gpus=3, device="cpu", timeout=TIMEOUT)
    assert caught.value.exit_code == 3


def test_a_bug_on_one_rank_is_reported_with_its_rank_and_line() -> None:
    with pytest.raises(VinfinityError, match=r"rank 1: KeyError: 'missing' \(\w+\.py:\d+\)") as caught:
        launch(crash, None, gpus=2, device="cpu", timeout=TIMEOUT)
    assert caught.value.exit_code == 1


def test_ranks_that_must_be_ended_are_killed_before_one_of_them_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    class Child(subprocess.Popen[bytes]):
        def kill(self) -> None:
            seen.append("kill")
            super().kill()

        def wait(self, timeout: float | None = None) -> int:
            seen.append("wait")
            return super().wait(timeout)

    monkeypatch.setattr(launching, "SHUTDOWN_SECONDS", 0.05)
    children = [Child(["false"]), Child(["sleep", "600"]), Child(["sleep", "600"])]
    assert launching._wait(children, Shutdown()) == [1, None, None]
    assert seen == ["kill", "kill", "wait", "wait"]
    assert [child.returncode for child in children[1:]] == [-signal.SIGKILL] * 2


def test_a_killed_rank_is_named() -> None:
    with pytest.raises(RankError, match="rank 1") as caught:
        launch(die, signal.SIGKILL, gpus=3, device="cpu", timeout=TIMEOUT)
    assert caught.value.exit_code == 3


def command(model: Path, folder: Path, *more: str) -> list[str]:
    """Return the command of a run that takes longer than any test."""
    options = ["--model", str(model), "--prompt", "a red ball", "--frames", "20", "--size", "64x64"]
    options += ["--steps", "1000", "--device", "cpu", "--out", str(folder / "video.mp4")]
    return vinfinity("generate", *options, *more)


def start(arguments: list[str], folder: Path, *, count: int = 2) -> tuple[subprocess.Popen[str], list[int]]:
    """Start a run on `count` ranks and wait for its next step: the launcher, and its ranks' process ids in order."""
    events = folder / "video.run" / "events.jsonl"
    before = events.read_text().count('"step"') if events.exists() else 0
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    ranks = wait_for_ranks(process, count)
    while not events.exists() or events.read_text().count('"step"') <= before:
        assert process.poll() is None, "the run ended"
        time.sleep(0.05)
    return process, ranks


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_all_ranks_end_with_exit_code_3_if_one_is_killed_or_suspended(
    number: signal.Signals, model_folder: Path, tmp_path: Path
) -> None:
    process, ranks = start(
        command(model_folder, tmp_path, "--gpus", "3", "parallel.timeout=5"), tmp_path, count=3
    )
    os.kill(ranks[1], number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 3
    assert "rank 1 " in stderr.splitlines()[-1]
    wait_until_gone(ranks)


@pytest.mark.slow
def test_ctrl_c_stops_all_ranks_after_a_checkpoint_and_a_second_one_at_once(
    model_folder: Path, tmp_path: Path
) -> None:
    process, ranks = start(command(model_folder, tmp_path, "--gpus", "2"), tmp_path)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 75
    assert re.search(
        r"stopped after step \d+ of 1000; `vinfinity resume .*video\.run` resumes the run", stderr
    )
    wait_until_gone(ranks)
    [checkpoint] = (tmp_path / "video.run" / "checkpoints").iterdir()
    assert len(read_manifest(checkpoint).parts) == 2

    resume = vinfinity("resume", str(tmp_path / "video.run"))
    process, ranks = start(resume, tmp_path)
    # a suspended rank never reaches the end of its step
    os.kill(ranks[0], signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 130
    wait_until_gone(ranks)


@pytest.mark.slow
def test_ranks_end_if_their_launcher_is_killed(model_folder: Path, tmp_path: Path) -> None:
    process, ranks = start(command(model_folder, tmp_path, "--gpus", "2"), tmp_path)
    process.kill()
    process.wait()
    wait_until_gone(ranks)
