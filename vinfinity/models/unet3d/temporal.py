"""Temporal layers: the only ones that mix frames, and so the only ones in which ranks need each other.

Dims: b batch, f this rank's frames, h w latent height and width, n positions (h·w), c channels, g groups, d head width.
Each layer takes the rest of the video as an explicit argument `ctx: TemporalContext`. Frames are sent as they are
before a norm, together with the statistics of that norm. The receiver normalises and projects them: that is half the
bytes of keys and values, and one message less.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
    frame_pieces,
    own,
    whole,
)
from vinfinity.models.unet3d.norm import apply_affine, channel_moments, group_affine, group_moments
from vinfinity.parallel.context import TemporalContext
from vinfinity.parallel.exchange import Pending
from vinfinity.parallel.groups import UNIT, Piece
from vinfinity.parallel.scopes import AttentionPlan, QueryBlock, intersection


def video_sums(x: Tensor, groups: int, ctx: TemporalContext) -> Tensor:
    """The sums from which `video_affine` computes the statistics of a GroupNorm over all frames.

    x: (b, f, h, w, c). Returns (b, g, 5) fp64: the sums over frames of 1, of the frame's mean, of its variance, and of
    the square of its mean in two parts. Each summand has 24 bits, so the sums in fp64 are exact, and the same to the
    bit however the frames are split over ranks; means of means would be rounded at every rank.
    """
    moments = []
    for piece in frame_pieces(x, ctx):
        rows = rearrange(whole(x[:, piece.own], piece), "b f h w c -> (b f) (h w) c")
        each = (rearrange(y, "(b f) c -> b f c", b=len(x)) for y in channel_moments(rows))
        moments.append([own(y, piece) for y in each])
    # everything but the pass over memory is done for all frames at once: few launches
    means, seconds = (torch.cat(parts, dim=1).flatten(0, 1) for parts in zip(*moments, strict=True))
    norm_of = x.shape[2] * x.shape[3] if x.dtype.itemsize < 4 else None
    pooled = group_moments(means, seconds, groups, norm_of=norm_of)
    mean, variance = (rearrange(y, "(b f) g -> b f g", b=len(x)).double() for y in pooled)
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
    scale, shift = group_affine(norm, mean.float(), variance.float())
    return rearrange(scale, "b c -> b 1 1 1 c"), rearrange(shift, "b c -> b 1 1 1 c")


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
        sums = video_sums(x, norm.num_groups, ctx)
        shared = sums if ctx.norm == "video" else None
        fetched = ctx.exchange.fetch(x, ctx.halo, sums=shared, label="temporal convolution").wait()
        scale, shift = video_affine(norm, sums if fetched.sums is None else fetched.sums)

        def activate(frames: Tensor, out: Tensor | None = None) -> Tensor:
            return F.silu(apply_affine(frames, scale, shift, out=out), inplace=True)

        # the model pads with zeros after the norm, at both ends of the video
        zeros = torch.zeros_like(x[:, :1])
        neighbours = activate(fetched.frames)
        before = neighbours[:, :1] if ctx.frames_before else zeros
        last = neighbours[:, -1:] if neighbours.shape[1] > ctx.frames_before else zeros
        weight = conv.weight.squeeze(-1)
        h, f = x.shape[2], x.shape[1]
        for piece in frame_pieces(x, ctx):
            start, stop = piece.own.start, piece.own.stop
            # the frames of the piece, one more on either side, and zeros in place of those of other ranks
            length = stop - start + 2
            padded = x.new_empty(len(x), piece.before + length + piece.after, *x.shape[2:])
            if piece.before:
                padded[:, : piece.before].zero_()
            if piece.after:
                padded[:, -piece.after :].zero_()
            held = padded[:, piece.before : piece.before + length]
            held[:, :1] = before
            # out may be x: the frame after the piece is read before it is overwritten
            inner = min(stop + 1, f) - start
            activate(x[:, start : start + inner], out=held[:, 1 : 1 + inner])
            if stop == f:
                held[:, -1:] = last
            before = held[:, -2:-1].clone()
            # with (frames, positions) as height and width, this is a 2-D convolution without moving any memory
            rows = rearrange(padded, "b f h w c -> b c f (h w)")
            picture = rearrange(convolve(rows, weight, conv.bias), "b c f (h w) -> b f h w c", h=h)
            out[:, piece.own] = own(picture, piece)
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


@dataclass(frozen=True)
class Remote:
    """What temporal attention takes from outside this rank's frames: (b, frames, n, c) each.

    before, after: the neighbouring frames of the plan's line. anchors: all anchors, own ones included.
    """

    before: Tensor
    after: Tensor
    anchors: Tensor

    @classmethod
    def of(cls, own_anchors: Tensor, fetched: Tensor, plan: AttentionPlan) -> "Remote":
        """own_anchors, fetched: (b, frames, ...), the anchors that this rank holds, and the frames of the route."""
        wanted, held, line = plan.route.wanted, plan.held, plan.line
        at_held = bisect_left(wanted, held.start)
        before = max(0, held.start - line.start) if line else 0
        after = max(0, line.stop - held.stop) if line else 0
        places = [bisect_left(wanted, anchor) for anchor in plan.anchors if anchor not in held]
        first, last = ([p for p in places if p < at_held], [p for p in places if p >= at_held])
        anchors = (
            [fetched[:, p : p + 1] for p in first] + [own_anchors] + [fetched[:, p : p + 1] for p in last]
        )
        return cls(
            fetched[:, at_held - before : at_held],
            fetched[:, at_held : at_held + after],
            torch.cat(anchors, dim=1) if places else own_anchors,
        )

    def at(self, positions: slice) -> "Remote":
        """The same for some positions."""
        return Remote(
            self.before[:, :, positions], self.after[:, :, positions], self.anchors[:, :, positions]
        )


def anchors_of(x: Tensor, plan: AttentionPlan) -> Tensor:
    """A copy of the anchors among this rank's frames x (b, f, ...)."""
    held = [x[:, anchor - plan.held.start] for anchor in plan.anchors if anchor in plan.held]
    return torch.stack(held, dim=1) if held else x[:, :0]


