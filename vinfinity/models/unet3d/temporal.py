"""Temporal layers: the only ones that mix frames, and so the only ones in which ranks need each other.

Dims: b batch, f this rank's frames, h w latent height and width, n positions (h·w), c channels, g groups, d head width.
Each layer takes the rest of the video as an explicit argument `ctx: TemporalContext`. Frames are sent as they are
before a norm, together with the statistics of that norm. The receiver normalises and projects them: that is half the
bytes of keys and values, and one message less.
"""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vinfinity.models.unet3d.layers import (
    FEED_FORWARD_MEMORY,
    Attention,
    Linear,
    TransformerBlock,
    attend,
    chunks,
    convolve,
    frame_chunks,
)
from vinfinity.models.unet3d.norm import group_affine, group_moments
from vinfinity.parallel.context import TemporalContext
from vinfinity.parallel.exchange import Pending
from vinfinity.parallel.scopes import AttentionPlan


def video_sums(x: Tensor, groups: int, *, chunk_bytes: int) -> Tensor:
    """The sums from which `video_affine` computes the statistics of a GroupNorm over all frames.

    x: (b, f, h, w, c). Returns (b, g, 5) fp64: the sums over frames of 1, of the frame's mean, of its variance, and of
    the square of its mean in two parts. Each summand has 24 bits, so the sums in fp64 are exact, and the same to the
    bit however the frames are split over ranks; means of means would be rounded at every rank.
    """
    moments = [
        group_moments(rearrange(x[:, chunk], "b f h w c -> (b f) (h w) c"), groups).unflatten(0, (len(x), -1))
        for chunk in frame_chunks(x, chunk_bytes)
    ]
    mean, variance = torch.cat(moments, dim=1).double().unbind(-1)
    square = mean.square()
    high = square.float().double()
    return torch.stack([torch.ones_like(mean), mean, variance, high, square - high], dim=-1).sum(1)


