"""Videos that are generated in two passes: the result of the first is what the second starts from."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles.command_line import Cli
from oracles.processes import vinfinity
from oracles.runs import (
    config_of,
    exit_code,
    latents,
    resumed_config,
    signal_when_exists,
    stop_after_step,
    when_exists,
)

import vinfinity as library
from vinfinity.config import RunConfig
from vinfinity.errors import InputError, Stopped
from vinfinity.run import run
from vinfinity.runs.first_pass import CRF
from vinfinity.system.signals import Shutdown
from vinfinity.weights.card import read_card

# small, with frames for three blocks
FLAGS = {"frames": 20, "size": "32x24", "fps": 8, "steps": 6}
FIRST = "first_pass.size=24x16"


def two_passes(model: Path, out: Path, *overrides: str, **flags: object) -> RunConfig:
    return config_of(model, out, FIRST, "checkpoint.every=1 steps", *overrides, **{**FLAGS, **flags})


@pytest.fixture(scope="module")
def whole(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run in two passes."""
    out = tmp_path_factory.mktemp("whole") / "a.mp4"
    run(two_passes(model_folder, out))
    return out.with_suffix(".run")


def test_one_command_makes_what_two_commands_make(whole: Path, model_folder: Path, tmp_path: Path) -> None:
    flags = {**FLAGS, "size": "24x16"}
    run(config_of(model_folder, tmp_path / "one.mp4", f"video.crf={CRF}", **flags))
    run(config_of(model_folder, tmp_path / "two.mp4", **FLAGS, **{"input.video": str(tmp_path / "one.mp4")}))
    assert torch.equal(latents(whole / "first-pass.run"), latents(tmp_path / "one.run"))
    assert torch.equal(latents(whole), latents(tmp_path / "two.run"))


def test_on_several_ranks_it_has_the_same_bits(whole: Path, model_folder: Path, tmp_path: Path) -> None:
    run(two_passes(model_folder, tmp_path / "a.mp4", gpus=2))
    assert torch.equal(latents(tmp_path / "a.run"), latents(whole))


def test_what_concerns_both_passes_is_said_once(cli: Cli, model_folder: Path, tmp_path: Path) -> None:
    flags = ["generate", "-p", "a ball", "--model", str(model_folder), "--device", "cpu", "--steps", "2"]
    flags += ["-n", "3", "--size", "32x24", FIRST, "guidance=1", "parallel.split_guidance=true"]
    code, _, err = cli(*flags, "--out", str(tmp_path / "a.mp4"))
    assert code == 0
    assert err.count("there is only one guidance branch") == 1
    for log in ("a.run/log.txt", "a.run/first-pass.run/log.txt"):
        assert "there is only one guidance branch" in (tmp_path / log).read_text()


def test_the_first_pass_takes_the_settings_of_another_model(
    model_folder: Path, own_model: Path, tmp_path: Path
) -> None:
    (own_model / "card.json").write_text(json.dumps({"steps": 3, "guidance": 2.0, "trained_frames": 7}))
    run(
        two_passes(model_folder, tmp_path / "a.mp4", f"first_pass.model={own_model}", "first_pass.guidance=4")
    )
    first = resumed_config(tmp_path / "a.run" / "first-pass.run")
    assert (first.model, first.steps, first.guidance) == (str(own_model), 3, 4.0)
    assert (first.attention.trained_frames, first.size, first.frames) == (7, "24x16", 20)
    assert (first.prompt, first.seed) == ("a red ball", 0)


