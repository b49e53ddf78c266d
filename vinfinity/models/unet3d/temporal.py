"""Temporal layers: the only ones through which frames, and so ranks, learn of each other.

Dims: b batch, f this rank's frames, h w latent height and width, n positions (h·w), c channels, g groups, d head width.
Each layer takes the rest of the video as an explicit `ctx: TemporalContext`. Frames travel as they are before a norm,
together with the statistics of that norm: the receiver normalises and projects them itself, which moves half of the
bytes of keys and values and saves a message.
"""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vinfinity.models.unet3d.layers import (
    WIDENED,
    Attention,
    Linear,
    TransformerBlock,
    attend,
    blocks,
    convolve,
    frame_blocks,
)
from vinfinity.models.unet3d.norm import group_affine, group_moments
from vinfinity.parallel.context import TemporalContext
from vinfinity.parallel.exchange import Pending
from vinfinity.parallel.scopes import AttentionPlan


def video_sums(x: Tensor, groups: int, *, limit: int) -> Tensor:
    """What the statistics of a GroupNorm over all frames follow from: sums over frames, positions and channels.

    x: (b, f, h, w, c). Returns (b, g, 5) fp64: the sums over frames of 1, of their means, of their variances, and of
    the squares of their means in two parts. The numbers that are added have 24 bits each, so that the sums in fp64 are
    exact, and the same to the bit whichever ranks hold which frames; means would be rounded with every part.
    """
    parts = [
        group_moments(rearrange(x[:, some], "b f h w c -> (b f) (h w) c"), groups).unflatten(0, (len(x), -1))
        for some in frame_blocks(x, limit)
    ]
    mean, variance = torch.cat(parts, dim=1).double().unbind(-1)
    square = mean.square()
    high = square.float().double()
    return torch.stack([torch.ones_like(mean), mean, variance, high, square - high], dim=-1).sum(1)


def video_affine(norm: nn.GroupNorm, sums: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and shift of a GroupNorm over all frames. sums: (b, g, 5) of them. Returns two (b, 1, 1, 1, c) fp32."""
    count, mean, variance, high, low = sums.unbind(-1)
    mean = mean / count
    variance = ((variance + high + low) / count - mean.square()).clamp(min=0)
    scale, shift = group_affine(norm, torch.stack([mean, variance], dim=-1).float())
    return rearrange(scale, "b c -> b 1 1 1 c"), rearrange(shift, "b c -> b 1 1 1 c")


def apply_affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x * scale + shift in fp32, returned in x's type. x: (b, f, h, w, c)."""
    return torch.addcmul(shift, x, scale).to(x.dtype)


class TemporalConvStage(nn.ModuleDict):
    """GroupNorm over the whole video, SiLU and a (3, 1, 1) convolution over time (paper, section 3.2).

    The published files number these layers: the norm is 0 and the convolution 2, or 3 where a dropout comes before it.
    """

    def __init__(self, channels: int, *, groups: int, conv: int) -> None:
        super().__init__(
            {
                "0": nn.GroupNorm(groups, channels),
                str(conv): nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0)),
            }
        )

    def forward(self, x: Tensor, ctx: TemporalContext, *, out: Tensor) -> Tensor:
        """x, out: (b, f, h, w, c); out may be x itself. Returns out."""
        norm, conv = cast(tuple[nn.GroupNorm, nn.Conv3d], tuple(self.values()))
        sums = video_sums(x, norm.num_groups, limit=ctx.chunk_bytes)
        shared = sums if ctx.norm == "video" else None
        fetched = ctx.exchange.fetch(x, ctx.halo, sums=shared, label="temporal convolution").wait()
        scale, shift = video_affine(norm, sums if fetched.sums is None else fetched.sums)

        def enter(frames: Tensor) -> Tensor:
            return F.silu(torch.addcmul(shift, frames, scale), inplace=True).to(frames.dtype)

        # beyond the video's ends there are zeros, after the norm, as the model's own padding
        nothing = torch.zeros_like(x[:, :1])
        neighbours = enter(fetched.frames)
        first = neighbours[:, :1] if ctx.frames_before else nothing
        last = neighbours[:, -1:] if neighbours.shape[1] > ctx.frames_before else nothing
        weight = conv.weight.squeeze(-1)
        h = x.shape[2]
        before, following = first, enter(x[:, :1])
        for some in frame_blocks(x, ctx.chunk_bytes):
            # each stretch reads one frame beyond its end before it is overwritten, and hands on its own last one
            rest = enter(x[:, some.start + 1 : some.stop + 1])
            at_end = rest.shape[1] < some.stop - some.start
            padded = torch.cat([before, following, rest, *([last] if at_end else [])], dim=1)
            before, following = padded[:, -2:-1], padded[:, -1:]
            # over (frames, positions) as a picture, (3, 1) is a 2-D convolution on memory as it lies
            picture = convolve(rearrange(padded, "b f h w c -> b c f (h w)"), weight, conv.bias)
            out[:, some] = rearrange(picture, "b c f (h w) -> b f h w c", h=h)
        return out