@dataclass(frozen=True)
class Projected:
    """The projections of a unit of frames: (b, len(unit), n, c) each. queries: None if the rank holds none of them."""

    unit: range
    queries: Tensor | None
    keys: Tensor
    values: Tensor


def dual_scope_attention(
    attention: Attention,
    norm: Callable[[Tensor], Tensor],
    x: Tensor,
    fetch: Callable[[], Remote],
    plan: AttentionPlan,
) -> Iterator[tuple[slice, Tensor]]:
    """Temporal attention of norm(x) in blocks of queries, from the start of the video to its end (paper, section 3.3).

    x: (b, f, n, c), this rank's frames. fetch: called once some of x is projected; returns what is needed of other
    ranks, which is normed and projected here. Yields rows of x and the output for them, (b, rows, n, c); the caller may
    add it to x at once.

    Frames are projected in units, and only the units that later blocks need are kept: memory does not grow with the
    frames. Anchors are projected apart, together, so that this is a batch of the same shape on every rank.
    """
    held, line = plan.held, plan.line or plan.held
    remote: Remote | None = None
    window: dict[range, Projected] = {}

    def project(unit: range) -> Projected:
        """Frames that the line lacks are zeros before the norm."""
        own_part = intersection(unit, held)
        parts = [x[:, own_part.start - held.start : own_part.stop - held.start]]
        if remote is not None:
            before = intersection(unit, range(line.start, held.start))
            after = intersection(unit, range(held.stop, line.stop))
            parts.insert(0, remote.before[:, before.start - line.start : before.stop - line.start])
            parts.append(remote.after[:, after.start - held.stop : after.stop - held.stop])
        present = intersection(unit, line)
        piece = Piece(slice(0, len(present)), present.start - unit.start, unit.stop - present.stop)
        normed = norm(whole(joined(parts), piece))
        queries = attention.to_q(normed) if own_part else None
        return Projected(unit, queries, attention.to_k(normed), attention.to_v(normed))

    for block in plan.blocks:
        for unit in block.units:
            if unit not in window and unit == intersection(unit, held):
                window[unit] = project(unit)
        if remote is None:
            # by now the other ranks' frames may have arrived
            remote = fetch()
            normed = norm(remote.anchors)
            anchor_keys, anchor_values = attention.to_k(normed), attention.to_v(normed)
        for unit in block.units:
            if unit not in window:
                window[unit] = project(unit)
        keys, values = (
            joined(list(attended(window, block, states, part)))
            for part, states in (("keys", anchor_keys), ("values", anchor_values))
        )
        rows = block.rows if plan.grouped else intersection(block.rows, held)
        queries = joined(spanned(window, rows, "queries", anchor_keys))
        out = _attend(attention, queries, keys, values, block.part(rows, queries.dtype))
        own_rows = intersection(rows, held)
        yield (
            slice(own_rows.start - held.start, own_rows.stop - held.start),
            out[:, own_rows.start - rows.start : own_rows.stop - rows.start],
        )
        start = min(block.rows.stop, block.next_key)
        for unit in [unit for unit in window if unit.stop <= start]:
            del window[unit]


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Parts one after the other along the frames; a single one is not copied."""
    filled = [part for part in parts if part.shape[1]]
    return filled[0] if len(filled) == 1 else torch.cat(filled, dim=1)


def attended(
    window: Mapping[range, Projected], block: QueryBlock, anchors: Tensor, part: str
) -> Iterator[Tensor]:
    """The keys or values of a block, in order. anchors: those of all anchors.

    Anchors are taken from there even where they are near, so that every rank has them from the same batch.
    """
    for run in block.keys:
        if run.anchors:
            yield anchors[:, run.span.start : run.span.stop]
        else:
            yield from spanned(window, run.span, part, anchors)


def spanned(window: Mapping[range, Projected], span: range, part: str, like: Tensor) -> list[Tensor]:
    """The queries, keys or values of a span of frames, in order, with zeros for frames that the window lacks.

    like: a tensor of that kind, for its shape.
    """
    found, at = [], span.start
    for unit in sorted(window, key=lambda unit: unit.start):
        values, shared = getattr(window[unit], part), intersection(unit, span)
        if values is None or not shared:
            continue
        if shared.start > at:
            found.append(values.new_zeros(len(values), shared.start - at, *values.shape[2:]))
        found.append(values[:, shared.start - unit.start : shared.stop - unit.start])
        at = shared.stop
    if at < span.stop:
        found.append(like.new_zeros(len(like), span.stop - at, *like.shape[2:]))
    return found


def _attend(
    attention: Attention,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: tuple[Tensor | None, Tensor | None],
) -> Tensor:
    """The output for a block of queries (b, rows, n, c). mask: the bias, and the factor of the queries."""
    bias, scale = mask
    if scale is not None:
        queries = queries * scale[:, None, None]
    out = torch.empty_like(queries)
    for i in range(len(queries)):
        per_head = [
            rearrange(y[i], "f n (heads d) -> n heads f d", heads=attention.heads)
            for y in (queries, keys, values)
        ]
        out[i] = rearrange(attend(*per_head, bias=bias), "n heads f d -> f n (heads d)")
    return attention.to_out[0](out)


class TemporalTransformer(nn.Module):
    """Two self-attentions over time and a feed-forward layer; residual. TransformerTemporalModel in diffusers.

    The statistics of the GroupNorm are those of the whole video. Positions are independent of each other here, so
    the attentions run in chunks of positions.
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
        own_anchors = anchors_of(x, plan)
        sums = video_sums(x, self.norm.num_groups, ctx)
        shared = sums if ctx.norm == "video" else None
        fetched = ctx.exchange.fetch(x, route, sums=shared, label="temporal attention 1").wait()
        scale, shift = video_affine(self.norm, sums if fetched.sums is None else fetched.sums)

        def project(frames: Tensor) -> Tensor:
            return rearrange(self.proj_in(apply_affine(frames, scale, shift)), "b f h w c -> b f (h w) c")

        def project_span(frames: Tensor, span: range) -> Tensor:
            """In units, since another rank projects these frames, too."""
            out = frames.new_empty(*frames.shape[:2], n, self.proj_in.out_features)
            most = ctx.chunk_bytes // max(1, out[:, :1].nbytes)
            for piece in ctx.grouping.of(span, most, group=UNIT):
                out[:, piece.own] = own(project(whole(frames[:, piece.own], piece)), piece)
            return out

        n = x.shape[2] * x.shape[3]
        raw = Remote.of(own_anchors, fetched.frames, plan)
        held, line = plan.held, plan.line or plan.held
        before, after = range(line.start, held.start), range(held.stop, line.stop)
        first = Remote(project_span(raw.before, before), project_span(raw.after, after), project(raw.anchors))
        hidden = project_span(x, held)
        window = hidden[:, :1, 0].nbytes * plan.window
        position_chunks = chunks(n, window, ctx.chunk_bytes)
        for positions in position_chunks:
            chunk = hidden[:, :, positions]
            remote = partial(first.at, positions)
            for rows, out in dual_scope_attention(block.attn1, block.norm1, chunk, remote, plan):
                chunk[:, rows] += out
        own_anchors = anchors_of(hidden, plan)
        pending = ctx.exchange.fetch(hidden, route, label="temporal attention 2")
        for positions in position_chunks:
            chunk = hidden[:, :, positions]
            # the first chunk projects this rank's frames while those of the other ranks are on their way
            remote = partial(_when_arrived, pending, own_anchors, plan, positions)
            for rows, out in dual_scope_attention(block.attn2, block.norm2, chunk, remote, plan):
                chunk[:, rows] += out
        for piece in frame_pieces(hidden, ctx, share=FEED_FORWARD_MEMORY):
            states = whole(hidden[:, piece.own], piece)
            states += block.ff(block.norm3(states))
            x[:, piece.own] += rearrange(
                own(self.proj_out(states), piece), "b f (h w) c -> b f h w c", h=x.shape[2]
            )
        return x


def _when_arrived(pending: Pending, own_anchors: Tensor, plan: AttentionPlan, positions: slice) -> Remote:
    """Waits for the fetched frames, and takes some of their positions."""
    return Remote.of(own_anchors[:, :, positions], pending.wait().frames[:, :, positions], plan)
