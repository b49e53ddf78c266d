"""Batches from rows to videos: the same bits as single runs, weights loaded once, faults passed over, nothing lost."""

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles.command_line import Cli
from oracles.pretend.device import PretendCuda
from oracles.processes import vinfinity as vinfinity_command
from oracles.processes import wait_for_ranks, wait_until_gone
from oracles.runs import config_of, events, latents, make_nan, signal_when_exists, truncate, when_exists
from oracles.video import read_video
from safetensors.torch import save_file

import vinfinity
from vinfinity.batch.make import make_batch
from vinfinity.batch.plan import Batch, plan_batch
from vinfinity.batch.rows import python_rows
from vinfinity.config import load
from vinfinity.errors import BusyError, OutputError, Stopped
from vinfinity.job import prepare
from vinfinity.networks import Networks
from vinfinity.parallel.ranks import Ranks
from vinfinity.run import make_video, run
from vinfinity.runs.folder import RunFolder
from vinfinity.system.signals import Shutdown
from vinfinity.task import Task
from vinfinity.weights.card import model_defaults

SMALL: dict[str, Any] = {"frames": 3, "size": "32x32", "steps": 2, "device": "cpu", "dtype": "fp32"}
PROMPTS = ["a red ball", "a blue boat", "a green star", "a pink fish"]
CPU = torch.device("cpu")


def plan(
    model: Path, folder: Path, rows: Sequence[str | Mapping[str, Any]] = tuple(PROMPTS), **given: Any
) -> Batch:
    settings = {**SMALL, "model": str(model), "out": "{index}.mp4", **given}
    return plan_batch(
        python_rows(rows),
        lambda row: load(None, settings=settings, row=row, card=model_defaults),
        name="batch",
        folder=folder,
    )


def make(model: Path, folder: Path, *arguments: Any, **given: Any) -> vinfinity.BatchSummary:
    summary = make_batch(plan(model, folder, *arguments, **given))
    assert summary is not None
    return summary


def names(paths: Sequence[Path]) -> list[str]:
    return [path.name for path in paths]


def journal(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "batch.batch.jsonl").read_text().splitlines()]


def bad_noise(folder: Path) -> str:
    """Return a file of noise that makes a run of three frames fail: its values are NaN."""
    save_file({"noise": torch.full((1, 4, 3, 4, 4), float("nan"))}, folder / "nan.safetensors")
    return str(folder / "nan.safetensors")


def with_fault(folder: Path) -> list[str | Mapping[str, Any]]:
    return [PROMPTS[0], {"prompt": PROMPTS[1], "noise_from": bad_noise(folder)}, PROMPTS[2]]


# ---- what is made ----


@pytest.mark.parametrize("gpus", [1, 2])
def test_videos_have_the_bits_of_single_runs(gpus: int, model_folder: Path, tmp_path: Path) -> None:
    rows: list[Any] = [
        "a red ball",
        {"prompt": "a blue boat", "frames": 5, "steps": 3, "seed": 7, "size": "48x32"},
    ]
    summary = make(model_folder, tmp_path / "batch", rows, gpus=gpus)
    assert names(summary.made) == ["1.mp4", "2.mp4"]
    for number, flags in ((1, {"prompt": "a red ball", "steps": 2}), (2, rows[1])):
        single = tmp_path / f"{number}.mp4"
        run(config_of(model_folder, single, **{key: str(value) for key, value in flags.items()}, gpus=gpus))
        assert latents(tmp_path / "batch" / f"{number}.run").equal(latents(single.with_suffix(".run")))
        assert (read_video(tmp_path / "batch" / single.name) == read_video(single)).all()


def test_finished_videos_are_skipped(model_folder: Path, tmp_path: Path) -> None:
    make(model_folder, tmp_path, PROMPTS[:2])
    before = (tmp_path / "1.mp4").stat().st_mtime_ns
    summary = make(model_folder, tmp_path)
    assert (names(summary.made), names(summary.skipped)) == (["3.mp4", "4.mp4"], ["1.mp4", "2.mp4"])
    assert (tmp_path / "1.mp4").stat().st_mtime_ns == before
    again = make(model_folder, tmp_path)
    assert (len(again.made), len(again.skipped)) == (0, 4)


