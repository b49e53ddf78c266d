"""A model's card, read from the JSON files in its folder."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from oracles.reference import tiny_pipeline

from vinfinity.config.settings import Phase
from vinfinity.errors import InputError, WeightsError
from vinfinity.models.family import parts_of
from vinfinity.models.geometry import LatentGeometry
from vinfinity.models.unet3d.family import UNET3D
from vinfinity.resolve import load_config
from vinfinity.weights.card import find_model, model_defaults, read_card


def write_card(folder: Path, **values: Any) -> None:
    (folder / "card.json").write_text(json.dumps(values), encoding="utf-8")


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")


def refusal(model: Path | str) -> str:
    with pytest.raises(InputError) as raised:
        read_card(str(model))
    assert raised.value.exit_code == 2
    assert raised.value.field == "model"
    line = str(raised.value)
    assert "\n" not in line
    return line


def test_card_follows_from_the_files_of_a_published_model(own_model: Path) -> None:
    card = read_card(str(own_model))
    assert card.folder == own_model
    assert card.name == own_model.name
    assert (card.geometry, card.text_length) == (LatentGeometry(channels=4, downscale=8), 16)
    assert (card.trained_frames, card.traits.denoiser.takes_fps) == (16, False)
    assert card.defaults["size"] == "32x32"
    assert card.defaults["sampler"] == "ddim"
    assert card.unknown_words("anything at all") == []


@pytest.mark.parametrize(
    ("scheduler", "sampler"),
    [
        ({"_class_name": "DDIMScheduler"}, "ddim"),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver++"}, "dpmsolver++"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"},
            "sde-dpmsolver++",
        ),
        ({"_class_name": "DDPMScheduler"}, "dpmsolver++"),
        ({"_class_name": "PNDMScheduler"}, "dpmsolver++"),
    ],
    ids=str,
)
def test_sampler_follows_the_folders_scheduler(
    scheduler: dict[str, str], sampler: str, own_model: Path
) -> None:
    (own_model / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler), encoding="utf-8")
    assert read_card(str(own_model)).defaults["sampler"] == sampler


@pytest.mark.parametrize(("side", "size"), [(40, "320x320"), ([40, 64], "512x320"), (None, "256x256")])
def test_size_follows_the_unets_sample_size(side: object, size: str, own_model: Path) -> None:
    change_json(own_model / "unet" / "config.json", sample_size=side)
    assert read_card(str(own_model)).defaults["size"] == size


def test_the_models_card_overrides_its_files(own_model: Path) -> None:
    write_card(
        own_model, name="tiny", trained_frames=24, size="64x48", guidance=3.5, negative_prompt="blurry"
    )
    card = read_card(str(own_model))
    assert (card.name, card.trained_frames) == ("tiny", 24)
    defaults, origin = model_defaults(str(own_model))
    assert origin == "model tiny"
    assert defaults["size"] == "64x48"
    assert defaults["guidance"] == 3.5
    assert defaults["negative"] == "blurry"
    assert defaults["attention.trained_frames"] == 24
    assert defaults["sampler"] == "ddim"


def test_a_card_supplies_settings_of_attention(own_model: Path) -> None:
    unbiased = [{"above": -1, "local": 0.0, "anchors": 0.0}]
    write_card(own_model, attention={"schedule": unbiased, "anchors": 12})
    attention = load_config(model=str(own_model), prompt="a", frames=40).attention
    assert (attention.schedule, attention.anchors) == ((Phase(above=-1, local=0.0, anchors=0.0),), 12)
    own = {"local": 5, "anchors": 3}
    attention = load_config(model=str(own_model), prompt="a", frames=40, attention=own).attention
    assert (attention.local, attention.anchors, len(attention.schedule)) == (5, 3, 1)


def test_an_unknown_setting_of_attention_in_a_card_is_named(own_model: Path) -> None:
    write_card(own_model, name="tiny", attention={"anchor": 12})
    with pytest.raises(
        InputError, match=r"attention.anchor: 12 \(model tiny\).*did you mean attention.anchors"
    ):
        load_config(model=str(own_model), prompt="a", frames=40)


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("trained_frames", "abc", "use a number of frames, such as 16"),
        ("trained_frames", 0, "use a number of frames, such as 16"),
        ("trained_frames", True, "use a number of frames, such as 16"),
        ("vocabulary", 3, "use lists of words, by group"),
        ("vocabulary", {"colours": "red"}, "use lists of words, by group"),
        ("vocabulary", {"colours": ["red", 3]}, "use lists of words, by group"),
        ("attention", [8, 16], 'use settings, such as {"local": 8}'),
    ],
)
def test_a_value_of_a_card_that_cannot_be_used_is_named(
    key: str, value: object, remedy: str, own_model: Path
) -> None:
    write_card(own_model, **{key: value})
    line = refusal(own_model)
    assert f"{own_model / 'card.json'} has {key}: {value}; {remedy}" in line


def test_frame_rate_condition_is_detected(own_model: Path) -> None:
    change_json(own_model / "unet" / "config.json", fps_cond=True)
    assert read_card(str(own_model)).traits.denoiser.takes_fps


@pytest.mark.parametrize("part", parts_of(UNET3D))
def test_missing_part_is_named(part: str, own_model: Path) -> None:
    shutil.rmtree(own_model / part)
    assert f"has no {part}" in refusal(own_model)


def test_a_broken_link_to_a_denoiser_tells_the_family(tmp_path: Path) -> None:
    (tmp_path / "transformer").symlink_to("nowhere")
    assert f"model: {tmp_path / 'transformer'} is a broken link to nowhere" in refusal(tmp_path)


def test_a_sampler_that_the_family_does_not_have_is_refused(own_model: Path) -> None:
    write_card(own_model, sampler="euler")
    line = refusal(own_model)
    assert f"model: {own_model / 'card.json'} names the sampler euler; use ddim, dpmsolver++" in line


def test_empty_folder_is_not_a_model(tmp_path: Path) -> None:
    assert f"model: {tmp_path} has no unet or transformer; use a model folder" in refusal(tmp_path)


def test_file_is_not_a_model(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.touch()
    assert "is a file; use a model folder; vinfinity models convert makes one" in refusal(path)


@pytest.mark.parametrize("name", ["minni", "mni", "Mini"])
def test_the_nearest_name_is_suggested(name: str) -> None:
    assert "did you mean mini?" in refusal(name)


def test_unknown_name_lists_the_known_ones() -> None:
    line = refusal("zeroscope-v9")
    assert line.startswith("model: zeroscope-v9 is neither a known model nor a folder")
    assert "mini" in line


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("text", [None, "", "{", "[]"])
def test_missing_or_damaged_configuration_is_named(text: str | None, part: str, own_model: Path) -> None:
    path = own_model / part / "config.json"
    path.unlink()
    if text is not None:
        path.write_text(text, encoding="utf-8")
    assert str(path) in refusal(own_model)
    with pytest.raises(WeightsError):
        read_card(str(own_model))


def test_embedded_model_is_found_by_name() -> None:
    assert find_model("mini").is_dir()
    card = read_card("mini")
    assert card.name == "mini"
    assert card.trained_frames == 16


def test_embedded_model_knows_every_word_of_its_examples() -> None:
    card = read_card("mini")
    assert card.vocabulary
    assert card.unknown_words("a red ball bouncing over green grass") == []
    assert card.unknown_words("A Red BALL, bouncing; over green grass!") == []


def test_unknown_words_are_listed_once_and_in_order(own_model: Path) -> None:
    write_card(
        own_model,
        vocabulary={"colours": ["red", "sky blue"], "subjects": ["ball", "x-ray"], "others": ["a", "on"]},
    )
    card = read_card(str(own_model))
    assert card.unknown_words("a red ball") == []
    assert card.unknown_words("a sky, a blue x-ray") == []
    assert card.unknown_words("a dragon on a castle, Dragon!") == ["dragon", "castle"]
    assert card.unknown_words("don't café 42 красный") == ["don't", "café", "42", "красный"]
    assert card.unknown_words("") == []


def test_a_folder_written_by_diffusers_is_complete(tmp_path: Path) -> None:
    tiny_pipeline(sample_size=6).save_pretrained(tmp_path / "fresh")
    assert read_card(str(tmp_path / "fresh")).defaults["size"] == "48x48"
