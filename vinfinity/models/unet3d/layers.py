"""Layers that the networks share.

Dims: b batch, f frames, h w height and width, n positions (h·w), c channels, g groups, d head width, t tokens.
Hidden states are (b, f, h, w, c) or (b, m, c): channels last, so that a frame is one stretch of memory and neither
attention nor a linear layer has to copy for a change of axes; convolutions see the same memory as channels_last.
Parameter names are those of diffusers' files.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vinfinity.models.unet3d.norm import GroupNorm

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "mish": F.mish,
    "gelu": F.gelu,
    "relu": F.relu,
}


PICTURES = 16  # from which on torch hands 1x1 convolutions to oneDNN
SMALL = 20480  # numbers of a picture that torch does not hand to oneDNN, if it is alone
QUERIES = 4  # of so many or a multiple, each comes out the same on a CPU whatever others it comes with
WIDENED = 8  # a feed-forward layer's temporaries to its input


def blocks(count: int, each: int, limit: int) -> list[slice]:
    """Splits `count` items of `each` bytes into stretches of about `limit` bytes, so that temporaries stay bounded."""
    size = max(1, limit // max(each, 1))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def frame_blocks(x: Tensor, limit: int) -> list[slice]:
    """Stretches of the frames of x (b, f, ...)."""
    return blocks(x.shape[1], x.shape[0] * x[:1, :1].numel() * x.element_size(), limit)


def frames_first(x: Tensor) -> Tensor:
    """(b, f, h, w, c) -> (b·f, c, h, w) as channels_last, without a copy where x is contiguous."""
    return rearrange(x.flatten(0, 1), "m h w c -> m c h w")


def frames_last(x: Tensor, batch: int) -> Tensor:
    """(b·f, c, h, w) -> (b, f, h, w, c), a view where x is channels_last; contiguous."""
    return rearrange(x, "(b f) c h w -> b f h w c", b=batch).contiguous()


def by_onednn(x: Tensor) -> bool:
    """Whether convolutions of x go to oneDNN, and linear layers are made to (docs/decisions/0006).

    There, a frame comes out the same to the bit whatever others it comes with, and so on any number of ranks, unless
    there is so little at once that other kernels are chosen: layers see to it that there is enough.
    """
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + bias. In fp32 on a CPU it runs as a 1x1 convolution over channels-last memory: convolutions go to oneDNN,
    matrix products to MKL, which takes 2.3 times as long on CPUs that are not Intel's (docs/decisions/0006).

    x: (..., c). weight: (c', c). bias: (c',). Returns (..., c').
    """
    if not by_onednn(x) or not x.numel():
        return F.linear(x, weight, bias)
    vectors = x.reshape(-1, x.shape[-1])
    count = len(vectors)
    rows = picture_rows(count)
    if rows is None:
        rows = PICTURES
        vectors = F.pad(vectors, (0, 0, 0, -count % rows))
    picture = rearrange(vectors.view(rows, -1, 1, x.shape[-1]), "rows m one c -> rows c m one")
    done = F.conv2d(picture, weight[:, :, None, None], bias)
    return rearrange(done, "rows c m one -> (rows m one) c")[:count].view(*x.shape[:-1], -1)


@cache
def picture_rows(vectors: int) -> int | None:
    """In how many equal rows `vectors` vectors are laid out as a batch of pictures: torch hands 1x1 convolutions to
    oneDNN from 16 pictures on. None where they cannot be.
    """
    return next((rows for rows in range(PICTURES, min(vectors, 256) + 1) if vectors % rows == 0), None)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, **how: Any) -> Tensor:
    """F.conv2d of pictures (m, c, h, w), each the same whatever others it comes with: a small one alone is kept
    from oneDNN by torch, and summed in another order.
    """
    if by_onednn(x) and len(x) == 1 and x.numel() <= SMALL:
        return F.conv2d(torch.cat([x, x]), weight, bias, **how)[:1]
    return F.conv2d(x, weight, bias, **how)


class Conv2d(nn.Conv2d):
    """A convolution by `convolve`, or by `linear` where it looks at single places."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (m, c, h, w)."""
        if self.kernel_size == (1, 1) and by_onednn(x):
            places = rearrange(x, "m c h w -> m h w c")
            return rearrange(linear(places, self.weight.flatten(1), self.bias), "m h w c -> m c h w")
        return convolve(x, self.weight, self.bias, stride=self.stride, padding=self.padding)


