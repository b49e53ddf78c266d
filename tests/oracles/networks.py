"""Our networks with the weights of diffusers' networks, and the shapes that are tested."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL as TheirVAE
from diffusers import UNet3DConditionModel
from oracles import lvdm
from oracles.reference import fill, save_model, tiny_pipeline
from safetensors.torch import save_file

from vinfinity.models.checkpoint import Change
from vinfinity.models.family import TEXT_ENCODER
from vinfinity.models.unet3d.clip import TextEncoder
from vinfinity.models.unet3d.configs import UNetConfig, VAEConfig
from vinfinity.models.unet3d.family import UNET3D
from vinfinity.models.unet3d.lvdm import UNET, unet_config, unet_table
from vinfinity.models.unet3d.unet import UNet
from vinfinity.models.unet3d.vae import AutoencoderKL
from vinfinity.parallel.context import TemporalContext, temporal_context
from vinfinity.parallel.exchange import LocalExchange
from vinfinity.parallel.scopes import Scopes
from vinfinity.parallel.shards import FrameShards
from vinfinity.weights.load import load_network

CROSS_DOWN, PLAIN_DOWN = "CrossAttnDownBlock3D", "DownBlock3D"
CROSS_UP, PLAIN_UP = "CrossAttnUpBlock3D", "UpBlock3D"


def levels(attention: str) -> dict[str, Any]:
    """Block types for levels with (A) and without (-) attention."""
    return {
        "down_block_types": tuple(CROSS_DOWN if level == "A" else PLAIN_DOWN for level in attention),
        "up_block_types": tuple(CROSS_UP if level == "A" else PLAIN_UP for level in reversed(attention)),
    }


# settings, then frames, height, width, batch
SHAPES: dict[str, tuple[dict[str, Any], tuple[int, int, int, int]]] = {
    "2 levels, odd size": (
        {**levels("A-"), "block_out_channels": (32, 64), "attention_head_dim": 8},
        (5, 9, 7, 1),
    ),
    "2 levels, attention in the last": (
        {**levels("-A"), "block_out_channels": (32, 64), "attention_head_dim": 16, "layers_per_block": 2},
        (3, 6, 10, 2),
    ),
    "2 levels, no attention but the middle's": (
        {**levels("--"), "block_out_channels": (16, 32), "attention_head_dim": 8, "layers_per_block": 2},
        (2, 5, 5, 1),
    ),
    "2 levels, head width 64, 24 frames": (
        {**levels("AA"), "block_out_channels": (64, 128), "attention_head_dim": 64},
        (24, 3, 5, 1),
    ),
    "3 levels, head width 16, 16 frames": (
        {
            **levels("-AA"),
            "block_out_channels": (32, 64, 64),
            "attention_head_dim": 16,
            "layers_per_block": 2,
            "norm_num_groups": 16,
        },
        (16, 6, 7, 2),
    ),
    "3 levels, 1 frame": (
        {**levels("AA-"), "block_out_channels": (16, 16, 32), "attention_head_dim": 8},
        (1, 11, 5, 2),
    ),
    "4 levels as in the published models": (
        {**levels("AAA-"), "block_out_channels": (16, 32, 64, 64), "attention_head_dim": 8},
        (4, 9, 13, 1),
    ),
    "4 levels, attention in all, 2 layers": (
        {
            **levels("AAAA"),
            "block_out_channels": (16, 16, 32, 32),
            "attention_head_dim": 16,
            "layers_per_block": 2,
        },
        (2, 8, 8, 1),
    ),
    "4 levels, head width 64, 17 by 9": (
        {**levels("--AA"), "block_out_channels": (64, 64, 64, 128), "attention_head_dim": 64},
        (3, 17, 9, 1),
    ),
    "less usual settings": (
        {
            **levels("A-"),
            "act_fn": "gelu",
            "mid_block_scale_factor": 1.5,
            "norm_eps": 1e-4,
            "in_channels": 8,
            "out_channels": 6,
            "cross_attention_dim": 40,
        },
        (3, 8, 6, 1),
    ),
    "condition in the time embedding": (
        {**levels("A-"), "time_cond_proj_dim": 12},
        (2, 5, 6, 2),
    ),
}


def our_unet(reference: UNet3DConditionModel) -> UNet:
    """Our UNet with the configuration and tensors of diffusers' UNet; names and shapes must be the same."""
    with torch.device("meta"):
        unet = UNet(UNetConfig.from_dict(dict(reference.config)))
    unet.load_state_dict(reference.state_dict(), assign=True)
    return unet.eval().requires_grad_(False)


def one_rank(frames: int, scopes: Scopes | None = None, **options: Any) -> TemporalContext:
    return temporal_context(LocalExchange(), FrameShards(frames), 0, scopes, **options)


def our_vae(reference: TheirVAE) -> AutoencoderKL:
    ours = AutoencoderKL(VAEConfig.from_dict(dict(reference.config)))
    ours.load_state_dict(reference.state_dict())
    return ours.eval().requires_grad_(False)


def load_vae(folder: Path, *, device: torch.device | str, dtype: torch.dtype) -> AutoencoderKL:
    """Return a model's whole autoencoder, encoder included; a run loads the decoding half only."""
    return cast(AutoencoderKL, load_network(UNET3D.networks["vae"], folder, device=device, dtype=dtype))


def lvdm_folder(folder: Path) -> tuple[Path, lvdm.UNetModel]:
    """Return a VideoCrafter2-like UNet in LVDM's layout, and a model's folder that has it in diffusers' layout.

    Only the UNet's layout matters; the other parts come from the tiny pipeline.
    """
    reference = fill(lvdm.UNetModel(context=16, mult=(1, 2, 2), attention=(1, 2)), seed=9)
    whole = save_model(folder / "whole", tiny_pipeline())
    state = {f"{UNET}{name}": x for name, x in reference.state_dict().items()}
    config = unet_config({name: tuple(x.shape) for name, x in state.items()})
    ours = UNet(config)
    table = unet_table(config, list(ours.state_dict()))
    tensors = {
        name: state[table[name].name].reshape(x.shape).clone() for name, x in ours.state_dict().items()
    }
    save_file(tensors, whole / "unet" / "diffusion_pytorch_model.safetensors")
    values = {"_class_name": "UNet3DConditionModel", **dataclasses.asdict(config)}
    (whole / "unet" / "config.json").write_text(json.dumps(values))
    return whole, reference


def load_unet(folder: Path, *, device: str, dtype: torch.dtype, changes: Sequence[Change] = ()) -> UNet:
    """Our UNet with the weights in `folder`."""
    network = UNET3D.networks[UNET3D.denoiser]
    return cast(UNet, load_network(network, folder, device=device, dtype=dtype, changes=changes))


def load_text_encoder(
    folder: Path, *, device: str, dtype: torch.dtype, changes: Sequence[Change] = ()
) -> TextEncoder:
    """Our text encoder with the weights in `folder`."""
    network = UNET3D.networks[TEXT_ENCODER]
    return cast(TextEncoder, load_network(network, folder, device=device, dtype=dtype, changes=changes))
