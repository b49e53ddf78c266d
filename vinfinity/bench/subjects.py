"""The UNets that benchmarks measure, and the shapes that they are called with."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch

from vinfinity.config import parse_size
from vinfinity.errors import InputError
from vinfinity.models.geometry import LatentGeometry
from vinfinity.models.unet3d.family import UNET3D
from vinfinity.models.unet3d.unet import UNet, UNetConfig
from vinfinity.parallel.scopes import Scopes
from vinfinity.parallel.shards import FrameShards
from vinfinity.planning.trace import CallShape
from vinfinity.weights.card import read_card
from vinfinity.weights.load import channels_last, load_network

VIDEOCRAFTER2 = UNetConfig(fps_cond=True)
# 353 M parameters
MEDIUM = UNetConfig(block_out_channels=(160, 320, 640, 640), attention_head_dim=32, cross_attention_dim=512)
MEDIUM_SIZE = (256, 160)
# of VideoCrafter2
LARGE_SIZE = (512, 320)
# UNets with random weights, and the sizes of their frames
RANDOM = {"medium": (MEDIUM, MEDIUM_SIZE), "large": (VIDEOCRAFTER2, LARGE_SIZE)}
TITLES = {"medium": "353 M parameters", "large": "VideoCrafter2 with random weights"}
# of all of these
GEOMETRY = LatentGeometry(channels=4, downscale=8)


@dataclass(frozen=True)
class Subject:
    """A UNet that can be loaded and timed. latent: (h, w). text_tokens: length of the text states."""

    name: str
    latent: tuple[int, int]
    text_tokens: int
    load: Callable[[torch.dtype, str], UNet]

    def title(self, frames: int) -> str:
        """The name of a call with that many frames, for tables."""
        return f"{self.name}, {frames} frames of {self.latent[1]}x{self.latent[0]}"

    def call_shape(
        self, unet: UNet, *, shards: FrameShards, rank: int = 0, scopes: Scopes | None = None
    ) -> CallShape:
        """A rank's call. unet: this subject, loaded. scopes: None for plain attention, as in the base model."""
        return CallShape(
            family=UNET3D,
            config=unet.config,
            shards=shards,
            rank=rank,
            latent=self.latent,
            scopes=scopes,
            dtype=unet.conv_in.weight.dtype,
            text_tokens=self.text_tokens,
        )


def find_subject(model: str, *, size: tuple[int, int] | None = None) -> Subject:
    """The UNet of a model given by name or folder, or `medium` or `large`, which have random weights and need no files.

    size: (width, height) in pixels, None for the model's own. Raises InputError.
    """
    if model in RANDOM:
        config, own_size = RANDOM[model]
        latent = GEOMETRY.latent_size(size or own_size)[1:]
        return Subject(TITLES[model], latent, 77, partial(_random_unet, config))
    card = read_card(model)
    if card.family.name != UNET3D.name:
        remedy = (
            "name a UNet, such as zeroscope or large; `vinfinity bench e2e` times whole runs of any model"
        )
        raise InputError("model", model, remedy, problem="has no UNet")
    latent = card.geometry.latent_size(size or parse_size(str(card.defaults["size"])))[1:]
    return Subject(
        card.name,
        latent,
        card.text_length,
        lambda dtype, device: load_unet(card.folder / "unet", device=device, dtype=dtype),
    )


def load_unet(folder: Path, *, device: str, dtype: torch.dtype) -> UNet:
    """The UNet in `folder`. Raises WeightsError."""
    network = UNET3D.networks[UNET3D.denoiser]
    return cast(UNet, load_network(network, folder, device=device, dtype=dtype))


def _random_unet(config: UNetConfig, dtype: torch.dtype, device: str) -> UNet:
    """A UNet with random weights, in the types that loading gives it."""
    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet(config).eval().requires_grad_(False)
    kept = UNET3D.networks[UNET3D.denoiser].fp32_parameters(unet)
    for name, parameter in unet.named_parameters():
        parameter.data = channels_last(parameter.data if name in kept else parameter.data.to(dtype))
    return unet


def inner_rank_call(
    *,
    ranks: int,
    frames: int,
    size: tuple[int, int],
    scopes: Scopes | None,
    unet: UNetConfig = VIDEOCRAFTER2,
    dtype: torch.dtype = torch.float16,
) -> CallShape:
    """The UNet call of a rank in the middle of the video, which has neighbours on both sides if there are enough ranks.

    frames: of each rank. size: (width, height) in pixels.
    """
    return CallShape(
        family=UNET3D,
        config=unet,
        shards=FrameShards.of(frames * ranks, ranks, grouped=dtype != torch.float32),
        rank=ranks // 2,
        latent=GEOMETRY.latent_size(size)[1:],
        scopes=scopes,
        dtype=dtype,
    )
