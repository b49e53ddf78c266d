"""Dual-scope attention as a plan: which keys each query attends to, and with which bias (paper, section 3.3)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vinfinity.parallel.shards import FrameShards, Route, anchor_frames, plan_route
from vinfinity.system.transfer import to_device

NEVER = -math.inf


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


@dataclass(frozen=True)
class QueryBlock:
    """Consecutive queries of this rank and the keys that they attend to.

    queries: positions among this rank's own frames. keys: (k,) int64, positions among the rank's own frames followed by
    the fetched frames; None for all of them in order. bias: (queries, k) fp32, added to the logits; None if zero.
    scale: (queries,) fp32, the factor of entropy scaling on q; None without it.
    """

    queries: range
    keys: Tensor | None
    bias: Tensor | None
    scale: Tensor | None


@dataclass(frozen=True)
class AttentionPlan:
    """Temporal attention of one rank under one set of scopes: the frames to fetch, and the keys of each query block."""

    route: Route
    blocks: tuple[QueryBlock, ...]


def plan_attention(
    shards: FrameShards,
    rank: int,
    scopes: Scopes | None,
    *,
    trained_frames: int = 16,
    block: int = 32,
    device: torch.device | str = "cpu",
) -> AttentionPlan:
    """Dual-scope attention in blocks of queries; plain attention over all frames if `scopes` is None.

    A block attends to the union of its queries' local scopes and the anchors, each frame once; the bias is -inf for a
    key in neither scope of a query. Cost and temporaries are linear in the frames of the rank.

    Blocks begin at multiples of `block` in the video, and their keys are in video order. Where a rank border cuts a
    block, both ranks use the block's full number of keys; other frames stand in for keys that only the other rank's
    queries attend to, since a masked key adds nothing. So the sums of a query are the same on any number of ranks, to
    the last bit (docs/decisions/0011-the-same-bits-on-any-number-of-ranks.md).

    Raises ValueError if a query would have no key.
    """
    frames = shards.frames

    def keys_of(queries: Sequence[int]) -> list[int]:
        if scopes is None:
            return list(range(frames))
        near = {key for query in (queries[0], queries[-1]) for key in scopes.frames_near(query, frames)}
        if near:
            near = set(range(min(near), max(near) + 1))
        return sorted(near | set(scopes.global_frames(frames)))

    held = shards.held(rank)
    route = plan_route(shards, rank, lambda peer: keys_of(shards.held(peer)))
    place = {frame: index for index, frame in enumerate([*held, *route.wanted])}

    def positions(attended: Sequence[int]) -> Tensor | None:
        found = [place.get(frame, 0) for frame in attended]
        if found == list(range(len(place))):
            return None
        return to_device(torch.tensor(found, dtype=torch.int64), device)

    if scopes is None:
        everything = QueryBlock(range(len(held)), keys=positions(range(frames)), bias=None, scale=None)
        return AttentionPlan(route=route, blocks=(everything,))
    blocks = []
    for start in range(held.start // block * block, held.stop, block):
        whole = range(start, min(start + block, frames))
        own = range(max(whole.start, held.start), min(whole.stop, held.stop))
        attended = keys_of(whole)
        bias, scale = _bias(scopes, whole, attended, frames, trained_frames)
        rows = slice(own.start - whole.start, own.stop - whole.start)
        blocks.append(
            QueryBlock(
                queries=range(own.start - held.start, own.stop - held.start),
                keys=positions(attended),
                bias=None if bias is None else to_device(bias[rows], device),
                scale=None if scale is None else to_device(scale[rows], device),
            )
        )
    return AttentionPlan(route=route, blocks=tuple(blocks))


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