def test_overwrite_replaces_videos_of_other_settings_only(model_folder: Path, tmp_path: Path) -> None:
    make(model_folder, tmp_path, PROMPTS[:2])
    rows = [PROMPTS[0], {"prompt": PROMPTS[1], "seed": 5}]
    with pytest.raises(
        vinfinity.InputError, match=r"resume: .*2.run \(rows, row 2\) is a run with other settings"
    ):
        make(model_folder, tmp_path, rows)
    summary = make(model_folder, tmp_path, rows, overwrite=True)
    assert (names(summary.made), names(summary.skipped)) == (["2.mp4"], ["1.mp4"])


def test_the_same_through_the_api(model_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "p.csv"
    file.write_text("prompt,steps\na red ball,1\na blue boat,\n")
    given = {**SMALL, "model": model_folder, "folder": tmp_path / "v", "seeds": range(2)}
    first = vinfinity.generate_batch(file, part="1/2", **given)
    second = vinfinity.generate_batch(str(file), part="2/2", **given)
    assert first is not None
    assert second is not None
    assert names(first.made) == ["0001-a-red-ball-0.mp4", "0002-a-blue-boat-0.mp4"]
    assert names(second.made) == ["0001-a-red-ball-1.mp4", "0002-a-blue-boat-1.mp4"]
    assert {path.name for path in (tmp_path / "v").glob("*.jsonl")} == {
        "p-1-of-2.batch.jsonl",
        "p-2-of-2.batch.jsonl",
    }
    assert len(events(tmp_path / "v" / "0001-a-red-ball-0.run", "step")) == 1


# ---- weights are loaded once ----


def test_networks_are_kept_for_the_next_video_while_memory_is_ample(
    model_folder: Path, tmp_path: Path
) -> None:
    one, other, half = (
        prepare(config_of(model_folder, tmp_path / "a.mp4", **flags))
        for flags in ({}, {"prompt": "x", "seed": "4"}, {"dtype": "bf16"})
    )
    networks = Networks(CPU, several=True)
    denoiser = networks.denoiser(one)
    assert networks.denoiser(other) is denoiser
    assert networks.decoder(one) is networks.decoder(half)
    assert networks.text_encoder(one) is networks.text_encoder(other)
    assert networks.denoiser(half) is not denoiser
    assert networks.bytes > 0
    loaded = networks.bytes
    networks.keep(one, ample=True)
    assert 0 < networks.bytes < loaded, "what the next job cannot use stays"
    networks.keep(half, ample=False)
    assert networks.bytes == 0
    assert networks.denoiser(one) is not networks.denoiser(one)


def test_a_single_run_keeps_no_network(model_folder: Path, tmp_path: Path) -> None:
    networks = Networks(CPU)
    networks.denoiser(prepare(config_of(model_folder, tmp_path / "a.mp4")))
    assert networks.bytes == 0


@pytest.mark.parametrize("gpus", [1, 2])
def test_weights_are_read_once(gpus: int, own_model: Path, tmp_path: Path) -> None:
    """They become NaN when the first video is there; on two ranks as well, which stay for all videos."""
    weights = [own_model / part for part in ("unet", "text_encoder", "vae")]
    with when_exists(tmp_path / "batch" / "1.mp4", lambda: list(map(make_nan, weights))):
        summary = make(own_model, tmp_path / "batch", PROMPTS * 2, gpus=gpus, steps=4)
    assert (len(summary.made), summary.failed) == (8, ())
    machines = [
        json.loads((tmp_path / "batch" / f"{n}.run" / "run.json").read_text())["ranks"] for n in (1, 8)
    ]
    assert machines == [gpus, gpus]


def test_videos_with_the_same_weights_follow_each_other(
    model_folder: Path, own_model: Path, tmp_path: Path
) -> None:
    rows: list[Any] = [
        {"prompt": f"{n}", "model": str(own_model if n % 2 else model_folder)} for n in range(4)
    ]
    assert names(make(model_folder, tmp_path, rows).made) == ["1.mp4", "3.mp4", "2.mp4", "4.mp4"]


# ---- videos that fail ----


@pytest.mark.parametrize("gpus", [1, 2])
def test_a_video_that_fails_is_passed_over(gpus: int, model_folder: Path, tmp_path: Path) -> None:
    summary = make(model_folder, tmp_path / "batch", with_fault(tmp_path), gpus=gpus)
    assert names(summary.made) == ["1.mp4", "3.mp4"]
    [failure] = summary.failed
    assert (failure.video.name, failure.row, failure.exit_code) == ("2.mp4", "rows, row 2", 5)
    assert "NaN or infinite" in failure.message
    assert [line["event"] for line in journal(tmp_path / "batch")] == ["made", "failed", "made"]
    assert events(tmp_path / "batch" / "2.run", "ended")[0]["exit_code"] == 5
    again = make(model_folder, tmp_path / "batch", with_fault(tmp_path), gpus=gpus)
    assert (len(again.skipped), len(again.failed)) == (2, 1)


def test_a_video_that_failed_leaves_only_networks_on_the_gpu(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside_networks = []

    def looked_at(task: Task, ranks: Ranks, networks: Networks, **options: Any) -> Any:
        beside_networks.append(torch.cuda.memory_allocated() - networks.bytes)
        return make_video(task, ranks, networks, **options)

    monkeypatch.setattr("vinfinity.batch.make.make_video", looked_at)
    with PretendCuda():
        summary = make(model_folder, tmp_path / "batch", with_fault(tmp_path), device="cuda")
    assert (names(summary.made), len(summary.failed)) == (["1.mp4", "3.mp4"], 1)
    before_any, after_one_made, after_one_failed = beside_networks
    assert before_any == 0
    assert after_one_failed == after_one_made


def test_a_restarted_job_does_not_try_failed_videos_again(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    make(model_folder, tmp_path / "batch", with_fault(tmp_path))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    summary = make(model_folder, tmp_path / "batch", with_fault(tmp_path))
    assert [failure.video.name for failure in summary.failed] == ["2.mp4"]
    assert len(journal(tmp_path / "batch")) == 3


@pytest.mark.parametrize("earlier", [None, "6"])
def test_a_restarted_job_tries_videos_that_failed_in_another_job(
    earlier: str | None, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a job, too, or as an older version wrote it."""
    if earlier is not None:
        monkeypatch.setenv("SLURM_JOB_ID", earlier)
    make(model_folder, tmp_path / "batch", with_fault(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    make(model_folder, tmp_path / "batch", with_fault(tmp_path))
    assert len(journal(tmp_path / "batch")) == 4


def test_a_video_that_another_process_makes_is_passed_over(model_folder: Path, tmp_path: Path) -> None:
    with RunFolder(tmp_path / "2.run").locked(first=True):
        summary = make(model_folder, tmp_path)
    assert [(failure.video.name, failure.exit_code) for failure in summary.failed] == [("2.mp4", 6)]
    assert names(make(model_folder, tmp_path).made) == ["2.mp4"]


def test_the_exit_code_says_how_many_failed(model_folder: Path, tmp_path: Path, cli: Cli) -> None:
    rows = [*with_fault(tmp_path), {"prompt": "x", "noise_from": bad_noise(tmp_path)}]
    file = tmp_path / "batch.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    settings = [f"{key}={value}" for key, value in SMALL.items()]
    code, out, err = cli(
        "batch", str(file), "--folder", str(tmp_path / "v"), f"model={model_folder}", *settings
    )
    assert code == 102
    assert "2 made" in out
    assert f"failed: {tmp_path}/v/0002-a-blue-boat-0.mp4 (batch.jsonl, row 2, line 2): step 1 " in out
    assert "error: 0002-a-blue-boat-0.mp4 failed: step 1 " in err
    assert err.splitlines()[-1] == "error: 2 of 4 videos failed; the same command retries them"


def test_a_full_disk_ends_a_batch(model_folder: Path, tmp_path: Path) -> None:
    """A folder in which no file can be written stands for it: a file with the name of a video's folder of latents."""
    (tmp_path / "2.run").mkdir()
    with (
        when_exists(tmp_path / "2.run" / "run.json", (tmp_path / "2.run" / "latents").touch),
        pytest.raises(OutputError, match=r"2.run.*; 1 of 4 videos are finished; the same command") as raised,
    ):
        make(model_folder, tmp_path, steps=12)
    assert raised.value.exit_code == 4
    (tmp_path / "2.run" / "latents").unlink()
    assert names(make(model_folder, tmp_path, steps=12).made) == ["2.mp4", "3.mp4", "4.mp4"]


def test_two_processes_do_not_make_the_same_batch(model_folder: Path, tmp_path: Path) -> None:
    refused: list[str] = []

    def make_again() -> None:
        try:
            with pytest.raises(BusyError, match="another process makes these videos") as raised:
                make(model_folder, tmp_path, steps=1000)
            refused.append(raised.value.message)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    with (
        Shutdown().handled() as shutdown,
        when_exists(tmp_path / "1.run" / "events.jsonl", make_again),
        pytest.raises(Stopped),
    ):
        # so many steps that it lasts until the other one is refused
        make_batch(plan(model_folder, tmp_path, steps=1000), shutdown=shutdown)
    assert len(refused) == 1


def test_a_lost_rank_fails_one_video(model_folder: Path, tmp_path: Path) -> None:
    """Ranks are started again for the others."""
    out = tmp_path / "v"
    file = tmp_path / "batch.txt"
    file.write_text("\n".join(PROMPTS))
    settings = [f"{key}={value}" for key, value in {**SMALL, "steps": 12, "model": model_folder}.items()]
    command = vinfinity_command(
        "batch", str(file), "--folder", str(out), "--gpus", "2", "out={index}.mp4", *settings
    )
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        ranks = wait_for_ranks(process, 2)
        with when_exists(out / "2.run" / "run.json", lambda: os.kill(ranks[1], signal.SIGKILL)):
            _, err = process.communicate(timeout=120)
    assert process.returncode == 101, err
    assert "error: 2.mp4 failed: rank 1 was killed by SIGKILL" in err
    assert sorted(path.name for path in out.glob("*.mp4")) == ["1.mp4", "3.mp4", "4.mp4"]


# ---- requests to end ----


@pytest.mark.parametrize("gpus", [1, 2])
def test_a_request_to_end_is_followed_by_the_same_command(
    gpus: int, model_folder: Path, tmp_path: Path
) -> None:
    flags: dict[str, Any] = {"steps": 40, "gpus": gpus, "checkpoint.every": "1 steps"}
    checkpoint = tmp_path / "2.run" / "checkpoints"
    with (
        Shutdown().handled() as shutdown,
        signal_when_exists(checkpoint),
        pytest.raises(
            Stopped, match=r"stopped after step \d+ of 40; .*; 1 of 4 videos are finished;"
        ) as raised,
    ):
        make_batch(plan(model_folder, tmp_path, **flags), shutdown=shutdown)
    assert raised.value.exit_code == 75
    assert names(make(model_folder, tmp_path, **flags).made) == ["2.mp4", "3.mp4", "4.mp4"]
    assert len(events(tmp_path / "2.run", "step")) == 40


def test_ranks_do_not_outlive_a_killed_batch(model_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "batch.txt"
    file.write_text("\n".join(PROMPTS))
    settings = [f"{key}={value}" for key, value in {**SMALL, "steps": 12, "model": model_folder}.items()]
    command = vinfinity_command("batch", str(file), "--folder", str(tmp_path / "v"), "--gpus", "2", *settings)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        ranks = wait_for_ranks(process, 2)
        with when_exists(tmp_path / "v" / "batch.batch.jsonl", process.kill):
            process.communicate(timeout=120)
    wait_until_gone(ranks)
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "v").glob("*.mp4"))) == 4


def test_a_torn_line_of_the_journal_is_ignored(model_folder: Path, tmp_path: Path) -> None:
    make(model_folder, tmp_path, PROMPTS[:1])
    truncate(tmp_path / "batch.batch.jsonl")
    assert names(make(model_folder, tmp_path).made) == ["2.mp4", "3.mp4", "4.mp4"]
