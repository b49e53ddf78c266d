"""The files that a run reads and writes: their names, and which are refused before it starts."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles.settings import run_config
from safetensors.torch import save_file

from vinfinity.config import RunConfig
from vinfinity.errors import InputError
from vinfinity.media.writer import VideoWriter
from vinfinity.runs.paths import Destination, check_emptied, check_files, slug
from vinfinity.system.files import temporary


def check(config: RunConfig) -> None:
    check_files(config, Destination.of(config), overwrite=config.overwrite)
    check_emptied(Destination.of(config))


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
    save_file({"noise": torch.zeros(1)}, tmp_path / "noise.safetensors")
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
        ({"out": "a.avi"}, r"out: a\.avi \(argument\) does not end in \.mp4, .*; rename it to a\.mp4"),
        ({"out": "a"}, r"rename it to a\.mp4"),
        ({"out": "a.mp4 "}, r"rename it to a\.mp4"),
        ({"out": "a.mp4. "}, r"rename it to a\.mp4"),
        ({"out": "a.mp4/.."}, r"rename it to video\.mp4"),
        ({"out": ""}, r"out: '' \(argument\) does not end in \.mp4, .*; rename it to video\.mp4"),
        ({"out": "/"}, r"does not name a folder of its own; name a new folder, such as frames/"),
        ({"out": "new/../"}, "does not name a folder of its own"),
        ({"out": "mine.run/"}, "holds other files, such as log.txt; choose another name"),
        ({"out": "mine.run/", "overwrite": True}, "holds other files, such as log.txt"),
        ({"out": "pictures/"}, r"pictures already exists; choose another name or add --overwrite"),
        ({"out": "old.mp4/"}, "must be a folder, but is a file"),
        ({"out": "a.gif", "audio": "old.mp4"}, "GIF holds no audio; use .mp4, .mov, .webm"),
        ({"audio": "nowhere.wav"}, r"audio: nowhere\.wav does not exist; check the path"),
        ({"audio": "pictures"}, "audio: pictures is not a file"),
        ({"audio": "old.mp4"}, r"audio: old\.mp4 cannot be read as audio \(.*\); use a file with audio"),
        ({"audio": "silent.mp4"}, r"audio: silent\.mp4 has no audio"),
        ({"out": ".mp4"}, r"does not end in \.mp4"),
        ({"out": "folder.mp4"}, "is a folder"),
        ({"out": "old.mp4"}, "already exists; choose another name or add --overwrite"),
        (
            {"out": "sheet.mp4"},
            r"out: sheet\.png already exists; choose another name, add --overwrite or set video\.sheet=false",
        ),
        ({"out": "old.mp4/a.mp4"}, "which is a file"),
        ({"out": "a" * 252 + ".mp4"}, "has a name of 256 bytes, but its file system allows 255"),
        ({"out": "é" * 126 + ".mp4"}, "has a name of 256 bytes"),
        ({"out": f"new/{'a' * 256}/a.mp4"}, "has a name of 256 bytes"),
        ({"out": "new/" * 1100 + "a.mp4"}, "needs paths of up to .* bytes, but its file system allows 4095"),
        ({"out": "a\nb.mp4"}, r"out: 'a\\nb\.mp4' has a line break or another control character"),
        ({"out": "a\x1b[1m.mp4"}, "control character"),
        ({"out": "a\u2028b.mp4"}, "control character"),
        ({"out": "new\x07/a.mp4"}, "control character"),
        ({"out": "run.mp4"}, r"out: run\.run must be a folder, but is a file"),
        ({"out": "mine.mp4"}, r"the folder mine\.run, which holds other files, such as thesis\.tex"),
        ({"out": "mine.mp4", "overwrite": True}, "which holds other files"),
        ({"out": "earlier.mp4", "overwrite": True, "edit.run": "link.run"}, "of the run being edited"),
        ({"out": "a.mp4", "save_latents": "a.run/x.safetensors"}, "lies in the run folder"),
        ({"save_latents": "a" * 244 + ".safetensors"}, "has a name of 256 bytes"),
        ({"noise_from": "a" * 300 + ".safetensors"}, "does not exist"),
        ({"noise_from": "folder.safetensors"}, "is not a file"),
        ({"decoder": "a" * 300}, "is not a folder"),
        ({"decoder": "~nobody-at-all/taesd"}, "is not a folder"),
        ({"noise_from": "nowhere.safetensors"}, "noise_from: nowhere.safetensors does not exist"),
        ({"noise_from": "old.mp4"}, r"does not end in \.safetensors"),
        ({"save_latents": "old.safetensors"}, "save_latents: old.safetensors already exists"),
        ({"save_latents": "latents.pt"}, r"does not end in \.safetensors"),
    ],
)
def test_unusable_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, object], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("old.mp4", "old.safetensors", "sheet.png"):
        (tmp_path / name).write_bytes(b"x")
    for folder in ("folder.mp4", "folder.safetensors", "mine.run", "earlier.run"):
        (tmp_path / folder).mkdir()
    for file in ("run.run", "mine.run/thesis.tex", "mine.run/log.txt", "earlier.run/run.json"):
        (tmp_path / file).touch()
    (tmp_path / "link.run").symlink_to("earlier.run")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "000000.png").touch()
    with VideoWriter(tmp_path / "silent.mp4", run_config().format, width=16, height=16, fps=8) as video:
        video.write(np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(InputError, match=message):
        check(run_config(prompt="a ball", **given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"input.first_frame": "a.png"}, "out: a.png is the file that input.first_frame names"),
        ({"input.last_frame": "link/a.png"}, "out: a.png is the file that input.last_frame names"),
        ({"input.video": "a.mp4"}, "out: a.mp4 is the file that input.video names"),
        ({"audio": "../{folder}/a.mp4"}, "out: a.mp4 is the file that audio names"),
        ({"out": "frames/", "input.first_frame": "frames/0.png"}, "out: frames contains the file that input"),
        (
            {"noise_from": "a.safetensors", "save_latents": "link/a.safetensors"},
            "save_latents: link/a.safetensors is the file that noise_from names",
        ),
        (
            {"lora": ["lora:0.5"], "save_latents": "lora/adapter_model.safetensors"},
            "the file that lora names",
        ),
    ],
)
def test_no_file_that_a_run_reads_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(".")
    for folder in ("frames", "lora"):
        (tmp_path / folder).mkdir()
    for name in ("a.png", "a.mp4", "a.safetensors", "frames/0.png", "lora/adapter_model.safetensors"):
        (tmp_path / name).touch()
    given = {
        key: value.format(folder=tmp_path.name) if key == "audio" else value for key, value in given.items()
    }
    with pytest.raises(InputError) as raised:
        check(run_config(**{"prompt": "a ball", "out": "a.mp4", "overwrite": True, **given}))
    assert message in raised.value.message
    without_sheet = raised.value.remedy == "choose another name or set video.sheet=false"
    assert without_sheet == ("a.png" in message)


@pytest.mark.skipif(
    not os.path.ismount("/dev/shm") or not os.access("/dev", os.W_OK), reason="no mount point"
)
def test_a_mount_point_cannot_become_a_folder_of_pictures(tmp_path: Path) -> None:
    """It cannot be renamed, which would end the run when all is computed."""
    (tmp_path / "link").symlink_to("/dev/shm")
    for path in ("/dev/shm/", f"{tmp_path}/link/"):
        with pytest.raises(InputError, match="is a mount point; name a new folder inside it"):
            check(run_config(prompt="a ball", out=path, overwrite=True))


def test_unusual_names_are_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = [
        "-a.mp4",
        "12:30.mp4",
        "a b .mp4",
        "...mp4",
        "a%20b?c#d.mp4",
        "~nobody-at-all/a.mp4",
        "ball \u200f✨.mp4",
    ]
    for name in [*names, "x" * 251 + ".mp4", "é" * 125 + "x.mp4", "new/" * 900 + "a.mp4"]:
        check(run_config(prompt="a ball", out=name))


def test_a_run_folder_that_was_never_finished_is_used_again(tmp_path: Path) -> None:
    folder = tmp_path / "a.run"
    folder.mkdir()
    for name in ("lock", "config.yaml", temporary(folder / "config.yaml").name):
        (folder / name).touch()
    check(run_config(out=str(tmp_path / "a.mp4")))


def test_a_folder_whose_name_is_not_utf_8_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings are kept as text, with absolute paths."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match="is not valid UTF-8; choose another"):
        check(run_config(out="a.mp4"))


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
