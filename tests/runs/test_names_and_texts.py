"""Runs with unusual names, paths and prompts: they end as they should, or are refused before they start."""

import json
import os
import sys
from pathlib import Path

import pytest
from oracles.command_line import Cli
from oracles.runs import config_of, exit_code, latents, start_of
from oracles.video import read_video

from vinfinity.errors import InputError
from vinfinity.media.mp4 import read_metadata
from vinfinity.run import run
from vinfinity.runs.derived import load_run
from vinfinity.runs.folder import LONGEST_PATH, RunFolder

# a frame and a step: nothing but the names matters here
QUICK = {"frames": 1, "steps": 1}


@pytest.mark.parametrize(
    "prompt",
    ["a\u2028b\u2029c", "\ufeffa\x85b\x0bc\x1dd", "a\r\nb\n  seed: 5\n", "1:30", "${seed} \\${x} ???"],
)
def test_a_run_resumes_whatever_its_prompt(prompt: str, model_folder: Path, tmp_path: Path) -> None:
    config = config_of(model_folder, tmp_path / "a.mp4", prompt=prompt, resume=True, **QUICK)
    run(config)
    assert start_of(config) == "done"
    (tmp_path / "a.mp4").unlink()
    assert start_of(config) == "resume"
    run(config)
    assert exit_code("resume", str(tmp_path / "a.run")) == 0
    folder = RunFolder(tmp_path / "a.run")
    assert load_run(folder, overrides=[], flags={}).config.prompt == prompt
    metadata = read_metadata(tmp_path / "a.mp4")
    record = folder.record()
    assert record is not None
    assert metadata["title"] == record["config"]["prompt"] == prompt
    assert json.loads(metadata["comment"])["config"]["prompt"] == prompt
    assert len(metadata["comment"].splitlines()) == 1
    assert [json.loads(line) for line in (folder.path / "events.jsonl").read_text().splitlines()]


def test_a_run_keeps_a_command_line_that_is_not_utf_8(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["vinfinity", "--config", os.fsdecode(b"caf\xe9.yaml"), "a\u2028b"]
    monkeypatch.setattr(sys, "argv", command)
    run(config_of(model_folder, tmp_path / "a.mp4", **QUICK))
    record = RunFolder(tmp_path / "a.run").record()
    assert record is not None
    assert record["command"] == "vinfinity --config 'caf\udce9.yaml' 'a\u2028b'"


@pytest.mark.parametrize("name", ["12:30.mp4", "-a b.c .MP4", "x" * 251 + ".mp4", "é" * 125 + ".mp4"])
def test_a_video_may_have_any_name(
    name: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(config_of(model_folder, Path(name), save_latents=f"{'é' * 121}.safetensors", **QUICK))
    assert len(read_video(tmp_path / name)) == 1
    assert exit_code("redo", f"./{Path(name).with_suffix('.run')}", "--frames", "0:1", "--out", "b.mp4") == 0
    assert exit_code("decode", f"./{name}", "--overwrite") == 0
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".vinfinity")]


def test_a_name_that_leaves_no_room_for_an_edit_is_refused(
    model_folder: Path, tmp_path: Path, cli: Cli
) -> None:
    run(config_of(model_folder, tmp_path / f"{'x' * 251}.mp4", **QUICK))
    message = cli.refused("redo", str(tmp_path / f"{'x' * 251}.run"), "--frames", "0:1")
    assert message.endswith("has a name of 260 bytes, but its file system allows 255; choose a shorter name")


def test_a_path_may_be_as_long_as_the_system_allows(model_folder: Path, tmp_path: Path) -> None:
    most = os.pathconf(tmp_path, "PC_PATH_MAX") - 1
    room = most - len(f"{tmp_path}/a.run/{LONGEST_PATH}")
    # folders of at most 200 bytes, with their slashes
    names = ["d" * 199] * (room // 200)
    rest = room - 200 * len(names)
    if rest:
        names = [*names[:-1], "d" * (199 - (rest == 1)), "d" * (rest - 1 + (rest == 1))]
    folder = tmp_path.joinpath(*names)
    config = config_of(model_folder, folder / "a.mp4", "checkpoint.every=1 steps", **{**QUICK, "steps": 2})
    run(config)
    assert len(read_video(folder / "a.mp4")) == 1
    with pytest.raises(InputError, match=f"needs paths of up to {most + 1} bytes"):
        run(config_of(model_folder, folder / "ab.mp4", **QUICK))


def test_an_edit_does_not_replace_the_run_it_starts_from(
    model_folder: Path, tmp_path: Path, cli: Cli
) -> None:
    run(config_of(model_folder, tmp_path / "a.mp4", frames=3, steps=1))
    (tmp_path / "link.mp4").symlink_to("a.mp4")
    (tmp_path / "link.run").symlink_to("a.run")
    for out in ("a.mp4", "link.mp4"):
        command = (
            "redo",
            str(tmp_path / "a.run"),
            "--frames",
            "1:2",
            "--overwrite",
            "--out",
            str(tmp_path / out),
        )
        assert "is the video of the run being edited; choose another name" in cli.refused(*command)
    assert latents(tmp_path / "a.run").shape[1] == 3


def test_a_folder_of_other_files_is_not_emptied(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.run").mkdir()
    (tmp_path / "a.run" / "thesis.tex").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"which holds other files, such as thesis\.tex"):
            run(config_of(model_folder, tmp_path / "a.mp4", overwrite=overwrite, **QUICK))
    assert (tmp_path / "a.run" / "thesis.tex").read_text() == "precious"


def test_files_beside_a_run_in_its_folder_are_kept(model_folder: Path, tmp_path: Path) -> None:
    run(config_of(model_folder, tmp_path / "a.mp4", **QUICK))
    (tmp_path / "a.run" / "notes.txt").write_text("precious")
    (tmp_path / "a.mp4").unlink()
    with pytest.raises(
        InputError, match=r"which holds other files, such as notes\.txt; move them, or choose"
    ):
        run(config_of(model_folder, tmp_path / "a.mp4", overwrite=True, **QUICK))
    # a run that goes on deletes nothing
    assert exit_code("resume", str(tmp_path / "a.run")) == 0
    assert exit_code("decode", str(tmp_path / "a.run"), "--overwrite") == 0
    assert (tmp_path / "a.run" / "notes.txt").read_text() == "precious"


def test_a_run_is_found_by_its_folder_from_within_and_not_under_another_ending(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    run(config_of(model_folder, tmp_path / "a.mp4", **QUICK))
    monkeypatch.chdir(tmp_path / "a.run")
    assert cli("resume", ".")[0] == 0
    monkeypatch.chdir(tmp_path / "a.run" / "latents")
    assert cli("resume", "..")[0] == 0
    (tmp_path / "a.run").rename(tmp_path / "renamed")
    message = cli.refused("resume", str(tmp_path / "renamed"))
    assert message.endswith("does not end in .run; rename it to renamed.run")
