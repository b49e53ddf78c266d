"""Whole runs of a tiny Wan: the same on any number of ranks, resumed, edited, with prompts over time and loops."""

from pathlib import Path

import pytest
import torch
from oracles.command_line import Cli
from oracles.runs import (
    config_of,
    exit_code,
    latents,
    latents_on,
    resumed_config,
    stop_after_step,
)
from oracles.video import read_video
from oracles.wan import save_wan

from vinfinity.job import prepare
from vinfinity.job_report import concerns
from vinfinity.planning.fit import outline_of
from vinfinity.planning.trace import call_work, step_memory, trace_step, trace_work
from vinfinity.run import run
from vinfinity.runs.folder import find_run

# 25 latent frames, more than the 21 of the training clips
SETTINGS = {"frames": 97, "size": "32x16", "steps": 8, "guidance": 3.0, "sampler": "unipc"}


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_wan(tmp_path_factory.mktemp("wan") / "tiny")


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(("attention.positions=grouped", "attention.moving_anchors=true"), id="grouped, moving"),
        pytest.param(
            ("attention.positions=absolute", "attention.moving_anchors=false"),
            id="absolute, fixed",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            (
                "loop=true",
                "attention.schedule=[{above: 500, local: 0, anchors: 3}, {above: -1, local: 3, anchors: 0}]",
                'prompts=[{at: 50%, text: "a blue boat"}]',
            ),
            id="loop, biases, prompts over time",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("dtype=bf16", 'prompts=[{at: 88, text: "a blue boat", cut: true}]'),
            id="bf16, two scenes",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_number_of_ranks_does_not_change_a_bit(
    overrides: tuple[str, ...], wan: Path, tmp_path: Path
) -> None:
    alone = latents_on(wan, tmp_path, *overrides, ranks=1, **SETTINGS)
    assert alone.shape == (1, 4, 25, 2, 4)
    assert alone.std() > 0.1
    for ranks in (2, 3, 5):
        assert torch.equal(latents_on(wan, tmp_path, *overrides, ranks=ranks, **SETTINGS), alone)


@pytest.mark.parametrize("sampler", ["unipc", "euler", "dpmsolver++"])
def test_a_resumed_run_reaches_the_same_bits(sampler: str, wan: Path, tmp_path: Path) -> None:
    whole, interrupted = (
        config_of(
            wan, tmp_path / f"{name}.mp4", "checkpoint.every=1 steps", **{**SETTINGS, "sampler": sampler}
        )
        for name in ("whole", "interrupted")
    )
    run(whole)
    stop_after_step(interrupted, tmp_path / "interrupted.run")
    run(resumed_config(tmp_path / "interrupted.run"))
    assert torch.equal(latents(tmp_path / "interrupted.run"), latents(tmp_path / "whole.run"))


@pytest.mark.slow
def test_a_run_resumes_on_other_numbers_of_ranks(wan: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "steps": 12}
    run(config_of(wan, tmp_path / "whole.mp4", **settings))
    config = config_of(wan, tmp_path / "parts.mp4", "checkpoint.every=1 steps", **settings, gpus=2)
    folder = tmp_path / "parts.run"
    stop_after_step(config, folder, step=2)
    stop_after_step(resumed_config(folder, "gpus=3"), folder, step=6)
    run(resumed_config(folder, "gpus=1"))
    assert torch.equal(latents(folder), latents(tmp_path / "whole.run"))


def test_redo_and_extend_leave_other_latent_frames_as_they_are(wan: Path, tmp_path: Path) -> None:
    run(config_of(wan, tmp_path / "a.mp4", **{**SETTINGS, "frames": 141}))
    before = latents(tmp_path / "a.run")
    assert exit_code("redo", str(tmp_path / "a.run"), "--frames", "40:60", "--seed", "9") == 0
    changed = (latents(tmp_path / "a-redo.run") - before).abs().amax((0, 2, 3)) > 0
    # frames 40 to 59 are in the latent frames 10 to 15
    assert [frame for frame, differs in enumerate(changed.tolist()) if differs] == list(range(10, 16))
    assert exit_code("extend", str(tmp_path / "a.run"), "--frames", "+16") == 0
    extended = latents(tmp_path / "a-extend.run")
    assert torch.equal(extended[:, :36], before)
    assert extended.shape[1] == 40
    assert len(read_video(tmp_path / "a-extend.mp4")) == 157


def test_joins_of_edits_are_in_frames_of_the_video(wan: Path, tmp_path: Path) -> None:
    run(config_of(wan, tmp_path / "a.mp4", "loop=true", **{**SETTINGS, "frames": 21, "steps": 1}))
    assert exit_code("redo", str(tmp_path / "a.run"), "--frames", "0:3") == 0
    assert exit_code("extend", str(tmp_path / "a-redo.run"), "--frames", "+8", "loop=false") == 0
    joins = [find_run(tmp_path / f"a-{name}.run").borders()["joins"] for name in ("redo", "redo-extend")]
    # latent frames 0 and 1 hold frames 0 to 4; the end of a loop is beside its beginning
    assert joins == [[0, 5], [5, 21]]


def test_frames_and_sizes_that_latents_cannot_hold_are_cropped_and_said(wan: Path, tmp_path: Path) -> None:
    config = config_of(wan, tmp_path / "a.mp4", **{**SETTINGS, "frames": 6, "size": "40x36", "steps": 2})
    found = concerns(prepare(config))
    assert "frames: 6 is not 4n + 1; 9 frames are generated and the last 3 dropped" in found
    assert "size: 40x36 is not a multiple of 16 pixels; 48x48 is generated and cropped" in found
    run(config)
    frames = read_video(tmp_path / "a.mp4")
    assert len(frames) == 6
    assert frames[0].shape == (36, 40, 3)


def test_another_number_of_attended_frames_than_in_training_is_said(wan: Path) -> None:
    config = config_of(wan, "x.mp4", "attention.local=6", **SETTINGS)
    [concern] = [line for line in concerns(prepare(config)) if line.startswith("attention:")]
    assert concern.startswith("attention: frames attend to 25 latent frames (2 * local + 1 + anchors); ")
    assert not any("attention" in line for line in concerns(prepare(config_of(wan, "x.mp4", **SETTINGS))))


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("decode.frames=8", "decodes one latent frame at a time"),
        ("attention.norm=rank", "has no GroupNorm over time"),
        ("compute.skips=host", "has no skip connections"),
    ],
)
def test_settings_for_unets_are_said_to_have_no_effect(
    setting: str, reason: str, wan: Path, model_folder: Path
) -> None:
    def said(model: Path, *overrides: str) -> list[str]:
        found = concerns(prepare(config_of(model, "x.mp4", *overrides, frames=97, size="32x16")))
        return [concern for concern in found if "has no effect" in concern]

    assert said(wan, setting) == [f"{setting.split('=')[0]}: has no effect: {wan.name} {reason}"]
    assert said(wan) == []
    assert said(model_folder, setting) == []


