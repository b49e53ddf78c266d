"""What a family of models says about itself, and how sizes follow from it."""

from typing import get_args

import pytest

from vinfinity.config import Sampler
from vinfinity.models.families import FAMILIES, family_of
from vinfinity.models.family import Family, parts_of
from vinfinity.models.geometry import LatentGeometry
from vinfinity.models.unet3d import clip, configs, layers
from vinfinity.models.unet3d.configs import TextConfig, UNetConfig
from vinfinity.system.fields import known_fields
from vinfinity.weights.card import EMBEDDED, planned_card
from vinfinity.weights.registry import KNOWN


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
    assert family.name == "unet3d"
    assert parts_of(family) == ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


@pytest.mark.parametrize("name", KNOWN)
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
