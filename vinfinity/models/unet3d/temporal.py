"""Temporal layers: the only ones that mix frames, and so the only ones in which ranks need each other.

Dims: b batch, f this rank's frames, h w latent height and width, n positions (h·w), c channels, g groups, d head width.
Each layer takes the rest of the video as an explicit argument `ctx: TemporalContext`. Frames are sent as they are
before a norm, together with the statistics of that norm. The receiver normalises and projects them: that is half the
bytes of keys and values, and one message less.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vinfinity.models.kernels import Linear, chunks, convolve
from vinfinity.models.unet3d.dual_scope import (
    OwnFrames,
    Remote,
    beyond,
    by_scene,
    dual_scope_attention,
    real_spans,
)
from vinfinity.models.unet3d.layers import (
    FEED_FORWARD_MEMORY,
    TransformerBlock,
    frame_pieces,
    own,
    whole,
)
from vinfinity.models.unet3d.norm import apply_affine, channel_moments, group_affine, group_moments
from vinfinity.parallel.context import TemporalContext
from vinfinity.parallel.exchange import Pending
from vinfinity.parallel.groups import UNIT, Piece
from vinfinity.parallel.scopes import AttentionPlan
from vinfinity.parallel.spans import intersection
from vinfinity.parallel.timeline import Timeline


class Part(NamedTuple):
    """A piece of this rank's frames. frames: (b, frames of the piece, h, w, c), with something for those of others."""

    piece: Piece
    frames: Tensor

    @property
    def own(self) -> Tensor:
        """The frames that this rank holds."""
        return own(self.frames, self.piece)


def parts_of(x: Tensor, ctx: TemporalContext) -> list[Part]:
    """This rank's frames (b, f, h, w, c) in pieces: views, where the rank holds all frames of a piece."""
    most = ctx.chunk_bytes // max(x[:, :1].nbytes, 1)
    pieces = ctx.grouping.covering(ctx.timeline.borders, most)
    return [Part(piece, whole(x[:, piece.own], piece)) for piece in pieces]


def frame_at(parts: Sequence[Part], position: int) -> Tensor:
    """One frame: (b, 1, h, w, c)."""
    part = next(part for part in parts if position < part.piece.own.stop)
    at = position - part.piece.own.start
    return part.own[:, at : at + 1]


def take(parts: Sequence[Part], start: int, stop: int) -> Iterator[tuple[int, Tensor]]:
    """The frames from position `start` to `stop`, in order, and where they begin, from each part that has some."""
    for part in parts:
        own = part.piece.own
        first, last = max(start, own.start), min(stop, own.stop)
        if first < last:
            yield first, part.own[:, first - own.start : last - own.start]


def drop(parts: list[Part], stop: int) -> None:
    """Drops the parts that end at position `stop` or before."""
    while parts and parts[0].piece.own.stop <= stop:
        del parts[0]


