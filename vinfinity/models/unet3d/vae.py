"""AutoencoderKL, Stable Diffusion's image autoencoder (Rombach et al. 2022, section 3.1), frame by frame.

Dims: b frames, c channels, h w height and width of a latent, H W of a picture. Pictures are (b, 3, H, W) in [-1, 1].
Parameters are named as in diffusers' AutoencoderKL. Runs that start from a video or pictures also encode.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vinfinity.models.decoder import Framewise
from vinfinity.models.unet3d.configs import VAEConfig
from vinfinity.models.unet3d.layers import Attention, Downsample, ResnetBlock, Upsample
from vinfinity.models.unet3d.norm import GroupNorm


class AttentionBlock(Attention):
    """Single-headed self-attention over the positions of a picture, after a GroupNorm; residual."""

    def __init__(self, channels: int, *, groups: int) -> None:
        super().__init__(channels, heads=1, head_width=channels, bias=True)
        self.group_norm = GroupNorm(groups, channels, eps=1e-6)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Transform x (b, c, h, w) to the same shape."""
        tokens = rearrange(self.group_norm(x), "b c h w -> b (h w) c")
        out = super().forward(tokens, context)
        return x + rearrange(out, "b (h w) c -> b c h w", h=x.shape[2])


class Level(nn.Module):
    """The resnets of one level, then its change of resolution."""

    def __init__(self, config: VAEConfig, channels: int, out: int, *, layers: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            [_resnet(config, channels if i == 0 else out, out) for i in range(layers)]
        )
        self.downsamplers: nn.ModuleList | None = None
        self.upsamplers: nn.ModuleList | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Transform x (b, c, h, w) to (b, c', h', w')."""
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
        """Transform x (b, c, h, w) to the same shape."""
        for layer in (self.resnets[0], *self.attentions, self.resnets[1]):
            x = layer(x)
        return x


class Encoder(nn.Module):
    """Maps pictures to the mean and log variance of their latents."""

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
        """Encode x (b, 3, H, W) to (b, 2 * latent_channels, h, w)."""
        x = self.conv_in(x)
        for level in (*self.down_blocks, self.mid_block):
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Decoder(nn.Module):
    """Maps latents to pictures."""

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
        """Decode x (b, latent_channels, h, w) to (b, 3, H, W)."""
        x = self.conv_in(x)
        for level in (self.mid_block, *self.up_blocks):
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class AutoencoderKL(Framewise):
    """Encodes pictures to latents 2^(levels - 1) times smaller on each side, and decodes them."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        channels = config.latent_channels
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1) if config.use_quant_conv else None
        self.post_quant_conv = nn.Conv2d(channels, channels, 1) if config.use_post_quant_conv else None

    def encode(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and standard deviation of the raw latents, not scaled for the diffusion model.

        pictures: (b, 3, H, W) in [-1, 1]. Returns (b, latent_channels, h, w) each.
        """
        moments = self.encoder(pictures)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, log_variance = moments.chunk(2, dim=1)
        return mean, torch.exp(0.5 * log_variance.clamp(-30.0, 20.0))

    def to_latents(self, pictures: Tensor) -> Tensor:
        """Encode pictures (b, 3, H, W) in [-1, 1] to the mean of the posterior, which is the same in every run.

        Returns (b, latent_channels, h, w), as the diffusion model sees them.
        """
        mean, _ = self.encode(pictures)
        return (mean - (self.config.shift_factor or 0.0)) * self.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (b, latent_channels, h, w), as the diffusion model leaves them.

        Returns (b, 3, H, W), about [-1, 1].
        """
        latents = latents / self.config.scaling_factor + (self.config.shift_factor or 0.0)
        if self.post_quant_conv is not None:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents)


def _resnet(config: VAEConfig, channels: int, out: int) -> ResnetBlock:
    return ResnetBlock(channels, out, groups=config.norm_num_groups, eps=1e-6, activation=config.act_fn)
