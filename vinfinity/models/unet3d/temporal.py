"""Temporal layers: the only ones that mix frames, and so the only ones in which ranks need each other.

Dims: b batch, f this rank's frames, h w latent height and width, n positions (h·w), c channels, g groups, d head width.
Each layer takes the rest of the video as an explicit argument `ctx: TemporalContext`. Frames are sent unnormalised,
together with the norm's statistics, and the receiver normalises and projects them. This takes half the bytes of keys
and values, and one message less.
"""

from collections.abc import Callable, Sequence
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
    Attention,
    TransformerBlock,
    frame_pieces,
    pad_piece,
    unpad_piece,
)
from vinfinity.models.unet3d.norm import apply_affine, channel_moments, group_affine, group_moments
from vinfinity.parallel.context import TemporalContext
from vinfinity.parallel.exchange import Pending
from vinfinity.parallel.groups import UNIT, Piece
from vinfinity.parallel.scopes import AttentionPlan
from vinfinity.parallel.shards import Route
from vinfinity.parallel.spans import intersection
from vinfinity.parallel.timeline import Timeline


class PieceFrames(NamedTuple):
    """The frames of one piece, (b, frames of the piece, h, w, c), padded where other ranks hold some of them."""

    piece: Piece
    frames: Tensor

    @property
    def own(self) -> Tensor:
        """The frames that this rank holds, as a view."""
        return unpad_piece(self.frames, self.piece)


