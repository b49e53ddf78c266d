"""Redo and extend: which frames an edit computes, and that the others stay bitwise identical."""

import os
from pathlib import Path

import pytest
import torch
from oracles.runs import (
    config_of,
    events,
    exit_code,
    latents,
    manifest_of_step,
    signal_when_exists,
    when_exists,
)
from oracles.video import assert_exact_times, read_video

from vinfinity.denoise.selection import Selection
from vinfinity.errors import VinfinityError
from vinfinity.job import prepare
from vinfinity.run import run
from vinfinity.runs.derived import extend_settings, load_run, redo_settings
from vinfinity.runs.folder import find_run
from vinfinity.runs.parts import read_manifest


def edit(*arguments: str) -> None:
    assert exit_code(*arguments) == 0


def changed_frames(edited_run: Path, original: Path) -> list[int]:
    """Return the frames whose latents differ between two runs."""
    difference = (latents(edited_run) - latents(original)).abs().amax((0, 2, 3))
    return [frame for frame, largest in enumerate(difference.tolist()) if largest > 0]


@pytest.mark.parametrize("sampler", ["ddim", "sde-dpmsolver++", "lcm"])
def test_redo_changes_its_frames_and_no_bit_of_the_others(
    sampler: str, model_folder: Path, tmp_path: Path
) -> None:
    run(config_of(model_folder, tmp_path / "a.mp4", frames=24, sampler=sampler, steps=4, seed=3))
    edit("redo", str(tmp_path / "a.run"), "--frames", "8:16")
    assert changed_frames(tmp_path / "a-redo.run", tmp_path / "a.run") == list(range(8, 16))
    assert len(read_video(tmp_path / "a-redo.mp4")) == 24
    options = ("--frames", "8:16", "--out", str(tmp_path / "b.mp4"), "--prompt", "sea")
    edit("redo", str(tmp_path / "a.mp4"), *options)
    assert not torch.equal(latents(tmp_path / "b.run"), latents(tmp_path / "a-redo.run"))
    settings = load_run(find_run(tmp_path / "b.run"), overrides=[], flags={}).config
    assert (settings.prompt, settings.seed) == ("sea", 4)


def test_extend_adds_frames_and_leaves_the_existing_ones_unchanged(
    model_folder: Path, tmp_path: Path
) -> None:
    run(config_of(model_folder, tmp_path / "a.mp4", frames=20, steps=4))
    edit("extend", str(tmp_path / "a.run"), "--frames", "+7")
    extended = latents(tmp_path / "a-extend.run")
    assert extended.shape[1] == 27
    assert torch.equal(extended[:, :20], latents(tmp_path / "a.run"))
    assert extended[:, 20:].std() > 0.1
    # an extended run can be edited again
    edit("redo", str(tmp_path / "a-extend.run"), "--frames", "18:22")
    seeds = [
        read_manifest(tmp_path / f"{name}.run" / "latents").seeds for name in ("a-extend", "a-extend-redo")
    ]
    # frames next to a join keep their seed, too
    assert seeds == [((0, 27, 0),), ((0, 19, 0), (19, 21, 1), (21, 27, 0))]
    redone = latents(tmp_path / "a-extend-redo.run")
    assert torch.equal(redone[:, :18], extended[:, :18])
    assert torch.equal(redone[:, 22:], extended[:, 22:])


def test_settings_of_an_edit_come_before_what_the_command_chooses(model_folder: Path, tmp_path: Path) -> None:
    run(config_of(model_folder, tmp_path / "a.mp4", frames=6, steps=1, seed=3))
    named = ("seed=7", f"out={tmp_path / 'b.mp4'}", f"save_latents={tmp_path / 'b.safetensors'}")
    edit("redo", str(tmp_path / "a.run"), "--frames", "2:4", *named)
    assert read_manifest(tmp_path / "b.run" / "latents").seeds == ((0, 2, 3), (2, 4, 7), (4, 6, 3))
    assert (tmp_path / "b.safetensors").exists()
    # finished by the same command
    edit("redo", str(tmp_path / "a.run"), "--frames", "2:4", *named, "resume=true")
    edit("redo", str(tmp_path / "a.run"), "--frames", "2:4", *named, "overwrite=true", "gpus=2")
    assert events(tmp_path / "b.run", "started")[0]["ranks"] == 2
    assert not (tmp_path / "a-redo.run").exists()