def attend(q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None) -> Tensor:
    """Softmax attention. q: (b, heads, m, d); k, v: (b, heads, t, d); bias: (m, t) on the logits. As q in shape."""
    count = q.shape[2]
    if by_onednn(q) and count % QUERIES:
        q = F.pad(q, (0, 0, 0, -count % QUERIES))
        bias = None if bias is None else F.pad(bias, (0, 0, 0, -count % QUERIES))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)[:, :, :count]


class Linear(nn.Linear):
    """A linear layer by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in_features). Returns (..., out_features)."""
        return linear(x, self.weight, self.bias)


class Attention(nn.Module):
    """The projections of one attention: to_q, to_k, to_v, to_out.0 (Vaswani et al. 2017).

    Raises ValueError where `width` is no multiple of `head_width`.
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

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: (b, m, c); context: (b, t, c2), x itself where None. Returns (b, m, c)."""
        source = x if context is None else context
        q, k, v = (
            rearrange(y, "b m (heads d) -> b heads m d", heads=self.heads)
            for y in (self.to_q(x), self.to_k(source), self.to_v(source))
        )
        out = attend(q, k, v)
        return self.to_out[0](rearrange(out, "b heads m d -> b m (heads d)"))


class GEGLU(nn.Module):
    """x W1 * gelu(x W2) (Shazeer 2020); W1 and W2 lie one after the other in the published `proj`."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        # two products rather than halves of one: each is contiguous, and the gate's memory is used again
        value, gate = zip(self.proj.weight.chunk(2), self.proj.bias.chunk(2), strict=True)
        return F.gelu(linear(x, *gate)).mul_(linear(x, *value))


class FeedForward(nn.Module):
    """GEGLU and a linear layer; net.1 is the published files' dropout, which has no parameters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([GEGLU(width, 4 * width), nn.Identity(), Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = layer(x)
        return x


class TransformerBlock(nn.Module):
    """The parameters of two attentions and a feed-forward layer, each after its LayerNorm.

    attn2 attends to a context of width `context`, to the states themselves where that is None.
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
    """Two convolutions around the time embedding, per frame (He et al. 2016, as in Stable Diffusion).

    out_scale divides the sum, as `output_scale_factor` does in diffusers.
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

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """x: (b·f, c, h, w); time: (b·f, time_channels), or (1, time_channels) for all. Returns (b·f, c', h, w)."""
        hidden = self.conv1(self.activation(self.norm1(x)))
        if self.time_emb_proj is not None:
            assert time is not None
            hidden += self.time_emb_proj(self.activation(time))[:, :, None, None]
        hidden = self.conv2(self.activation(self.norm2(hidden)))
        hidden += x if self.conv_shortcut is None else self.conv_shortcut(x)
        return hidden.div_(self.out_scale) if self.out_scale != 1.0 else hidden


def channels_last(weight: Tensor) -> Tensor:
    """A weight laid out as convolutions over channels-last memory read it; else each call would turn it first."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return weight.contiguous(memory_format=formats[weight.dim()]) if weight.dim() in formats else weight


class Downsample(nn.Module):
    """Halves height and width by a convolution of stride 2; padding 0 pads the right and lower edge only."""

    def __init__(self, channels: int, *, padding: int = 1) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, stride=2, padding=padding)
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if self.padding else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour upsampling to `size` (height, width), doubling where None, and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        if size is None:
            size = (2 * x.shape[-2], 2 * x.shape[-1])
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


def sinusoids(values: Tensor, width: int) -> Tensor:
    """Cosines, then sines of `values` at width/2 geometric frequencies (DDPM, as in Stable Diffusion).

    values: (b,) any number type. Returns (b, width) fp32.
    """
    half = width // 2
    frequencies = torch.exp(
        -torch.arange(half, dtype=torch.float32, device=values.device) * (9.210340371976184 / half)
    )
    angles = values.float()[:, None] * frequencies[None, :]
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=-1), (0, width % 2))


class TimestepEmbedding(nn.Module):
    """Two linear layers over sinusoids; cond_proj adds a condition, such as the guidance weight's embedding."""

    def __init__(
        self, width: int, out: int, *, activation: str = "silu", condition: int | None = None
    ) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, out)
        self.linear_2 = nn.Linear(out, out)
        self.cond_proj = nn.Linear(condition, width, bias=False) if condition is not None else None
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """x: (b, width); condition: (b, condition width), only for models that have one. Returns (b, out)."""
        if condition is not None:
            if self.cond_proj is None:
                raise ValueError(
                    "this model takes no condition in its time embedding (time_cond_proj_dim is not set)"
                )
            x = x + self.cond_proj(condition)
        return self.linear_2(self.activation(self.linear_1(x)))
