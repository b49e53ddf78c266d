"""`vinfinity decode`: a run's latents decoded again, with other settings or after an interruption."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles.command_line import Cli
from oracles.lora_files import base_unet, trained
from oracles.runs import config_of, exit_code, signal_when_exists, stop_after_step
from oracles.video import assert_exact_times, read_video, tone
from PIL import Image
from safetensors.torch import save_file

from vinfinity.errors import Stopped
from vinfinity.media.mp4 import read_metadata
from vinfinity.run import run
from vinfinity.runs.folder import find_run
from vinfinity.system.signals import Shutdown


def test_latents_can_be_decoded_again_with_other_video_settings(model_folder: Path, tmp_path: Path) -> None:
    run(config_of(model_folder, tmp_path / "a.mp4", steps=2, size="64x64", frames=9))
    before = (tmp_path / "a.mp4").read_bytes()
    # a.mp4 exists
    assert exit_code("decode", str(tmp_path / "a.run")) == 2
    options = ("--out", str(tmp_path / "b.mp4"), "video.crf=51")
    assert exit_code("decode", str(tmp_path / "a.mp4"), *options) == 0
    assert (tmp_path / "a.mp4").read_bytes() == before
    assert read_video(tmp_path / "b.mp4").shape == read_video(tmp_path / "a.mp4").shape
    assert len((tmp_path / "b.mp4").read_bytes()) < len(before)
    assert '"video.crf": 51' in read_metadata(tmp_path / "b.mp4")["comment"]
    # a seed would change the latents
    assert exit_code("decode", str(tmp_path / "a.run"), "--out", str(tmp_path / "c.mp4"), "seed=4") == 2


def test_settings_that_a_command_would_ignore_are_refused(
    model_folder: Path, tmp_path: Path, cli: Cli
) -> None:
    run(config_of(model_folder, tmp_path / "a.mp4", steps=1))
    decode = ("decode", str(tmp_path / "a.run"), "--out", str(tmp_path / "b.mp4"))
    for given, shown in (("preview=2", "2"), ("checkpoint.keep=5", "5"), ("resume=true", "true")):
        message = cli.refused(*decode, given)
        key = given.partition("=")[0]
        assert message == f"{key}: {shown} (command line) has no effect on decoding; remove it"
    for command, frames, given in (("extend", "+2", "frames=9"), ("redo", "1:3", "edit.redo=0:2")):
        message = cli.refused(command, str(tmp_path / "a.run"), "--frames", frames, given)
        assert message.endswith("(command line) conflicts with --frames; remove it")


def test_settings_of_decoding_come_before_what_the_command_chooses(
    model_folder: Path, tmp_path: Path
) -> None:
    run(config_of(model_folder, tmp_path / "a.mp4", steps=1, size="32x32"))
    before = (tmp_path / "a.mp4").read_bytes()
    named = [
        f"{key}={tmp_path / name}" for key, name in (("out", "b.mp4"), ("save_latents", "l.safetensors"))
    ]
    command = ("decode", str(tmp_path / "a.run"), *named, "video.crf=45")
    assert exit_code(*command) == 0
    assert len((tmp_path / "b.mp4").read_bytes()) < len(before)
    assert (tmp_path / "l.safetensors").exists()
    # b.mp4 exists
    assert exit_code(*command) == 2
    assert exit_code(*command, "overwrite=true", "gpus=2") == 0
    assert exit_code(*command, "--overwrite") == 0
    assert (tmp_path / "a.mp4").read_bytes() == before


def test_decoding_needs_none_of_the_files_that_the_latents_were_made_with(
    model_folder: Path, tmp_path: Path
) -> None:
    lora, noise, run_folder = tmp_path / "lora", tmp_path / "n.safetensors", tmp_path / "b.run"
    trained(base_unet(), ["to_q"]).save_pretrained(lora)
    save_file({"noise": torch.randn(1, 4, 6, 4, 4)}, noise)
    flags = {"steps": 1, "frames": 6, "gpus": 2, "lora": [str(lora)], "noise_from": str(noise)}
    run(config_of(model_folder, tmp_path / "a.mp4", "parallel.split_guidance=true", guidance=2.0, **flags))
    edit = ("--frames", "2:4", f"noise_from={noise}", "--out", str(tmp_path / "b.mp4"))
    assert exit_code("redo", str(tmp_path / "a.run"), *edit) == 0
    made = json.loads(read_metadata(tmp_path / "b.mp4")["comment"])
    for path in (lora, tmp_path / "a.run"):
        shutil.rmtree(path)
    noise.unlink()
    assert exit_code("decode", str(run_folder), "--overwrite") == 0
    again = json.loads(read_metadata(tmp_path / "b.mp4")["comment"])
    assert [again[key] for key in ("weights", "noise")] == [made[key] for key in ("weights", "noise")]
    assert made["noise"]


def test_a_video_with_sound_is_decoded_to_a_silent_format_as_the_message_says(
    model_folder: Path, tmp_path: Path, cli: Cli
) -> None:
    sound = tone(tmp_path / "tone.wav", seconds=1)
    run(config_of(model_folder, tmp_path / "a.mp4", f"audio={sound}", "video.sheet=false", steps=1))
    command = ("decode", str(tmp_path / "a.run"), "--out", str(tmp_path / "a.gif"))
    message = cli.refused(*command)
    assert message.endswith("GIF holds no audio; use .mp4, .mov, .webm, or set audio=null")
    assert cli(*command, message.split()[-1])[0] == 0
    assert (tmp_path / "a.gif").exists()


@pytest.mark.parametrize("finished", [False, True])
def test_no_video_is_decoded_to_the_name_of_another_run(
    finished: bool, model_folder: Path, tmp_path: Path, cli: Cli
) -> None:
    run(config_of(model_folder, tmp_path / "a.mp4", steps=1))
    other = config_of(model_folder, tmp_path / "o.mp4", "checkpoint.every=1 steps")
    if finished:
        run(other)
        (tmp_path / "o.mp4").unlink()
    else:
        stop_after_step(other, tmp_path / "o.run")
    for more in ((), ("--overwrite",)):
        message = cli.refused("decode", str(tmp_path / "a.run"), "--out", str(tmp_path / "o.mp4"), *more)
        assert message.endswith("o.run, which holds another run; choose another name")
    assert not (tmp_path / "o.mp4").exists()


def test_a_run_that_is_decoded_resumes_without_the_files_that_its_latents_were_made_with(
    model_folder: Path, tmp_path: Path
) -> None:
    lora, noise = tmp_path / "lora", tmp_path / "n.safetensors"
    trained(base_unet(), ["to_q"]).save_pretrained(lora)
    save_file({"noise": torch.randn(1, 4, 40, 4, 4)}, noise)
    settings = ("decode.frames=1", "video.metadata=false", f"noise_from={noise}", f"lora=[{lora}]")
    run(config_of(model_folder, tmp_path / "a.mp4", *settings, steps=1, frames=40))
    edit = ("redo", str(tmp_path / "a.run"), "--frames", "2:4", f"noise_from={noise}")
    assert exit_code(*edit, "--out", str(tmp_path / "b.mp4")) == 0
    folder = tmp_path / "c.run"
    with signal_when_exists(folder / "decoded.json"):
        assert exit_code(*edit, "--out", str(tmp_path / "c.mp4"), "gpus=2") == 75
    for path in (lora, tmp_path / "a.run"):
        shutil.rmtree(path)
    noise.unlink()
    assert exit_code("resume", str(folder), "gpus=1") == 0
    assert (tmp_path / "c.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert find_run(folder).borders()["joins"] == find_run(tmp_path / "b.run").borders()["joins"] == [2, 4]


def test_resumed_decoding_writes_a_bitwise_identical_video(model_folder: Path, tmp_path: Path) -> None:
    settings = ("decode.frames=3", "video.metadata=false")
    for name in ("uninterrupted", "interrupted"):
        out = tmp_path / f"{name}.mp4"
        run(config_of(model_folder, out, *settings, frames=58, steps=1, size="128x64"))
    folder = tmp_path / "interrupted.run"
    command = ("decode", str(folder), "--out", str(tmp_path / "again.mp4"))
    record = find_run(folder).decoded_of(tmp_path / "again.mp4").with_suffix(".json")
    with signal_when_exists(record):
        assert exit_code(*command) == 75
    decoded = json.loads(record.read_text())["frames"]
    assert 8 <= decoded < 58
    assert exit_code(*command, "--gpus", "2", "decode.where=ranks") == 0
    assert f"{decoded} of 58 frames have already been decoded" in (folder / "log.txt").read_text()
    assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "uninterrupted.mp4").read_bytes()
    assert_exact_times(tmp_path / "again.mp4", frames=58, fps=8)
    sheet, expected = (
        np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("again", "uninterrupted")
    )
    assert np.abs(sheet.astype(int) - expected).max() <= 1
    assert not record.exists()
    assert not record.with_suffix(".mp4").exists()


def test_frames_of_an_interrupted_run_stay_when_its_latents_are_decoded_to_another_video(
    model_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "a.run"
    config = config_of(model_folder, tmp_path / "a.mp4", "decode.frames=1", frames=58, steps=1, size="128x64")
    with (
        Shutdown().handled() as shutdown,
        signal_when_exists(folder / "decoded.json"),
        pytest.raises(Stopped),
    ):
        run(config, shutdown=shutdown)
    decoded = json.loads((folder / "decoded.json").read_text())["frames"]
    assert 8 <= decoded < 58
    for name in ("b.gif", "b.mp4", "a.gif"):
        sheet = "video.sheet=false"
        assert exit_code("decode", str(folder), "--out", str(tmp_path / name), sheet) == 0
    assert exit_code("resume", str(folder)) == 0
    assert f"{decoded} of 58 frames have already been decoded" in (folder / "log.txt").read_text()
    assert [path.name for path in folder.iterdir() if path.suffix == ".mp4"] == []