def scene_pieces(frame: Tensor, ctx: TemporalContext) -> list[Piece]:
    """Divide this rank's frames into pieces of about ctx.chunk_bytes bytes that do not cross scene borders.

    frame: (b, 1, h, w, c), for its size.
    """
    return ctx.grouping.covering(ctx.timeline.borders, ctx.chunk_bytes // max(frame.nbytes, 1))


def split_frames(x: Tensor, ctx: TemporalContext) -> list[PieceFrames]:
    """Split this rank's frames (b, f, h, w, c) into pieces: views where the rank holds all frames of a piece."""
    return [PieceFrames(piece, pad_piece(x[:, piece.own], piece)) for piece in scene_pieces(x[:, :1], ctx)]


def frame_at(pieces: Sequence[PieceFrames], position: int) -> Tensor:
    """Return one of this rank's frames: (b, 1, h, w, c)."""
    found = next(candidate for candidate in pieces if position < candidate.piece.own.stop)
    at = position - found.piece.own.start
    return found.own[:, at : at + 1]


def video_sums(pieces: Sequence[PieceFrames], groups: int, ctx: TemporalContext) -> Tensor:
    """Return the sums from which `VideoNorm` computes the statistics of a GroupNorm over all frames of each scene.

    pieces: this rank's frames. Returns (b, s·g, 5) fp64 for s scenes: the sums over frames of 1, of the frame's mean,
    of its variance, and of the square of its mean in two parts. Each summand has 24 bits, so the sums in fp64 are
    exact, and the same to the bit however the frames are split over ranks; means of means would be rounded at every
    rank.
    """
    first = pieces[0].frames
    b, h, w, c = (first.shape[axis] for axis in (0, 2, 3, 4))
    held, dtype = ctx.attention.held, first.dtype
    means, seconds = (first.new_empty(b, len(held), c, dtype=torch.float32) for _ in range(2))
    for piece, frames in pieces:
        if piece.skipped:
            continue
        rows = rearrange(frames, "b f h w c -> (b f) (h w) c")
        for moments, of_piece in zip((means, seconds), channel_moments(rows), strict=True):
            moments[:, piece.own] = unpad_piece(rearrange(of_piece, "(b f) c -> b f c", b=b), piece)
    # only the pass over memory runs piece by piece; the rest takes all frames at once, with few kernel launches
    means, seconds = means.flatten(0, 1), seconds.flatten(0, 1)
    norm_of = h * w if dtype.itemsize < 4 else None
    pooled = group_moments(means, seconds, groups, norm_of=norm_of)
    mean, variance = (rearrange(y, "(b f) g -> b f g", b=b).double() for y in pooled)
    square = mean.square()
    high = square.float().double()
    summands = torch.stack([torch.ones_like(mean), mean, variance, high, square - high], dim=-1)
    own_spans = (intersection(held, scene.frames) for scene in ctx.timeline.scenes)
    return torch.cat(
        [summands[:, span.start - held.start : span.stop - held.start].sum(1) for span in own_spans], dim=1
    )


@dataclass(frozen=True)
class VideoNorm:
    """The scale and shift that a GroupNorm over all frames of a scene applies to its input.

    scale, shift: (b, s, 1, 1, c) fp32 for s scenes.
    """

    scale: Tensor
    shift: Tensor
    timeline: Timeline

    @classmethod
    def of(cls, norm: nn.GroupNorm, sums: Tensor, timeline: Timeline) -> "VideoNorm":
        """Make the norm from the `video_sums` of all frames, (b, s·g, 5)."""
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
        """Normalise x (b, f, h, w, c). frames: the index of each of its frames. out: where to write the result."""
        scale, shift = self._of(self.scale, frames), self._of(self.shift, frames)
        return apply_affine(x, scale, shift, out=out)

    def _of(self, scenes: Tensor, frames: Sequence[int]) -> Tensor:
        """Select each frame's entry of `scenes`, (b, s, 1, 1, c): a single one if all frames belong to one scene."""
        if scenes.shape[1] == 1 or not frames:
            return scenes[:, :1]
        numbers = [(number, len(list(same))) for number, same in groupby(self.timeline.numbers(frames))]
        if len(numbers) == 1:
            return scenes[:, numbers[0][0]][:, None]
        return torch.cat([scenes[:, n, None].expand(-1, count, -1, -1, -1) for n, count in numbers], dim=1)


def fetch_and_norm(
    norm: nn.GroupNorm, sums: Tensor, x: Tensor, route: Route, ctx: TemporalContext, *, label: str
) -> tuple[Tensor, VideoNorm]:
    """Exchange frames and statistics with other ranks. Returns the fetched frames, not yet normed, and the norm.

    norm: a GroupNorm over all frames of a scene. sums: this rank's `video_sums`. x: (b, f, ...), the frames from which
    the route sends. The norm has the statistics of all ranks or, if ctx.norm is "rank", of this rank only. Raises
    RankError if another rank does not answer.
    """
    shared = sums if ctx.norm == "video" else None
    fetched = ctx.exchange.fetch(x, route, sums=shared, label=label).wait()
    return fetched.frames, VideoNorm.of(norm, sums if fetched.sums is None else fetched.sums, ctx.timeline)


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

    def forward(self, pieces: list[PieceFrames], ctx: TemporalContext) -> list[PieceFrames]:
        """Return the stage's output for this rank's frames, and empty the list `pieces` on the way, to free memory."""
        norm, conv = cast(tuple[nn.GroupNorm, nn.Conv3d], tuple(self.values()))
        sums = video_sums(pieces, norm.num_groups, ctx)
        sent, route = ctx.halo.route.compact()
        # a copy: a view would keep the whole piece alive
        message = torch.cat([frame_at(pieces, position) for position in sent or (0,)], dim=1)
        fetched, normalise = fetch_and_norm(norm, sums, message, route, ctx, label="temporal convolution")
        activated = _ActivatedPieces(pieces, fetched, normalise, ctx)
        return [
            PieceFrames(
                piece,
                activated.skip(piece) if piece.skipped else self._convolve(activated.padded(piece), conv),
            )
            for piece in activated.in_order
        ]

    @staticmethod
    def _convolve(x: Tensor, conv: nn.Conv3d) -> Tensor:
        """Convolve x (b, f + 2, h, w, c) over time. Returns (b, f, h, w, c).

        With (frames, positions) as height and width, this is a 2-D convolution, and no memory is moved.
        """
        picture = convolve(rearrange(x, "b f h w c -> b c f (h w)"), conv.weight.squeeze(-1), conv.bias)
        return rearrange(picture, "b c f (h w) -> b f h w c", h=x.shape[2])


class _ActivatedPieces:
    """The input of a temporal convolution, piece by piece and in order: silu(norm(x)), with a frame on either side.

    pieces: this rank's frames before the norm, dropped from the list as they are read. fetched: the frames of the halo
    that other ranks hold, before the norm.
    """

    def __init__(
        self, pieces: list[PieceFrames], fetched: Tensor, normalise: VideoNorm, ctx: TemporalContext
    ) -> None:
        self._pieces, self._fetched, self._normalise, self._ctx = pieces, fetched, normalise, ctx
        # the model pads with zeros after the norm, at both ends of a scene
        self._zeros = torch.zeros_like(frame_at(pieces, 0))
        # the frame before the next piece, and the one after the last piece
        self._before = self._neighbour(ctx.halo.before)
        self._after = self._neighbour(ctx.halo.after)

    @property
    def in_order(self) -> list[Piece]:
        """The pieces of the output, which need not be those of the input."""
        return scene_pieces(self._zeros, self._ctx)

    def padded(self, piece: Piece) -> Tensor:
        """Return the activated frames of a piece between their neighbours: (b, frames + 2, h, w, c).

        Frames of the piece that other ranks hold are zeros.
        """
        zeros, held, borders = self._zeros, self._ctx.attention.held, self._ctx.timeline.borders
        start, stop = piece.own.start, piece.own.stop
        if held.start + start in borders:
            self._before = zeros
        frames = piece.before + stop - start + piece.after
        padded = zeros.new_empty(len(zeros), frames + 2, *zeros.shape[2:])
        if piece.before:
            padded[:, : piece.before].zero_()
        if piece.after:
            padded[:, -piece.after :].zero_()
        rows = padded[:, piece.before : frames + 2 - piece.after]
        rows[:, :1] = self._before
        ends_scene, ends_clip = held.start + stop in borders, stop == len(held)
        self._activate_into(rows[:, 1:], start, stop if ends_scene or ends_clip else stop + 1)
        if ends_scene or ends_clip:
            rows[:, -1:] = zeros if ends_scene else self._after
        self._drop(stop)
        self._before = rows[:, -2:-1].clone()
        return padded

    def skip(self, piece: Piece) -> Tensor:
        """Drop the frames of a piece that a trace leaves out, and only allocate the result."""
        self._drop(piece.own.stop)
        return self._zeros.new_empty(
            len(self._zeros), piece.own.stop - piece.own.start, *self._zeros.shape[2:]
        )

    def _activate(self, frames: Tensor, indices: range, out: Tensor | None = None) -> Tensor:
        return F.silu(self._normalise(frames, indices, out=out), inplace=True)

    def _neighbour(self, frame: int | None) -> Tensor:
        """Return the activated frame next to this rank's, (b, 1, h, w, c); zeros if there is none."""
        held = self._ctx.attention.held
        if frame is None:
            return self._zeros
        if frame in held:
            source = frame_at(self._pieces, frame - held.start)
        else:
            at = self._ctx.halo.route.wanted.index(frame)
            source = self._fetched[:, at : at + 1]
        return self._activate(source, range(frame, frame + 1))

    def _activate_into(self, rows: Tensor, start: int, stop: int) -> None:
        """Write the activated frames from position `start` to `stop` into rows."""
        first_frame = self._ctx.attention.held.start
        for source in self._pieces:
            offset = source.piece.own.start
            first, last = max(start, offset), min(stop, source.piece.own.stop)
            if first < last:
                frames = source.own[:, first - offset : last - offset]
                indices = range(first_frame + first, first_frame + last)
                self._activate(frames, indices, out=rows[:, first - start : last - start])

    def _drop(self, stop: int) -> None:
        """Drop the input pieces that end at position `stop` or before."""
        while self._pieces and self._pieces[0].piece.own.stop <= stop:
            del self._pieces[0]


class TemporalConvLayer(nn.Module):
    """Four stages of norm, SiLU and convolution over time; residual. TemporalConvLayer in diffusers."""

    def __init__(self, channels: int, *, groups: int) -> None:
        super().__init__()
        self.conv1 = TemporalConvStage(channels, groups=groups, conv=2)
        self.conv2 = TemporalConvStage(channels, groups=groups, conv=3)
        self.conv3 = TemporalConvStage(channels, groups=groups, conv=3)
        self.conv4 = TemporalConvStage(channels, groups=groups, conv=3)

    def forward(self, x: Tensor, ctx: TemporalContext) -> Tensor:
        """Change x (b, f, h, w, c) in place and return it."""
        pieces = split_frames(x, ctx)
        for stage in (self.conv1, self.conv2, self.conv3, self.conv4):
            pieces = stage(pieces, ctx)
        for result in pieces:
            x[:, result.piece.own].add_(result.own)
        return x


class TemporalTransformer(nn.Module):
    """Two self-attentions over time and a feed-forward layer; residual. TransformerTemporalModel in diffusers.

    The GroupNorm takes its statistics over the whole video. Positions are independent of each other here, so attention
    runs in chunks of positions.
    """

    def __init__(self, channels: int, *, heads: int, head_width: int, groups: int) -> None:
        super().__init__()
        inner = heads * head_width
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = Linear(channels, inner)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(inner, heads=heads, head_width=head_width)])
        self.proj_out = Linear(inner, channels)

    def forward(self, x: Tensor, ctx: TemporalContext) -> Tensor:
        """Change x (b, f, h, w, c) in place and return it."""
        plan = ctx.attention
        block = cast(TransformerBlock, self.transformer_blocks[0])
        hidden, remote = self._project_in(x, ctx)
        batches = attention_batches(hidden, ctx)
        for branch, positions in batches:
            fetch = partial(remote.at, branch, positions)
            add_attention(block.attn1, block.norm1, hidden[branch, :, positions], fetch, plan)
        own_frames = OwnFrames.of(hidden, plan)
        pending = ctx.exchange.fetch(hidden, plan.route, label="temporal attention 2")
        for branch, positions in batches:
            # the first batch projects this rank's frames while those of other ranks are on their way
            fetch = partial(_when_arrived, pending, own_frames, plan, branch, positions)
            add_attention(block.attn2, block.norm2, hidden[branch, :, positions], fetch, plan)
        for piece in frame_pieces(hidden, ctx, memory_factor=FEED_FORWARD_MEMORY):
            states = pad_piece(hidden[:, piece.own], piece)
            states += block.ff(block.norm3(states))
            out = unpad_piece(self.proj_out(states), piece)
            x[:, piece.own].add_(rearrange(out, "b f (h w) c -> b f h w c", h=x.shape[2]))
        return x

    def _project_in(self, x: Tensor, ctx: TemporalContext) -> tuple[Tensor, Remote]:
        """Project this rank's frames x to hidden states (b, f, n, inner), and the other frames that attention needs."""
        plan = ctx.attention
        own_frames = OwnFrames.of(x, plan)
        sums = video_sums(split_frames(x, ctx), self.norm.num_groups, ctx)
        fetched, normalise = fetch_and_norm(self.norm, sums, x, plan.route, ctx, label="temporal attention 1")
        raw = Remote.of(own_frames, fetched, plan)
        projection = _NormedProjection(self.proj_in, normalise, ctx)
        before, after = beyond(plan)
        anchors = projection.of_anchors(raw.anchors)
        remote = Remote(projection.of_span(raw.before, before), projection.of_span(raw.after, after), anchors)
        return projection.of_span(x, plan.held), remote


