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
from itertools import groupby
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vinfinity.models.kernels import Linear, attend, chunks, convolve
from vinfinity.models.unet3d.layers import (
    FEED_FORWARD_MEMORY,
    Attention,
    TransformerBlock,
    frame_pieces,
    own,
    whole,
)
from vinfinity.models.unet3d.norm import apply_affine, channel_moments, group_affine, group_moments
from vinfinity.parallel.context import TemporalContext
from vinfinity.parallel.exchange import Pending
from vinfinity.parallel.groups import UNIT, Piece
from vinfinity.parallel.scopes import AttentionPlan, QueryBlock
from vinfinity.parallel.timeline import Timeline, intersection


def video_sums(x: Tensor, groups: int, ctx: TemporalContext) -> Tensor:
    """The sums from which `VideoNorm` computes the statistics of a GroupNorm over all frames of each scene.

    x: (b, f, h, w, c). Returns (b, s·g, 5) fp64 for s scenes: the sums over frames of 1, of the frame's mean, of its
    variance, and of the square of its mean in two parts. Each summand has 24 bits, so the sums in fp64 are exact, and
    the same to the bit however the frames are split over ranks; means of means would be rounded at every rank.
    """
    means, seconds = (x.new_empty(*x.shape[:2], x.shape[-1], dtype=torch.float32) for _ in range(2))
    for piece in frame_pieces(x, ctx):
        rows = rearrange(whole(x[:, piece.own], piece), "b f h w c -> (b f) (h w) c")
        for moments, part in zip((means, seconds), channel_moments(rows), strict=True):
            moments[:, piece.own] = own(rearrange(part, "(b f) c -> b f c", b=len(x)), piece)
    # everything but the pass over memory is done for all frames at once: few launches
    means, seconds = means.flatten(0, 1), seconds.flatten(0, 1)
    norm_of = x.shape[2] * x.shape[3] if x.dtype.itemsize < 4 else None
    pooled = group_moments(means, seconds, groups, norm_of=norm_of)
    mean, variance = (rearrange(y, "(b f) g -> b f g", b=len(x)).double() for y in pooled)
    square = mean.square()
    high = square.float().double()
    summands = torch.stack([torch.ones_like(mean), mean, variance, high, square - high], dim=-1)
    held = ctx.attention.held
    own_parts = (intersection(held, scene.frames) for scene in ctx.timeline.scenes)
    return torch.cat(
        [summands[:, part.start - held.start : part.stop - held.start].sum(1) for part in own_parts], dim=1
    )


