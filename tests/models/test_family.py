"""What a family of models says about itself, and how sizes follow from it."""

import dataclasses
import re
from typing import get_args

import pytest

from vinfinity.config import Sampler
from vinfinity.denoise.schedule import SchedulerConfig
from vinfinity.models.families import FAMILIES, family_of
from vinfinity.models.family import Family, parts_of
from vinfinity.models.geometry import LatentGeometry
from vinfinity.models.unet3d import clip, configs, layers
from vinfinity.models.unet3d.configs import TextConfig, UNetConfig
from vinfinity.system.fields import known_fields
from vinfinity.weights.card import EMBEDDED, planned_card
from vinfinity.weights.registry import PUBLISHED

WRONG: tuple[object, ...] = ("abc", -1, 0, 2.5, 1e9, True, [], {}, [1, 2], [[]], [None], -0.5)


@pytest.mark.parametrize(
    ("size", "latent"), [((512, 320), (4, 40, 64)), ((8, 8), (4, 1, 1)), ((9, 17), (4, 3, 2))], ids=str
)
def test_latents_cover_the_size_in_pixels(size: tuple[int, int], latent: tuple[int, int, int]) -> None:
    assert LatentGeometry(channels=4, downscale=8).latent_size(size) == latent


@pytest.mark.parametrize("frames", [1, 2, 5, 81, 2300])
def test_without_temporal_compression_latent_frames_are_frames(frames: int) -> None:
    geometry = LatentGeometry(channels=4, downscale=8)
    assert geometry.latent_frames(frames) == geometry.frames(frames) == frames


@pytest.mark.parametrize(
    ("frames", "latent_frames", "decoded"), [(1, 1, 1), (2, 2, 5), (5, 2, 5), (6, 3, 9), (81, 21, 81)]
)
def test_with_temporal_compression_the_first_frame_has_its_own_latent_frame(
    frames: int, latent_frames: int, decoded: int
) -> None:
    geometry = LatentGeometry(channels=16, downscale=8, time_downscale=4)
    assert geometry.latent_frames(frames) == latent_frames
    assert geometry.frames(latent_frames) == decoded


def test_known_fields_skips_what_is_off_and_names_what_is_not() -> None:
    off: dict[str, object] = {
        "thing": False,
        "other": None,
        "_class_name": "UNet",
        "mode": "default",
        "list": [],
    }
    assert known_fields(UNetConfig, {**off, "act_fn": "gelu", "norm_eps": None}) == {"act_fn": "gelu"}
    assert known_fields(UNetConfig, {"block_out_channels": [8, 16]}) == {"block_out_channels": (8, 16)}
    with pytest.raises(ValueError, match="thing: 3 is not supported"):
        known_fields(UNetConfig, {"thing": 3})
    assert known_fields(UNetConfig, {"thing": 3}, ignore=("thing",)) == {}
    assert known_fields(TextConfig, {"thing": 3, "hidden_size": 8}, ignore=None) == {"hidden_size": 8}


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"layers_per_block": "abc"}, "layers_per_block: 'abc' is not a whole number >= 1"),
        ({"layers_per_block": True}, "layers_per_block: True is not a whole number >= 1"),
        ({"layers_per_block": 2.0}, "layers_per_block: 2.0 is not a whole number >= 1"),
        ({"norm_num_groups": 0}, "norm_num_groups: 0 is not a whole number >= 1"),
        ({"downsample_padding": -1}, "downsample_padding: -1 is not a whole number >= 0"),
        ({"fps_cond": 1}, "fps_cond: 1 is not true or false"),
        ({"act_fn": ["silu"]}, "act_fn: ['silu'] is not text"),
        ({"norm_eps": 0}, "norm_eps: 0 is not a number above 0"),
        ({"norm_eps": float("nan")}, "norm_eps: nan is not a number above 0"),
        ({"block_out_channels": 32}, "block_out_channels: 32 is not a list"),
        ({"block_out_channels": [32, None]}, "block_out_channels[1]: None is not a whole number >= 1"),
        ({"sample_size": [40]}, "sample_size: [40] is not a list of 2"),
        ({"sample_size": "40"}, "sample_size: '40' is not a whole number >= 1"),
    ],
    ids=str,
)
def test_a_value_of_another_type_is_named(value: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(problem)}$"):
        known_fields(UNetConfig, value)


def test_numbers_and_lists_are_taken_as_they_are() -> None:
    given = {"downsample_padding": 0, "norm_eps": 1, "sample_size": [40, 64]}
    assert known_fields(UNetConfig, given) == {**given, "sample_size": (40, 64)}
    assert known_fields(UNetConfig, {"sample_size": 40}) == {"sample_size": 40}


def test_a_file_cannot_give_what_describes_a_config() -> None:
    values = {"noteworthy": {"a": 1}, "scheduler": 3, "beta_end": 0.5}
    assert known_fields(SchedulerConfig, values, ignore=None) == {"beta_end": 0.5}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_value_of_a_networks_config_is_usable_or_refused(family: Family) -> None:
    """Wrong types, signs and lengths: all that follows from a value can be computed, or it is refused."""
    published = {part: network.read_config({}) for part, network in family.networks.items()}
    for part, network in family.networks.items():
        for key, usual in dataclasses.asdict(published[part]).items():
            items = len(usual) if isinstance(usual, tuple) else 0
            changed = [[*usual[:i], wrong, *usual[i + 1 :]] for i in range(items) for wrong in WRONG]
            for value in (*WRONG, *changed):
                try:
                    config = network.read_config({key: value})
                except ValueError:
                    continue
                configs = {**published, part: config}
                assert family.traits(configs).geometry.downscale >= 1
                assert family.defaults(configs, {})["size"]


def test_architectures_name_the_activations_that_layers_have() -> None:
    assert set(configs.ACTIVATIONS) == set(layers.ACTIVATIONS)
    assert set(configs.TEXT_ACTIVATIONS) == set(clip.ACTIVATIONS)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_families_name_samplers_that_exist_and_a_denoiser_that_is_a_part(family: Family) -> None:
    assert set(family.samplers) <= set(get_args(Sampler))
    assert family.denoiser in family.networks
    assert set(family.published_files) == {*family.networks, "scheduler"}


def test_the_family_of_a_folder_is_that_of_its_denoiser() -> None:
    family = family_of(EMBEDDED / "mini")
    assert family is not None
    assert family.name == "unet3d"
    assert parts_of(family) == ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_can_be_planned_before_they_are_fetched(
    name: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
    planned_card.cache_clear()
    card = planned_card(name)
    assert card.published
    if card.family.name == "unet3d":
        assert card.geometry == LatentGeometry(channels=4, downscale=8)
        assert card.configs["unet"].block_out_channels == (320, 640, 1280, 1280)
    else:
        assert card.geometry == LatentGeometry(channels=16, downscale=8, time_downscale=4, multiple=2)
        assert card.configs["transformer"].attention_head_dim == 128
    assert card.defaults["sampler"] in card.family.samplers
    planned_card.cache_clear()