def video_sums(parts: Sequence[Part], groups: int, ctx: TemporalContext) -> Tensor:
    """The sums from which `VideoNorm` computes the statistics of a GroupNorm over all frames of each scene.

    parts: this rank's frames, (b, f, h, w, c). Returns (b, s·g, 5) fp64 for s scenes: the sums over frames of 1, of the
    frame's mean, of its variance, and of the square of its mean in two parts. Each summand has 24 bits, so the sums in
    fp64 are exact, and the same to the bit however the frames are split over ranks; means of means would be rounded at
    every rank.
    """
    b, h, w, c = (parts[0].frames.shape[i] for i in (0, 2, 3, 4))
    held, dtype = ctx.attention.held, parts[0].frames.dtype
    means, seconds = (parts[0].frames.new_empty(b, len(held), c, dtype=torch.float32) for _ in range(2))
    for piece, frames in parts:
        if piece.skipped:
            continue
        rows = rearrange(frames, "b f h w c -> (b f) (h w) c")
        for moments, part in zip((means, seconds), channel_moments(rows), strict=True):
            moments[:, piece.own] = own(rearrange(part, "(b f) c -> b f c", b=b), piece)
    # everything but the pass over memory is done for all frames at once: few launches
    means, seconds = means.flatten(0, 1), seconds.flatten(0, 1)
    norm_of = h * w if dtype.itemsize < 4 else None
    pooled = group_moments(means, seconds, groups, norm_of=norm_of)
    mean, variance = (rearrange(y, "(b f) g -> b f g", b=b).double() for y in pooled)
    square = mean.square()
    high = square.float().double()
    summands = torch.stack([torch.ones_like(mean), mean, variance, high, square - high], dim=-1)
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

    def forward(self, parts: list[Part], ctx: TemporalContext) -> list[Part]:
        """parts: this rank's frames, (b, f, h, w, c), dropped from the list as they are read. Returns the result."""
        norm, conv = cast(tuple[nn.GroupNorm, nn.Conv3d], tuple(self.values()))
        sums = video_sums(parts, norm.num_groups, ctx)
        sent, route = ctx.halo.route.compact()
        # a copy: a view would keep its part alive
        message = torch.cat([frame_at(parts, position) for position in sent or (0,)], dim=1)
        shared = sums if ctx.norm == "video" else None
        fetched = ctx.exchange.fetch(message, route, sums=shared, label="temporal convolution").wait()
        normalise = VideoNorm.of(norm, sums if fetched.sums is None else fetched.sums, ctx.timeline)
        held, timeline = ctx.attention.held, ctx.timeline

        def activate(frames: Tensor, which: range, out: Tensor | None = None) -> Tensor:
            return F.silu(normalise(frames, which, out=out), inplace=True)

        def neighbour(frame: int | None) -> Tensor:
            if frame is None:
                return zeros
            if frame in held:
                source = frame_at(parts, frame - held.start)
            else:
                at = ctx.halo.route.wanted.index(frame)
                source = fetched.frames[:, at : at + 1]
            return activate(source, range(frame, frame + 1))

        # the model pads with zeros after the norm, at both ends of a scene
        zeros = torch.zeros_like(frame_at(parts, 0))
        before, last = neighbour(ctx.halo.before), neighbour(ctx.halo.after)

        def fill(rows: Tensor, start: int, stop: int) -> None:
            """Activates the frames from position `start` to `stop` into rows."""
            for at, frames in take(parts, start, stop):
                first, length = held.start + at, frames.shape[1]
                activate(frames, range(first, first + length), out=rows[:, at - start : at - start + length])

        found = []
        for piece in ctx.grouping.covering(timeline.borders, ctx.chunk_bytes // max(zeros.nbytes, 1)):
            start, stop = piece.own.start, piece.own.stop
            # the frames of the piece, one more on either side, and zeros in place of those of other ranks
            length = stop - start + 2
            if piece.skipped:
                drop(parts, stop)
                found.append(Part(piece, zeros.new_empty(len(zeros), length - 2, *zeros.shape[2:])))
                continue
            if held.start + start in timeline.borders:
                before = zeros
            padded = zeros.new_empty(len(zeros), piece.before + length + piece.after, *zeros.shape[2:])
            if piece.before:
                padded[:, : piece.before].zero_()
            if piece.after:
                padded[:, -piece.after :].zero_()
            rows = padded[:, piece.before : piece.before + length]
            rows[:, :1] = before
            ends = held.start + stop in timeline.borders
            fill(rows[:, 1:], start, stop + (stop < len(held) and not ends))
            if ends or stop == len(held):
                rows[:, -1:] = zeros if ends else last
            drop(parts, stop)
            before = rows[:, -2:-1].clone()
            found.append(Part(piece, self._convolve(padded, conv)))
            del padded, rows
        return found

    @staticmethod
    def _convolve(x: Tensor, conv: nn.Conv3d) -> Tensor:
        """x: (b, f + 2, h, w, c). Returns (b, f, h, w, c).

        With (frames, positions) as height and width, this is a 2-D convolution without moving any memory.
        """
        picture = convolve(rearrange(x, "b f h w c -> b c f (h w)"), conv.weight.squeeze(-1), conv.bias)
        return rearrange(picture, "b c f (h w) -> b f h w c", h=x.shape[2])


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
        parts = parts_of(x, ctx)
        for stage in (self.conv1, self.conv2, self.conv3, self.conv4):
            parts = stage(parts, ctx)
        for part in parts:
            x[:, part.piece.own].add_(part.own)
        return x


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
        sums = video_sums(parts_of(x, ctx), self.norm.num_groups, ctx)
        shared = sums if ctx.norm == "video" else None
        fetched = ctx.exchange.fetch(x, route, sums=shared, label="temporal attention 1").wait()
        normalise = VideoNorm.of(self.norm, sums if fetched.sums is None else fetched.sums, ctx.timeline)

        def project(normed: Tensor, out: Tensor | None = None) -> Tensor:
            return self.proj_in(rearrange(normed, "b f h w c -> b f (h w) c"), out=out)

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
                    if piece.before or piece.after:
                        out[:, at] = own(project(normed), piece)
                    else:
                        project(normed, out[:, at])
                done += len(real)
            return out

        n = x.shape[2] * x.shape[3]
        raw = Remote.of(own_frames, fetched.frames, plan)
        held = plan.held
        before, after = beyond(plan)
        anchors = by_scene(project, normalise(raw.anchors, plan.anchors), plan)
        first = Remote(project_span(raw.before, before), project_span(raw.after, after), anchors)
        hidden = project_span(x, held)
        window = hidden[:, :1, 0].nbytes * plan.most_keys
        parts = [(at, positions) for positions in chunks(n, window, ctx.chunk_bytes) for at in branches(x)]
        for branch, positions in parts:
            chunk = hidden[branch, :, positions]
            remote = partial(first.at, branch, positions)
            for rows, out in dual_scope_attention(block.attn1, block.norm1, chunk, remote, plan):
                chunk[:, rows].add_(out)
        own_frames = OwnFrames.of(hidden, plan)
        pending = ctx.exchange.fetch(hidden, route, label="temporal attention 2")
        for branch, positions in parts:
            chunk = hidden[branch, :, positions]
            # the first chunk projects this rank's frames while those of the other ranks are on their way
            remote = partial(_when_arrived, pending, own_frames, plan, branch, positions)
            for rows, out in dual_scope_attention(block.attn2, block.norm2, chunk, remote, plan):
                chunk[:, rows].add_(out)
        for piece in frame_pieces(hidden, ctx, share=FEED_FORWARD_MEMORY):
            states = whole(hidden[:, piece.own], piece)
            states += block.ff(block.norm3(states))
            out = own(self.proj_out(states), piece)
            x[:, piece.own].add_(rearrange(out, "b f (h w) c -> b f h w c", h=x.shape[2]))
        return x


def branches(x: Tensor) -> list[slice]:
    """Each guidance branch. x: (b, ...)."""
    return [slice(branch, branch + 1) for branch in range(len(x))]


def _when_arrived(
    pending: Pending, own_frames: OwnFrames, plan: AttentionPlan, branch: slice, positions: slice
) -> Remote:
    """Waits for the fetched frames, and takes some positions of a branch."""
    fetched = pending.wait().frames[branch, :, positions]
    return Remote.of(own_frames.at(branch, positions), fetched, plan)