def video_affine(norm: nn.GroupNorm, sums: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and shift by which a GroupNorm over all frames transforms its input.

    sums: (b, g, 5), the `video_sums` of all frames. Returns two tensors (b, 1, 1, 1, c) fp32.
    """
    count, mean, variance, high, low = sums.unbind(-1)
    mean = mean / count
    variance = ((variance + high + low) / count - mean.square()).clamp(min=0)
    scale, shift = group_affine(norm, torch.stack([mean, variance], dim=-1).float())
    return rearrange(scale, "b c -> b 1 1 1 c"), rearrange(shift, "b c -> b 1 1 1 c")


def apply_affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x * scale + shift, computed in fp32 and returned in the type of x. x: (b, f, h, w, c)."""
    return torch.addcmul(shift, x, scale).to(x.dtype)


class TemporalConvStage(nn.ModuleDict):
    """GroupNorm over the whole video, SiLU and a (3, 1, 1) convolution over time (paper, section 3.2).

    The published files number these layers: the norm is 0, the convolution 2, or 3 if there is a dropout before it.
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
        sums = video_sums(x, norm.num_groups, chunk_bytes=ctx.chunk_bytes)
        shared = sums if ctx.norm == "video" else None
        fetched = ctx.exchange.fetch(x, ctx.halo, sums=shared, label="temporal convolution").wait()
        scale, shift = video_affine(norm, sums if fetched.sums is None else fetched.sums)

        def activate(frames: Tensor) -> Tensor:
            return F.silu(torch.addcmul(shift, frames, scale), inplace=True).to(frames.dtype)

        # the model pads with zeros after the norm, at both ends of the video
        zeros = torch.zeros_like(x[:, :1])
        neighbours = activate(fetched.frames)
        first = neighbours[:, :1] if ctx.frames_before else zeros
        last = neighbours[:, -1:] if neighbours.shape[1] > ctx.frames_before else zeros
        weight = conv.weight.squeeze(-1)
        h = x.shape[2]
        previous, current = first, activate(x[:, :1])
        for chunk in frame_chunks(x, ctx.chunk_bytes):
            # out may be x: read the frame after the chunk before it is overwritten, and pass on the chunk's last frame
            rest = activate(x[:, chunk.start + 1 : chunk.stop + 1])
            at_end = rest.shape[1] < chunk.stop - chunk.start
            padded = torch.cat([previous, current, rest, *([last] if at_end else [])], dim=1)
            previous, current = padded[:, -2:-1], padded[:, -1:]
            # with (frames, positions) as height and width, this is a 2-D convolution without moving any memory
            picture = convolve(rearrange(padded, "b f h w c -> b c f (h w)"), weight, conv.bias)
            out[:, chunk] = rearrange(picture, "b c f (h w) -> b f h w c", h=h)
        return out


class TemporalConvLayer(nn.Module):
    """Four stages of norm, SiLU and convolution over time; residual. TemporalConvLayer in diffusers."""

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
    attention: Attention, x: Tensor, fetch: Callable[[], Tensor], plan: AttentionPlan
) -> Tensor:
    """Temporal attention in blocks of queries (paper, section 3.3).

    x: (b, f, n, c), this rank's frames. fetch: called once x is projected; returns the frames of other ranks,
    (b, len(plan.route.wanted), n, c), whose keys and values are projected here. Returns (b, f, n, c).
    """
    q, k, v = attention.to_q(x), attention.to_k(x), attention.to_v(x)
    fetched = fetch()
    if fetched.shape[1]:
        k, v = torch.cat([k, attention.to_k(fetched)], dim=1), torch.cat([v, attention.to_v(fetched)], dim=1)
    out = torch.empty_like(q)
    for block in plan.blocks:
        rows = slice(block.queries.start, block.queries.stop)
        query = q[:, rows]
        keys, values = (y if block.keys is None else y.index_select(1, block.keys) for y in (k, v))
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
    """Two self-attentions over time and a feed-forward layer; residual. TransformerTemporalModel in diffusers.

    The statistics of the GroupNorm are those of the whole video. Positions are independent of each other here, so
    everything but the exchange runs in chunks of positions.
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
        sums = video_sums(x, self.norm.num_groups, chunk_bytes=ctx.chunk_bytes)
        shared = sums if ctx.norm == "video" else None
        fetched = ctx.exchange.fetch(x, route, sums=shared, label="temporal attention 1").wait()
        scale, shift = video_affine(self.norm, sums if fetched.sums is None else fetched.sums)

        def project(frames: Tensor) -> Tensor:
            return rearrange(self.proj_in(apply_affine(frames, scale, shift)), "b f h w c -> b f (h w) c")

        remote = project(fetched.frames)
        hidden = x.new_empty(*x.shape[:2], remote.shape[2], remote.shape[3])
        for frames in frame_chunks(hidden, ctx.chunk_bytes):
            hidden[:, frames] = project(x[:, frames])
        position_chunks = chunks(hidden.shape[2], hidden[:, :, 0].nbytes, ctx.chunk_bytes)
        for positions in position_chunks:
            chunk = hidden[:, :, positions]
            fetch = partial(block.norm1, remote[:, :, positions])
            chunk += dual_scope_attention(block.attn1, block.norm1(chunk), fetch, plan)
        pending = ctx.exchange.fetch(hidden, route, label="temporal attention 2")
        for positions in position_chunks:
            chunk = hidden[:, :, positions]
            # the first chunk projects this rank's frames while those of the other ranks are on their way
            fetch = partial(_norm_when_arrived, block.norm2, pending, positions)
            chunk += dual_scope_attention(block.attn2, block.norm2(chunk), fetch, plan)
        for frames in frame_chunks(hidden, ctx.chunk_bytes // FEED_FORWARD_MEMORY):
            chunk = hidden[:, frames]
            chunk += block.ff(block.norm3(chunk))
            x[:, frames] += rearrange(self.proj_out(chunk), "b f (h w) c -> b f h w c", h=x.shape[2])
        return x


def _norm_when_arrived(norm: nn.Module, pending: Pending, positions: slice) -> Tensor:
    """Waits for the fetched frames, and norms some of their positions."""
    return norm(pending.wait().frames[:, :, positions])
