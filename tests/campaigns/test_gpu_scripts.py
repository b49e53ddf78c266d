"""The scripts that try GPUs, rehearsed on the CPU: every stage that needs no GPU runs, at tiny sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
TEST, BENCH = "tests/campaigns/gpu.py", "benchmarks/gpu.py"
# stages that start few processes, and those that start whole runs in processes of their own
SHORT = ("tests", "attention", "against-cpu", "half-precision", "memory", "pairs", "out-of-memory")
LONG = ("interrupted", "ranks", "decoding", "half-on-ranks", "hung-rank", "killed-rank", "ctrl-c")
MEASURED = ("calls", "profiles", "cudnn-attention", "decoding", "pairs", "scaling")


def run(script: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *sys.path]),
        "COLUMNS": "999",
    }
    return subprocess.run(
        [sys.executable, script, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def rehearse(script: str, out: Path, *stages: str) -> dict[str, Any]:
    """Return the JSON of a rehearsal in which no stage fails."""
    chosen = [word for stage in stages for word in ("--stage", stage)]
    done = run(script, "--device", "cpu", "--quick", "--out", str(out), *chosen)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    figures: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    assert figures["outcome"] == "passed"
    assert [stage["name"] for stage in figures["stages"]] == ["machine", *stages]
    return figures


def outcomes(figures: dict[str, Any]) -> dict[str, str]:
    return {stage["name"]: stage["outcome"] for stage in figures["stages"]}


def test_the_trial_of_gpus_is_rehearsed(tmp_path: Path) -> None:
    figures = rehearse(TEST, tmp_path / "test.json", *SHORT)
    assert [name for name, outcome in outcomes(figures).items() if outcome != "passed"] == ["memory"]
    assert figures["machine"]["here"]["engine"]["versions"]["torch"] == torch.__version__
    assert figures["settings"] == {"device": "cpu", "ranks": 2, "quick": True}
    limited = [figure for stage in figures["stages"] for figure in stage["figures"] if figure["accepts"]]
    assert len(limited) > 50
    assert all(figure["passed"] for figure in limited)


@pytest.mark.slow
def test_the_trial_of_whole_runs_is_rehearsed(tmp_path: Path) -> None:
    figures = rehearse(TEST, tmp_path / "test.json", *LONG)
    assert set(outcomes(figures).values()) == {"passed"}


def test_the_measurements_of_gpus_are_rehearsed(tmp_path: Path) -> None:
    figures = rehearse(BENCH, tmp_path / "bench.json", *MEASURED)
    assert set(outcomes(figures).values()) == {"passed"}
    assert all(stage["figures"] for stage in figures["stages"])


@pytest.mark.parametrize(("script", "stages"), [(TEST, {*SHORT, *LONG}), (BENCH, {*MEASURED})])
def test_every_stage_is_rehearsed(script: str, stages: set[str]) -> None:
    shown = " ".join(run(script, "--help").stdout.split())
    listed = shown.partition("may be repeated [")[2].partition("]")[0]
    assert set(listed.split(", ")) == stages


@pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs here")
@pytest.mark.parametrize(("script", "title"), [(TEST, "test-gpu"), (BENCH, "bench-gpu")])
def test_without_a_gpu_one_line_says_so(script: str, title: str, tmp_path: Path) -> None:
    done = run(script, "--out", str(tmp_path / "figures.json"))
    line = f"{title}: skipped: no CUDA GPU here (--device cpu --quick rehearses the stages)\n"
    assert (done.returncode, done.stdout) == (0, line)
    assert not (tmp_path / "figures.json").exists()


def test_a_gpu_for_one_process_alone_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oracles.machines import card_line, install_nvidia_smi

    cards = card_line(0), card_line(1, mode="Exclusive_Process")
    monkeypatch.setenv("PATH", install_nvidia_smi(tmp_path, *cards))
    done = run(BENCH, "--out", str(tmp_path / "figures.json"))
    assert done.returncode == 2
    assert done.stdout == (
        "bench-gpu: GPU 1 (NVIDIA A100-SXM4-80GB) is in compute mode Exclusive_Process, and stages use it from several"
        " processes; ask for a job with mode Default (sudo nvidia-smi -i 1 -c DEFAULT)\n"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs here")
def test_a_gpu_that_torch_cannot_use_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from oracles.machines import card_line, install_nvidia_smi

    monkeypatch.setenv("PATH", install_nvidia_smi(tmp_path, card_line(0)))
    done = run(TEST, "--out", str(tmp_path / "figures.json"))
    assert done.returncode == 1
    assert "errors: 2  [= 0: FAILED]" in done.stdout
    assert "was built for CPUs only, and this machine has 1 NVIDIA GPU" in done.stdout
    assert "test-gpu: 1 failed, 14 not reached" in done.stdout