@pytest.mark.parametrize("seed", ["--seed=7", "seed=7"])
def test_new_frames_may_have_another_seed(seed: str, model_folder: Path, tmp_path: Path) -> None:
    run(config_of(model_folder, tmp_path / "a.mp4", frames=4, steps=1, seed=3))
    edit("extend", str(tmp_path / "a.run"), "--frames", "+2", seed)
    assert read_manifest(tmp_path / "a-extend.run" / "latents").seeds == ((0, 4, 3), (4, 6, 7))


def test_the_frames_of_an_edited_video_have_their_times(model_folder: Path, tmp_path: Path) -> None:
    run(config_of(model_folder, tmp_path / "a.mp4", frames=9, steps=1, fps=8))
    edit("redo", str(tmp_path / "a.run"), "--frames", "2:5")
    edit("extend", str(tmp_path / "a-redo.run"), "--frames", "+8")
    for name, frames in (("a", 9), ("a-redo", 9), ("a-redo-extend", 17)):
        assert_exact_times(tmp_path / f"{name}.mp4", frames=frames, fps=8)


def test_an_edit_computes_only_nearby_frames_and_anchors(model_folder: Path, tmp_path: Path) -> None:
    few = ("attention.anchors=4", "attention.local=2")
    run(config_of(model_folder, tmp_path / "a.mp4", *few, frames=60, steps=2, seed=5))
    folder = find_run(tmp_path / "a.run")

    def redone(span: str) -> Selection:
        return prepare(redo_settings(folder, span, overrides=["edit.context=3"], flags={}).config).selection

    redo = redone("30:36")
    assert redo.frames == (7, 22, *range(27, 39), 52)
    assert redo.generated == frozenset(range(30, 36))
    assert redo.seeds == (5,) * 31 + (6,) * 4 + (5,) * 25
    extend = prepare(extend_settings(folder, 4, overrides=["edit.context=3"], flags={}).config).selection
    assert extend.frames == (8, 24, 40, *range(56, 64))
    assert extend.generated == frozenset(range(60, 64))
    run(config_of(model_folder, tmp_path / "short.mp4", *few, frames=16, steps=1))
    folder = find_run(tmp_path / "short.run")
    # a short video has plain attention, in which every frame sees all others
    assert redone("3:5").frames == tuple(range(16))

    edit("redo", str(tmp_path / "a.run"), "--frames", "30:36", "edit.context=3")
    assert changed_frames(tmp_path / "a-redo.run", tmp_path / "a.run") == list(range(30, 36))
    assert len(read_video(tmp_path / "a-redo.mp4")) == 60
    on_three_ranks = ("--out", str(tmp_path / "b.mp4"), "--gpus", "3", "edit.context=3")
    edit("redo", str(tmp_path / "a.run"), "--frames", "30:36", *on_three_ranks)
    assert (latents(tmp_path / "b.run") - latents(tmp_path / "a-redo.run")).abs().max() <= 1e-4


def test_frames_far_from_an_edit_hardly_affect_it(tmp_path: Path) -> None:
    whole = ("edit.context=300", "--out", str(tmp_path / "whole.mp4"))
    # With more steps, sampling makes small differences larger, by a factor that depends on the seed and on the weights.
    settings = {"frames": 140, "steps": 2, "size": "128x80", "guidance": 1.4, "seed": 2}
    run(config_of("mini", tmp_path / "a.mp4", **settings))
    few = ("edit.context=4", "--out", str(tmp_path / "few.mp4"))
    for options in ((), whole, few):
        edit("redo", str(tmp_path / "a.run"), "--frames", "60:72", *options)
    made = {name: latents(tmp_path / f"{name}.run")[:, 60:72] for name in ("a", "a-redo", "whole", "few")}

    def apart(name: str) -> float:
        return float((made[name] - made["whole"]).square().mean().sqrt())

    assert apart("a") > 0.1
    assert apart("a-redo") < 0.2 * apart("a") < apart("few")