@dataclass(frozen=True)
class _NormedProjection:
    """The input projection of a temporal transformer, applied to normed frames.

    Each rank also projects the frames that it fetches. Batches have the same shape on all ranks, so that a frame gets
    the same bits everywhere.
    """

    proj_in: Linear
    normalise: VideoNorm
    ctx: TemporalContext

    def of_anchors(self, frames: Tensor) -> Tensor:
        """Project all anchors (b, anchors, h, w, c), scene by scene. Returns (b, anchors, n, inner)."""
        plan = self.ctx.attention
        return by_scene(self._project, self.normalise(frames, plan.anchors), plan)

    def of_span(self, frames: Tensor, span: range) -> Tensor:
        """Project the frames (b, f, h, w, c) of a span, unit by unit. Returns (b, f, n, inner)."""
        positions = frames.shape[2] * frames.shape[3]
        out = frames.new_empty(*frames.shape[:2], positions, self.proj_in.out_features)
        most, done = self.ctx.chunk_bytes // max(1, out[:, :1].nbytes), 0
        for real in real_spans(span, self.ctx.attention):
            for piece in self.ctx.grouping.of(real, most, group=UNIT):
                at = slice(done + piece.own.start, done + piece.own.stop)
                indices = range(
                    real.start + piece.own.start - piece.before, real.start + piece.own.stop + piece.after
                )
                normed = self.normalise(pad_piece(frames[:, at], piece), indices)
                if piece.before or piece.after:
                    out[:, at] = unpad_piece(self._project(normed), piece)
                else:
                    self._project(normed, out[:, at])
            done += len(real)
        return out

    def _project(self, normed: Tensor, out: Tensor | None = None) -> Tensor:
        return self.proj_in(rearrange(normed, "b f h w c -> b f (h w) c"), out=out)


