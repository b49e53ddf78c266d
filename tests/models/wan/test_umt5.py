"""The text encoder against transformers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles.reference import relative_error
from oracles.wan_text import our_umt5, tiny_umt5
from transformers import UMT5Config as TheirConfig
from transformers import UMT5EncoderModel

from vinfinity.models.wan.text_config import UMT5Config, text_name
from vinfinity.models.wan.umt5 import TextEncoder, distance_buckets

CLOSE = 1e-4
SETTINGS: dict[str, dict[str, Any]] = {
    "as published, narrow": {},
    "heads wider than the states": {"d_kv": 24, "num_heads": 3, "num_layers": 3},
    "other buckets": {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 20},
    "another epsilon": {"layer_norm_epsilon": 1e-2},
}
# config.json of the text encoder in Wan's folders
PUBLISHED = {
    "architectures": ["UMT5EncoderModel"],
    "classifier_dropout": 0.0,
    "d_ff": 10240,
    "d_kv": 64,
    "d_model": 4096,
    "decoder_start_token_id": 0,
    "dense_act_fn": "gelu_new",
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "is_gated_act": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "umt5",
    "num_decoder_layers": 24,
    "num_heads": 64,
    "num_layers": 24,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "scalable_attention": True,
    "tie_word_embeddings": False,
    "tokenizer_class": "T5Tokenizer",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.48.0.dev0",
    "use_cache": True,
    "vocab_size": 256384,
}


@pytest.mark.parametrize("used", [[1], [5, 2], [40, 7, 40], [200, 1]], ids=str)
@pytest.mark.parametrize("name", SETTINGS)
def test_text_states_match_transformers(
    name: str, used: list[int], record_worst: Callable[[str, float], None]
) -> None:
    reference, tokens = tiny_umt5(**SETTINGS[name]), max(used) + 3
    ids = torch.randint(2, 300, (len(used), tokens))
    mask = torch.arange(tokens) < torch.tensor(used)[:, None]
    expected = reference(ids, mask.long()).last_hidden_state * mask[..., None]
    states = our_umt5(reference)(ids, used)
    error = relative_error(states, expected)
    record_worst(f"umt5, {name}, {used} tokens", error)
    assert error <= CLOSE
    # WanPipeline replaces the states of padding by zeros
    assert (states[~mask] == 0).all()


def test_padding_does_not_change_the_states() -> None:
    ours = our_umt5(tiny_umt5())
    ids = torch.randint(2, 300, (1, 30))
    short = ours(ids[:, :9], [9])
    torch.testing.assert_close(ours(ids, [9])[:, :9], short, rtol=0, atol=0)
    beside = ours(torch.cat([ids, ids.flip(1)]), [9, 30])[:1, :9]
    torch.testing.assert_close(beside, short, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (8, 20), (64, 512)])
def test_buckets_are_those_of_transformers(buckets: int, distance: int) -> None:
    settings: dict[str, Any] = {
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": distance,
    }
    theirs = tiny_umt5(**settings).encoder.block[0].layer[0].SelfAttention
    position = torch.arange(600)
    expected = theirs._relative_position_bucket(position[None] - position[:, None])
    assert torch.equal(distance_buckets(600, UMT5Config(**settings)), expected)


def test_half_precision_stays_close() -> None:
    reference = tiny_umt5()
    ids, used = torch.randint(2, 300, (2, 20)), [20, 11]
    exact, half = our_umt5(reference)(ids, used), our_umt5(reference).bfloat16()(ids, used)
    assert half.dtype == torch.bfloat16
    mask = torch.arange(20) < torch.tensor(used)[:, None]
    theirs = reference.bfloat16()(ids, mask.long()).last_hidden_state * mask[..., None]
    # no farther from fp32 than transformers in the same type
    own, other = (relative_error(states.float(), exact) for states in (half, theirs))
    assert own <= max(1.5 * other, 0.02)


def test_names_and_shapes_are_those_of_transformers_at_full_size() -> None:
    with torch.device("meta"):
        ours = TextEncoder(UMT5Config.from_dict(PUBLISHED))
        theirs = UMT5EncoderModel(TheirConfig(**PUBLISHED))
    named = {text_name(name): tensor.shape for name, tensor in theirs.state_dict().items()}
    assert named.pop(None) == named["shared.weight"]
    assert named == {name: tensor.shape for name, tensor in ours.state_dict().items()}
    assert sum(parameter.numel() for parameter in ours.parameters()) == 5_680_910_336


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "t5"}, "model_type: 't5' is not umt5"),
        ({"feed_forward_proj": "relu"}, "feed_forward_proj: 'relu' is not gated-gelu"),
        ({"relative_attention_num_buckets": 6}, "relative_attention_num_buckets: 6 is not a multiple of 4"),
        ({"relative_attention_max_distance": 8}, "relative_attention_max_distance: 8 is not above 8"),
    ],
    ids=str,
)
def test_unsupported_encoders_are_refused_naming_the_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        UMT5Config.from_dict({**PUBLISHED, **changes})