def test_decoding_again_says_what_has_no_effect(cli: Cli, wan: Path, tmp_path: Path) -> None:
    run(config_of(wan, tmp_path / "a.mp4", frames=5, size="32x16", steps=1))
    again = ("decode", str(tmp_path / "a.run"), "--device", "cpu", "--out", str(tmp_path / "b.mp4"))
    code, _, err = cli(*again, "decode.frames=8")
    assert code == 0
    assert f"decode.frames: has no effect: {wan.name} decodes one latent frame at a time" in err


def test_defaults_of_a_folder_are_those_of_the_family(wan: Path) -> None:
    job = prepare(config_of(wan, "x.mp4", frames=None, size=None, steps=None))
    config = job.config
    assert (config.frames, config.size, config.fps, config.steps) == (81, "832x480", 16, 50)
    assert (config.sampler, config.guidance) == ("unipc", 5.0)
    attention = config.attention
    assert (attention.local, attention.anchors, attention.trained_frames) == (4, 12, 21)
    assert attention.moving_anchors
    assert {(phase.local, phase.anchors) for phase in attention.schedule} == {(0.0, 0.0)}


@pytest.mark.parametrize("ranks", [1, 3])
def test_long_runs_are_planned_from_traces_of_shorter_ones(ranks: int, wan: Path) -> None:
    config = config_of(wan, "x.mp4", "compute.branches=1", **{**SETTINGS, "frames": 240 * ranks + 1})
    planned = outline_of(prepare(config), device="cpu", ranks=ranks)
    execution = planned.executions[0]
    found, exact = (
        trace(planned.call, execution, planned.sampler, branches=1) for trace in (step_memory, trace_step)
    )
    assert found.working == pytest.approx(exact.working, rel=0.03)
    work, traced = call_work(planned.call), trace_work(planned.call)
    assert work.counter.flops == pytest.approx(traced.counter.flops, rel=0.03)
    assert work.bytes == pytest.approx(traced.bytes, rel=0.1)


@pytest.mark.parametrize("command", ["generate", "plan"])
def test_a_shift_is_refused_for_models_trained_with_betas(command: str, cli: Cli) -> None:
    line = cli.refused(command, "-p", "a ball", "--model", "mini", "--device", "cpu", "shift=5")
    problem = "is for models trained by flow matching, which this one was not"
    assert line == f"shift: 5.0 (command line) {problem}; remove it"


def test_a_dry_run_names_the_shift(cli: Cli, wan: Path) -> None:
    command = [
        "generate",
        "-p",
        "a ball",
        "--model",
        str(wan),
        "--device",
        "cpu",
        "--size",
        "32x16",
        "-n",
        "5",
    ]
    for given, named in (([], "shift 3"), (["shift=5"], "shift 5")):
        code, out, _ = cli(*command, "--dry-run", *given)
        assert code == 0
        assert named in out