def attention_batches(hidden: Tensor, ctx: TemporalContext) -> list[tuple[slice, slice]]:
    """Divide hidden states (b, f, n, c) into batches for attention: (branch, positions) each.

    A batch has one guidance branch, and enough positions to fill about ctx.chunk_bytes bytes with a window of frames.
    """
    window_bytes = hidden[:, :1, 0].nbytes * ctx.attention.most_keys
    branches = [slice(branch, branch + 1) for branch in range(len(hidden))]
    return [
        (branch, positions)
        for positions in chunks(hidden.shape[2], window_bytes, ctx.chunk_bytes)
        for branch in branches
    ]


def add_attention(
    attention: Attention,
    norm: nn.LayerNorm,
    x: Tensor,
    fetch: Callable[[], Remote],
    plan: AttentionPlan,
) -> None:
    """Add the attention of norm(x) to x (1, f, n, c) in place. fetch: see `dual_scope_attention`."""
    for rows, out in dual_scope_attention(attention, norm, x, fetch, plan):
        x[:, rows].add_(out)


def _when_arrived(
    pending: Pending, own_frames: OwnFrames, plan: AttentionPlan, branch: slice, positions: slice
) -> Remote:
    """Wait for the fetched frames, and take some positions of a branch."""
    fetched = pending.wait().frames[branch, :, positions]
    return Remote.of(own_frames.at(branch, positions), fetched, plan)
