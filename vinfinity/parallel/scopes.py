"""Dual-scope attention as a plan: which keys each query attends to, and with which bias (paper, section 3.3)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from vinfinity.parallel.groups import UNIT
from vinfinity.parallel.joint import Positions, key_distances, nearest_frames
from vinfinity.parallel.shards import FrameShards, Route, anchor_frames, plan_route
from vinfinity.parallel.timeline import Scene, Timeline, intersection, one_scene
from vinfinity.system.transfer import to_device

NEVER = -math.inf

# queries in a block
QUERY_BLOCK = 32


@dataclass(frozen=True)
class Scopes:
    """Dual-scope attention at one denoising step (paper, section 3.3).

    local: frames on either side of the query's frame. anchors: how many global frames there are.
    local_bias, anchor_bias: added to the logits of each scope; -inf switches the scope off.
    entropy_scaling: multiply logits by log(n) / log(trained_frames), n the number of attended keys.
    """

    local: int = 8
    anchors: int = 16
    local_bias: float = 0.0
    anchor_bias: float = 0.0
    entropy_scaling: bool = False

    def global_frames(self, frames: int) -> tuple[int, ...]:
        """The anchor frames; none while they are switched off."""
        if self.anchor_bias == NEVER or self.anchors == 0:
            return ()
        return anchor_frames(frames, self.anchors)


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
    distances: with joint attention, whose blocks have one query, how far each key is from it in time.
    """

    rows: range
    units: tuple[range, ...]
    keys: tuple[KeyRun, ...]
    bias: Tensor | None
    scale: Tensor | None
    next_key: int
    distances: tuple[int, ...] = ()
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
    """Temporal attention of one rank under one set of scopes. Frames are those of the video; in a loop, frames beyond
    its ends stand for others (see timeline.py).

    route: the frames to fetch. held: this rank's frames. line: the frames around them, its own included, that local
    scopes reach; empty if none is on. anchors: ascending, of the scenes of this rank's frames. anchor_counts: how many
    of them each scene has. blocks: those of which this rank holds queries. grouped: whether queries and units are
    computed as a whole, see groups.py. window: the most frames that a block of this video attends to. entropy: for
    joint attention with entropy scaling, the trained length in frames; None otherwise.
    """

    route: Route
    held: range
    line: range
    anchors: tuple[int, ...]
    anchor_counts: tuple[int, ...]
    blocks: tuple[QueryBlock, ...]
    grouped: bool
    window: int
    timeline: Timeline
    entropy: int | None = None

    def keys(self, block: QueryBlock) -> list[int]:
        """The frames of a block's keys, in order."""
        return [
            self.anchors[at] if run.anchors else self.timeline.real(at)
            for run in block.keys
            for at in run.span
        ]

    def prepare(self, dtype: torch.dtype) -> None:
        """Makes what blocks keep in a type, which is otherwise made when it is first needed."""
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
    """Dual-scope attention in blocks of queries; plain attention over all frames if `scopes` is None.

    timeline: the scenes with their anchors; by default the video is one scene with the anchors of `scopes`.

    A block attends to the union of its queries' local scopes and the anchors, each frame once; the bias is -inf for a
    key in neither scope of a query. Cost and temporaries are linear in the frames of the rank.

    joint: for models in which all positions of the attended frames meet in one attention, with rotary positions. Then
    blocks have one query each, and its local scope is as large as it takes for every query to attend to the same number
    of frames: see joint.py, also for `Positions`.

    Blocks begin at multiples of `block` in the video, or with a scene, and their keys are in video order. Where a rank
    border cuts a block, both ranks use the block's full number of keys; zeros stand in for keys that only the other
    rank's queries attend to, since a masked key adds nothing. So the sums of a query are the same on any number of
    ranks, to the last bit (docs/decisions/0011-the-same-bits-on-any-number-of-ranks.md).

    Raises ValueError if a query would have no key.
    """
    if timeline is None:
        anchors = () if scopes is None else scopes.global_frames(shards.frames)
        timeline = one_scene(shards.frames, anchors=anchors, plain=scopes is None)
    size = block if joint is None else 1
    return _Planner(shards, rank, scopes or PLAIN, timeline, trained_frames, size, joint, device).plan()