class TemporalConvLayer(nn.Module):
    """Four stages of norm, SiLU and convolution over time; residual. diffusers' TemporalConvLayer."""

    def __init__(self, channels: int, *, groups: int) -> None:
        super().__init__()
        self.conv1 = TemporalConvStage(channels, groups=groups, conv=2)
        self.conv2 = TemporalConvStage(channels, groups=groups, conv=3)
        self.conv3 = TemporalConvStage(channels, groups=groups, conv=3)
        self.conv4 = TemporalConvStage(channels, groups=groups, conv=3)

    def forward(self, x: Tensor, ctx: TemporalContext) -> Tensor:
        """x: (b, f, h, w, c), changed in place and returned."""
        hidden = self.conv1(x, ctx, out=torch.empty_like(x))
        for stage in (self.conv2, self.conv3, self.conv4):
            stage(hidden, ctx, out=hidden)
        return x.add_(hidden)


def dual_scope_attention(
    attention: Attention, x: Tensor, theirs: Callable[[], Tensor], plan: AttentionPlan
) -> Tensor:
    """Temporal attention in blocks of queries (paper, section 3.3; DESIGN section 2).

    x: (b, f, n, c), this rank's frames. theirs: called when x is projected, gives the fetched frames
    (b, len(plan.route.wanted), n, c); their keys and values are projected here, on the receiving side.
    Returns (b, f, n, c).
    """
    q, k, v = attention.to_q(x), attention.to_k(x), attention.to_v(x)
    fetched = theirs()
    if fetched.shape[1]:
        k, v = torch.cat([k, attention.to_k(fetched)], dim=1), torch.cat([v, attention.to_v(fetched)], dim=1)
    out = torch.empty_like(q)
    for block in plan.blocks:
        rows = slice(block.queries.start, block.queries.stop)
        query = q[:, rows]
        keys, values = (some if block.keys is None else some.index_select(1, block.keys) for some in (k, v))
        if block.scale is not None:
            query = query * block.scale[:, None, None].to(q.dtype)
        bias = None if block.bias is None else block.bias.to(q.dtype)
        for i in range(q.shape[0]):
            per_head = [
                rearrange(y[i], "f n (heads d) -> n heads f d", heads=attention.heads)
                for y in (query, keys, values)
            ]
            out[i, rows] = rearrange(attend(*per_head, bias=bias), "n heads f d -> f n (heads d)")
    return attention.to_out[0](out)


class TemporalTransformer(nn.Module):
    """Two self-attentions over time and a feed-forward layer; residual. diffusers' TransformerTemporalModel.

    The GroupNorm's statistics are those of the whole video. Positions do not see each other here, so that all but the
    exchange runs over stretches of positions.
    """

    def __init__(self, channels: int, *, heads: int, head_width: int, groups: int) -> None:
        super().__init__()
        inner = heads * head_width
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = Linear(channels, inner)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(inner, heads=heads, head_width=head_width)])
        self.proj_out = Linear(inner, channels)

    def forward(self, x: Tensor, ctx: TemporalContext) -> Tensor:
        """x: (b, f, h, w, c), changed in place and returned."""
        plan, route = ctx.attention, ctx.attention.route
        block = cast(TransformerBlock, self.transformer_blocks[0])
        sums = video_sums(x, self.norm.num_groups, limit=ctx.chunk_bytes)
        shared = sums if ctx.norm == "video" else None
        fetched = ctx.exchange.fetch(x, route, sums=shared, label="temporal attention 1").wait()
        scale, shift = video_affine(self.norm, sums if fetched.sums is None else fetched.sums)

        def enter(frames: Tensor) -> Tensor:
            return rearrange(self.proj_in(apply_affine(frames, scale, shift)), "b f h w c -> b f (h w) c")

        theirs = enter(fetched.frames)
        hidden = x.new_empty(*x.shape[:2], theirs.shape[2], theirs.shape[3])
        for some in frame_blocks(hidden, ctx.chunk_bytes):
            hidden[:, some] = enter(x[:, some])
        places = blocks(hidden.shape[2], hidden[:, :, 0].nbytes, ctx.chunk_bytes)
        for some in places:
            part = hidden[:, :, some]
            others = partial(block.norm1, theirs[:, :, some])
            part += dual_scope_attention(block.attn1, block.norm1(part), others, plan)
        pending = ctx.exchange.fetch(hidden, route, label="temporal attention 2")
        for some in places:
            part = hidden[:, :, some]
            # the first stretch projects its own frames while the others' are on their way
            others = partial(_norm_arrived, block.norm2, pending, some)
            part += dual_scope_attention(block.attn2, block.norm2(part), others, plan)
        for some in frame_blocks(hidden, ctx.chunk_bytes // WIDENED):
            part = hidden[:, some]
            part += block.ff(block.norm3(part))
            x[:, some] += rearrange(self.proj_out(part), "b f (h w) c -> b f h w c", h=x.shape[2])
        return x


def _norm_arrived(norm: nn.Module, pending: Pending, places: slice) -> Tensor:
    return norm(pending.wait().frames[:, :, places])
