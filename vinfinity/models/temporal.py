"""Temporal layers: the only ones through which frames, and so ranks, learn of each other.

Dims: b batch, f this rank's frames, h w latent height and width, n positions (h·w), c channels, g groups, d head width.
Each layer takes the rest of the video as an explicit `ctx: TemporalContext`. Frames travel as they are before a norm,
together with the statistics of that norm: the receiver normalises and projects them itself, which moves half of the
bytes of keys and values and saves a message.
"""

from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vinfinity.models.layers import Attention, TransformerBlock
from vinfinity.parallel.context import AttentionPlan, TemporalContext
from vinfinity.parallel.exchange import Done, Fetched, Pending


def group_moments(x: Tensor, groups: int) -> Tensor:
    """Mean and variance over frames, positions and the channels of each group.

    x: (b, f, h, w, c). Returns (b, g, 2) fp32.
    """
    grouped = rearrange(x, "b f h w (g c) -> b (f h w) g c", g=groups).float()
    variance, mean = torch.var_mean(grouped, dim=(1, 3), correction=0)
    return torch.stack([mean, variance], dim=-1)


def group_affine(norm: nn.GroupNorm, moments: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and shift that a GroupNorm with these moments applies.

    moments: (b, g, 2) fp32. Returns two tensors (b, 1, 1, 1, c) fp32.
    """
    mean, variance = (
        m.repeat_interleave(norm.num_channels // norm.num_groups, dim=1) for m in moments.unbind(-1)
    )
    scale = norm.weight.float() * torch.rsqrt(variance + norm.eps)
    shift = norm.bias.float() - mean * scale
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

    def forward(self, x: Tensor, ctx: TemporalContext) -> Tensor:
        """x: (b, f, h, w, c). Returns the same shape."""
        norm, conv = cast(tuple[nn.GroupNorm, nn.Conv3d], tuple(self.values()))
        moments = group_moments(x, norm.num_groups)
        shared = moments if ctx.norm == "video" else None
        fetched = ctx.exchange.fetch(x, ctx.halo, moments=shared, label="temporal convolution").wait()
        scale, shift = group_affine(norm, moments if fetched.moments is None else fetched.moments)

        # the neighbours' frames on either side; zeros beyond the video's ends, after the norm, as the model's padding
        padded = x.new_zeros(x.shape[0], x.shape[1] + 2, *x.shape[2:])
        padded[:, 1:-1] = F.silu(apply_affine(x, scale, shift))
        before = ctx.frames_before
        after = fetched.frames.shape[1] - before
        if before:
            padded[:, :1] = F.silu(apply_affine(fetched.frames[:, :1], scale, shift))
        if after:
            padded[:, -1:] = F.silu(apply_affine(fetched.frames[:, -1:], scale, shift))
        # over (frames, positions) as a picture, (3, 1) is a 2-D convolution on memory as it lies
        h, w = x.shape[2:4]
        out = F.conv2d(rearrange(padded, "b f h w c -> b c f (h w)"), conv.weight.squeeze(-1), conv.bias)
        return rearrange(out, "b c f (h w) -> b f h w c", h=h, w=w).contiguous()


class TemporalConvLayer(nn.Module):
    """Four stages of norm, SiLU and convolution over time; residual. diffusers' TemporalConvLayer."""

    def __init__(self, channels: int, *, groups: int) -> None:
        super().__init__()
        self.conv1 = TemporalConvStage(channels, groups=groups, conv=2)
        self.conv2 = TemporalConvStage(channels, groups=groups, conv=3)
        self.conv3 = TemporalConvStage(channels, groups=groups, conv=3)
        self.conv4 = TemporalConvStage(channels, groups=groups, conv=3)

    def forward(self, x: Tensor, ctx: TemporalContext) -> Tensor:
        """x: (b, f, h, w, c). Returns the same shape."""
        hidden = x
        for stage in (self.conv1, self.conv2, self.conv3, self.conv4):
            hidden = stage(hidden, ctx)
        return x + hidden


def dual_scope_attention(attention: Attention, x: Tensor, pending: Pending, plan: AttentionPlan) -> Tensor:
    """Temporal attention in blocks of queries (paper, section 3.3; DESIGN section 2).

    x: (b, f, n, c), this rank's frames. pending: the others' frames (b, len(plan.route.wanted), n, c), which may still
    be on their way: keys and values are projected here, on the receiving side. Returns (b, f, n, c).
    """
    q, own_k, own_v = attention.to_q(x), attention.to_k(x), attention.to_v(x)
    theirs = pending.wait().frames
    fetched_k, fetched_v = attention.to_k(theirs), attention.to_v(theirs)
    out = torch.empty_like(q)
    for block in plan.blocks:
        rows = slice(block.queries.start, block.queries.stop)
        keys = torch.cat([own_k.index_select(1, block.own), fetched_k.index_select(1, block.fetched)], dim=1)
        values = torch.cat(
            [own_v.index_select(1, block.own), fetched_v.index_select(1, block.fetched)], dim=1
        )
        bias = None if block.bias is None else block.bias.to(q.dtype)
        for i in range(q.shape[0]):
            query = q[i, rows]
            if block.scale is not None:
                query = query * block.scale[:, None, None].to(q.dtype)
            per_head = (
                rearrange(y, "f n (heads d) -> n heads f d", heads=attention.heads)
                for y in (query, keys[i], values[i])
            )
            attended = F.scaled_dot_product_attention(*per_head, attn_mask=bias)  # type: ignore[misc,arg-type]
            out[i, rows] = rearrange(attended, "n heads f d -> f n (heads d)")
    return attention.to_out[0](out)


class TemporalTransformer(nn.Module):
    """Two self-attentions over time and a feed-forward layer; residual. diffusers' TransformerTemporalModel.

    The GroupNorm's statistics are those of the whole video.
    """

    def __init__(self, channels: int, *, heads: int, head_width: int, groups: int) -> None:
        super().__init__()
        inner = heads * head_width
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, inner)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(inner, heads=heads, head_width=head_width)])
        self.proj_out = nn.Linear(inner, channels)

    def forward(self, x: Tensor, ctx: TemporalContext) -> Tensor:
        """x: (b, f, h, w, c). Returns the same shape."""
        plan = ctx.attention
        moments = group_moments(x, self.norm.num_groups)
        shared = moments if ctx.norm == "video" else None
        fetched = ctx.exchange.fetch(x, plan.route, moments=shared, label="temporal attention 1").wait()
        scale, shift = group_affine(self.norm, moments if fetched.moments is None else fetched.moments)

        def enter(frames: Tensor) -> Tensor:
            hidden = self.proj_in(apply_affine(frames, scale, shift))
            return rearrange(hidden, "b f h w c -> b f (h w) c")

        hidden, theirs = enter(x), enter(fetched.frames)
        block = cast(TransformerBlock, self.transformer_blocks[0])
        arrived = Done(Fetched(frames=block.norm1(theirs), moments=None))
        hidden = hidden + dual_scope_attention(block.attn1, block.norm1(hidden), arrived, plan)
        normed = block.norm2(hidden)
        pending = ctx.exchange.fetch(normed, plan.route, label="temporal attention 2")
        hidden = hidden + dual_scope_attention(block.attn2, normed, pending, plan)
        hidden = hidden + block.ff(block.norm3(hidden))
        return x + rearrange(self.proj_out(hidden), "b f (h w) c -> b f h w c", h=x.shape[2])
