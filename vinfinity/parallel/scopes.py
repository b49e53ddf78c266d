"""Dual-scope attention as a plan: which keys each query attends to, and with which bias (paper, section 3.3)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vinfinity.parallel.groups import UNIT
from vinfinity.parallel.joint import Positions, key_distances, nearest_frames
from vinfinity.parallel.shards import FrameShards, Route, anchor_frames, plan_route
from vinfinity.parallel.slots import Ring, Unit
from vinfinity.parallel.spans import intersection, merged
from vinfinity.parallel.timeline import Scene, Timeline, one_scene
from vinfinity.system.transfer import to_device

NEVER = -math.inf

# queries in a block
QUERY_BLOCK = 32

# a number further away than any frame
NO_FRAME = -(2**40)


@dataclass(frozen=True)
class Scopes:
    """Dual-scope attention at one denoising step (paper, section 3.3).

    local: number of frames on either side of the query's frame. anchors: number of global frames.
    local_bias, anchor_bias: added to the logits of each scope; -inf switches the scope off.
    entropy_scaling: whether to multiply logits by log(n) / log(trained_frames), where n is the number of attended keys.
    """

    local: int = 8
    anchors: int = 16
    local_bias: float = 0.0
    anchor_bias: float = 0.0
    entropy_scaling: bool = False

    def global_frames(self, frames: int) -> tuple[int, ...]:
        """Return the anchor frames; none while they are switched off."""
        if self.anchor_bias == NEVER or self.anchors == 0:
            return ()
        return anchor_frames(frames, self.anchors)


# for videos whose scenes all have plain attention over all frames
PLAIN = Scopes(local=0, anchors=0)


@dataclass(frozen=True)
class QueryBlock:
    """Consecutive queries and the keys that they attend to.

    rows: the frames of the queries, of which a rank may hold only a part. units: the units that cover the queries and
    their local scopes. anchors: the scene's anchors, as numbers among all anchors of the plan. keys: the frames in
    consecutive slots, from `first_slot` on; None for a slot without a frame of these scopes. bias: (rows, keys) fp32,
    added to the logits; None if zero. scale: (rows,) fp32, the factor of entropy scaling on q; None without it.

    With joint attention, blocks have one query, and keys are ascending and have no slots. distances: the temporal
    distance of each key from the query, for joint attention only.
    """

    rows: range
    units: tuple[Unit, ...]
    anchors: range
    keys: tuple[int | None, ...]
    bias: Tensor | None
    scale: Tensor | None
    first_slot: int = 0
    distances: tuple[int, ...] = ()
    _cast: dict[object, tuple[Tensor | None, Tensor | None]] = field(
        default_factory=dict, compare=False, repr=False
    )

    def part(self, rows: range, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        """Return bias and scale of some of the rows in a type. The result is cached."""
        key = (rows, dtype)
        if key not in self._cast:
            some = slice(rows.start - self.rows.start, rows.stop - self.rows.start)
            self._cast[key] = (
                None if self.bias is None else self.bias[some].to(dtype),
                None if self.scale is None else self.scale[some].to(dtype),
            )
        return self._cast[key]

    @property
    def key_slots(self) -> slice:
        """The slots of the keys."""
        return slice(self.first_slot, self.first_slot + len(self.keys))

    def slots(self, frames: range) -> list[slice]:
        """Return the slots of some frames of the units, in order."""
        return merged([unit.slots(frames) for unit in self.units])


@dataclass(frozen=True)
class AttentionPlan:
    """Temporal attention of one rank under one set of scopes.

    Frames are those of the video; in a loop, numbers beyond its ends stand for others (see timeline.py).

    route: the frames to fetch. held: this rank's frames. neighbourhood: the span of this rank's frames and those that
    their local scopes reach; empty if no local scope is on. anchors: the anchors of all scenes in which this rank holds
    frames, ascending. anchor_counts: the number of them in each scene. blocks: the blocks of which this rank holds
    queries. grouped: whether queries and units are computed as a whole (see groups.py). most_keys: the most frames that
    a block of this video attends to. timeline: the scenes of the video. ring_start: the first slot after those of
    anchors. slots: number of slots for projections (see slots.py); 0 with joint attention. entropy: the trained length
    in frames, for joint attention with entropy scaling; None otherwise.
    """

    route: Route
    held: range
    neighbourhood: range
    anchors: tuple[int, ...]
    anchor_counts: tuple[int, ...]
    blocks: tuple[QueryBlock, ...]
    grouped: bool
    most_keys: int
    timeline: Timeline
    ring_start: int
    slots: int
    entropy: int | None = None

    def keys(self, block: QueryBlock) -> list[int]:
        """Return the frames of a block's keys, in order."""
        return [self.timeline.real(key) for key in block.keys if key is not None]

    def prepare(self, dtype: torch.dtype) -> None:
        """Compute in advance what blocks cache for a type."""
        for block in self.blocks:
            block.part(block.rows if self.grouped else intersection(block.rows, self.held), dtype)


