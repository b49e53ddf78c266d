"""Tiny causal autoencoders of diffusers with random weights, and ours with the same weights."""

from typing import Any

import torch
from diffusers import AutoencoderKLWan as TheirVAE
from torch import Tensor

from vinfinity.models.wan.vae import AutoencoderKLWan
from vinfinity.models.wan.vae_config import WanVAEConfig
from vinfinity.weights.load import channels_last


def tiny_wan_vae(**changes: Any) -> TheirVAE:
    """Four levels of 8 channels and more; weights that keep hidden states at a size near 1."""
    settings = {
        "base_dim": 8,
        "z_dim": 4,
        "latents_mean": [0.1, -0.2, 0.3, 0.0],
        "latents_std": [1.0, 2.0, 0.5, 1.5],
        **changes,
    }
    reference = TheirVAE(**settings).eval().requires_grad_(False)
    for name, parameter in reference.named_parameters():
        if name.endswith("gamma"):
            parameter.normal_(1.0, 0.2)
        elif name.endswith("bias"):
            parameter.normal_(std=0.1)
        else:
            parameter.normal_(std=1.5 / parameter[0].numel() ** 0.5)
    return reference


def our_wan_vae(reference: TheirVAE) -> AutoencoderKLWan:
    """Ours, with the weights in the memory layout that loading gives them."""
    ours = AutoencoderKLWan(WanVAEConfig.from_dict(reference.config))
    ours.load_state_dict(reference.state_dict())
    for parameter in ours.parameters():
        parameter.data = channels_last(parameter.data)
    return ours.eval().requires_grad_(False)


def raw_latents(reference: TheirVAE, latents: Tensor) -> Tensor:
    """Latents (1, c, n, h, w) as the diffusion model leaves them, de-normalised as WanPipeline does."""
    mean, deviation = (
        torch.tensor(values).view(1, -1, 1, 1, 1)
        for values in (reference.config.latents_mean, reference.config.latents_std)
    )
    return latents * deviation + mean