def test_an_earlier_run_damaged_during_a_redo_ends_it_on_all_ranks(
    model_folder: Path, tmp_path: Path
) -> None:
    """Rank 0 reads the kept frames after the other ranks wrote theirs; it must not leave them waiting."""
    run(config_of(model_folder, tmp_path / "a.mp4", frames=9))
    [part] = (tmp_path / "a.run" / "latents").glob("*.safetensors")
    folder = find_run(tmp_path / "a.run")
    overrides, flags = ["checkpoint.every=1 steps"], {"gpus": "2", "device": "cpu"}
    config = redo_settings(folder, "4:8", overrides=overrides, flags=flags).config
    first_checkpoint = tmp_path / "a-redo.run" / "checkpoints" / "step-0001"
    with (
        when_exists(first_checkpoint, lambda: os.truncate(part, 1000)),
        pytest.raises(VinfinityError, match=f"{part.name}: cannot be read") as raised,
    ):
        run(config)
    assert raised.value.exit_code == 4
    assert not (tmp_path / "a-redo.run" / "latents").exists()


def test_an_edit_knows_the_borders_of_earlier_ones_between_kept_frames(
    model_folder: Path, tmp_path: Path
) -> None:
    def borders(name: str) -> dict[str, list[int]]:
        return find_run(tmp_path / f"{name}.run").borders()

    def edited_as(name: str, kind: str, frames: str, *, of: str) -> dict[str, list[int]]:
        out = ("--out", str(tmp_path / f"{name}.mp4"), "--gpus", "1")
        edit(kind, str(tmp_path / f"{of}.run"), "--frames", frames, *out)
        return borders(name)

    run(config_of(model_folder, tmp_path / "a.mp4", frames=8, steps=1, gpus=2))
    assert borders("a") == {"ranks": [4], "joins": []}
    assert edited_as("b", "extend", "+8", of="a") == {"ranks": [4], "joins": [8]}
    assert edited_as("c", "extend", "+8", of="b") == {"ranks": [4], "joins": [8, 16]}
    assert edited_as("d", "redo", "10:12", of="c") == {"ranks": [4], "joins": [8, 10, 12, 16]}
    # those that are made anew are gone
    assert edited_as("e", "redo", "2:11", of="d") == {"ranks": [], "joins": [2, 11, 12, 16]}


def test_the_ends_of_a_loop_are_a_join_if_one_of_them_is_made_anew(
    model_folder: Path, tmp_path: Path
) -> None:
    for loop, expected in ((True, [0, 8]), (False, [8])):
        name = f"loop-{loop}"
        run(config_of(model_folder, tmp_path / f"{name}.mp4", frames=24, steps=2, loop=loop))
        edit("redo", str(tmp_path / f"{name}.run"), "--frames", "0:8")
        assert find_run(tmp_path / f"{name}-redo.run").borders()["joins"] == expected
    # frames next to a join keep their seed
    seeds = [read_manifest(tmp_path / f"loop-{loop}-redo.run" / "latents").seeds for loop in (True, False)]
    assert seeds == [((0, 2, 0), (2, 6, 1), (6, 24, 0)), ((0, 6, 1), (6, 24, 0))]


def test_a_stopped_redo_resumes(model_folder: Path, tmp_path: Path) -> None:
    run(config_of(model_folder, tmp_path / "a.mp4", frames=6))
    options = ("--frames", "2:5", "checkpoint.every=1 steps")
    edit("redo", str(tmp_path / "a.run"), *options, "--out", str(tmp_path / "uninterrupted.mp4"))
    with signal_when_exists(manifest_of_step(tmp_path / "a-redo.run", 3)):
        assert exit_code("redo", str(tmp_path / "a.run"), *options) == 75
    edit("resume", str(tmp_path / "a-redo.run"))
    assert torch.equal(latents(tmp_path / "a-redo.run"), latents(tmp_path / "uninterrupted.run"))


@pytest.mark.parametrize("more", [(), ("--overwrite",)])
def test_a_restarted_edit_resumes(
    more: tuple[str, ...], model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config_of(model_folder, tmp_path / "a.mp4", frames=4))
    command = ("extend", str(tmp_path / "a.run"), "--frames", "+2", "checkpoint.every=1 steps", *more)
    with signal_when_exists(manifest_of_step(tmp_path / "a-extend.run", 3)):
        assert exit_code(*command) == 75
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    edit(*command)
    [resumed] = events(tmp_path / "a-extend.run", "resumed")
    assert resumed["step"] >= 3