# ---- stopped and resumed ----


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("first-pass.run/checkpoints/step-0002/manifest.json", "stopped after step"),
        ("input/frames-000000-000008.safetensors", "stopped after encoding"),
        ("checkpoints/step-0001/manifest.json", "stopped"),
    ],
)
def test_a_stopped_run_resumes_as_a_whole(
    place: str, message: str, whole: Path, model_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "a.run"
    with (
        Shutdown().handled() as shutdown,
        signal_when_exists(folder / place),
        pytest.raises(Stopped, match=f"{message}.*`vinfinity resume {folder}` resumes the run"),
    ):
        run(two_passes(model_folder, tmp_path / "a.mp4"), shutdown=shutdown)
    assert exit_code("resume", str(folder)) == 0
    assert (tmp_path / "a.mp4").exists()
    assert torch.equal(latents(folder), latents(whole))


@pytest.mark.parametrize(
    "place",
    [
        "first-pass.run/checkpoints/step-0003/manifest.json",
        "first-pass.run/decoded.json",
        "input/manifest.json",
        "checkpoints/step-0002/manifest.json",
    ],
)
def test_a_killed_run_resumes_to_the_same_bits(
    place: str, whole: Path, model_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "a.run"
    flags = [word for key, value in FLAGS.items() for word in (f"--{key}", str(value))]
    command = vinfinity(
        "generate", "-p", "a red ball", "--model", str(model_folder), "--device", "cpu", *flags
    )
    command += ["dtype=fp32", FIRST, "checkpoint.every=1 steps", "--out", str(tmp_path / "a.mp4")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    with when_exists(folder / place, lambda: os.kill(process.pid, signal.SIGKILL)):
        _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    made = (folder / "first-pass.mp4").exists() and (folder / "first-pass.mp4").stat().st_mtime_ns
    assert exit_code("resume", str(folder)) == 0
    assert torch.equal(latents(folder), latents(whole))
    if made:
        # what is finished is not made again
        assert (folder / "first-pass.mp4").stat().st_mtime_ns == made


def test_a_new_run_does_not_replace_an_unfinished_first_pass(model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a.run"
    config = two_passes(model_folder, tmp_path / "a.mp4")
    with (
        Shutdown().handled() as shutdown,
        signal_when_exists(folder / "first-pass.run/checkpoints/step-0002/manifest.json"),
        pytest.raises(Stopped),
    ):
        run(config, shutdown=shutdown)
    with pytest.raises(InputError, match="belongs to an unfinished run"):
        run(config)


# ---- edits ----


def test_redo_starts_from_the_same_first_pass(whole: Path, tmp_path: Path) -> None:
    assert exit_code("redo", str(whole), "--frames", "6:12", "--out", str(tmp_path / "b.mp4")) == 0
    before, after = latents(whole), latents(tmp_path / "b.run")
    changed = (after - before).abs().amax((0, 2, 3)) > 0
    assert changed.nonzero().flatten().tolist() == [*range(6, 12)]
    assert not (tmp_path / "b.run" / "first-pass.run").exists()


def test_an_edit_cannot_have_another_first_pass(cli: Cli, whole: Path) -> None:
    line = cli.refused("redo", str(whole), "--frames", "6:12", "first_pass.steps=3")
    assert "has no latents of the same first pass" in line


def test_extend_adds_frames_of_no_first_pass(whole: Path, tmp_path: Path) -> None:
    assert exit_code("extend", str(whole), "--frames", "+4", "--out", str(tmp_path / "b.mp4")) == 0
    assert torch.equal(latents(tmp_path / "b.run")[:, :20], latents(whole))


def test_once_encoded_the_first_pass_and_its_model_are_not_needed_any_more(
    model_folder: Path, own_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "a.run"
    config = two_passes(model_folder, tmp_path / "a.mp4", f"first_pass.model={own_model}")
    stop_after_step(config, folder, step=1)
    shutil.rmtree(own_model)
    shutil.rmtree(folder / "first-pass.run")
    (folder / "first-pass.mp4").unlink()
    # another process would not know the card
    read_card.cache_clear()
    assert exit_code("resume", str(folder)) == 0
    assert exit_code("decode", str(folder), "--out", str(tmp_path / "again.mp4")) == 0
    assert exit_code("redo", str(folder), "--frames", "6:12") == 0


# ---- plans, batches, and what is refused ----


def test_plans_show_both_passes(cli: Cli, model_folder: Path) -> None:
    given = ["-p", "a red ball", "--model", str(model_folder), "--size", "32x24", "-n", "20", FIRST]
    given += ["--steps", "10", "--device", "cpu"]
    for command in (["plan"], ["generate", "--dry-run"]):
        code, out, _ = cli(*command, *given)
        assert code == 0
        assert "first pass   24x16, 10 steps by" in out
        assert "second pass  32x24, 6 steps by" in out
    _, out, _ = cli("plan", *given, "--json")
    plan = json.loads(out)
    assert (plan["size"], plan["steps"], plan["first_pass"]["size"]) == ("32x24", 6, "24x16")
    assert plan["device_memory"]["encoding"] > 0 == plan["first_pass"]["device_memory"]["encoding"]
    assert plan["disk"]["most"] > plan["first_pass"]["disk"]["most"]


def test_a_batch_makes_videos_in_two_passes(model_folder: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        **FLAGS,
        "model": model_folder,
        "device": "cpu",
        "dtype": "fp32",
        "first_pass": {"size": "24x16"},
    }
    summary = library.generate_batch(["a red ball", "a boat"], folder=tmp_path, **settings)
    assert summary is not None
    assert (len(summary.made), summary.failed) == (2, ())
    again = library.generate_batch(["a red ball", "a boat"], folder=tmp_path, **settings)
    assert again is not None
    assert len(again.skipped) == 2


def test_a_given_video_takes_the_place_of_the_first_pass(cli: Cli, whole: Path, model_folder: Path) -> None:
    film = str(whole / "first-pass.mp4")
    given = ["-p", "a ball", "--model", str(model_folder), "--from", film, "--size", "32x24", FIRST]
    code, out, _ = cli("plan", *given, "--device", "cpu")
    assert code == 0
    assert "first pass" not in out


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("first_pass.steps=3",), "has no effect without a first pass; add first_pass.size=WIDTHxHEIGHT"),
        (("first_pass.size=24",), "first_pass.size: 24 (command line) is not a size in pixels"),
        (
            (FIRST, "first_pass.model=nowhere"),
            "first_pass.model: nowhere (command line) is neither a known model",
        ),
        (
            (FIRST, "first_pass.model=zeroscope"),
            "first_pass.model: zeroscope (command line) has not been fetched",
        ),
        ((FIRST, "first_pass.lora=[nowhere.safetensors]"), "first_pass.lora: nowhere.safetensors"),
        ((FIRST, "first_pass.steps=0"), "first_pass.steps: 0 (command line) is not between 1 and 1000"),
        ((FIRST, "--strength", "0.01"), "--strength: 0.01 leaves none of 6 steps"),
    ],
)
def test_what_cannot_be_a_first_pass_is_refused(
    given: tuple[str, ...], expected: str, cli: Cli, model_folder: Path, tmp_path: Path
) -> None:
    flags = ["generate", "-p", "a ball", "--model", str(model_folder), "--steps", "6", "--device", "cpu"]
    assert expected in cli.refused(*flags, *given, "--out", str(tmp_path / "a.mp4"))
    assert not (tmp_path / "a.run").exists()


def test_a_pipeline_has_one_pass(model_folder: Path) -> None:
    pipe = library.Pipeline.from_pretrained(model_folder, device="cpu")
    with pytest.raises(InputError, match=r"first_pass.size: 24x16 belongs to runs that write files"):
        pipe("a red ball", first_pass={"size": "24x16"})
