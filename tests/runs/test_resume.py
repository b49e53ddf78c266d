"""Stopped and restarted runs: a resumed run makes the same video as an uninterrupted one."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles.command_line import Cli
from oracles.runs import (
    STEPS,
    config_of,
    events,
    exit_code,
    latents,
    manifest_of_step,
    resumed_config,
    signal_when_exists,
    start_of,
    stop_after_step,
)
from oracles.video import read_video
from safetensors.torch import save_file

from vinfinity.api import generate_file
from vinfinity.errors import InputError, VinfinityError
from vinfinity.parallel.restarts import jobs_of, was_restarted
from vinfinity.run import run
from vinfinity.runs.parts import read_manifest
from vinfinity.system.signals import Shutdown


@pytest.mark.parametrize(
    ("sampler", "override"),
    [
        ("ddim", "eta=0.7"),
        ("dpmsolver++", "eta=0"),
        ("sde-dpmsolver++", "eta=0"),
        ("videocrafter2", "eta=0.5"),
    ],
)
def test_a_resumed_run_reaches_bitwise_identical_latents(
    sampler: str, override: str, model_folder: Path, tmp_path: Path
) -> None:
    uninterrupted, interrupted = (
        config_of(
            model_folder, tmp_path / f"{name}.mp4", override, "checkpoint.every=1 steps", sampler=sampler
        )
        for name in ("uninterrupted", "interrupted")
    )
    folder = tmp_path / "interrupted.run"
    run(uninterrupted)
    message = stop_after_step(interrupted, folder)
    assert f"; `vinfinity resume {folder}` resumes the run" in message
    assert not (tmp_path / "interrupted.mp4").exists()
    assert start_of(resumed_config(folder)) == "resume"
    run(resumed_config(folder))
    assert torch.equal(latents(folder), latents(tmp_path / "uninterrupted.run"))
    assert read_video(tmp_path / "interrupted.mp4").shape == (3, 32, 32, 3)
    [resumed] = events(folder, "resumed")
    steps = [event["step"] for event in events(folder, "checkpoint")]
    # no step was computed twice
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= STEPS - 1
    assert resumed["step"] in steps
    assert start_of(resumed_config(folder)) == "done"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_triggers_a_checkpoint_regardless_of_the_interval(
    number: signal.Signals, model_folder: Path, tmp_path: Path
) -> None:
    config = config_of(model_folder, tmp_path / "a.mp4", "checkpoint.every=2 steps", steps=40)
    handler = signal.getsignal(number)
    stop_after_step(config, tmp_path / "a.run", step=4, number=number)
    assert signal.getsignal(number) is handler
    steps = [event["step"] for event in events(tmp_path / "a.run", "checkpoint")]
    assert 4 < steps[-1] < 40
    assert sorted(path.name for path in (tmp_path / "a.run" / "checkpoints").iterdir()) == [
        f"step-{step:04d}" for step in steps[-2:]
    ]


@pytest.mark.slow
def test_a_bug_is_recorded_and_says_how_to_resume(
    cli: Cli, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, silu = tmp_path / "a.run", torch.nn.functional.silu

    def broken(*arguments: Any, **options: Any) -> torch.Tensor:
        if manifest_of_step(folder, 2).exists():
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return silu(*arguments, **options)

    given = ("--model", str(model_folder), "--device", "cpu", "-n", "2", "--size", "16x16", "--steps", "4")
    command = (
        "generate",
        "-p",
        "a ball",
        *given,
        "checkpoint.every=1 steps",
        "--out",
        str(tmp_path / "a.mp4"),
    )
    with monkeypatch.context() as patched:
        patched.setattr(torch.nn.functional, "silu", broken)
        code, _, err = cli(*command)
    [*_, line] = err.splitlines()
    recorded = line.removeprefix("error: ").removesuffix("; run again with --debug for the traceback")
    assert code == 1
    assert recorded.startswith("RuntimeError: CUDA error: an illegal memory access was encountered (")
    assert recorded.endswith(f"; `vinfinity resume {folder}` resumes from the last checkpoint")
    [ended] = events(folder, "ended")
    assert (ended["message"], ended["exit_code"]) == (recorded, 1)
    assert recorded in (folder / "log.txt").read_text()
    assert cli("resume", str(folder))[0] == 0


def test_a_run_resumed_on_other_numbers_of_ranks_matches_one_rank(tmp_path: Path) -> None:
    flags = {"frames": 23, "sampler": "sde-dpmsolver++", "steps": 9, "size": "64x48"}
    run(config_of("mini", tmp_path / "one.mp4", **flags))
    config = config_of("mini", tmp_path / "a.mp4", "checkpoint.every=3 steps", gpus=2, **flags)
    folder = tmp_path / "a.run"
    with (
        Shutdown().handled() as shutdown,
        pytest.raises(VinfinityError, match="stopped after step"),
        signal_when_exists(manifest_of_step(folder, 3)),
    ):
        run(config, shutdown=shutdown)
    shutil.copytree(folder / "checkpoints", tmp_path / "copy")
    ends = {part.stop for part in read_manifest(next((tmp_path / "copy").iterdir())).parts}
    assert ends == {11, 23}
    with (
        Shutdown().handled() as shutdown,
        pytest.raises(VinfinityError, match="stopped after step"),
        signal_when_exists(manifest_of_step(folder, 6)),
    ):
        run(resumed_config(folder, gpus=3), shutdown=shutdown)
    run(resumed_config(folder, gpus=1))
    assert (latents(folder) - latents(tmp_path / "one.run")).abs().max() <= 1e-4


@pytest.mark.slow
def test_ranks_restarted_by_torchrun_resume_their_run(tmp_path: Path) -> None:
    flags = [
        "--prompt",
        "a red ball",
        "--frames",
        "20",
        "--size",
        "64x48",
        "--steps",
        "30",
        "--device",
        "cpu",
    ]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "2"]
    folder = tmp_path / "a.run"
    command = [*torchrun, "-m", "vinfinity", "generate", *flags, "--out", str(tmp_path / "a.mp4")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "checkpoint.every=5 steps"], stderr=subprocess.PIPE, env=environment
    )
    while not manifest_of_step(folder, 10).exists() and process.poll() is None:
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = [int(pid) for pid in children if b"generate" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(ranks[-1], signal.SIGKILL)
    _, stderr = process.communicate(timeout=180)
    assert process.returncode == 0, stderr.decode()
    assert events(folder, "resumed")[0]["step"] >= 10
    exit_code("generate", *flags, "--out", str(tmp_path / "uninterrupted.mp4"))
    assert (latents(folder) - latents(tmp_path / "uninterrupted.run")).abs().max() <= 1e-4


def test_a_run_does_not_resume_with_other_noise(model_folder: Path, tmp_path: Path) -> None:
    noise = tmp_path / "noise.safetensors"
    save_file({"noise": torch.randn(1, 4, 3, 4, 4)}, noise)
    config = config_of(model_folder, tmp_path / "a.mp4", "checkpoint.every=1 steps", noise_from=str(noise))
    stop_after_step(config, tmp_path / "a.run")
    save_file({"noise": torch.randn(1, 4, 3, 4, 4)}, noise)
    with pytest.raises(
        InputError, match=r"noise_from: .* was started with other noise; restore the former noise"
    ):
        run(resumed_config(tmp_path / "a.run"))


@pytest.mark.parametrize("launcher", ["SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"])
def test_a_restarted_script_resumes_its_run(
    launcher: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(model_folder, tmp_path / "a.mp4", "checkpoint.every=1 steps")
    stop_after_step(config, tmp_path / "a.run")
    monkeypatch.setenv(launcher, "1")
    generate_file(config)
    assert events(tmp_path / "a.run", "resumed")[0]["step"] >= 3


def test_restarts_by_launchers_are_detected() -> None:
    assert was_restarted({"SLURM_RESTART_COUNT": "1"})
    assert was_restarted({"TORCHELASTIC_RESTART_COUNT": "2"})
    assert not was_restarted({"TORCHELASTIC_RESTART_COUNT": "0", "SLURM_RESTART_COUNT": ""})


def test_jobs_have_the_names_of_their_launchers() -> None:
    array = {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "3"}
    torchrun = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}
    assert jobs_of({"SLURM_JOB_ID": "12"}, parent=1) == {"SLURM": "12"}
    assert jobs_of(array | torchrun, parent=1) == {"SLURM": "9_3", "torchrun": "process 1"}
    assert jobs_of({**torchrun, "TORCHELASTIC_RUN_ID": "x"}, parent=1) == {"torchrun": "x"}
    # on several nodes, ranks have different parents
    assert jobs_of({**torchrun, "WORLD_SIZE": "8"}, parent=1) == {"torchrun": "none"}
    assert jobs_of({}, parent=1) == {}
