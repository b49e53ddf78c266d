"""The text encoder against transformers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles.reference import relative_error, tiny_text_encoder
from transformers import CLIPTextModel

from vinfinity.models.unet3d.clip import TextEncoder
from vinfinity.models.unet3d.configs import TextConfig
from vinfinity.models.unet3d.names import text_name

CLOSE = 1e-4
SETTINGS: dict[str, dict[str, Any]] = {
    "quick_gelu": {"hidden_act": "quick_gelu"},
    "gelu": {"hidden_act": "gelu"},
    "more heads and layers": {
        "hidden_act": "gelu",
        "hidden_size": 48,
        "intermediate_size": 192,
        "num_attention_heads": 6,
        "num_hidden_layers": 5,
        "max_position_embeddings": 77,
        "layer_norm_eps": 1e-3,
    },
}


def ours_from(reference: CLIPTextModel) -> TextEncoder:
    ours = TextEncoder(TextConfig.from_dict(reference.config.to_dict()))
    named = {text_name(name): tensor for name, tensor in reference.state_dict().items()}
    ours.load_state_dict({name: tensor for name, tensor in named.items() if name is not None})
    return ours.eval().requires_grad_(False)


def some_ids(reference: CLIPTextModel, tokens: int) -> torch.Tensor:
    """Two rows of tokens between start and end; the second is padded from the middle on."""
    ids = torch.randint(0, 676, (2, tokens))
    ids[:, 0], ids[:, -1] = 676, 677
    ids[1, tokens // 2 :] = 677
    return ids


@pytest.mark.parametrize("name", SETTINGS)
def test_text_states_match_transformers(name: str, record_worst: Callable[[str, float], None]) -> None:
    reference = tiny_text_encoder(**SETTINGS[name])
    ours = ours_from(reference)
    for tokens in (2, 9, reference.config.max_position_embeddings):
        ids = some_ids(reference, tokens)
        error = relative_error(ours(ids), reference(ids).last_hidden_state)
        assert error <= CLOSE
        record_worst(f"text encoder, {name}, {tokens} tokens", error)


def test_activations_differ_measurably() -> None:
    ids = some_ids(tiny_text_encoder(), 16)
    one, other = (ours_from(tiny_text_encoder(hidden_act=act))(ids) for act in ("gelu", "quick_gelu"))
    assert relative_error(one, other) > 10 * CLOSE


def test_a_config_with_fewer_layers_gives_the_penultimate_states_of_the_larger_model() -> None:
    """Stable Diffusion 2 uses OpenCLIP's penultimate layer: its config omits the last one."""
    whole = tiny_text_encoder(num_hidden_layers=4)
    cut = TextEncoder(TextConfig.from_dict({**whole.config.to_dict(), "num_hidden_layers": 3})).eval()
    named = {text_name(name): tensor for name, tensor in whole.state_dict().items()}
    result = cut.load_state_dict({k: v for k, v in named.items() if k is not None}, strict=False)
    assert result.missing_keys == []
    assert all(".layers.3." in key for key in result.unexpected_keys)
    ids = some_ids(whole, 16)
    states = whole(ids, output_hidden_states=True).hidden_states
    final = cut.text_model.final_layer_norm(states[-2])
    assert relative_error(cut(ids), final) <= CLOSE


def test_later_tokens_do_not_change_earlier_states() -> None:
    ours, ids = ours_from(tiny_text_encoder()), some_ids(tiny_text_encoder(), 16)
    changed = ids.clone()
    changed[:, 9:] = 5
    before, after = ours(ids), ours(changed)
    torch.testing.assert_close(before[:, :9], after[:, :9], rtol=0, atol=1e-6)
    assert not torch.allclose(before[:, 9:], after[:, 9:])


def test_unknown_activation_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"^hidden_act: 'relu'"):
        TextConfig.from_dict({**tiny_text_encoder().config.to_dict(), "hidden_act": "relu"})


def test_another_kind_of_text_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^model_type: 't5'"):
        TextConfig.from_dict({"model_type": "t5"})
