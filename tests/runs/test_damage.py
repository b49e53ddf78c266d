"""Damaged files in a run folder: they are reported, and the run resumes from intact ones."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles.runs import (
    config_of,
    events,
    exit_code,
    flip_bit,
    latents,
    resumed_config,
    stop_after_step,
    truncate,
    when_exists,
)
from oracles.video import read_video

from vinfinity.decode_again import decode_again
from vinfinity.errors import DamagedError, OutputError, VinfinityError
from vinfinity.run import run
from vinfinity.runs.derived import load_run
from vinfinity.runs.folder import RunFolder, find_run
from vinfinity.runs.parts import undamaged_parts, write_manifest, write_part
from vinfinity.runs.paths import Destination


def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_is_used(
    model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(config_of(model_folder, tmp_path / "uninterrupted.mp4"))
    stop_after_step(
        config_of(model_folder, tmp_path / "a.mp4", "checkpoint.every=1 steps"), tmp_path / "a.run"
    )
    for file in ("frames-000000-000003.safetensors", "manifest.json"):
        for damage in (truncate, flip_bit, Path.unlink):
            folder = tmp_path / f"{damage.__name__}-{file}.run"
            shutil.copytree(tmp_path / "a.run", folder)
            older, newest = sorted((folder / "checkpoints").iterdir())
            damage(newest / file)
            caplog.clear()
            run(resumed_config(folder))
            messages = " ".join(caplog.text.split())
            # a run that is killed while it writes a checkpoint also leaves one without a manifest
            if (file, damage) != ("manifest.json", Path.unlink):
                assert "WARNING" in messages
                assert str(newest) in messages
                assert str(newest) in events(folder, "damaged")[0]["message"]
            assert events(folder, "resumed")[0]["step"] == int(older.name.removeprefix("step-"))
            assert torch.equal(latents(folder), latents(tmp_path / "uninterrupted.run"))


def test_damaged_final_latents_are_computed_again(model_folder: Path, tmp_path: Path) -> None:
    config = config_of(model_folder, tmp_path / "a.mp4", steps=4)
    run(config)
    original = latents(tmp_path / "a.run")
    flip_bit(tmp_path / "a.run" / "latents" / "frames-000000-000003.safetensors")
    (tmp_path / "a.mp4").unlink()
    again = load_run(find_run(tmp_path / "a.run"), overrides=[], flags={"overwrite": True}).config
    with pytest.raises(DamagedError, match="SHA-256"):
        decode_again(again, find_run(tmp_path / "a.run"), Destination.of(again))
    run(resumed_config(tmp_path / "a.run"))
    assert torch.equal(latents(tmp_path / "a.run"), original)


@pytest.mark.parametrize("place", ["checkpoints/step-0003", "latents", "input", "pictures"])
@pytest.mark.parametrize("file", ["manifest.json", "frames-000000-000003.safetensors"])
def test_a_file_that_cannot_be_read_for_a_moment_is_not_taken_for_a_damaged_one(
    place: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a.run" / place
    part = write_part(folder, range(3), {"x": torch.zeros(1, 4, 3, 2, 2)})
    parts = write_manifest(folder, [part], step=3, settings="", tensors=("x",), seeds=[0] * 3)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    damaged: list[DamagedError] = []
    opened = Path.open

    def fails(path: Path, *arguments: Any, **options: Any) -> Any:
        if path == folder / file:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return opened(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fails)
        with pytest.raises(OutputError, match=rf"{file}: cannot be read \(Input/output error\)"):
            undamaged_parts(folder, damaged=damaged.append)
        assert RunFolder(tmp_path / "a.run").holds_work()
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert undamaged_parts(folder, damaged=damaged.append) == parts
    assert damaged == []


def test_a_run_whose_latents_cannot_be_read_for_a_moment_keeps_them(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config_of(model_folder, tmp_path / "a.mp4", steps=1))
    (tmp_path / "a.mp4").unlink()
    manifest = tmp_path / "a.run" / "latents" / "manifest.json"
    opened = Path.open

    def fails(path: Path, *arguments: Any, **options: Any) -> Any:
        if path == manifest:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return opened(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fails)
        assert exit_code("resume", str(tmp_path / "a.run")) == 4
    assert exit_code("resume", str(tmp_path / "a.run")) == 0
    assert len(events(tmp_path / "a.run", "step")) == 1


def test_latents_truncated_during_decoding_are_named_in_the_error(model_folder: Path, tmp_path: Path) -> None:
    config = config_of(model_folder, tmp_path / "a.mp4", "decode.frames=1", frames=80, steps=1, size="64x64")
    folder = tmp_path / "a.run"

    def truncate_latents() -> None:
        [part] = (folder / "latents").glob("*.safetensors")
        os.truncate(part, 1000)

    with (
        when_exists(folder / "decoded.json", truncate_latents),
        pytest.raises(
            VinfinityError, match=r"frames-000000-000080\.safetensors: .*`vinfinity resume"
        ) as raised,
    ):
        run(config)
    assert raised.value.exit_code == 4
    run(resumed_config(folder))
    assert len(read_video(tmp_path / "a.mp4")) == 80
    assert len(events(folder, "damaged")) == 1
