"""The autoencoder against diffusers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles.networks import our_vae
from oracles.reference import relative_error, tiny_vae

from vinfinity.models.unet3d.configs import VAEConfig

CLOSE = 1e-4
SETTINGS: dict[str, dict[str, Any]] = {
    "4 levels": {},
    "2 levels, 2 layers": {"block_out_channels": (8, 16), "layers_per_block": 2, "norm_num_groups": 8},
    "1 level": {"block_out_channels": (8,)},
    "scaled and shifted": {
        "block_out_channels": (8, 16, 16),
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "latent_channels": 16,
    },
    "no attention, no outer convolutions": {
        "block_out_channels": (8, 8),
        "mid_block_add_attention": False,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
}


@pytest.mark.parametrize("size", [(32, 40), (36, 52), (8, 64), (33, 47)], ids=str)
@pytest.mark.parametrize("name", SETTINGS)
def test_encode_matches_diffusers(
    name: str, size: tuple[int, int], record_worst: Callable[[str, float], None]
) -> None:
    reference = tiny_vae(**SETTINGS[name])
    pictures = torch.rand(2, 3, *size) * 2 - 1
    expected = reference.encode(pictures).latent_dist
    mean, deviation = our_vae(reference).encode(pictures)
    errors = relative_error(mean, expected.mean), relative_error(deviation, expected.std)
    assert max(errors) <= CLOSE
    record_worst(f"vae, encode, {name}", max(errors))


@pytest.mark.parametrize("size", [(4, 5), (9, 13), (1, 1)], ids=str)
@pytest.mark.parametrize("name", SETTINGS)
def test_decode_matches_diffusers(
    name: str, size: tuple[int, int], record_worst: Callable[[str, float], None]
) -> None:
    reference = tiny_vae(**SETTINGS[name])
    ours = our_vae(reference)
    latents = torch.randn(2, reference.config.latent_channels, *size)
    raw = latents / reference.config.scaling_factor + (reference.config.shift_factor or 0.0)
    error = relative_error(ours.decode(latents), reference.decode(raw).sample)
    assert error <= CLOSE
    record_worst(f"vae, decode, {name}", error)


def test_pictures_are_decoded_independently_of_each_other() -> None:
    ours = our_vae(tiny_vae())
    latents = torch.randn(5, 4, 3, 4)
    together = ours.decode(latents)
    alone = torch.cat([ours.decode(one[None]) for one in latents])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_extreme_log_variance_stays_finite() -> None:
    reference = tiny_vae()
    assert reference.quant_conv is not None
    reference.quant_conv.bias[4:] = torch.tensor([100.0, -100.0, 40.0, -40.0])
    pictures = torch.rand(1, 3, 16, 16)
    _, deviation = our_vae(reference).encode(pictures)
    torch.testing.assert_close(deviation, reference.encode(pictures).latent_dist.std, rtol=1e-4, atol=0)
    assert deviation.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]}, "down_block_types"),
        ({"up_block_types": ["UpDecoderBlock3D"]}, "up_block_types"),
        ({"act_fn": "sine"}, "act_fn"),
        ({"norm_num_groups": 3}, "block_out_channels"),
        ({"latents_mean": [0.1, 0.2, 0.3, 0.4]}, "latents_mean"),
    ],
    ids=str,
)
def test_unsupported_autoencoders_are_refused_naming_the_key(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=rf"^{named}: "):
        VAEConfig.from_dict({**tiny_vae().config, **changes})
