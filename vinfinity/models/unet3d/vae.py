"""AutoencoderKL, Stable Diffusion's image autoencoder (Rombach et al. 2022, section 3.1), frame by frame.

Dims: b frames, h w height and width of a picture or its latent, c channels. Pictures are (b, 3, h, w) in [-1, 1].
Parameter names are those of diffusers' AutoencoderKL.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vinfinity.models.unet3d.layers import ACTIVATIONS, Attention, Downsample, ResnetBlock, Upsample
from vinfinity.models.unet3d.norm import GroupNorm


@dataclass(frozen=True)
class VAEConfig:
    """The architecture, with the names of a diffusers config.json.

    scaling_factor, shift_factor: the diffusion model sees (latent - shift) * scaling.
    Raises ValueError for an architecture that this autoencoder is not.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    act_fn: str = "silu"
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    force_upcast: bool = True
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    sample_size: int | None = None

    def __post_init__(self) -> None:
        if self.act_fn not in ACTIVATIONS:
            raise ValueError(f"act_fn: {self.act_fn!r} is not one of {', '.join(ACTIVATIONS)}")
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise ValueError(
                    f"block_out_channels: {channels} is no multiple of {self.norm_num_groups} norm groups"
                )

    @property
    def factor(self) -> int:
        """Pixels of a picture's side to one of its latent."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def peak_channels(self) -> int:
        """Channels at the picture's resolution that decoding holds at most.

        On a level from p channels to w, its input of p is held throughout. The first resnet adds a norm and an
        activation of p, the others their input, hidden states, norm and activation of w. Each level has a quarter of
        the next one's positions.
        """
        widths = self.block_out_channels[::-1]
        peaks = [
            max(3 * p, p + 4 * w) / 4 ** (len(widths) - 1 - i)
            for i, (p, w) in enumerate(zip((widths[0], *widths), widths, strict=False))
        ]
        return math.ceil(max(peaks))

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "VAEConfig":
        """From a parsed config.json; what this autoencoder does not have is refused unless it is off."""
        known = {field.name for field in fields(cls)}
        for key, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            others = set(values.get(key) or []) - {kind}  # type: ignore[call-overload]
            if others:
                raise ValueError(f"{key}: {others.pop()!r} is not {kind}")
        for key, value in values.items():
            if (
                not key.startswith("_")
                and key not in known | {"down_block_types", "up_block_types"}
                and value
            ):
                raise ValueError(f"{key}: {value!r} is not supported by this autoencoder")
        chosen = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in values.items()
            if key in known
        }
        return cls(**{key: value for key, value in chosen.items() if value is not None})  # type: ignore[arg-type]


class AttentionBlock(Attention):
    """Single-headed self-attention over the positions of a picture, after a GroupNorm; residual."""

    def __init__(self, channels: int, *, groups: int) -> None:
        super().__init__(channels, heads=1, head_width=channels, bias=True)
        self.group_norm = GroupNorm(groups, channels, eps=1e-6)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: (b, c, h, w). Returns the same shape."""
        tokens = rearrange(self.group_norm(x), "b c h w -> b (h w) c")
        out = super().forward(tokens, context)
        return x + rearrange(out, "b (h w) c -> b c h w", h=x.shape[2])


class Level(nn.Module):
    """The resnets of one level, and a change of resolution."""

    def __init__(self, config: VAEConfig, channels: int, out: int, *, layers: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            [_resnet(config, channels if i == 0 else out, out) for i in range(layers)]
        )
        self.downsamplers: nn.ModuleList | None = None
        self.upsamplers: nn.ModuleList | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x: (b, c, h, w). Returns (b, c', h', w')."""
        for layer in (*self.resnets, *(self.downsamplers or ()), *(self.upsamplers or ())):
            x = layer(x)
        return x


class MidBlock(nn.Module):
    """Resnet, self-attention, resnet at the lowest resolution."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        channels = config.block_out_channels[-1]
        self.resnets = nn.ModuleList([_resnet(config, channels, channels) for _ in range(2)])
        self.attentions = nn.ModuleList(
            [AttentionBlock(channels, groups=config.norm_num_groups)]
            if config.mid_block_add_attention
            else []
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: (b, c, h, w). Returns the same shape."""
        for layer in (self.resnets[0], *self.attentions, self.resnets[1]):
            x = layer(x)
        return x


class Encoder(nn.Module):
    """Pictures to the parameters of their latents' distribution."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = config.block_out_channels
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for i, out in enumerate(widths):
            level = Level(config, widths[max(i - 1, 0)], out, layers=config.layers_per_block)
            if i < len(widths) - 1:
                level.downsamplers = nn.ModuleList([Downsample(out, padding=0)])
            self.down_blocks.append(level)
        self.mid_block = MidBlock(config)
        self.conv_norm_out = GroupNorm(config.norm_num_groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (b, 3, H, W). Returns (b, 2 * latent_channels, h, w)."""
        x = self.conv_in(x)
        for level in (*self.down_blocks, self.mid_block):
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Decoder(nn.Module):
    """Latents to pictures."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = config.block_out_channels[::-1]
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(config)
        self.up_blocks = nn.ModuleList()
        for i, out in enumerate(widths):
            level = Level(config, widths[max(i - 1, 0)], out, layers=config.layers_per_block + 1)
            if i < len(widths) - 1:
                level.upsamplers = nn.ModuleList([Upsample(out)])
            self.up_blocks.append(level)
        self.conv_norm_out = GroupNorm(config.norm_num_groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (b, latent_channels, h, w). Returns (b, 3, H, W)."""
        x = self.conv_in(x)
        for level in (self.mid_block, *self.up_blocks):
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class AutoencoderKL(nn.Module):
    """Pictures to latents and back, 2^(levels - 1) times smaller on each side."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        channels = config.latent_channels
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1) if config.use_quant_conv else None
        self.post_quant_conv = nn.Conv2d(channels, channels, 1) if config.use_post_quant_conv else None

    def encode(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """pictures: (b, 3, H, W) in [-1, 1]. Returns mean and standard deviation of the raw latents, each
        (b, latent_channels, h, w), not scaled for the diffusion model.
        """
        moments = self.encoder(pictures)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, log_variance = moments.chunk(2, dim=1)
        return mean, torch.exp(0.5 * log_variance.clamp(-30.0, 20.0))

    def decode(self, latents: Tensor) -> Tensor:
        """latents: (b, latent_channels, h, w) as the diffusion model leaves them.

        Returns (b, 3, H, W), about [-1, 1].
        """
        latents = latents / self.config.scaling_factor + (self.config.shift_factor or 0.0)
        if self.post_quant_conv is not None:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents)


def _resnet(config: VAEConfig, channels: int, out: int) -> ResnetBlock:
    return ResnetBlock(channels, out, groups=config.norm_num_groups, eps=1e-6, activation=config.act_fn)
