"""Layers of the UNet and its autoencoder.

Dims: b batch, f frames, h w height and width, n positions (h·w), m pictures or tokens, c channels, g groups,
d head width, t tokens of the context.
Hidden states are (b, f, h, w, c) or (b, m, c). With channels last, a frame is contiguous in memory, attention and
linear layers change axes without a copy, and convolutions see the same memory as channels_last.
Parameters are named as in diffusers' files.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vinfinity.models.kernels import Linear, attend, convolve, linear, uses_onednn
from vinfinity.models.offload import Frames
from vinfinity.models.unet3d.norm import GroupNorm
from vinfinity.parallel.context import TemporalContext
from vinfinity.parallel.groups import Piece

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "mish": F.mish,
    "gelu": F.gelu,
    "relu": F.relu,
}

# The temporaries of a feed-forward layer, as a multiple of its input.
FEED_FORWARD_MEMORY = 8


def frame_pieces(x: Frames | Tensor, ctx: TemporalContext, *, memory_factor: int = 1) -> list[Piece]:
    """Divide the frames of x (b, f, ...) into pieces of about ctx.chunk_bytes / memory_factor bytes."""
    frame_bytes = x.shape[0] * math.prod(x.shape[2:]) * x.dtype.itemsize
    return ctx.grouping.pieces(ctx.chunk_bytes // memory_factor // max(frame_bytes, 1))


def pad_piece(frames: Tensor, piece: Piece) -> Tensor:
    """Pad the frames of a piece that this rank holds, (b, f, ...), with zeros in place of those of other ranks."""
    if not piece.before and not piece.after:
        return frames
    return F.pad(frames, (0, 0) * (frames.dim() - 2) + (piece.before, piece.after))


def unpad_piece(frames: Tensor, piece: Piece) -> Tensor:
    """Undo `pad_piece`. Returns a view."""
    return frames[:, piece.before : frames.shape[1] - piece.after]


def frames_first(x: Tensor) -> Tensor:
    """(b, f, h, w, c) -> (b·f, c, h, w) as channels_last, without a copy if x is contiguous."""
    return rearrange(x.flatten(0, 1), "m h w c -> m c h w")


def frames_last(x: Tensor, batch: int) -> Tensor:
    """(b·f, c, h, w) -> (b, f, h, w, c), contiguous; a view if x is channels_last."""
    return rearrange(x, "(b f) c h w -> b f h w c", b=batch).contiguous()


class Conv2d(nn.Conv2d):
    """A convolution that computes with `convolve`, or with `linear` if the kernel is 1x1."""

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """Convolve x (m, c, h, w). shift: (c',), added to the bias."""
        bias = self.bias if self.bias is None or shift is None else self.bias + shift
        if self.kernel_size == (1, 1) and uses_onednn(x):
            positions = rearrange(x, "m c h w -> m h w c")
            return rearrange(linear(positions, self.weight.flatten(1), bias), "m h w c -> m c h w")
        return convolve(x, self.weight, bias, stride=self.stride, padding=self.padding)


class Attention(nn.Module):
    """One attention with its projections to_q, to_k, to_v, to_out.0 (Vaswani et al. 2017).

    width: channels of the states that queries come from. context: channels of the states that keys and values come
    from; defaults to `width`.
    """

    def __init__(
        self, width: int, *, heads: int, head_width: int, context: int | None = None, bias: bool = False
    ) -> None:
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.to_q = Linear(width, inner, bias=bias)
        self.to_k = Linear(context or width, inner, bias=bias)
        self.to_v = Linear(context or width, inner, bias=bias)
        self.to_out = nn.ModuleList([Linear(inner, width)])

    def joint_weight(self) -> Tensor:
        """Concatenate the weights of queries, keys and values: (3·inner, width)."""
        return torch.cat([self.to_q.weight, self.to_k.weight, self.to_v.weight])

    def _joint_bias(self) -> Tensor | None:
        if self.to_q.bias is None:
            return None
        return torch.cat([self.to_q.bias, self.to_k.bias, self.to_v.bias])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Attend from x (b, m, c) to context (b, t, c2), or to x itself if it is None. Returns (b, m, c)."""
        if context is None:
            # a single pass over x, see `joint_weight`
            parts = linear(x, self.joint_weight(), self._joint_bias()).chunk(3, dim=-1)
        else:
            parts = self.to_q(x), self.to_k(context), self.to_v(context)
        out = attend(*(rearrange(y, "b m (heads d) -> b heads m d", heads=self.heads) for y in parts))
        return self.to_out[0](rearrange(out, "b heads m d -> b m (heads d)"))


class GEGLU(nn.Module):
    """x W1 * gelu(x W2) (Shazeer 2020). The published `proj` is W1 followed by W2."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        # two products rather than two halves of one: both are contiguous, and the result reuses the gate's memory
        value, gate = zip(self.proj.weight.chunk(2), self.proj.bias.chunk(2), strict=True)
        return F.gelu(linear(x, *gate)).mul_(linear(x, *value))


class FeedForward(nn.Module):
    """GEGLU and a linear layer. net.1 stands for the dropout of the published files, which has no parameters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([GEGLU(width, 4 * width), nn.Identity(), Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = layer(x)
        return x


class TransformerBlock(nn.Module):
    """The parameters of two attentions and a feed-forward layer, each with its LayerNorm.

    attn2 attends to a context of `context` channels, or to the states themselves if `context` is None.
    """

    def __init__(self, width: int, *, heads: int, head_width: int, context: int | None = None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, heads=heads, head_width=head_width)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, heads=heads, head_width=head_width, context=context)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)


class ResnetBlock(nn.Module):
    """Two convolutions with the time embedding between them, per frame (He et al. 2016, as in Stable Diffusion).

    out_scale: divisor of the sum (`output_scale_factor` in diffusers).
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        groups: int,
        eps: float,
        time_channels: int | None = None,
        activation: str = "silu",
        out_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, channels, eps=eps)
        self.conv1 = Conv2d(channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_channels, out_channels) if time_channels else None
        self.norm2 = GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = Conv2d(channels, out_channels, 1) if channels != out_channels else None
        self.activation = ACTIVATIONS[activation]
        self.out_scale = out_scale

    def forward(self, x: Tensor, time: Tensor | None = None, *, out: Tensor | None = None) -> Tensor:
        """Transform x (b·f, c, h, w) to (b·f, c', h, w). time: (1, time_channels). out: where to write the result."""
        shift = None
        if self.time_emb_proj is not None:
            assert time is not None
            # equal for all frames and positions, like a bias
            shift = self.time_emb_proj(self.activation(time))[0]
        hidden = self.conv1(self.activation(self.norm1(x)), shift)
        hidden = self.conv2(self.activation(self.norm2(hidden)))
        residual = x if self.conv_shortcut is None else self.conv_shortcut(x)
        total = hidden.add_(residual) if out is None else torch.add(hidden, residual, out=out)
        return total.div_(self.out_scale) if self.out_scale != 1.0 else total


class Downsample(nn.Module):
    """Halves height and width with a convolution of stride 2.

    padding: 1 pads all edges, 0 only the right and lower ones.
    """

    def __init__(self, channels: int, *, padding: int = 1) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, stride=2, padding=padding)
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if self.padding else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour upsampling to `size` (height, width), None for twice the size, and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        if size is None:
            size = (2 * x.shape[-2], 2 * x.shape[-1])
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


class TimestepEmbedding(nn.Module):
    """Two linear layers over sinusoids. cond_proj adds a condition, such as an embedding of the guidance scale."""

    def __init__(
        self, width: int, out: int, *, activation: str = "silu", condition: int | None = None
    ) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, out)
        self.linear_2 = nn.Linear(out, out)
        self.cond_proj = nn.Linear(condition, width, bias=False) if condition is not None else None
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Embed x (b, width). condition: (b, condition), only for models with a cond_proj. Returns (b, out)."""
        if condition is not None:
            if self.cond_proj is None:
                raise ValueError(
                    "this model takes no condition in its time embedding (time_cond_proj_dim is not set)"
                )
            x = x + self.cond_proj(condition)
        return self.linear_2(self.activation(self.linear_1(x)))