# for videos whose scenes are all plain
PLAIN = Scopes(local=0, anchors=0)


@dataclass(frozen=True)
class _Planner:
    """The parts of `plan_attention`."""

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
        counts = tuple(len(self._anchors(scene)) for scene, _ in self._parts(held))
        anchors = tuple(anchor for scene, _ in self._parts(held) for anchor in self._anchors(scene))
        line = self._line(held)
        blocks = tuple(
            self._block(scene, rows, line or held, held, anchors)
            for scene, part in self._parts(held)
            for rows in self._rows(scene, part)
        )
        return AttentionPlan(
            route=plan_route(self.shards, self.rank, self._wanted),
            held=held,
            line=line,
            anchors=anchors,
            anchor_counts=tuple(count for count in counts if count),
            blocks=blocks,
            grouped=self._grouped,
            window=max(self._window(scene) for scene in timeline.scenes),
            timeline=timeline,
            entropy=self.trained_frames if self.joint and self.scopes.entropy_scaling else None,
        )

    @property
    def _grouped(self) -> bool:
        return self.shards.group is not None

    def _parts(self, span: range) -> list[tuple[Scene, range]]:
        """The scenes that a span reaches into, each with the frames of the span in it."""
        parts = ((scene, intersection(span, scene.frames)) for scene in self.timeline.scenes)
        return [(scene, part) for scene, part in parts if part]

    def _anchors(self, scene: Scene) -> tuple[int, ...]:
        """The anchors of a scene that are attended to."""
        return () if scene.plain or self.scopes.anchor_bias == NEVER else scene.anchors

    def _near(self, scene: Scene, queries: range) -> range:
        """The local scopes of consecutive queries."""
        if scene.plain:
            return scene.frames
        if self.scopes.local_bias == NEVER:
            return range(0)
        local = self.scopes.local
        if self.joint is not None:
            spans = [self._nearest(scene, query) for query in queries]
            return range(min(span.start for span in spans), max(span.stop for span in spans))
        return self.timeline.clip(range(queries.start - local, queries.stop + local), scene)

    def _nearest(self, scene: Scene, query: int) -> range:
        """The local scope of a query of joint attention."""
        anchors = self._anchors(scene)
        attended = 2 * self.scopes.local + 1 + len(anchors)
        return nearest_frames(self.timeline, scene, query, anchors, attended=attended)

    def _line(self, held: range) -> range:
        spans = [near for scene, part in self._parts(held) if (near := self._near(scene, part))]
        return range(min(held.start, spans[0].start), max(held.stop, spans[-1].stop)) if spans else range(0)

    def _wanted(self, rank: int) -> set[int]:
        """All frames that a rank's queries attend to."""
        wanted: set[int] = set()
        for scene, part in self._parts(self.shards.held(rank)):
            wanted |= {self.timeline.real(frame) for frame in self._near(scene, part)}
            wanted |= {*self._anchors(scene)}
        return wanted

    def _rows(self, scene: Scene, part: range) -> Iterator[range]:
        """The frames of each block of which a rank holds queries. part: those of its frames that are in the scene."""
        whole = scene.plain and self.joint is None
        size = len(scene.frames) if whole else self.block
        first = scene.frames.start if whole else part.start // size * size
        for start in range(first, part.stop, size):
            yield intersection(range(start, start + size), scene.frames)

    def _block(
        self, scene: Scene, rows: range, reach: range, held: range, anchors: Sequence[int]
    ) -> QueryBlock:
        """reach: the frames of which this rank has projections. anchors: all of this rank."""
        timeline, own = self.timeline, self._anchors(scene)
        span = self._near(scene, rows)
        inside = {timeline.real(key) for key in span}
        keys = sorted([*span, *(anchor for anchor in own if anchor not in inside)])
        bias = scale = None
        if not scene.plain:
            bias, scale = self._bias(rows, keys, own, span)
        return QueryBlock(
            rows=rows,
            units=self._units(reach, rows, span),
            keys=self._runs(keys, own, anchors),
            bias=None if bias is None else to_device(bias, self.device),
            scale=None if scale is None else to_device(scale, self.device),
            next_key=self._next_key(rows),
            distances=()
            if self.joint is None
            else key_distances(
                timeline, scene, rows.start, keys, near=span, rule=self.joint, trained=self.trained_frames
            ),
        )

    def _next_key(self, rows: range) -> int:
        """The first frame that the block after `rows` has in its local scopes."""
        if rows.stop == self.timeline.frames:
            return rows.stop
        [(scene, part)] = self._parts(range(rows.stop, rows.stop + 1))
        return near.start if (near := self._near(scene, part)) else self.timeline.frames

    def _units(self, reach: range, *spans: range) -> tuple[range, ...]:
        """The units of `reach` that overlap one of the spans; whole ones if grouped."""
        units = []
        for unit in self.timeline.units(reach, UNIT if self._grouped else QUERY_BLOCK):
            present = intersection(unit, reach)
            if any(intersection(present, span) for span in spans):
                units.append(unit if self._grouped else present)
        return tuple(units)

    def _runs(self, keys: Sequence[int], own: Sequence[int], anchors: Sequence[int]) -> tuple[KeyRun, ...]:
        """Ascending keys as runs of the scene's own anchors, by their number among all anchors, and of other frames."""
        number = {anchor: anchors.index(anchor) for anchor in own}
        runs: list[KeyRun] = []
        for key in keys:
            anchor = self.timeline.real(key) in number
            place = number[self.timeline.real(key)] if anchor else key
            if runs and runs[-1].anchors == anchor and runs[-1].span.stop == place:
                runs[-1] = KeyRun(anchor, range(runs[-1].span.start, place + 1))
            else:
                runs.append(KeyRun(anchor, range(place, place + 1)))
        return tuple(runs)

    def _bias(
        self, rows: range, keys: Sequence[int], anchors: Sequence[int], span: range
    ) -> tuple[Tensor | None, Tensor | None]:
        """The bias of each (query, key) pair and the entropy scale of each query, as in `QueryBlock`.

        span: the frames of their local scopes.
        """
        scopes, real = self.scopes, [self.timeline.real(key) for key in keys]
        query, key = torch.tensor(rows)[:, None], torch.tensor(keys, dtype=torch.int64)[None, :]
        if self.joint is None:
            near = (query - key).abs() <= scopes.local
        else:
            near = torch.tensor([[key in span for key in keys]])
        local = torch.where(near, scopes.local_bias, NEVER)
        anchored = torch.isin(
            torch.tensor(real, dtype=torch.int64)[None, :], torch.tensor(anchors, dtype=torch.int64)
        )
        bias = torch.maximum(local, torch.where(anchored, scopes.anchor_bias, NEVER)).float()
        for twice in {frame for frame in real if real.count(frame) > 1}:
            # the same frame from both ends of a loop: each query attends to it once
            places = [index for index, frame in enumerate(real) if frame == twice]
            once = torch.nn.functional.one_hot(bias[:, places].argmax(1), len(places)).bool()
            bias[:, places] = torch.where(once, bias[:, places], NEVER)
        attended = bias > NEVER
        if not attended.numel() or not attended.any(1).all():
            raise ValueError("the attention scopes leave a frame without a key")
        if self.joint is not None:
            # a bias that all keys share changes nothing; every key of a single query is attended to
            return (None if (bias == bias[0, 0]).all() else bias), None
        scale = None
        if scopes.entropy_scaling:
            scale = attended.sum(1).float().log() / math.log(max(self.trained_frames, 2))
            bias = torch.where(attended, bias * scale[:, None], NEVER)
        return (None if (bias == 0).all() else bias), scale

    def _window(self, scene: Scene) -> int:
        if scene.plain:
            return len(scene.frames)
        if self.joint is not None:
            return min(len(scene.frames), 2 * self.scopes.local + 1 + len(self._anchors(scene)))
        local = 0 if self.scopes.local_bias == NEVER else self.scopes.local
        return min(len(scene.frames), self.block + 2 * local + len(self._anchors(scene)))