def plan_attention(
    shards: FrameShards,
    rank: int,
    scopes: Scopes | None,
    *,
    timeline: Timeline | None = None,
    trained_frames: int = 16,
    block: int = QUERY_BLOCK,
    joint: Positions | None = None,
    device: torch.device | str = "cpu",
) -> AttentionPlan:
    """Plan dual-scope attention in blocks of queries, or plain attention over all frames if `scopes` is None.

    timeline: the scenes with their anchors; by default, the video is one scene with the anchors of `scopes`.

    A block attends to the union of its queries' local scopes and the anchors, each frame once; the bias is -inf for a
    key in neither scope of a query. Cost and temporaries are linear in the frames of the rank.

    joint: the rule for rotary positions in models with joint attention; None for other models. Blocks then have one
    query each, and every query attends to the same number of frames: see joint.py.

    Blocks begin at multiples of `block` in the video, or with a scene, and the slot of each key follows from the scene
    alone. Where a rank border cuts a block, both ranks use the block's full number of keys. The contents of slots that
    only the other rank's queries attend to do not matter, since a masked key adds nothing. So the sums of a query are
    the same on any number of ranks, to the last bit (docs/decisions/0011-the-same-bits-on-any-number-of-ranks.md).

    Raises ValueError if a query would have no key.
    """
    if timeline is None:
        anchors = () if scopes is None else scopes.global_frames(shards.frames)
        timeline = one_scene(shards.frames, anchors=anchors, plain=scopes is None)
    planner = _Planner(
        shards=shards,
        rank=rank,
        scopes=scopes or PLAIN,
        timeline=timeline,
        trained_frames=trained_frames,
        block=block if joint is None else 1,
        joint=joint,
        device=device,
    )
    return planner.plan()


