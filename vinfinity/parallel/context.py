"""What a temporal layer knows of the rest of the video, passed explicitly through every forward."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vinfinity.parallel.exchange import FrameExchange
from vinfinity.parallel.shards import FrameShards, Route, anchor_frames, halo_route, plan_route

NEVER = -math.inf
CHUNK_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Scopes:
    """Dual-scope attention at one denoising step (paper, section 3.3; DESIGN section 2).

    local: frames on either side of a query's own in the local scope. anchors: how many global frames, or which.
    local_bias, anchor_bias: added to the logits of each scope; -inf switches the scope off.
    entropy_scaling: logits times log(n) / log(trained_frames), n the number of attended keys.
    """

    local: int = 8
    anchors: int | tuple[int, ...] = 16
    local_bias: float = 0.0
    anchor_bias: float = 0.0
    entropy_scaling: bool = False

    def frames_near(self, frame: int, frames: int) -> range:
        """The local scope N(frame), without what lies beyond the video."""
        if self.local_bias == NEVER:
            return range(0)
        return range(max(0, frame - self.local), min(frames, frame + self.local + 1))

    def global_frames(self, frames: int) -> tuple[int, ...]:
        """The anchors G, none while they are switched off."""
        if self.anchor_bias == NEVER or self.anchors == 0:
            return ()
        return self.anchors if isinstance(self.anchors, tuple) else anchor_frames(frames, self.anchors)


@dataclass(frozen=True)
class QueryBlock:
    """Some consecutive queries of this rank and the keys that they attend to.

    queries: positions among this rank's own frames. keys: (k,) int64, positions among the own frames and, behind them,
    the fetched ones; None for all of them in order. bias: (queries, k) fp32 added to the logits, or None where all are
    zero. scale: (queries,) fp32, the factor of entropy scaling on q, or None.
    """

    queries: range
    keys: Tensor | None
    bias: Tensor | None
    scale: Tensor | None


@dataclass(frozen=True)
class AttentionPlan:
    """Temporal attention of one rank while one set of scopes is in force: what to fetch and which keys to use."""

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
    """Dual-scope attention in blocks of queries; plain attention over all frames where `scopes` is None.

    A block attends to the union of its queries' local scopes and the anchors, each frame once; the bias holds -inf
    where a key is in neither scope of a query. Cost and temporaries are linear in the frames of the rank.

    Blocks begin at multiples of `block` in the video, and their keys are in the order of the video. Where a block is
    cut by the border between two ranks, either has all its keys: others in place of those that only the other's queries
    see, since what is masked adds nothing. So a query's sums are the same on any number of ranks, to the last bit.

    Raises ValueError where a query would be left without any key.
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
    route = plan_route(shards, rank, lambda of: keys_of(shards.held(of)))
    place = {frame: index for index, frame in enumerate([*held, *route.wanted])}

    def places(seen: Sequence[int]) -> Tensor | None:
        found = [place.get(frame, 0) for frame in seen]
        if found == list(range(len(place))):
            return None
        return torch.tensor(found, dtype=torch.int64, device=device)

    if scopes is None:
        everything = QueryBlock(range(len(held)), keys=places(range(frames)), bias=None, scale=None)
        return AttentionPlan(route=route, blocks=(everything,))
    blocks = []
    for start in range(held.start // block * block, held.stop, block):
        whole = range(start, min(start + block, frames))
        ours = range(max(whole.start, held.start), min(whole.stop, held.stop))
        seen = keys_of(whole)
        bias, scale = _bias(scopes, whole, seen, frames, trained_frames)
        rows = slice(ours.start - whole.start, ours.stop - whole.start)
        blocks.append(
            QueryBlock(
                queries=range(ours.start - held.start, ours.stop - held.start),
                keys=places(seen),
                bias=None if bias is None else bias[rows].to(device),
                scale=None if scale is None else scale[rows].to(device),
            )
        )
    return AttentionPlan(route=route, blocks=tuple(blocks))


def _bias(
    scopes: Scopes, queries: Sequence[int], keys: Sequence[int], frames: int, trained_frames: int
) -> tuple[Tensor | None, Tensor | None]:
    """The bias of each (query, key) and the entropy scale of each query, as `QueryBlock` describes them."""
    query, key = torch.tensor(queries)[:, None], torch.tensor(keys, dtype=torch.int64)[None, :]
    near = (query - key).abs() <= scopes.local
    local = torch.where(near, scopes.local_bias, NEVER)
    anchored = torch.isin(key, torch.tensor(scopes.global_frames(frames), dtype=torch.int64))
    bias = torch.maximum(local, torch.where(anchored, scopes.anchor_bias, NEVER)).float()
    attended = bias > NEVER
    if not attended.any(1).all():
        raise ValueError("the attention's scopes leave a frame without any key")
    scale = None
    if scopes.entropy_scaling:
        scale = attended.sum(1).float().log() / math.log(max(trained_frames, 2))
        bias = torch.where(attended, bias * scale[:, None], NEVER)
    return (None if (bias == 0).all() else bias), scale


@dataclass(frozen=True)
class TemporalContext:
    """The rest of the video, as a temporal layer of one rank sees it during one denoising step.

    exchange: talks to the other ranks. attention: keys of temporal attention. halo: the neighbouring frames that a
    temporal convolution needs, `frames_before` of them in front of this rank's own. norm: "video" takes the statistics
    of temporal GroupNorms over all frames (the paper), "rank" over this rank's own (the released code).
    chunk_bytes: bytes of hidden states that layers work on at once, which bounds their temporaries.
    """

    exchange: FrameExchange
    attention: AttentionPlan
    halo: Route
    frames_before: int
    norm: Literal["video", "rank"] = "video"
    chunk_bytes: int = CHUNK_BYTES


def temporal_context(
    exchange: FrameExchange,
    shards: FrameShards,
    rank: int,
    scopes: Scopes | None,
    *,
    trained_frames: int = 16,
    norm: Literal["video", "rank"] = "video",
    chunk_bytes: int = CHUNK_BYTES,
    device: torch.device | str = "cpu",
) -> TemporalContext:
    """The context of `rank` for one set of scopes (None: plain attention over all frames)."""
    attention = plan_attention(shards, rank, scopes, trained_frames=trained_frames, device=device)
    halo = halo_route(shards, rank, 1)
    return TemporalContext(
        exchange=exchange,
        attention=attention,
        halo=halo,
        frames_before=sum(frame < shards.held(rank).start for frame in halo.wanted),
        norm=norm,
        chunk_bytes=chunk_bytes,
    )
