"""Scenes that do not see each other, loops, and moving anchors, against dense masks and against videos of their own."""

import functools
import math
from collections.abc import Sequence

import pytest
import torch
from oracles.reference import dense_attention, fill, on_ranks
from torch import Tensor, nn

from vinfinity.models.unet3d.dual_scope import OwnFrames, Remote, dual_scope_attention
from vinfinity.models.unet3d.layers import Attention
from vinfinity.models.unet3d.temporal import (
    TemporalConvLayer,
    TemporalTransformer,
)
from vinfinity.parallel.context import TemporalContext, plan_halo, temporal_context
from vinfinity.parallel.exchange import FrameExchange, LocalExchange
from vinfinity.parallel.scopes import AttentionPlan, Scopes, plan_attention
from vinfinity.parallel.shards import FrameShards
from vinfinity.parallel.timeline import Scene, Timeline, one_scene

WIDTH, HEADS = 12, 3
CLOSE = 1e-5
SCOPES = [
    Scopes(2, 0, 0.0, 10.0),
    Scopes(8, 0, 10.0, 0.0),
    Scopes(3, 0, -math.inf, 0.0),
    Scopes(1, 0, 1.0, -math.inf),
]
LAYERS = [
    fill(TemporalConvLayer(16, groups=4)),
    fill(TemporalTransformer(16, heads=2, head_width=8, groups=4)),
]