@dataclass(frozen=True)
class _Planner:
    """The steps of `plan_attention`, with its arguments as attributes."""

    shards: FrameShards
    rank: int
    scopes: Scopes
    timeline: Timeline
    trained_frames: int
    block: int
    joint: Positions | None
    device: torch.device | str

    def plan(self) -> AttentionPlan:
        held, timeline = self.shards.held(self.rank), self.timeline
        parts = self._parts(held)
        counts = [len(self._anchors(scene)) for scene, _ in parts]
        neighbourhood = self._neighbourhood(held)
        rings = [None if self.joint else self._ring(scene) for scene in timeline.scenes]
        blocks = []
        for index, (scene, part) in enumerate(parts):
            first = sum(counts[:index])
            numbers = range(first, first + counts[index])
            ring = rings[timeline.number(part.start)]
            blocks += [
                self._block(scene, rows, neighbourhood or held, numbers, ring)
                for rows in self._rows(scene, part)
            ]
        return AttentionPlan(
            route=plan_route(self.shards, self.rank, self._wanted),
            held=held,
            neighbourhood=neighbourhood,
            anchors=tuple(anchor for scene, _ in parts for anchor in self._anchors(scene)),
            anchor_counts=tuple(count for count in counts if count),
            blocks=tuple(blocks),
            grouped=self._grouped,
            most_keys=max(self._most_keys(scene) for scene in timeline.scenes),
            timeline=timeline,
            ring_start=max(len(self._anchors(scene)) for scene in timeline.scenes),
            slots=max((ring.start + UNIT * ring.units_stored for ring in rings if ring), default=0),
            entropy=self.trained_frames if self.joint and self.scopes.entropy_scaling else None,
        )

    @property
    def _grouped(self) -> bool:
        return self.shards.group is not None

    def _parts(self, span: range) -> list[tuple[Scene, range]]:
        """Return the scenes that a span overlaps, each with the frames of the overlap."""
        parts = ((scene, intersection(span, scene.frames)) for scene in self.timeline.scenes)
        return [(scene, part) for scene, part in parts if part]

    def _anchors(self, scene: Scene) -> tuple[int, ...]:
        """Return the anchors of a scene that are attended to."""
        return () if scene.plain or self.scopes.anchor_bias == NEVER else scene.anchors

    def _near(self, scene: Scene, queries: range) -> range:
        """Return the union of the local scopes of consecutive queries."""
        if scene.plain:
            return scene.frames
        if self.scopes.local_bias == NEVER:
            return range(0)
        local = self.scopes.local
        if self.joint is not None:
            spans = [self._nearest(scene, query) for query in queries]
            return range(min(span.start for span in spans), max(span.stop for span in spans))
        return self.timeline.within(scene, range(queries.start - local, queries.stop + local))

    def _nearest(self, scene: Scene, query: int) -> range:
        """Return the local scope of a query of joint attention."""
        anchors = self._anchors(scene)
        attended = 2 * self.scopes.local + 1 + len(anchors)
        return nearest_frames(self.timeline, scene, query, anchors, attended=attended)

    def _neighbourhood(self, held: range) -> range:
        spans = [near for scene, part in self._parts(held) if (near := self._near(scene, part))]
        return range(min(held.start, spans[0].start), max(held.stop, spans[-1].stop)) if spans else range(0)

    def _wanted(self, rank: int) -> set[int]:
        """Return all frames that a rank's queries attend to."""
        wanted: set[int] = set()
        for scene, part in self._parts(self.shards.held(rank)):
            wanted |= {self.timeline.real(frame) for frame in self._near(scene, part)}
            wanted |= {*self._anchors(scene)}
        return wanted

    def _rows(self, scene: Scene, part: range) -> Iterator[range]:
        """Yield the frames of each block of which a rank holds queries. part: its frames in the scene."""
        whole = scene.plain and self.joint is None
        size = len(scene.frames) if whole else self.block
        first = scene.frames.start if whole else part.start // size * size
        for start in range(first, part.stop, size):
            yield intersection(range(start, start + size), scene.frames)

    def _ring(self, scene: Scene) -> Ring:
        """Return the slots of a scene's frames. Slots for the most anchors of any scene precede them."""
        covers = [self._near(scene, rows) or rows for rows in self._rows(scene, scene.frames)]
        units = self.timeline.units(range(covers[0].start, covers[-1].stop), UNIT)
        return Ring.of(units, covers, max(len(self._anchors(scene)) for scene in self.timeline.scenes))

    def _block(
        self, scene: Scene, rows: range, reach: range, anchors: range, ring: Ring | None
    ) -> QueryBlock:
        """Plan one block.

        reach: the frames of which this rank has projections. anchors: the numbers of the scene's anchors.
        """
        timeline, own = self.timeline, self._anchors(scene)
        span = self._near(scene, rows)
        units: tuple[Unit, ...] = ()
        keys: list[int | None]
        if ring is None:
            first, keys = 0, [*self._ascending(span, own)]
        else:
            units = tuple(ring.around(span or rows, timeline.within(scene, reach)))
            first, keys = ring.keys(own, units, span)
        bias = scale = None
        if not scene.plain:
            bias, scale = self._bias(rows, keys, own, span)
        distances: tuple[int, ...] = ()
        if self.joint is not None:
            distances = key_distances(
                timeline,
                scene,
                rows.start,
                self._ascending(span, own),
                near=span,
                rule=self.joint,
                trained=self.trained_frames,
            )
        return QueryBlock(
            rows=rows,
            units=units,
            anchors=anchors,
            keys=tuple(keys),
            bias=None if bias is None else to_device(bias, self.device),
            scale=None if scale is None else to_device(scale, self.device),
            first_slot=first,
            distances=distances,
        )

    def _ascending(self, span: range, anchors: Sequence[int]) -> list[int]:
        """Return the frames of a span and the anchors, each once."""
        inside = {self.timeline.real(key) for key in span}
        return sorted([*span, *(anchor for anchor in anchors if anchor not in inside)])

    def _bias(
        self, rows: range, keys: Sequence[int | None], anchors: Sequence[int], span: range
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the bias of each (query, key) pair and the entropy scale of each query, as in `QueryBlock`.

        span: the frames of the queries' local scopes.
        """
        scopes = self.scopes
        real = [NO_FRAME if key is None else self.timeline.real(key) for key in keys]
        numbers = [NO_FRAME if key is None else key for key in keys]
        query, key = torch.tensor(rows)[:, None], torch.tensor(numbers, dtype=torch.int64)[None, :]
        if self.joint is None:
            near = (query - key).abs() <= scopes.local
        else:
            near = torch.tensor([[key in span for key in keys]])
        local = torch.where(near, scopes.local_bias, NEVER)
        anchored = torch.isin(
            torch.tensor(real, dtype=torch.int64)[None, :], torch.tensor(anchors, dtype=torch.int64)
        )
        bias = torch.maximum(local, torch.where(anchored, scopes.anchor_bias, NEVER)).float()
        for twice in {frame for frame in real if real.count(frame) > 1} - {NO_FRAME}:
            # a nearby anchor, or a frame at both ends of a loop: each query attends to it once
            columns = [index for index, frame in enumerate(real) if frame == twice]
            once = torch.nn.functional.one_hot(bias[:, columns].argmax(1), len(columns)).bool()
            bias[:, columns] = torch.where(once, bias[:, columns], NEVER)
        attended = bias > NEVER
        if not attended.numel() or not attended.any(1).all():
            raise ValueError("the attention scopes leave a frame without a key")
        if self.joint is not None:
            # a bias that all keys share has no effect; every key of a single query is attended to
            return (None if (bias == bias[0, 0]).all() else bias), None
        scale = None
        if scopes.entropy_scaling:
            scale = attended.sum(1).float().log() / math.log(max(self.trained_frames, 2))
            bias = torch.where(attended, bias * scale[:, None], NEVER)
        return (None if (bias == 0).all() else bias), scale

    def _most_keys(self, scene: Scene) -> int:
        if scene.plain:
            return len(scene.frames)
        if self.joint is not None:
            return min(len(scene.frames), 2 * self.scopes.local + 1 + len(self._anchors(scene)))
        local = 0 if self.scopes.local_bias == NEVER else self.scopes.local
        return min(len(scene.frames), self.block + 2 * local + len(self._anchors(scene)))
