"""Dual-scope attention over time (paper, section 3.3), and the frames that it needs from other ranks.

Dims: b batch, f this rank's frames, n positions, c channels, d head width.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from einops import rearrange
from torch import Tensor

from vinfinity.models.kernels import attend, is_matrix, linear
from vinfinity.models.unet3d.layers import Attention, pad_piece
from vinfinity.parallel.groups import UNIT, Piece
from vinfinity.parallel.scopes import AttentionPlan, QueryBlock
from vinfinity.parallel.slots import Unit
from vinfinity.parallel.spans import intersection


def beyond(plan: AttentionPlan) -> tuple[range, range]:
    """Return the frames of the plan's line before and after this rank's own."""
    line = plan.neighbourhood or plan.held
    return range(line.start, plan.held.start), range(plan.held.stop, line.stop)


def real_spans(span: range, plan: AttentionPlan) -> Iterator[range]:
    """Yield the frames that a span of the line stands for, in order: spans that this rank holds fully or not at all."""
    for whole_video in plan.timeline.units(span, plan.timeline.frames):
        shown = intersection(whole_video, span)
        first = plan.timeline.real(shown.start)
        real = range(first, first + len(shown))
        mine = intersection(real, plan.held)
        parts = (range(real.start, mine.start), mine, range(mine.stop, real.stop)) if mine else (real,)
        yield from (part for part in parts if part)


@dataclass(frozen=True)
class OwnFrames:
    """Copies of this rank's frames that attention needs out of turn, when it may already have changed the originals.

    anchors: the anchors among them, (b, frames, ...). ends: in a loop, the frames at one end of the clip that are also
    neighbours of its other end, by span.
    """

    anchors: Tensor
    ends: Mapping[range, Tensor]

    @classmethod
    def of(cls, x: Tensor, plan: AttentionPlan) -> "OwnFrames":
        """Copy from x (b, f, ...), this rank's frames."""
        held = plan.held
        anchors = [x[:, anchor - held.start] for anchor in plan.anchors if anchor in held]
        ends = {
            real: x[:, real.start - held.start : real.stop - held.start].clone()
            for span in beyond(plan)
            for real in real_spans(span, plan)
            if real.start in held
        }
        return cls(torch.stack(anchors, dim=1) if anchors else x[:, :0], ends)

    def at(self, branch: slice, positions: slice) -> "OwnFrames":
        """Select some positions of a branch."""
        ends = {span: frames[branch, :, positions] for span, frames in self.ends.items()}
        return OwnFrames(self.anchors[branch, :, positions], ends)


@dataclass(frozen=True)
class Remote:
    """The frames that temporal attention needs in addition to the clip it walks through: (b, frames, n, c) each.

    before, after: the neighbouring frames in the plan's line. anchors: all anchors, including this rank's own.
    """

    before: Tensor
    after: Tensor
    anchors: Tensor

    @classmethod
    def of(cls, own_frames: OwnFrames, fetched: Tensor, plan: AttentionPlan) -> "Remote":
        """Combine this rank's copies with the frames that the route fetched, (b, frames, ...)."""
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

    def at(self, branch: slice, positions: slice) -> "Remote":
        """Select some positions of a branch."""
        parts = (self.before, self.after, self.anchors)
        return Remote(*(part[branch, :, positions] for part in parts))