def scenes(*lengths: int, anchors: int = 4, trained: int = 6) -> Timeline:
    """Scenes one after the other; those no longer than the trained clip have plain attention."""
    found, start = [], 0
    for length in lengths:
        count = min(anchors, length)
        places = tuple(start + (2 * k + 1) * length // (2 * count) for k in range(count))
        found.append(Scene(range(start, start + length), places, plain=length <= trained))
        start += length
    return Timeline(tuple(found))


def loop(frames: int, *anchors: int, plain: bool = False) -> Timeline:
    return Timeline((Scene(range(frames), anchors, plain),), loop=True)


def dense_mask(timeline: Timeline, scopes: Scopes) -> Tensor:
    """Return the bias b(i, j) by its definition: -inf where i does not attend to j."""
    frames = timeline.frames
    bias = torch.full((frames, frames), -math.inf)
    for scene in timeline.scenes:
        for i in scene.frames:
            for j in scene.frames:
                distance = abs(i - j)
                if timeline.loop:
                    distance = min(distance, frames - distance)
                if scene.plain:
                    bias[i, j] = 0.0
                    continue
                near = scopes.local_bias if distance <= scopes.local else -math.inf
                anchored = scopes.anchor_bias if j in scene.anchors else -math.inf
                bias[i, j] = max(near, anchored)
    return bias


def expected(layer: Attention, x: Tensor, bias: Tensor) -> Tensor:
    """Return the attention by its definition. x: (b, F, n, c)."""
    q, k, v = (
        project(x).unflatten(-1, (HEADS, -1)).permute(0, 2, 3, 1, 4)
        for project in (layer.to_q, layer.to_k, layer.to_v)
    )
    out = dense_attention(q, k, v, bias, torch.ones(len(bias)))
    return layer.to_out[0](out.permute(0, 3, 1, 2, 4).flatten(3))


def computed(layer: Attention, x: Tensor, plan: AttentionPlan) -> Tensor:
    """Our attention on one rank, given the frames that its route fetches."""
    return torch.cat([computed_branch(layer, branch, plan) for branch in x.split(1)])


def computed_branch(layer: Attention, x: Tensor, plan: AttentionPlan) -> Tensor:
    mine = x[:, plan.held.start : plan.held.stop].clone()

    def fetch() -> Remote:
        return Remote.of(own, x[:, list(plan.route.wanted)], plan)

    own, out = OwnFrames.of(mine, plan), torch.full_like(mine, math.nan)
    for rows, part in dual_scope_attention(layer, nn.Identity(), mine, fetch, plan):
        out[:, rows] = part
        # the caller may change frames whose output it has: nothing may be read from them later
        mine[:, rows] = torch.nan
    return out


TIMELINES = {
    "one scene": one_scene(40, anchors=(5, 15, 25, 35)),
    "three scenes": scenes(17, 40, 9),
    "short scenes": scenes(3, 1, 6, 5, 2, 30),
    "a loop": loop(40, 5, 15, 25, 35),
    "a loop with anchors at its ends": loop(37, 0, 12, 36),
    "a short loop": loop(9, 1, 4),
    "a plain loop": loop(5, plain=True),
}


@pytest.mark.parametrize("group", [None, 8])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("timeline", TIMELINES.values(), ids=TIMELINES)
def test_attention_equals_the_dense_definition(timeline: Timeline, ranks: int, group: int | None) -> None:
    layer = fill(Attention(WIDTH, heads=HEADS, head_width=4))
    x = torch.randn(1, timeline.frames, 2, WIDTH)
    for scopes in SCOPES:
        for block in (4, 32):
            shards = FrameShards(timeline.frames, ranks, group)
            parts = [
                computed(layer, x, plan_attention(shards, rank, scopes, timeline=timeline, block=block))
                for rank in range(ranks)
            ]
            torch.testing.assert_close(
                torch.cat(parts, 1), expected(layer, x, dense_mask(timeline, scopes)), rtol=0, atol=CLOSE
            )


@pytest.mark.parametrize("timeline", TIMELINES.values(), ids=TIMELINES)
def test_attention_is_the_same_to_the_bit_on_any_number_of_ranks(timeline: Timeline) -> None:
    layer = fill(Attention(WIDTH, heads=HEADS, head_width=4))
    x = torch.randn(2, timeline.frames, 2, WIDTH)
    for scopes in SCOPES:
        alone, *others = (
            torch.cat(
                [
                    computed(layer, x, plan_attention(shards, rank, scopes, timeline=timeline))
                    for rank in range(shards.ranks)
                ],
                1,
            )
            for shards in (FrameShards(timeline.frames, ranks) for ranks in (1, 2, 3, 5))
        )
        assert all(torch.equal(alone, other) for other in others)


def part_of(
    layer: nn.Module,
    x: Tensor,
    shards: FrameShards,
    timeline: Timeline,
    scopes: Scopes,
    rank: int,
    exchange: FrameExchange,
) -> Tensor:
    """Return a rank's part of a layer's output."""
    held = shards.held(rank)
    ctx = temporal_context(exchange, shards, rank, scopes, timeline=timeline, chunk_bytes=2**12)
    return layer(x[:, held.start : held.stop].clone(), ctx)


def on_one_rank(layer: nn.Module, x: Tensor, timeline: Timeline, scopes: Scopes) -> Tensor:
    shards = FrameShards(x.shape[1])
    return part_of(layer, x, shards, timeline, scopes, 0, LocalExchange())


def frames_of(frames: int) -> Tensor:
    """Frames of different scales, (2, f, 3, 2, 16)."""
    return torch.randn(2, frames, 3, 2, 16) * torch.linspace(0.2, 3.0, frames)[:, None, None, None]


@pytest.mark.parametrize("group", [None, 8])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("lengths", [(17, 12, 9), (3, 1, 6, 5, 2, 21), (40, 3)], ids=str)
@torch.no_grad()
def test_scenes_equal_videos_of_their_own(lengths: Sequence[int], ranks: int, group: int | None) -> None:
    together, x = scenes(*lengths), frames_of(sum(lengths))
    shards = FrameShards(sum(lengths), ranks, group)
    for layer in LAYERS:
        for scopes in SCOPES:
            parts = [
                on_one_rank(layer, part, scenes(part.shape[1]), scopes)
                for part in x.split(list(lengths), dim=1)
            ]
            computed = on_ranks(shards, functools.partial(part_of, layer, x, shards, together, scopes))
            torch.testing.assert_close(torch.cat(computed, 1), torch.cat(parts, 1), rtol=0, atol=CLOSE)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("frames", [5, 9, 37])
@torch.no_grad()
def test_rotating_a_loop_rotates_the_result(frames: int, ranks: int) -> None:
    """Anchors rotate with it; everything else has no beginning."""
    x, shards, anchors = frames_of(frames), FrameShards(frames, ranks), (0, frames // 2, frames - 1)
    for layer in LAYERS:
        for scopes in SCOPES:
            alone = on_one_rank(layer, x, loop(frames, *anchors), scopes)
            for turn in (1, 3, frames - 2):
                turned = loop(frames, *sorted((anchor + turn) % frames for anchor in anchors))
                work = functools.partial(part_of, layer, x.roll(turn, 1), shards, turned, scopes)
                computed = torch.cat(on_ranks(shards, work), 1)
                torch.testing.assert_close(computed, alone.roll(turn, 1), rtol=0, atol=5e-5)


@torch.no_grad()
def test_a_loop_joins_its_ends_and_a_video_does_not() -> None:
    x = frames_of(37)
    changed = x.clone()
    changed[:, -1] += 1.0
    layer = TemporalConvLayer(16, groups=4)
    fill(layer)
    # statistics of the norm would carry the change to every frame
    for timeline, reached in ((one_scene(37, plain=True), False), (loop(37, plain=True), True)):
        halo = plan_halo(FrameShards(37), 0, timeline)
        assert (halo.before, halo.after) == ((36, 0) if reached else (None, None))


def test_a_rank_fetches_what_its_scenes_need_and_no_more() -> None:
    """Ranks whose scenes end with them exchange nothing."""
    shards = FrameShards(40, 4)
    for rank in range(4):
        plan = plan_attention(shards, rank, SCOPES[0], timeline=scenes(10, 10, 10, 10))
        assert plan.route.wanted == ()
        assert plan_halo(shards, rank, plan.timeline).route.wanted == ()
    plan = plan_attention(shards, 1, SCOPES[0], timeline=scenes(25, 15))
    assert set(plan.route.wanted) == {8, 9, 20, 21, 3, 15} - set(range(10, 20))


@pytest.mark.parametrize(
    "spans", [(range(0, 3), range(4, 6)), (range(1, 4),), (range(0, 4), range(2, 6)), (range(0, 0),)], ids=str
)
def test_scenes_must_cover_the_video(spans: Sequence[range]) -> None:
    with pytest.raises(ValueError, match="without gaps"):
        Timeline(tuple(Scene(span) for span in spans))


def test_a_loop_is_one_scene() -> None:
    with pytest.raises(ValueError, match="one scene"):
        Timeline((Scene(range(0, 4)), Scene(range(4, 8))), loop=True)


def contexts(timeline: Timeline, ranks: int) -> list[TemporalContext]:
    shards = FrameShards(timeline.frames, ranks)
    return [
        temporal_context(LocalExchange(), shards, rank, SCOPES[0], timeline=timeline) for rank in range(ranks)
    ]


def test_a_loops_first_and_last_rank_are_neighbours() -> None:
    first, *_, last = contexts(loop(30), 3)
    assert set(first.halo.route.wanted) == {29, 10}
    assert set(last.halo.route.wanted) == {19, 0}
    assert set(first.attention.route.wanted) == {28, 29, 10, 11}
