"""Dual-scope attention as a plan: which keys each query attends to, and with which bias (paper, section 3.3)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from vinfinity.parallel.groups import UNIT
from vinfinity.parallel.shards import FrameShards, Route, anchor_frames, plan_route
from vinfinity.system.transfer import to_device

NEVER = -math.inf

# queries in a block
QUERY_BLOCK = 32


@dataclass(frozen=True)
class Scopes:
    """Dual-scope attention at one denoising step (paper, section 3.3).

    local: frames on either side of the query's frame. anchors: how many global frames, or which ones.
    local_bias, anchor_bias: added to the logits of each scope; -inf switches the scope off.
    entropy_scaling: multiply logits by log(n) / log(trained_frames), n the number of attended keys.
    """

    local: int = 8
    anchors: int | tuple[int, ...] = 16
    local_bias: float = 0.0
    anchor_bias: float = 0.0
    entropy_scaling: bool = False

    def frames_near(self, frame: int, frames: int) -> range:
        """The local scope of a frame, clipped to the video."""
        if self.local_bias == NEVER:
            return range(0)
        return range(max(0, frame - self.local), min(frames, frame + self.local + 1))

    def global_frames(self, frames: int) -> tuple[int, ...]:
        """The anchor frames; none while they are switched off."""
        if self.anchor_bias == NEVER or self.anchors == 0:
            return ()
        return self.anchors if isinstance(self.anchors, tuple) else anchor_frames(frames, self.anchors)


class KeyRun(NamedTuple):
    """Consecutive keys of a block: anchors, by their number among the anchors, or other frames of the video."""

    anchors: bool
    span: range


@dataclass(frozen=True)
class QueryBlock:
    """Consecutive queries and the keys that they attend to.

    rows: the frames of the queries, of which a rank may hold only a part. units: spans of frames, to be projected at
    once, that cover the queries and the local scopes of all of them. keys: these scopes, which make up one span, and
    the anchors, in video order, each once. bias: (rows, keys) fp32, added to the logits; None if zero. scale: (rows,)
    fp32, the factor of entropy scaling on q; None without it. next_key: the first frame of the next block's span.
    """

    rows: range
    units: tuple[range, ...]
    keys: tuple[KeyRun, ...]
    bias: Tensor | None
    scale: Tensor | None
    next_key: int
    _cast: dict[object, tuple[Tensor | None, Tensor | None]] = field(
        default_factory=dict, compare=False, repr=False
    )

    def part(self, rows: range, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        """Bias and scale of some of the rows, in a type; made once and kept."""
        key = (rows, dtype)
        if key not in self._cast:
            some = slice(rows.start - self.rows.start, rows.stop - self.rows.start)
            self._cast[key] = (
                None if self.bias is None else self.bias[some].to(dtype),
                None if self.scale is None else self.scale[some].to(dtype),
            )
        return self._cast[key]


@dataclass(frozen=True)
class AttentionPlan:
    """Temporal attention of one rank under one set of scopes. All frames are absolute.

    route: the frames to fetch. held: this rank's frames. line: the frames around them, its own included, that local
    scopes reach; empty if none is on. anchors: ascending. blocks: those of which this rank holds queries.
    grouped: whether queries and units are computed as a whole, see groups.py. window: the most frames that a block of
    this video attends to.
    """

    route: Route
    held: range
    line: range
    anchors: tuple[int, ...]
    blocks: tuple[QueryBlock, ...]
    grouped: bool
    window: int


def plan_attention(
    shards: FrameShards,
    rank: int,
    scopes: Scopes | None,
    *,
    trained_frames: int = 16,
    block: int = QUERY_BLOCK,
    device: torch.device | str = "cpu",
) -> AttentionPlan:
    """Dual-scope attention in blocks of queries; plain attention over all frames if `scopes` is None.

    A block attends to the union of its queries' local scopes and the anchors, each frame once; the bias is -inf for a
    key in neither scope of a query. Cost and temporaries are linear in the frames of the rank.

    Blocks begin at multiples of `block` in the video, and their keys are in video order. Where a rank border cuts a
    block, both ranks use the block's full number of keys; zeros stand in for keys that only the other rank's queries
    attend to, since a masked key adds nothing. So the sums of a query are the same on any number of ranks, to the last
    bit (docs/decisions/0011-the-same-bits-on-any-number-of-ranks.md).

    Raises ValueError if a query would have no key.
    """
    frames = shards.frames
    anchors = () if scopes is None else scopes.global_frames(frames)

    def near(queries: range) -> range:
        if scopes is None:
            return range(frames)
        first, last = (scopes.frames_near(query, frames) for query in (queries[0], queries[-1]))
        return range(min(first.start, last.start), max(first.stop, last.stop))

    held = shards.held(rank)
    route = plan_route(shards, rank, lambda peer: {*near(shards.held(peer)), *anchors})
    line, grouped = near(held), shards.group is not None

    def units_of(*spans: range) -> tuple[range, ...]:
        """The units of this rank's line that overlap one of the spans; whole ones if grouped."""
        reach, size = line or held, UNIT if grouped else QUERY_BLOCK
        units = []
        for start in range(reach.start // size * size, reach.stop, size):
            unit = range(start, min(start + size, frames))
            if any(intersection(intersection(unit, reach), span) for span in spans):
                units.append(unit if grouped else intersection(unit, reach))
        return tuple(units)

    blocks = []
    size = frames if scopes is None else block
    for start in range(held.start // size * size, held.stop, size):
        rows = range(start, min(start + size, frames))
        span = near(rows)
        keys = sorted({*span, *anchors})
        bias = scale = None
        if scopes is not None:
            bias, scale = _bias(scopes, rows, keys, frames, trained_frames)
        following = near(range(rows.stop, rows.stop + 1)) if rows.stop < frames else range(0)
        blocks.append(
            QueryBlock(
                rows=rows,
                units=units_of(rows, span),
                keys=_runs(keys, anchors),
                bias=None if bias is None else to_device(bias, device),
                scale=None if scale is None else to_device(scale, device),
                next_key=following.start if following else frames,
            )
        )
    local = 0 if scopes is None or scopes.local_bias == NEVER else scopes.local
    window = min(frames, size + 2 * local + len(anchors))
    return AttentionPlan(route, held, line, anchors, tuple(blocks), grouped, window)


def _runs(keys: Sequence[int], anchors: Sequence[int]) -> tuple[KeyRun, ...]:
    """Ascending frames as runs of anchors and of other frames."""
    number = {anchor: index for index, anchor in enumerate(anchors)}
    runs: list[KeyRun] = []
    for key in keys:
        anchor, place = key in number, number.get(key, key)
        if runs and runs[-1].anchors == anchor and runs[-1].span.stop == place:
            runs[-1] = KeyRun(anchor, range(runs[-1].span.start, place + 1))
        else:
            runs.append(KeyRun(anchor, range(place, place + 1)))
    return tuple(runs)


def intersection(one: range, other: range) -> range:
    """The frames of both spans."""
    start = max(one.start, other.start)
    return range(start, max(start, min(one.stop, other.stop)))


def _bias(
    scopes: Scopes, queries: Sequence[int], keys: Sequence[int], frames: int, trained_frames: int
) -> tuple[Tensor | None, Tensor | None]:
    """The bias of each (query, key) pair and the entropy scale of each query, as in `QueryBlock`."""
    query, key = torch.tensor(queries)[:, None], torch.tensor(keys, dtype=torch.int64)[None, :]
    near = (query - key).abs() <= scopes.local
    local = torch.where(near, scopes.local_bias, NEVER)
    anchored = torch.isin(key, torch.tensor(scopes.global_frames(frames), dtype=torch.int64))
    bias = torch.maximum(local, torch.where(anchored, scopes.anchor_bias, NEVER)).float()
    attended = bias > NEVER
    if not attended.any(1).all():
        raise ValueError("the attention scopes leave a frame without a key")
    scale = None
    if scopes.entropy_scaling:
        scale = attended.sum(1).float().log() / math.log(max(trained_frames, 2))
        bias = torch.where(attended, bias * scale[:, None], NEVER)
    return (None if (bias == 0).all() else bias), scale
