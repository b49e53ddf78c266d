"""From a prompt to an MP4 with a tiny model."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles.reference import (
    DenseScopes,
    configure,
    decoded,
    make_dense,
    relative_error,
    save_model,
    tiny_pipeline,
)
from oracles.video import read_video
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from vinfinity.config import Resolved
from vinfinity.errors import InputError, WeightsError
from vinfinity.inputs import initial_state
from vinfinity.job import prepare
from vinfinity.job_report import concerns, describe
from vinfinity.media.mp4 import read_metadata
from vinfinity.run import run
from vinfinity.task import Summary


def resolve(model: Path | str, out: Path, *overrides: str, **flags: Any) -> Resolved:
    return configure(model, *overrides, **{"out": str(out), "device": "cpu", "dtype": "fp32", **flags})


def make(model: Path | str, out: Path, *overrides: str, **flags: Any) -> Summary:
    resolved = resolve(model, out, *overrides, **flags)
    summary = run(resolved.config)
    assert summary is not None
    return summary


def latents_of(model: Path | str, folder: Path, *overrides: str, **flags: Any) -> Tensor:
    path = folder / "latents.safetensors"
    make(model, folder / "a.mp4", *overrides, save_latents=str(path), overwrite=True, **flags)
    return load_file(path)["latents"]


def refusal(model: Path, out: Path, **flags: Any) -> str:
    """Return the error of a run that is refused before anything is written."""
    before = sorted(out.parent.iterdir()) if out.parent.exists() else None
    with pytest.raises(InputError) as raised:
        make(model, out, **flags)
    assert raised.value.exit_code == 2
    assert "\n" not in str(raised.value)
    assert (sorted(out.parent.iterdir()) if out.parent.exists() else None) == before
    return str(raised.value)


# ---- outputs ----


def test_a_video_has_the_requested_frames_size_and_frame_rate(model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.mp4"
    summary = make(model_folder, out, frames=7, size="48x32", fps=12)
    video = read_video(out)
    assert video.shape == (7, 32, 48, 3)
    assert video.std() > 1
    assert (summary.out, summary.frames, summary.size, summary.fps) == (out, 7, (48, 32), 12)
    assert summary.seconds > 0
    assert summary.peak_memory > 10**7


def test_a_video_shows_the_decoded_latents(model_folder: Path, tmp_path: Path) -> None:
    latents = latents_of(
        model_folder, tmp_path, "video.crf=0", "video.pixel_format=yuv444p", frames=3, size="32x48"
    )
    assert latents.shape == (1, 4, 3, 6, 4)
    pictures = decoded(model_folder, latents, size=(32, 48))
    difference = np.abs(pictures.astype(int) - read_video(tmp_path / "a.mp4"))
    assert difference.max() <= 4  # of 255: colour conversion in 8 bit there and back


@pytest.mark.parametrize(("size", "shape"), [("50x34", (5, 7)), ("33x47", (6, 5)), ("16x17", (3, 2))])
def test_the_size_need_not_be_a_multiple_of_8(
    size: str, shape: tuple[int, int], model_folder: Path, tmp_path: Path
) -> None:
    latents = latents_of(model_folder, tmp_path, "video.pixel_format=yuv444p", frames=2, size=size)
    width, height = map(int, size.split("x"))
    assert latents.shape == (1, 4, 2, *shape)
    assert read_video(tmp_path / "a.mp4").shape == (2, height, width, 3)


def test_a_contact_sheet_is_written_beside_the_video(model_folder: Path, tmp_path: Path) -> None:
    summary = make(model_folder, tmp_path / "a.mp4", frames=5)
    assert summary.sheet == tmp_path / "a.png"
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.width >= 32
        assert np.asarray(sheet.convert("RGB")).std() > 1
    without = make(model_folder, tmp_path / "b.mp4", "video.sheet=false", frames=1)
    assert without.sheet is None
    assert not (tmp_path / "b.png").exists()


def test_the_metadata_of_a_video_has_its_settings_and_version(model_folder: Path, tmp_path: Path) -> None:
    make(model_folder, tmp_path / "a.mp4", prompt='a "red" ball ☃', seed=42, frames=2)
    metadata = read_metadata(tmp_path / "a.mp4")
    assert metadata["title"] == 'a "red" ball ☃'
    made = json.loads(metadata["comment"])
    assert made["config"]["seed"] == 42
    assert made["config"]["prompt"] == 'a "red" ball ☃'
    assert made["config"]["frames"] == 2
    assert made["version"].startswith("vinfinity ")
    make(model_folder, tmp_path / "b.mp4", "video.metadata=false", frames=1)
    assert "comment" not in read_metadata(tmp_path / "b.mp4")


def test_the_record_has_the_peak_memory_of_every_rank(model_folder: Path, tmp_path: Path) -> None:
    make(model_folder, tmp_path / "a.mp4", frames=4, gpus=2)
    record = json.loads((tmp_path / "a.run" / "run.json").read_text())
    assert [rank["reserved"] > 10**7 for rank in record["memory"]] == [True, True]
    assert record["peak_memory"] >= record["memory"][0]["reserved"]


def test_no_other_files_are_left_in_the_folder(model_folder: Path, tmp_path: Path) -> None:
    latents_of(model_folder, tmp_path, frames=1)
    left = sorted(path.name for path in tmp_path.rglob("*"))
    assert [name for name in left if name.endswith(".part")] == []
    assert {"a.mp4", "a.png", "latents.safetensors"} <= set(left)
    run_files = {"config.yaml", "run.json", "events.jsonl", "log.txt", "lock", "latents", "manifest.json"}
    run_files |= {"frames-000000-000001.safetensors"}
    assert set(left) == {"a.mp4", "a.png", "latents.safetensors", "a.run"} | run_files


def test_missing_folders_are_created(model_folder: Path, tmp_path: Path) -> None:
    deep = tmp_path / "some" / "where"
    make(model_folder, deep / "a.mp4", frames=1, save_latents=str(deep / "l" / "a.safetensors"))
    assert (deep / "a.mp4").is_file()
    assert (deep / "l" / "a.safetensors").is_file()


def test_the_same_run_gives_the_same_latents(model_folder: Path, tmp_path: Path) -> None:
    first, again, other = (latents_of(model_folder, tmp_path, frames=3, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    "flags",
    [
        {"prompt": "a blue boat"},
        {"negative": "a blue boat", "guidance": 5.0},
        {"guidance": 3.0},
        {"steps": 3},
        {"sampler": "dpmsolver++"},
        {"sampler": "sde-dpmsolver++"},
        {"eta": 1.0},
    ],
    ids=str,
)
def test_every_setting_takes_effect(flags: dict[str, Any], model_folder: Path, tmp_path: Path) -> None:
    plain = {"frames": 2, "size": "16x16", "sampler": "ddim"}
    assert (
        relative_error(
            latents_of(model_folder, tmp_path, **{**plain, **flags}),
            latents_of(model_folder, tmp_path, **plain),
        )
        > 1e-4
    )


def test_the_frame_rate_conditions_models_that_take_one(tmp_path: Path) -> None:
    from diffusers.models.embeddings import TimestepEmbedding
    from oracles.reference import fill

    folder = save_model(tmp_path / "model")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    embedding = fill(TimestepEmbedding(16, 64), seed=3).state_dict()
    save_file({**load_file(weights), **{f"fps_embedding.{k}": v for k, v in embedding.items()}}, weights)
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "fps_cond": True}))
    slow, fast, conditioned = (
        latents_of(folder, tmp_path, frames=2, size="16x16", **fps)
        for fps in ({"fps": 8}, {"fps": 24}, {"fps": 24, "fps_condition": 8})
    )
    assert relative_error(slow, fast) > 1e-4
    assert torch.equal(slow, conditioned)


# ---- long videos ----


def test_a_video_beyond_the_trained_frames_uses_dual_scope_attention_as_scheduled(
    model_folder: Path, tmp_path: Path
) -> None:
    """Each phase applies at its timesteps; the reference is diffusers with dense masks."""
    noise = torch.randn(1, 4, 21, 3, 2)
    save_file({"noise": noise}, tmp_path / "noise.safetensors")
    ours = latents_of(
        model_folder,
        tmp_path,
        "attention.local=3",
        "attention.anchors=4",
        "attention.schedule=[{above: 500, local: 0, anchors: 10}, {above: -1, local: 10, anchors: -.inf}]",
        frames=21,
        size="16x24",
        steps=4,
        guidance=1,
        noise_from=str(tmp_path / "noise.safetensors"),
    )
    pipeline = tiny_pipeline()
    pipeline.scheduler.set_timesteps(4)
    ids = pipeline.tokenizer("a red ball", padding="max_length", max_length=16, return_tensors="pt").input_ids
    text = pipeline.text_encoder(ids).last_hidden_state
    x = noise
    for t in pipeline.scheduler.timesteps:
        phase = DenseScopes(3, 4, 0.0, 10.0) if t > 500 else DenseScopes(3, 4, 10.0, -math.inf)
        make_dense(pipeline.unet, 21, phase)
        x = pipeline.scheduler.step(pipeline.unet(x, t, text).sample, t, x).prev_sample
    assert relative_error(ours, x) <= 1e-4


def test_the_noise_of_a_frame_does_not_depend_on_the_number_of_frames(
    model_folder: Path, tmp_path: Path
) -> None:
    short, long = (
        initial_state(prepare(resolve(model_folder, tmp_path / "a.mp4", frames=n).config), range(n)).x
        for n in (9, 200)
    )
    assert short.shape == (1, 4, 9, 4, 4)
    assert torch.equal(long[:, :, :9], short)


def test_noise_from_a_file_replaces_that_of_the_seed(model_folder: Path, tmp_path: Path) -> None:
    job = prepare(resolve(model_folder, tmp_path / "a.mp4", frames=4, seed=9).config)
    save_file({"noise": initial_state(job, range(4)).x}, tmp_path / "noise.safetensors")
    seeded = latents_of(model_folder, tmp_path, frames=4, seed=9)
    given = latents_of(
        model_folder, tmp_path, frames=4, seed=1, noise_from=str(tmp_path / "noise.safetensors")
    )
    assert torch.equal(seeded, given)


# ---- warnings ----


def test_a_prompt_that_is_too_long_gives_a_warning_with_the_ignored_words(
    model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(
        model_folder,
        tmp_path / "a.mp4",
        frames=1,
        prompt="a red ball " * 4 + "over green grass and a blue boat",
    )
    message = " ".join(caplog.text.split())
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "takes 16 tokens" in message
    assert "a blue boat" in message
    assert (tmp_path / "a.mp4").exists()


def test_a_short_prompt_gives_no_warning(
    model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(model_folder, tmp_path / "a.mp4", frames=1)
    assert not caplog.records


def test_words_outside_the_models_vocabulary_give_a_warning_that_lists_it(
    own_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    card = {"name": "tiny", "vocabulary": {"colours": ["red"], "subjects": ["ball"], "others": ["a"]}}
    (own_model / "card.json").write_text(json.dumps(card), encoding="utf-8")
    make(own_model, tmp_path / "a.mp4", frames=1, prompt="a red dragon")
    message = " ".join(caplog.text.split())
    assert "dragon" in message
    assert "colours: red" in message
    assert "'red'" not in message


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (("negative=blur", "guidance=1"), "negative: has no effect: guidance is 1; raise it above 1"),
        (
            ("prompts=[{at: 2, text: b, negative: blur}]", "guidance=1"),
            "negative: has no effect: guidance is",
        ),
        (("eta=0.5", "sampler=lcm"), "eta: has no effect: only the samplers ddim and videocrafter2 use it"),
        (("fps_condition=8",), "fps_condition: has no effect: tiny does not take a frame rate as input"),
        (("reuse.depth=2",), "reuse.depth: has no effect: nothing is reused while reuse.interval is 1"),
        (("edit.blend=8",), "edit.blend: has no effect: no frames are regenerated"),
        (("edit.context=8",), "edit.context: has no effect: no run is edited"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_settings_without_effect_are_named(
    given: tuple[str, ...], reason: str, own_model: Path, tmp_path: Path
) -> None:
    card = {"name": "tiny", "negative_prompt": "the model's own", "guidance": 1}
    (own_model / "card.json").write_text(json.dumps(card), encoding="utf-8")

    def said(*overrides: str) -> list[str]:
        config = resolve(own_model, tmp_path / "a.mp4", *overrides, frames=4).config
        return [concern for concern in concerns(prepare(config)) if "has no effect" in concern]

    assert said() == []
    [concern] = said(*given)
    assert concern.startswith(reason)


# ---- refused settings and files ----


@pytest.mark.parametrize("shape", [(1, 4, 3, 4, 5), (1, 4, 4, 4, 4), (4, 3, 4, 4), (2, 4, 3, 4, 4)])
def test_noise_of_another_shape_is_refused(
    shape: tuple[int, ...], model_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "noise.safetensors"
    save_file({"noise": torch.randn(shape)}, path)
    line = refusal(model_folder, tmp_path / "a.mp4", noise_from=str(path))
    assert line.startswith(f"noise_from: {path}")
    assert str(shape) in line
    assert "(1, 4, 3, 4, 4)" in line


def test_noise_under_another_name_is_refused(model_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "noise.safetensors"
    save_file({"latents": torch.randn(1, 4, 3, 4, 4)}, path)
    assert "has no tensor noise" in refusal(model_folder, tmp_path / "a.mp4", noise_from=str(path))


def test_truncated_noise_is_refused_as_such(model_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "noise.safetensors"
    save_file({"noise": torch.randn(1, 4, 3, 4, 4)}, path)
    path.write_bytes(path.read_bytes()[:-9])
    line = refusal(model_folder, tmp_path / "a.mp4", noise_from=str(path))
    assert line.startswith(f"noise_from: {path} is truncated")


def test_missing_noise_is_refused(model_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "absent.safetensors"
    assert f"noise_from: {path} does not exist" in refusal(
        model_folder, tmp_path / "a.mp4", noise_from=str(path)
    )


@pytest.mark.parametrize("existing", ["a.mp4", "a.png", "latents.safetensors"])
def test_existing_files_are_not_replaced_without_overwrite(
    existing: str, model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / existing).write_bytes(b"precious")
    flags = {"frames": 1, "save_latents": str(tmp_path / "latents.safetensors")}
    line = refusal(model_folder, tmp_path / "a.mp4", **flags)
    assert str(tmp_path / existing) in line
    assert "add --overwrite" in line
    assert (tmp_path / existing).read_bytes() == b"precious"
    make(model_folder, tmp_path / "a.mp4", overwrite=True, **flags)
    assert (tmp_path / existing).read_bytes() != b"precious"


def test_a_failed_run_leaves_the_old_video(own_model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"precious")
    weights = own_model / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    latents = tmp_path / "latents.safetensors"
    with pytest.raises(WeightsError, match="truncated"):
        make(own_model, tmp_path / "a.mp4", frames=1, overwrite=True, save_latents=str(latents))
    assert (tmp_path / "a.mp4").read_bytes() == b"precious"
    assert not list(tmp_path.glob(".*part"))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_damaged_weights_are_refused_before_any_are_used(part: str, own_model: Path, tmp_path: Path) -> None:
    [weights] = (own_model / part).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="truncated"):
        prepare(resolve(own_model, tmp_path / "a.mp4", frames=1).config)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"frames": 0}, "frames: 0 (--frames) is less than 1"),
        ({"frames": -3}, "frames: -3"),
        ({"size": "8x8"}, "size: 8x8"),
        ({"size": "wide"}, "size: wide"),
        ({"prompt": "   "}, "prompt: "),
        ({"prompt": "\udcff ball"}, "prompt: "),  # bytes of the command line that are no UTF-8
        ({"steps": 1001}, "steps: 1001"),
        ({"sampler": "ddmi"}, "did you mean ddim"),
        ({"frames": 2, "gpus": 3}, "gpus: 3"),
    ],
    ids=str,
)
def test_unusable_settings_are_refused_by_name(
    flags: dict[str, Any], message: str, model_folder: Path, tmp_path: Path
) -> None:
    assert message in refusal(model_folder, tmp_path / "a.mp4", **flags)


def test_a_description_names_the_planned_video_and_writes_nothing(model_folder: Path, tmp_path: Path) -> None:
    rows = dict(describe(prepare(resolve(model_folder, tmp_path / "a.mp4", frames=40, size="50x34").config)))
    assert rows["video"].startswith("40 frames of 50x34 at ")
    assert rows["latents"] == "1x4x40x5x7"
    assert "dual-scope" in rows["attention"]
    short = dict(describe(prepare(resolve(model_folder, tmp_path / "a.mp4", frames=16).config)))
    assert "plain" in short["attention"]
    assert list(tmp_path.iterdir()) == []