def by_scene(function: Callable[[Tensor], Tensor], anchors: Tensor, plan: AttentionPlan) -> Tensor:
    """Apply a function to all anchors (b, frames, ...), scene by scene, so that batches are the same on every rank."""
    if len(plan.anchor_counts) <= 1:
        return function(anchors)
    return torch.cat([function(part) for part in anchors.split(plan.anchor_counts, dim=1)], dim=1)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate parts along the frames. A single part is not copied."""
    filled = [part for part in parts if part.shape[1]] or list(parts[:1])
    return filled[0] if len(filled) == 1 else torch.cat(filled, dim=1)


# what is stored in slots that hold zeros
NO_UNIT = Unit(range(0), range(0), 0)


@dataclass
class Projections:
    """Queries, keys and values of normed frames, in the slots that the plan assigns to them (parallel/slots.py).

    x: (1, f, n, c), this rank's frames of one guidance branch. remote: None until it has arrived. weight: (3·inner, c).
    stored: (1, slots, n, 3·inner). anchors: the anchors whose keys and values are stored. units: the stored units, by
    slot.
    """

    norm: Callable[[Tensor], Tensor]
    x: Tensor
    plan: AttentionPlan
    weight: Tensor
    stored: Tensor
    remote: Remote | None = None
    anchors: range = range(0)
    units: dict[int, Unit] = field(default_factory=dict)

    @classmethod
    def empty(
        cls, attention: Attention, norm: Callable[[Tensor], Tensor], x: Tensor, plan: AttentionPlan
    ) -> "Projections":
        """Allocate the slots, with nothing stored."""
        weight = attention.joint_weight()
        return cls(norm, x, plan, weight, x.new_empty(1, plan.slots, x.shape[2], len(weight)))

    def project(self, units: Sequence[Unit]) -> None:
        """Project the units that are not stored yet. Frames held by other ranks are zeros before the norm."""
        for unit in units:
            if self.units.get(unit.slot) == unit or not unit.frames:
                continue
            frames = self._frames(unit.frames)
            slots = unit.slots(unit.frames)
            if self.plan.grouped:
                before, after = unit.frames.start - unit.span.start, unit.span.stop - unit.frames.stop
                frames = pad_piece(frames, Piece(slice(0, len(unit.frames)), before, after))
                slots = unit.slots(unit.span)
            if len(slots) < UNIT:
                self._clear(unit.slot)
            linear(self.norm(frames), self.weight, out=self.stored[:, slots.start : slots.stop])
            self.units[unit.slot] = unit

    def project_anchors(self, block: QueryBlock) -> None:
        """Project keys and values of the anchors of a block's scene, unless they are stored.

        All of them form one batch, which has the same shape on every rank.
        """
        if block.anchors != self.anchors and self.remote is not None:
            self.anchors, inner = block.anchors, len(self.weight) // 3
            normed = self.norm(self.remote.anchors[:, block.anchors.start : block.anchors.stop])
            at = slice(block.first_slot, block.first_slot + len(block.anchors))
            linear(normed, self.weight[inner:], out=self.stored[:, at, :, inner:])

    def of(self, block: QueryBlock, rows: range) -> tuple[Tensor, Tensor, Tensor]:
        """Return the queries for some rows of a block, and its keys and values: (1, frames, n, inner) each."""
        at = block.key_slots
        for slot in range(self.plan.ring_start, at.stop, UNIT):
            # these keys are masked, but new memory may hold NaN, which a product would spread
            if slot not in self.units:
                self._clear(slot)
        queries, keys, values = self.stored.chunk(3, dim=-1)
        return joined([queries[:, some] for some in block.slots(rows)]), keys[:, at], values[:, at]

    def _clear(self, slot: int) -> None:
        """Fill the slots of a unit with zeros."""
        self.stored[:, slot : slot + UNIT].zero_()
        self.units[slot] = NO_UNIT

    def _frames(self, frames: range) -> Tensor:
        """Return some frames of the plan's line, before the norm."""
        held, (before, after) = self.plan.held, beyond(self.plan)
        own = intersection(frames, held)
        parts = [self.x[:, own.start - held.start : own.stop - held.start]]
        if self.remote is not None:
            first, last = intersection(frames, before), intersection(frames, after)
            parts.insert(0, self.remote.before[:, first.start - before.start : first.stop - before.start])
            parts.append(self.remote.after[:, last.start - after.start : last.stop - after.start])
        return joined(parts)


def dual_scope_attention(
    attention: Attention,
    norm: Callable[[Tensor], Tensor],
    x: Tensor,
    fetch: Callable[[], Remote],
    plan: AttentionPlan,
) -> Iterator[tuple[slice, Tensor]]:
    """Compute temporal attention of norm(x) in blocks of queries, in the order of the video (paper, section 3.3).

    x: (1, f, n, c), this rank's frames of one guidance branch. fetch: called after some of x has been projected;
    returns the frames that are needed from other ranks, which are normed and projected here. Yields rows of x and their
    output (1, rows, n, c), which the caller may add to x at once. Memory does not grow with the frames.
    """
    held = plan.held
    projections = Projections.empty(attention, norm, x, plan)
    for block in plan.blocks:
        projections.project([unit for unit in block.units if unit.frames == intersection(unit.frames, held)])
        if projections.remote is None:
            # by now, the frames of other ranks may have arrived
            projections.remote = fetch()
        projections.project_anchors(block)
        projections.project(block.units)
        rows = block.rows if plan.grouped else intersection(block.rows, held)
        queries, keys, values = projections.of(block, rows)
        out = _attend(attention, queries, keys, values, block.part(rows, queries.dtype))
        own_rows = intersection(rows, held)
        yield (
            slice(own_rows.start - held.start, own_rows.stop - held.start),
            out[:, own_rows.start - rows.start : own_rows.stop - rows.start],
        )


def _attend(
    attention: Attention,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: tuple[Tensor | None, Tensor | None],
) -> Tensor:
    """Compute the output (1, rows, n, c) for a block of queries. mask: the bias, and the factor of the queries."""
    bias, scale = mask
    if scale is not None:
        queries = queries * scale[:, None, None]
    per_head = [
        rearrange(y, "1 f n (heads d) -> n heads f d", heads=attention.heads) for y in (queries, keys, values)
    ]
    # kernels store the heads of a query together; some then proceed by position, others by frame
    out = rearrange(attend(*per_head, bias=bias), "n heads f d -> f n (heads d)")
    if is_matrix(out):
        return attention.to_out[0](out)[None]
    return attention.to_out[0](out.transpose(0, 1)).transpose(0, 1)[None]
