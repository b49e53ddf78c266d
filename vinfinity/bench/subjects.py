"""The denoising networks that benchmarks measure, and the shapes of their calls."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from vinfinity.config import parse_size
from vinfinity.models.family import Family
from vinfinity.models.geometry import LatentGeometry
from vinfinity.models.unet3d.family import UNET3D
from vinfinity.models.unet3d.unet import UNetConfig
from vinfinity.models.wan.configs import TransformerConfig
from vinfinity.models.wan.family import TEXT_LENGTH, WAN
from vinfinity.parallel.scopes import Scopes
from vinfinity.parallel.shards import FrameShards
from vinfinity.planning.trace import CallShape
from vinfinity.weights.card import read_card
from vinfinity.weights.dtypes import depends_on_shapes
from vinfinity.weights.load import channels_last, load_network

VIDEOCRAFTER2 = UNetConfig(fps_cond=True)
# 353 M parameters
MEDIUM = UNetConfig(block_out_channels=(160, 320, 640, 640), attention_head_dim=32, cross_attention_dim=512)
# Wan 2.1 1.3B
WAN_SMALL = TransformerConfig(num_attention_heads=12, ffn_dim=8960, num_layers=30)
UNET_GEOMETRY = LatentGeometry(channels=4, downscale=8)
WAN_GEOMETRY = LatentGeometry(channels=16, downscale=8, time_downscale=4, multiple=2)
# scopes of a long video, in its first phase
UNET_SCOPES, WAN_SCOPES = Scopes(anchor_bias=10.0), Scopes(local=4, anchors=12)
# of VideoCrafter2
LARGE_SIZE = (512, 320)


@dataclass(frozen=True)
class Subject:
    """A denoising network that can be loaded and timed.

    config: the network's configuration, as its family reads it. latent: (h, w). text_tokens: the length of the text
    states. trained_frames: the number of latent frames in training clips. load: loads it in a precision on a device.
    """

    name: str
    family: Family
    config: Hashable
    geometry: LatentGeometry
    latent: tuple[int, int]
    text_tokens: int
    trained_frames: int
    load: Callable[[torch.dtype, str], nn.Module]

    @property
    def joint(self) -> bool:
        """Whether it computes one latent frame at a time."""
        return self.family.denoiser_traits(self.config).joint

    @property
    def scopes(self) -> Scopes:
        """The scopes of attention in a long video."""
        return WAN_SCOPES if self.joint else UNET_SCOPES

    def title(self, frames: int) -> str:
        """Return the name of a call with that many frames, for tables."""
        latent_frames = self.geometry.latent_frames(frames)
        times = f"{latent_frames}x" if latent_frames != frames else ""
        return f"{self.name}, {frames} frames of {times}{self.latent[1]}x{self.latent[0]}"

    def grouped(self, dtype: torch.dtype, device: str) -> bool:
        """Return whether ranks compute whole groups of frames. device: the type of the device."""
        return not self.joint and depends_on_shapes(dtype, device)

    def call_shape(
        self, network: nn.Module, *, shards: FrameShards, rank: int = 0, scopes: Scopes | None = None
    ) -> CallShape:
        """Return a rank's call.

        network: this subject's. shards: those of the latent frames. scopes: None for plain attention, as in the base
        model.
        """
        return CallShape(
            family=self.family,
            config=self.config,
            shards=shards,
            rank=rank,
            latent_size=self.latent,
            scopes=scopes,
            dtype=dtype_of(network),
            trained_frames=self.trained_frames,
            text_tokens=self.text_tokens,
            joint="auto" if self.joint else None,
        )


def dtype_of(network: nn.Module) -> torch.dtype:
    """Return the type of a network's arithmetic, which is that of most weights; some may stay in fp32."""
    return min((parameter.dtype for parameter in network.parameters()), key=lambda dtype: dtype.itemsize)


def find_subject(model: str, *, size: tuple[int, int] | None = None) -> Subject:
    """Return the denoiser of a model by its name or folder, or one of `RANDOM`.

    Those have random weights and need no files. size: (width, height) in pixels; None for the model's own.
    Raises InputError.
    """
    if model in RANDOM:
        return RANDOM[model](size)
    card = read_card(model)
    family, geometry = card.family, card.geometry
    network, folder = family.networks[family.denoiser], card.folder / family.denoiser
    return Subject(
        name=card.name,
        family=family,
        config=card.configs[family.denoiser],
        geometry=geometry,
        latent=geometry.latent_size(size or parse_size(str(card.defaults["size"])))[1:],
        text_tokens=card.text_length,
        trained_frames=geometry.latent_frames(card.trained_frames),
        load=lambda dtype, device: load_network(network, folder, device=device, dtype=dtype),
    )


def _random_unet(title: str, config: UNetConfig, own_size: tuple[int, int]) -> Callable[..., Subject]:
    def subject(size: tuple[int, int] | None) -> Subject:
        return Subject(
            name=title,
            family=UNET3D,
            config=config,
            geometry=UNET_GEOMETRY,
            latent=UNET_GEOMETRY.latent_size(size or own_size)[1:],
            text_tokens=77,
            trained_frames=16,
            load=partial(_random, UNET3D, config),
        )

    return subject


def _random_wan(size: tuple[int, int] | None) -> Subject:
    return Subject(
        name="Wan 2.1 1.3B with random weights",
        family=WAN,
        config=WAN_SMALL,
        geometry=WAN_GEOMETRY,
        latent=WAN_GEOMETRY.latent_size(size or (832, 480))[1:],
        text_tokens=TEXT_LENGTH,
        trained_frames=WAN_GEOMETRY.latent_frames(WAN.trained_frames),
        load=partial(_random, WAN, WAN_SMALL),
    )


def _random(family: Family, config: Any, dtype: torch.dtype, device: str) -> nn.Module:
    """Return a network with random weights, in the types that loading gives it."""
    torch.manual_seed(0)
    network = family.networks[family.denoiser]
    with torch.device(device):
        made = network.build(config).eval().requires_grad_(False)
    kept = network.fp32_parameters(made)
    for name, parameter in made.named_parameters():
        parameter.data = channels_last(parameter.data if name in kept else parameter.data.to(dtype))
    return made


# Networks with random weights, for a size in pixels or None for their own.
RANDOM: dict[str, Callable[[tuple[int, int] | None], Subject]] = {
    "medium": _random_unet("353 M parameters", MEDIUM, (256, 160)),
    "large": _random_unet("VideoCrafter2 with random weights", VIDEOCRAFTER2, LARGE_SIZE),
    "wan": _random_wan,
}


def inner_rank_call(
    *,
    ranks: int,
    frames: int,
    size: tuple[int, int],
    scopes: Scopes | None,
    unet: UNetConfig = VIDEOCRAFTER2,
    dtype: torch.dtype = torch.float16,
) -> CallShape:
    """Return the UNet call of a rank in the middle of the video, which has neighbours on both sides if it can.

    frames: the number of frames on each rank. size: (width, height) in pixels.
    """
    return CallShape(
        family=UNET3D,
        config=unet,
        shards=FrameShards.of(frames * ranks, ranks, grouped=dtype != torch.float32),
        rank=ranks // 2,
        latent_size=UNET_GEOMETRY.latent_size(size)[1:],
        scopes=scopes,
        dtype=dtype,
    )