@dataclass(frozen=True)
class VideoNorm:
    """The scale and shift by which a GroupNorm over all frames of a scene transforms its input.

    scale, shift: (b, s, 1, 1, c) fp32 for s scenes.
    """

    scale: Tensor
    shift: Tensor
    timeline: Timeline

    @classmethod
    def of(cls, norm: nn.GroupNorm, sums: Tensor, timeline: Timeline) -> "VideoNorm":
        """sums: (b, s·g, 5), the `video_sums` of all frames."""
        scenes = len(timeline.scenes)
        count, mean, variance, high, low = rearrange(sums, "b (s g) five -> (b s) g five", s=scenes).unbind(
            -1
        )
        mean = mean / count
        variance = ((variance + high + low) / count - mean.square()).clamp(min=0)
        scale, shift = group_affine(norm, mean.float(), variance.float())
        return cls(
            rearrange(scale, "(b s) c -> b s 1 1 c", s=scenes),
            rearrange(shift, "(b s) c -> b s 1 1 c", s=scenes),
            timeline,
        )

    def __call__(self, x: Tensor, frames: Sequence[int], *, out: Tensor | None = None) -> Tensor:
        """Transforms some frames. x: (b, f, h, w, c). frames: which ones they are. out: where to write the result."""
        scale, shift = self._of(self.scale, frames), self._of(self.shift, frames)
        return apply_affine(x, scale, shift, out=out)

    def _of(self, scenes: Tensor, frames: Sequence[int]) -> Tensor:
        """The entries of some frames, to be broadcast: one if they are all of one scene. scenes: (b, s, 1, 1, c)."""
        if scenes.shape[1] == 1 or not frames:
            return scenes[:, :1]
        numbers = [(number, len(list(same))) for number, same in groupby(self.timeline.numbers(frames))]
        if len(numbers) == 1:
            return scenes[:, numbers[0][0]][:, None]
        return torch.cat([scenes[:, n, None].expand(-1, count, -1, -1, -1) for n, count in numbers], dim=1)


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
        fetched = ctx.exchange.fetch(x, ctx.halo.route, sums=shared, label="temporal convolution").wait()
        normalise = VideoNorm.of(norm, sums if fetched.sums is None else fetched.sums, ctx.timeline)
        held, timeline = ctx.attention.held, ctx.timeline

        def activate(frames: Tensor, which: range, out: Tensor | None = None) -> Tensor:
            return F.silu(normalise(frames, which, out=out), inplace=True)

        def neighbour(frame: int | None) -> Tensor:
            if frame is None:
                return zeros
            source, at = (
                (x, frame - held.start)
                if frame in held
                else (fetched.frames, ctx.halo.route.wanted.index(frame))
            )
            return activate(source[:, at : at + 1], range(frame, frame + 1))

        # the model pads with zeros after the norm, at both ends of a scene
        zeros = torch.zeros_like(x[:, :1])
        before, last = neighbour(ctx.halo.before), neighbour(ctx.halo.after)
        weight = conv.weight.squeeze(-1)
        h, f = x.shape[2], x.shape[1]
        item = x[:, :1].nbytes
        for piece in ctx.grouping.within(timeline.borders, ctx.chunk_bytes // max(item, 1)):
            start, stop = piece.own.start, piece.own.stop
            first = held.start + start
            if first in timeline.borders:
                before = zeros
            # the frames of the piece, one more on either side, and zeros in place of those of other ranks
            length = stop - start + 2
            padded = x.new_empty(len(x), piece.before + length + piece.after, *x.shape[2:])
            if piece.before:
                padded[:, : piece.before].zero_()
            if piece.after:
                padded[:, -piece.after :].zero_()
            rows = padded[:, piece.before : piece.before + length]
            rows[:, :1] = before
            # out may be x: the frame after the piece is read before it is overwritten
            ends = held.start + stop in timeline.borders
            inner = stop - start + (stop < f and not ends)
            activate(x[:, start : start + inner], range(first, first + inner), out=rows[:, 1 : 1 + inner])
            if ends or stop == f:
                rows[:, -1:] = zeros if ends else last
            before = rows[:, -2:-1].clone()
            # with (frames, positions) as height and width, this is a 2-D convolution without moving any memory
            picture = convolve(rearrange(padded, "b f h w c -> b c f (h w)"), weight, conv.bias)
            out[:, piece.own] = own(rearrange(picture, "b c f (h w) -> b f h w c", h=h), piece)
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


def beyond(plan: AttentionPlan) -> tuple[range, range]:
    """The frames of the plan's line before and after this rank's own."""
    line = plan.line or plan.held
    return range(line.start, plan.held.start), range(plan.held.stop, line.stop)


def real_spans(span: range, plan: AttentionPlan) -> Iterator[range]:
    """The frames that a span of the line stands for, in order: spans of which this rank holds all or nothing."""
    for whole_video in plan.timeline.units(span, plan.timeline.frames):
        shown = intersection(whole_video, span)
        first = plan.timeline.real(shown.start)
        real = range(first, first + len(shown))
        mine = intersection(real, plan.held)
        parts = (range(real.start, mine.start), mine, range(mine.stop, real.stop)) if mine else (real,)
        yield from (part for part in parts if part)


@dataclass(frozen=True)
class OwnFrames:
    """Copies of those frames of this rank that attention needs apart from its walk through them, which changes them.

    anchors: (b, frames, ...). ends: those that neighbour its other end in a loop, by span.
    """

    anchors: Tensor
    ends: Mapping[range, Tensor]

    @classmethod
    def of(cls, x: Tensor, plan: AttentionPlan) -> "OwnFrames":
        """x: (b, f, ...), this rank's frames."""
        held = plan.held
        anchors = [x[:, anchor - held.start] for anchor in plan.anchors if anchor in held]
        ends = {
            real: x[:, real.start - held.start : real.stop - held.start].clone()
            for span in beyond(plan)
            for real in real_spans(span, plan)
            if real.start in held
        }
        return cls(torch.stack(anchors, dim=1) if anchors else x[:, :0], ends)

    def at(self, positions: slice) -> "OwnFrames":
        """The same for some positions."""
        ends = {span: frames[:, :, positions] for span, frames in self.ends.items()}
        return OwnFrames(self.anchors[:, :, positions], ends)


@dataclass(frozen=True)
class Remote:
    """What temporal attention takes from outside this rank's frames: (b, frames, n, c) each.

    before, after: the neighbouring frames of the plan's line. anchors: all anchors, own ones included.
    """

    before: Tensor
    after: Tensor
    anchors: Tensor

    @classmethod
    def of(cls, own_frames: OwnFrames, fetched: Tensor, plan: AttentionPlan) -> "Remote":
        """fetched: (b, frames, ...), the frames of the route."""
        wanted, anchors = plan.route.wanted, own_frames.anchors

        def neighbours(span: range) -> Tensor:
            parts = [fetched[:, :0]]
            for real in real_spans(span, plan):
                at = bisect_left(wanted, real.start)
                parts.append(own_frames.ends.get(real, fetched[:, at : at + len(real)]))
            return joined(parts)

        before, after = (neighbours(span) for span in beyond(plan))
        places = [bisect_left(wanted, anchor) for anchor in plan.anchors if anchor not in plan.held]
        at_held = bisect_left(wanted, plan.held.start)
        first, last = ([p for p in places if p < at_held], [p for p in places if p >= at_held])
        parts = [fetched[:, p : p + 1] for p in first] + [anchors] + [fetched[:, p : p + 1] for p in last]
        return cls(before, after, torch.cat(parts, dim=1) if places else anchors)

    def at(self, positions: slice) -> "Remote":
        """The same for some positions."""
        return Remote(
            self.before[:, :, positions], self.after[:, :, positions], self.anchors[:, :, positions]
        )


def by_scene(function: Callable[[Tensor], Tensor], anchors: Tensor, plan: AttentionPlan) -> Tensor:
    """A function of all anchors (b, frames, ...), scene by scene: the batches are the same on every rank."""
    if len(plan.anchor_counts) <= 1:
        return function(anchors)
    return torch.cat([function(part) for part in anchors.split(plan.anchor_counts, dim=1)], dim=1)


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
    spans_beyond = beyond(plan)
    remote: Remote | None = None
    window: dict[range, Projected] = {}

    def project(unit: range) -> Projected:
        """Frames that the line lacks are zeros before the norm."""
        own_part = intersection(unit, held)
        parts = [x[:, own_part.start - held.start : own_part.stop - held.start]]
        if remote is not None:
            before, after = (intersection(unit, span) for span in spans_beyond)
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
            anchor_keys = by_scene(attention.to_k, normed, plan)
            anchor_values = by_scene(attention.to_v, normed, plan)
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
    filled = [part for part in parts if part.shape[1]] or list(parts[:1])
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
        own_frames = OwnFrames.of(x, plan)
        sums = video_sums(x, self.norm.num_groups, ctx)
        shared = sums if ctx.norm == "video" else None
        fetched = ctx.exchange.fetch(x, route, sums=shared, label="temporal attention 1").wait()
        normalise = VideoNorm.of(self.norm, sums if fetched.sums is None else fetched.sums, ctx.timeline)

        def project(normed: Tensor) -> Tensor:
            return rearrange(self.proj_in(normed), "b f h w c -> b f (h w) c")

        def project_span(frames: Tensor, span: range) -> Tensor:
            """In units, since another rank projects these frames, too."""
            out = frames.new_empty(*frames.shape[:2], n, self.proj_in.out_features)
            most, done = ctx.chunk_bytes // max(1, out[:, :1].nbytes), 0
            for real in real_spans(span, plan):
                for piece in ctx.grouping.of(real, most, group=UNIT):
                    at = slice(done + piece.own.start, done + piece.own.stop)
                    which = range(
                        real.start + piece.own.start - piece.before, real.start + piece.own.stop + piece.after
                    )
                    normed = normalise(whole(frames[:, at], piece), which)
                    out[:, at] = own(project(normed), piece)
                done += len(real)
            return out

        n = x.shape[2] * x.shape[3]
        raw = Remote.of(own_frames, fetched.frames, plan)
        held = plan.held
        before, after = beyond(plan)
        anchors = by_scene(project, normalise(raw.anchors, plan.anchors), plan)
        first = Remote(project_span(raw.before, before), project_span(raw.after, after), anchors)
        hidden = project_span(x, held)
        window = hidden[:, :1, 0].nbytes * plan.window
        position_chunks = chunks(n, window, ctx.chunk_bytes)
        for positions in position_chunks:
            chunk = hidden[:, :, positions]
            remote = partial(first.at, positions)
            for rows, out in dual_scope_attention(block.attn1, block.norm1, chunk, remote, plan):
                chunk[:, rows] += out
        own_frames = OwnFrames.of(hidden, plan)
        pending = ctx.exchange.fetch(hidden, route, label="temporal attention 2")
        for positions in position_chunks:
            chunk = hidden[:, :, positions]
            # the first chunk projects this rank's frames while those of the other ranks are on their way
            remote = partial(_when_arrived, pending, own_frames, plan, positions)
            for rows, out in dual_scope_attention(block.attn2, block.norm2, chunk, remote, plan):
                chunk[:, rows] += out
        for piece in frame_pieces(hidden, ctx, share=FEED_FORWARD_MEMORY):
            states = whole(hidden[:, piece.own], piece)
            states += block.ff(block.norm3(states))
            x[:, piece.own] += rearrange(
                own(self.proj_out(states), piece), "b f (h w) c -> b f h w c", h=x.shape[2]
            )
        return x


def _when_arrived(pending: Pending, own_frames: OwnFrames, plan: AttentionPlan, positions: slice) -> Remote:
    """Waits for the fetched frames, and takes some of their positions."""
    return Remote.of(own_frames.at(positions), pending.wait().frames[:, :, positions], plan)
