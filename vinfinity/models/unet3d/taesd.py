"""AutoencoderTiny, the small autoencoder for the latents of a large one (TAESD, Ollin Boer Bohan 2023), frame by frame.

Dims: b frames, h w height and width of a picture or its latent, c channels. Pictures are (b, 3, h, w) in [-1, 1].
Parameter names are those of diffusers' AutoencoderTiny.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vinfinity.models.unet3d.layers import ACTIVATIONS
from vinfinity.models.unet3d.vae import AutoencoderKL

REACH = 3.0  # latents are squashed into (-3, 3) before they are decoded
IGNORED = (
    "latent_magnitude",
    "latent_shift",
    "block_out_channels",
    "force_upcast",
)  # of no effect on decoding


@dataclass(frozen=True)
class TinyConfig:
    """The architecture, with the names of a diffusers config.json.

    scaling_factor, shift_factor: the diffusion model sees (latent - shift) * scaling.
    Raises ValueError for an architecture that this autoencoder is not.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    upsampling_scaling_factor: int = 2
    upsample_fn: str = "nearest"
    act_fn: str = "relu"
    scaling_factor: float = 1.0
    shift_factor: float = 0.0

    def __post_init__(self) -> None:
        if self.act_fn not in ACTIVATIONS:
            raise ValueError(f"act_fn: {self.act_fn!r} is not one of {', '.join(ACTIVATIONS)}")
        if self.upsample_fn != "nearest":
            raise ValueError(f"upsample_fn: {self.upsample_fn!r} is not nearest")
        for half in ("encoder", "decoder"):
            widths, counts = getattr(self, f"{half}_block_out_channels"), getattr(self, f"num_{half}_blocks")
            if not widths or len(widths) != len(counts):
                raise ValueError(
                    f"num_{half}_blocks: {list(counts)} is not one number for each of {half}_block_out_channels"
                )

    @property
    def factor(self) -> int:
        """Pixels of a picture's side to one of its latent."""
        return self.upsampling_scaling_factor ** (len(self.decoder_block_out_channels) - 1)

    @property
    def peak_channels(self) -> int:
        """Channels at the picture's resolution that decoding holds at most: what comes in, and two steps of a block."""
        return 3 * self.decoder_block_out_channels[-1]

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "TinyConfig":
        """From a parsed config.json; what this autoencoder does not have is refused unless it is off."""
        known = {field.name for field in fields(cls)}
        for key, value in values.items():
            if not key.startswith("_") and key not in {*known, *IGNORED} and value:
                raise ValueError(f"{key}: {value!r} is not supported by this autoencoder")
        chosen = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in values.items()
            if key in known and value is not None
        }
        return cls(**chosen)  # type: ignore[arg-type]


class Activation(nn.Module):
    """An activation with a place among the layers, since the files count it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.function = ACTIVATIONS[name]

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Block(nn.Module):
    """Three convolutions beside the identity, and ReLU."""

    def __init__(self, channels: int, *, activation: str) -> None:
        super().__init__()
        first, second, third = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3))
        self.conv = nn.Sequential(first, Activation(activation), second, Activation(activation), third)

    def forward(self, x: Tensor) -> Tensor:
        """x: (b, c, h, w). Returns the same shape."""
        return F.relu_(self.conv(x).add_(x))


class Half(nn.Module):
    """The encoder or the decoder: a row of layers, numbered in the files."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)


class AutoencoderTiny(nn.Module):
    """Latents to pictures, upsampling_scaling_factor^(levels - 1) times larger on each side.

    The encoder is there for its names and shapes: a file's tensors are all accounted for, and nothing here encodes.
    """

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Half(_encoder_layers(config))
        self.decoder = Half(_decoder_layers(config))

    def decode(self, latents: Tensor) -> Tensor:
        """latents: (b, latent_channels, h, w) as the diffusion model leaves them.

        Returns (b, 3, H, W), about [-1, 1].
        """
        latents = latents / self.config.scaling_factor + self.config.shift_factor
        pictures = self.decoder.layers(torch.tanh(latents / REACH) * REACH)
        return pictures.mul_(2).sub_(1)  # the layers make [0, 1]


LatentDecoder = AutoencoderKL | AutoencoderTiny


def _encoder_layers(config: TinyConfig) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for i, (width, count) in enumerate(
        zip(config.encoder_block_out_channels, config.num_encoder_blocks, strict=True)
    ):
        if i == 0:
            layers.append(nn.Conv2d(config.in_channels, width, 3, padding=1))
        else:
            layers.append(nn.Conv2d(width, width, 3, padding=1, stride=2, bias=False))
        layers += [Block(width, activation=config.act_fn) for _ in range(count)]
    return [*layers, nn.Conv2d(width, config.latent_channels, 3, padding=1)]


def _decoder_layers(config: TinyConfig) -> list[nn.Module]:
    widths, counts = config.decoder_block_out_channels, config.num_decoder_blocks
    layers: list[nn.Module] = [nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)]
    layers.append(Activation(config.act_fn))
    for i, (width, count) in enumerate(zip(widths, counts, strict=True)):
        layers += [Block(width, activation=config.act_fn) for _ in range(count)]
        if i < len(widths) - 1:
            layers.append(nn.Upsample(scale_factor=config.upsampling_scaling_factor, mode=config.upsample_fn))
            layers.append(nn.Conv2d(width, width, 3, padding=1, bias=False))
        else:
            layers.append(nn.Conv2d(width, config.out_channels, 3, padding=1))
    return layers
