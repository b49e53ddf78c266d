"""Layers of the causal autoencoder, and the frames that they keep between calls.

Dims: b videos, c channels, t frames of a call, h w height and width. Hidden states are (b, c, t, h, w), channels last
in memory. A video takes consecutive calls; each convolution sees its frame and the two before it, which are zeros
before the start of the video. Parameters are named as in diffusers' AutoencoderKLWan.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vinfinity.models.wan.vae_config import EARLIER_FRAMES

LAYOUT = torch.channels_last_3d


class FrameCache:
    """The last frames that each convolution over time has seen, so that the next call can continue from them.

    first: whether the call has the first frame of the video, which has a latent frame of its own.
    """

    def __init__(self) -> None:
        self.first = True
        self._kept: dict[nn.Module, Tensor] = {}

    @property
    def bytes(self) -> int:
        """Bytes of the frames that are kept."""
        return sum(frames.nbytes for frames in self._kept.values())

    def append(
        self, layer: nn.Module, x: Tensor, *, norm: "RMSNorm | None" = None, keep: int = EARLIER_FRAMES
    ) -> Tensor:
        """Append x (b, c, t, h, w) to the frames that `layer` saw last, and keep the last ones.

        norm: append silu(norm(x)) instead. keep: number of frames to keep. Returns (b, c, keep + t, h, w).
        """
        b, c, t, h, w = x.shape
        shape = b, c, keep + t, h, w
        joined = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=LAYOUT)
        new = joined[:, :, keep:]
        if norm is None:
            new.copy_(x)
        else:
            F.silu(norm(x, out=new), inplace=True)
        if layer in self._kept:
            joined[:, :, :keep] = self._kept[layer]
            self._kept[layer].copy_(joined[:, :, t:])
        else:
            joined[:, :, :keep] = 0
            self._kept[layer] = joined[:, :, t:].clone(memory_format=LAYOUT)
        return joined


class RMSNorm(nn.Module):
    """Divides each position by the root mean square of its channels.

    dims: number of the parameter's dimensions after the channels.
    """

    def __init__(self, channels: int, *, dims: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * dims))

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Normalise x (m, c, ...). out: where to write the result."""
        exact = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=exact)
        scale = (math.sqrt(x.shape[1]) / norm.clamp_(min=1e-12)).to(x.dtype)
        return torch.mul(x, scale, out=out).mul_(self.gamma)


class CausalConv3d(nn.Conv3d):
    """A convolution over positions and, if the kernel has 3 frames, over a frame and the two before it."""

    def __init__(self, channels: int, out: int, *, kernel: tuple[int, int, int] = (3, 3, 3)) -> None:
        super().__init__(channels, out, kernel, padding=(0, kernel[1] // 2, kernel[2] // 2))

    @property
    def reach(self) -> int:
        """Number of earlier frames that it sees."""
        return self.kernel_size[0] - 1

    def after(self, x: Tensor, cache: FrameCache, *, norm: RMSNorm | None = None) -> Tensor:
        """Convolve x (b, c, t, h, w), the frames that follow those of the last call. Returns (b, c', t, h, w).

        norm: convolve silu(norm(x)) instead of x.
        """
        return self(cache.append(self, x, norm=norm))


class ResidualBlock(nn.Module):
    """Norm, SiLU and convolution, twice; residual."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(channels)
        self.conv1 = CausalConv3d(channels, out)
        self.norm2 = RMSNorm(out)
        self.conv2 = CausalConv3d(out, out)
        self.conv_shortcut = None if channels == out else CausalConv3d(channels, out, kernel=(1, 1, 1))

    def forward(self, x: Tensor, cache: FrameCache) -> Tensor:
        """Transform x (b, c, t, h, w) to (b, c', t, h, w)."""
        hidden = self.conv1.after(x, cache, norm=self.norm1)
        hidden = self.conv2.after(hidden, cache, norm=self.norm2)
        return hidden.add_(x if self.conv_shortcut is None else self.conv_shortcut(x))


class AttentionBlock(nn.Module):
    """Single-headed self-attention over the positions of a frame, after a norm; residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = RMSNorm(channels, dims=2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, cache: FrameCache) -> Tensor:
        """Transform x (b, c, t, h, w) to the same shape."""
        b, _, _, h, _ = x.shape
        frames = rearrange(x, "b c t h w -> (b t) c h w")
        tokens = rearrange(self.to_qkv(self.norm(frames)), "m c h w -> m 1 (h w) c")
        out = F.scaled_dot_product_attention(*tokens.chunk(3, dim=-1))
        picture = self.proj(rearrange(out, "m 1 (h w) c -> m c h w", h=h))
        return x + rearrange(picture, "(b t) c h w -> b c t h w", b=b)


class Upsample(nn.Module):
    """Doubles height and width and, with `time`, the frames, except for the first one of the video."""

    def __init__(self, channels: int, out: int, *, time: bool) -> None:
        super().__init__()
        # numbered as in the files, in which upsampling is a layer without parameters
        self.resample = nn.Sequential(nn.Identity(), nn.Conv2d(channels, out, 3, padding=1))
        self.time_conv = CausalConv3d(channels, 2 * channels, kernel=(3, 1, 1)) if time else None

    def forward(self, x: Tensor, cache: FrameCache) -> Tensor:
        """Transform x (b, c, t, h, w) to (b, c', t or 2 t, 2 h, 2 w)."""
        if self.time_conv is not None and not cache.first:
            x = rearrange(
                self.time_conv.after(x, cache), "b (two c) t h w -> b c (t two) h w", two=2
            ).contiguous(memory_format=LAYOUT)
        b = len(x)
        frames = F.interpolate(rearrange(x, "b c t h w -> (b t) c h w"), scale_factor=2.0, mode="nearest")
        # this may be the last reference to it
        del x
        return rearrange(self.resample(frames), "(b t) c h w -> b c t h w", b=b)


class Downsample(nn.Module):
    """Halves height and width and, with `time`, the frames, except for the first one of the video."""

    def __init__(self, channels: int, *, time: bool) -> None:
        super().__init__()
        # numbered as in the files, in which padding is a layer
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))
        self.time_conv = nn.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1)) if time else None

    def forward(self, x: Tensor, cache: FrameCache) -> Tensor:
        """Transform x (b, c, t, h, w) to (b, c, 1 or t / 2, h / 2, w / 2)."""
        b = len(x)
        frames = self.resample(rearrange(x, "b c t h w -> (b t) c h w"))
        x = rearrange(frames, "(b t) c h w -> b c t h w", b=b)
        if self.time_conv is None:
            return x
        # one frame before each pair
        joined = cache.append(self.time_conv, x, keep=1)
        return x if cache.first else self.time_conv(joined)
