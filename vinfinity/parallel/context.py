"""What a temporal layer knows about the rest of the video, passed explicitly through every forward."""

from dataclasses import dataclass
from typing import Literal

import torch

from vinfinity.parallel.exchange import FrameExchange
from vinfinity.parallel.groups import Grouping
from vinfinity.parallel.joint import Positions
from vinfinity.parallel.scopes import AttentionPlan, Scopes, plan_attention
from vinfinity.parallel.shards import FrameShards, Route, plan_route
from vinfinity.parallel.timeline import Timeline

CHUNK_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Halo:
    """The frames next to a rank's own, which a temporal convolution needs.

    before, after: the two frames; None at an end of the video or the scene. In a loop, a rank may hold them itself.
    route: fetches those that other ranks hold.
    """

    route: Route
    before: int | None
    after: int | None


@dataclass(frozen=True)
class TemporalContext:
    """The rest of the video, as a temporal layer of one rank sees it in one denoising step.

    exchange: fetches frames from other ranks. attention: the keys of temporal attention. halo: the neighbouring frames
    that a temporal convolution needs. norm: "video" takes the statistics of temporal GroupNorm over all frames of a
    scene (paper, section 3.2), "rank" over this rank's frames (the released code). grouping: how layers divide this
    rank's frames. chunk_bytes: bytes of hidden states that layers work on at once, which bounds their temporaries.
    """

    exchange: FrameExchange
    attention: AttentionPlan
    halo: Halo
    grouping: Grouping
    norm: Literal["video", "rank"] = "video"
    chunk_bytes: int = CHUNK_BYTES

    @property
    def timeline(self) -> Timeline:
        """Which frames see each other."""
        return self.attention.timeline


def temporal_context(
    exchange: FrameExchange,
    shards: FrameShards,
    rank: int,
    scopes: Scopes | None,
    *,
    timeline: Timeline | None = None,
    trained_frames: int = 16,
    norm: Literal["video", "rank"] = "video",
    chunk_bytes: int = CHUNK_BYTES,
    joint: Positions | None = None,
    device: torch.device | str = "cpu",
    together: bool | None = None,
) -> TemporalContext:
    """Plan the context of `rank` under one set of scopes; None means plain attention over all frames.

    timeline, joint: see `plan_attention`; by default, the video is one scene. together: see `Grouping`; by default,
    true on CPUs.
    """
    together = torch.device(device).type == "cpu" if together is None else together
    attention = plan_attention(
        shards, rank, scopes, timeline=timeline, trained_frames=trained_frames, joint=joint, device=device
    )
    return TemporalContext(
        exchange=exchange,
        attention=attention,
        halo=plan_halo(shards, rank, attention.timeline),
        grouping=Grouping(shards.held(rank), shards.frames, shards.group, together),
        norm=norm,
        chunk_bytes=chunk_bytes,
    )


def plan_halo(shards: FrameShards, rank: int, timeline: Timeline) -> Halo:
    """Plan how to fetch the frames next to those of `rank`."""

    def around(rank: int) -> tuple[int | None, int | None]:
        held = shards.held(rank)
        return timeline.neighbour(held.start, -1), timeline.neighbour(held.stop - 1, 1)

    route = plan_route(shards, rank, lambda of: [frame for frame in around(of) if frame is not None])
    return Halo(route, *around(rank))
