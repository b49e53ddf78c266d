"""AutoencoderTiny: a small autoencoder for the latents of a large one (TAESD, Ollin Boer Bohan 2023), frame by frame.

Dims: b frames, c channels, h w height and width of a latent, H W of a picture. Pictures are (b, 3, H, W) in [-1, 1].
Parameters are named as in diffusers' AutoencoderTiny.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vinfinity.models.decoder import Framewise
from vinfinity.models.unet3d.configs import TinyConfig
from vinfinity.models.unet3d.layers import ACTIVATIONS

# Latents are squashed into (-3, 3) before decoding.
LATENT_LIMIT = 3.0


class Activation(nn.Module):
    """An activation as a separate layer, since the files number it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.function = ACTIVATIONS[name]

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Block(nn.Module):
    """Three convolutions, a residual connection, and ReLU."""

    def __init__(self, channels: int, *, activation: str) -> None:
        super().__init__()
        first, second, third = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3))
        self.conv = nn.Sequential(first, Activation(activation), second, Activation(activation), third)

    def forward(self, x: Tensor) -> Tensor:
        """Transform x (b, c, h, w) to the same shape."""
        return F.relu_(self.conv(x).add_(x))


class LayerStack(nn.Module):
    """The encoder or the decoder: a sequence of layers, numbered in the files."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)


class AutoencoderTiny(Framewise):
    """Decodes latents to pictures upsampling_scaling_factor^(levels - 1) times larger on each side.

    The encoder exists only so that every tensor of a checkpoint has a place; it never runs.
    """

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = LayerStack(_encoder_layers(config))
        self.decoder = LayerStack(_decoder_layers(config))

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (b, latent_channels, h, w), as the diffusion model leaves them.

        Returns (b, 3, H, W), about [-1, 1].
        """
        latents = latents / self.config.scaling_factor + self.config.shift_factor
        pictures = self.decoder.layers(torch.tanh(latents / LATENT_LIMIT) * LATENT_LIMIT)
        # the layers output [0, 1]
        return pictures.mul_(2).sub_(1)


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
