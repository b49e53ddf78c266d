"""What follows from the declaration of a setting: checks, origins, explanations, the digest."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest
from oracles.settings import run_config

from vinfinity.config import (
    AttentionConfig,
    Declared,
    DecodeConfig,
    Phase,
    Prompt,
    RunConfig,
    VideoConfig,
    changes_latents,
    declared,
    digest,
    explain,
    leaves,
    load,
    name_sources,
)
from vinfinity.errors import InputError
from vinfinity.weights.card import model_defaults

GIVEN = {"size": "64x64", "fps": 8, "steps": 2, "sampler": "ddim", "guidance": 7}


def test_every_setting_has_a_meaning_and_every_bound_a_remedy() -> None:
    for key, setting in declared().items():
        assert setting.setting.help[0].isupper(), key
        assert setting.setting.help.endswith("."), key
        if any(bound is not None for bound in (setting.setting.least, setting.setting.above)):
            assert setting.setting.remedy, key
        assert setting.default_text, key


def test_a_configuration_made_in_python_is_checked() -> None:
    attention = AttentionConfig(trained_frames=16)
    config = RunConfig(**GIVEN, attention=attention)  # type: ignore[arg-type]
    assert (config.guidance, config.resolution) == (7.0, (64, 64))
    assert isinstance(config.guidance, float)
    with pytest.raises(TypeError, match="trained_frames"):
        AttentionConfig()
    for change, message in (
        ({"frames": 0}, "frames: 0 is less than 1"),
        ({"frames": True}, "frames: true is not a whole number"),
        ({"prompt": 5}, "prompt: 5 is not text"),
        ({"seed": "7"}, "seed: 7 is not a whole number"),
        (
            {"video": {"crf": 18, "shet": True}},
            r"video\.shet: true is an unknown setting; did you mean sheet",
        ),
        ({"gpus": 97}, "gpus: 97 is more than the 96 frames"),
    ):
        with pytest.raises(InputError, match=message):
            dataclasses.replace(config, **change)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt: 5", "prompt: 5 .* is not text; put it in quotes"),
        ("prompt: yes", "is not text"),
        ('seed: "7"', "seed: 7 .* is not a whole number"),
        ("frames: 3.0", "is not a whole number"),
        ("frames: null", "frames: null .* is not a whole number"),
        ('guidance: "7"', "is not a number"),
        ("guidance: true", "is not a number"),
        ('overwrite: "true"', "is not true or false"),
        ("overwrite: 1", "is not true or false"),
        ("compute.branches: true", "is not a choice; choose from 1, 2"),
        ("lora: a.safetensors", "is not a list"),
        ("lora: [3]", r"lora\[0\]: 3 .* is not text"),
    ],
)
def test_no_value_is_converted_to_fit(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load(path, card=model_defaults)
    assert str(path) in caught.value.message


def test_settings_given_by_python() -> None:
    config = run_config(
        out=Path("videos") / "a.mp4",
        attention={"local": 4, "schedule": (Phase(-1, local=0.0, anchors=1.0),)},
        video=VideoConfig(crf=20),
        **{"decode.where": "ranks"},
    )
    assert config.out == "videos/a.mp4"
    assert config.attention.schedule == (Phase(-1, local=0.0, anchors=1.0),)
    assert (config.attention.local, config.attention.anchors, config.video.crf) == (4, 16, 20)
    assert config.decode == DecodeConfig(where="ranks")
    unknown: tuple[tuple[Mapping[str, object], str], ...] = (
        ({"frmes": 3}, "frmes: 3 is an unknown setting; did you mean frames"),
        ({"attention": {"lokal": 3}}, r"did you mean attention\.local"),
        ({"attention": 3}, "attention: 3 is a group"),
        ({"frames": "3"}, r"frames: 3 \(argument\) is not a whole number"),
    )
    for settings, message in unknown:
        with pytest.raises(InputError, match=message):
            run_config(**settings)


def test_all_ranks_decode_on_gpus_unless_the_setting_says_otherwise() -> None:
    assert DecodeConfig().on_all_ranks("cuda")
    assert not DecodeConfig().on_all_ranks("cpu")
    for device in ("cuda", "cpu"):
        assert DecodeConfig(where="ranks").on_all_ranks(device)
        assert not DecodeConfig(where="rank0").on_all_ranks(device)


def test_without_a_card_every_setting_of_a_model_is_needed() -> None:
    with pytest.raises(InputError, match=r"^size: none given; set it, as in size=VALUE"):
        load(None)
    settings = {**GIVEN, "attention.trained_frames": 16}
    assert load(None, settings=settings).config.negative == ""


def test_the_model_is_found_before_its_card_is_asked_for() -> None:
    asked = []

    def card(model: str) -> tuple[Mapping[str, object], str]:
        asked.append(model)
        return {**GIVEN, "attention.trained_frames": 16, "prompt": "${seed}"}, f"model {model}"

    resolved = load(None, overrides=["model=abc"], flags={"model": "xyz"}, card=card)
    assert asked == ["xyz"]
    assert (resolved.config.prompt, resolved.origins["prompt"]) == ("${seed}", "model xyz")
    for model, message in ((" ", "is blank"), ("", "is blank")):
        with pytest.raises(InputError, match=message):
            load(None, flags={"model": model}, card=card)
    assert asked == ["xyz"]


def test_an_error_names_the_flag_that_was_typed() -> None:
    with pytest.raises(InputError, match=r"^--frames: 9:4 is an empty range"):
        load(None, flags={"edit.redo": "9:4", "edit.run": "a.run"}, card=model_defaults)
    origins = {"gpus": "--gpus", "edit.redo": "--frames", "frames": "default"}
    for field, message in (
        ("gpus", "gpus: 3 (--gpus) is wrong; change it"),
        ("edit.redo", "--frames: 3 is wrong; change it"),
        ("frames", "frames: 3 is wrong; change it"),
        ("other", "other: 3 is wrong; change it"),
    ):
        with pytest.raises(InputError) as caught, name_sources(origins):
            raise InputError(field, 3, "change it", problem="is wrong")
        assert caught.value.message == message


def test_a_setting_is_explained() -> None:
    resolved = load(None, flags={"frames": "20"}, card=model_defaults)
    rows = dict(explain(resolved, "frames"))
    assert rows == {
        "setting": "frames",
        "meaning": "Length of the video, in frames.",
        "type": "whole number",
        "range": "1 to 1000000",
        "default": "96",
        "value": "20 (--frames)",
        "flag": "--frames, -n",
        "latents": "changes them",
    }
    assert dict(explain(resolved, "edit.redo"))["flag"] == "--frames of vinfinity redo"
    assert dict(explain(resolved, "video.crf"))["flag"] == "none; set it as video.crf=VALUE"
    for key in declared():
        assert dict(explain(resolved, key))["setting"] == key
    with pytest.raises(InputError, match=r"^--explain: frmes is an unknown setting; did you mean frames\?"):
        explain(resolved, "frmes")


OTHER_TEXT = {
    "size": "32x32",
    "checkpoint.every": "10min",
    "edit.redo": "3:5",
    "out": "x.mp4",
    "save_latents": "x.safetensors",
    "noise_from": "x.safetensors",
    "attention.schedule": [{"above": -1, "local": 1.0, "anchors": 0.0}],
    "lora": ["a.safetensors"],
    "first_pass.size": "32x32",
    "first_pass.lora": ["a.safetensors"],
}


def another(setting: Declared, value: object) -> object:
    """Return a value that a setting accepts, other than `value`."""
    if isinstance(value, bool):
        return not value
    if setting.key == "prompts":
        return [Prompt("a boat", at=9)]
    if setting.choices:
        return next(choice for choice in setting.choices if choice != value)
    if isinstance(value, float):
        return value + 0.5
    if "number" in setting.type:
        return (value if isinstance(value, int) else 63) + 1
    return OTHER_TEXT.get(setting.key, "x")


# settings that have an effect only beside others
BESIDE: dict[str, dict[str, object]] = {
    "video.crf": {"video.crf": 20},
    "video.quality": {"out": "x.webp"},
    "video.repeat": {"out": "x.gif", "video.repeat": False},
    "audio": {"input.keep_audio": False},
}


def test_the_digest_follows_the_declarations() -> None:
    """Each setting is changed in turn: the digest changes exactly where the declaration says so."""
    inputs = {"edit.run": "a.run", "input.video": "a.mp4", "input.strength": 0.4}
    inputs |= {"first_pass.size": "16x16"}
    config = run_config(prompt="a ball", **inputs)
    values = leaves(config)
    for key, setting in declared().items():
        others = values | {key: another(setting, values[key])} | BESIDE.get(key, {})
        changed = load(None, settings=others).config
        assert changed != config
        assert (digest(changed) != digest(config)) == setting.latents == changes_latents(key), key
    fixed = {key for key, setting in declared().items() if not setting.latents}
    alone = {
        "gpus",
        "out",
        "overwrite",
        "resume",
        "device",
        "memory",
        "compile",
        "save_latents",
        "decoder",
    } | {"audio", "preview"}
    inside = {"input.keep_audio"}
    groups = {"checkpoint", "compute", "parallel", "decode", "video"}
    assert inside < fixed
    assert {key.partition(".")[0] for key in fixed - inside} == alone | groups
