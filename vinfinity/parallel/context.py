"""What a temporal layer knows about the rest of the video, passed explicitly through every forward."""

from dataclasses import dataclass
from typing import Literal

import torch

from vinfinity.parallel.exchange import FrameExchange
from vinfinity.parallel.groups import Grouping
from vinfinity.parallel.scopes import AttentionPlan, Scopes, plan_attention
from vinfinity.parallel.shards import FrameShards, Route, halo_route

CHUNK_BYTES = 32 * 2**20


@dataclass(frozen=True)
class TemporalContext:
    """The rest of the video, as a temporal layer of one rank sees it in one denoising step.

    exchange: fetches frames from other ranks. attention: keys of temporal attention. halo: the neighbouring frames that
    a temporal convolution needs, `frames_before` of them before this rank's own. norm: "video" takes the statistics of
    temporal GroupNorm over all frames (paper, section 3.2), "rank" over this rank's frames (the released code).
    grouping: how layers divide this rank's frames. chunk_bytes: bytes of hidden states that layers work on at once,
    which bounds their temporaries.
    """

    exchange: FrameExchange
    attention: AttentionPlan
    halo: Route
    frames_before: int
    grouping: Grouping
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
    """The context of `rank` under one set of scopes (None: plain attention over all frames)."""
    attention = plan_attention(shards, rank, scopes, trained_frames=trained_frames, device=device)
    halo = halo_route(shards, rank, 1)
    return TemporalContext(
        exchange=exchange,
        attention=attention,
        halo=halo,
        frames_before=sum(frame < shards.held(rank).start for frame in halo.wanted),
        grouping=Grouping(shards.held(rank), shards.frames, shards.group),
        norm=norm,
        chunk_bytes=chunk_bytes,
    )
