"""The files that a run reads and writes: their names, and which are refused before it starts."""

import os
from pathlib import Path

import pytest
from oracles.settings import run_config

from vinfinity.config import RunConfig
from vinfinity.errors import InputError
from vinfinity.runs.paths import Destination, check_files, slug


def check(config: RunConfig) -> None:
    check_files(config, Destination.of(config), overwrite=config.overwrite)


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red ball, bouncing over green grass!", "a-red-ball-bouncing-over-green-grass"),
        ("  ../etc/passwd \0 ", "etc-passwd"),
        ("Ünïted ﬁve", "ünïted-five"),
        ("红色的球 跳", "红色的球-跳"),
        ("✨🎈", "video"),
        ("word " * 40, "-".join(["word"] * 12)),
        ("x" * 300, "x" * 60),
        ("", "video"),
    ],
)
def test_a_file_name_is_derived_from_the_prompt(prompt: str, name: str) -> None:
    assert slug(prompt) == name


def test_out_names_the_video_and_the_files_beside_it(tmp_path: Path) -> None:
    assert Destination.of(run_config(prompt="A ball")).video == Path("a-ball.mp4")
    there = Destination.of(run_config(prompt="A ball", out=str(tmp_path / "x.y.mp4")))
    assert (there.video, there.sheet) == (tmp_path / "x.y.mp4", tmp_path / "x.y.png")
    assert there.folder.path == tmp_path / "x.y.run"
    assert Destination.of(run_config(video={"sheet": False})).sheet is None
    assert Destination.of(run_config(out="~/a.mp4")).video == Path.home() / "a.mp4"


def test_usable_files_are_accepted_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noise.safetensors").write_bytes(b"x")
    for config in (
        run_config(prompt="a ball"),
        run_config(out="a.mp4", noise_from="noise.safetensors"),
        run_config(out="new/folder/a.MP4", save_latents="other/new/l.safetensors"),
    ):
        check(config)
    assert [file.name for file in tmp_path.iterdir()] == ["noise.safetensors"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"out": "a.avi"}, r"out: a\.avi does not end in \.mp4; name it a\.mp4"),
        ({"out": "a"}, r"name it a\.mp4"),
        ({"out": "folder.mp4"}, "is a folder"),
        ({"out": "old.mp4"}, "already exists; choose another name or add --overwrite"),
        ({"out": "sheet.mp4"}, r"out: sheet\.png already exists"),
        ({"out": "old.mp4/a.mp4"}, "which is a file"),
        ({"out": "a" * 300 + ".mp4"}, "cannot be used"),
        ({"noise_from": "nowhere.safetensors"}, "noise_from: nowhere.safetensors does not exist"),
        ({"noise_from": "old.mp4"}, r"does not end in \.safetensors"),
        ({"save_latents": "old.safetensors"}, "save_latents: old.safetensors already exists"),
        ({"save_latents": "latents.pt"}, r"does not end in \.safetensors"),
        (
            {"save_latents": "old.safetensors", "noise_from": "old.safetensors", "overwrite": True},
            "read from",
        ),
    ],
)
def test_unusable_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, object], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("old.mp4", "old.safetensors", "sheet.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(InputError, match=message):
        check(run_config(prompt="a ball", **given))


def test_overwrite_allows_existing_files(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.png", "a.safetensors"):
        (tmp_path / name).write_bytes(b"x")
    out, latents = str(tmp_path / "a.mp4"), str(tmp_path / "a.safetensors")
    check(run_config(out=out, save_latents=latents, overwrite=True))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(InputError, match="not writable"):
        check(run_config(out=str(tmp_path / "closed" / "a.mp4")))
