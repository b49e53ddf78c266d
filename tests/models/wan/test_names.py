"""Names and shapes of the published models, on the meta device, in diffusers' layout and in the authors' own."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan as TheirVAE
from diffusers import WanTransformer3DModel
from diffusers.loaders.single_file_utils import (
    convert_wan_transformer_to_diffusers,
    convert_wan_vae_to_diffusers,
)
from torch import nn
from transformers import UMT5Config as TextConfig
from transformers import UMT5EncoderModel

from vinfinity.models.family import AUTOENCODER, TEXT_ENCODER
from vinfinity.models.wan.family import NETWORKS, TRANSFORMER, WAN
from vinfinity.models.wan.names import module_aliases, original_parameter
from vinfinity.models.wan.original import read_original, text_parameter, vae_parameter
from vinfinity.weights.card import planned_card

SIZES = {
    "wan2.1-1.3b": ({"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}, 1.42e9),
    "wan2.1-14b": ({}, 14.3e9),
}
Shapes = dict[str, tuple[int, ...]]


def shapes_of(build: Callable[[], nn.Module]) -> Shapes:
    with torch.device("meta"):
        return {name: tuple(x.shape) for name, x in build().state_dict().items()}


def ours(part: str, config: Any) -> Shapes:
    return shapes_of(lambda: NETWORKS[part].build(config))


@pytest.mark.parametrize("name", SIZES)
def test_transformers_of_the_published_sizes_have_the_names_and_shapes_of_diffusers(name: str) -> None:
    settings, count = SIZES[name]
    card = planned_card(name)
    own = ours(TRANSFORMER, card.configs[TRANSFORMER])
    assert own == shapes_of(lambda: WanTransformer3DModel(**settings))
    parameters = sum(math.prod(shape) for shape in own.values())
    assert math.isclose(parameters, count, rel_tol=0.01)
    assert parameters <= WAN.denoiser_traits(card.configs[TRANSFORMER]).parameters <= 1.1 * parameters


def test_the_autoencoder_of_the_published_models_has_the_names_and_shapes_of_diffusers() -> None:
    assert ours(AUTOENCODER, planned_card("wan2.1-1.3b").configs[AUTOENCODER]) == shapes_of(TheirVAE)


def test_the_text_encoder_of_the_published_models_has_the_names_and_shapes_of_transformers() -> None:
    config = TextConfig(
        vocab_size=256384,
        d_model=4096,
        d_kv=64,
        d_ff=10240,
        num_layers=24,
        num_heads=64,
        feed_forward_proj="gated-gelu",
    )
    card = planned_card("wan2.1-14b")
    theirs = shapes_of(lambda: UMT5EncoderModel(config))
    # transformers lists the tied embedding twice
    theirs.pop("encoder.embed_tokens.weight", None)
    own = ours(TEXT_ENCODER, card.configs[TEXT_ENCODER])
    assert own == theirs
    assert sum(math.prod(shape) for shape in own.values()) <= card.traits.text_parameters


@pytest.mark.parametrize("name", SIZES)
def test_transformers_in_the_authors_layout_are_converted_to_the_names_of_diffusers(name: str) -> None:
    own = ours(TRANSFORMER, planned_card(name).configs[TRANSFORMER])
    original = {original_parameter(parameter): parameter for parameter in own}
    assert len(original) == len(own)
    assert convert_wan_transformer_to_diffusers({key: key for key in original}) == {
        parameter: key for key, parameter in original.items()
    }


def test_the_autoencoder_in_the_authors_layout_is_converted_to_the_names_of_diffusers() -> None:
    own = ours(AUTOENCODER, planned_card("wan2.1-1.3b").configs[AUTOENCODER])
    original = {vae_parameter(parameter): parameter for parameter in own}
    assert len(original) == len(own)
    assert convert_wan_vae_to_diffusers({key: key for key in original}) == {
        parameter: key for key, parameter in original.items()
    }


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("name", SIZES)
def test_files_in_the_authors_layout_are_read_by_their_shapes(name: str, prefix: str) -> None:
    card = planned_card(name)
    for part, rename in (
        (TRANSFORMER, original_parameter),
        (AUTOENCODER, vae_parameter),
        (TEXT_ENCODER, text_parameter),
    ):
        own = ours(part, card.configs[part])
        read = read_original({prefix + rename(key): shape for key, shape in own.items()}, NETWORKS)
        assert read is not None
        found, faults = read
        assert (found.name, faults) == (part, [])
        assert found.shapes == own
        assert NETWORKS[part].read_config(found.config) == card.configs[part]


def test_faults_of_a_file_in_the_authors_layout_are_listed() -> None:
    own = ours(TRANSFORMER, planned_card("wan2.1-1.3b").configs[TRANSFORMER])
    shapes = {original_parameter(key): shape for key, shape in own.items()}
    del shapes["blocks.3.ffn.2.bias"]
    shapes["blocks.4.ffn.2.bias"] = (7,)
    shapes["more"] = (1,)
    read = read_original(shapes, NETWORKS)
    assert read is not None
    assert len(read[1]) == 3
    assert read_original({"weight": (3,)}, NETWORKS) is None
    with pytest.raises(ValueError, match="image-to-video"):
        read_original({**shapes, "img_emb.proj.0.weight": (1280,)}, NETWORKS)


def test_lora_files_with_the_authors_names_find_all_modules() -> None:
    own = ours(TRANSFORMER, planned_card("wan2.1-1.3b").configs[TRANSFORMER])
    modules = {parameter.rpartition(".")[0] for parameter in own if not parameter.endswith("table")}
    aliases = module_aliases(modules)
    # the network itself has a table, which the authors call the head's
    assert set(aliases.values()) == {*modules, ""}
    assert aliases["blocks.7.self_attn.q"] == "blocks.7.attn1.to_q"
    assert aliases["blocks.7.cross_attn.o"] == "blocks.7.attn2.to_out.0"
    assert aliases["head.head"] == "proj_out"
    assert aliases["head"] == ""
