"""Dual-scope attention against its dense definition, on one rank and on simulated ones."""

import functools
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import pytest
import torch
from oracles.reference import DenseScopes, dense_attention, dense_bias, fill, on_ranks
from torch import Tensor, nn

from vinfinity.models.unet3d.dual_scope import OwnFrames, Remote, dual_scope_attention
from vinfinity.models.unet3d.layers import Attention
from vinfinity.models.unet3d.temporal import (
    TemporalConvLayer,
    TemporalTransformer,
    VideoNorm,
    split_frames,
    video_sums,
)
from vinfinity.parallel.context import temporal_context
from vinfinity.parallel.exchange import FrameExchange, LocalExchange
from vinfinity.parallel.scopes import AttentionPlan, Scopes, plan_attention
from vinfinity.parallel.shards import FrameShards
from vinfinity.parallel.spans import intersection
from vinfinity.parallel.timeline import one_scene
from vinfinity.planning.meter import LiveBytes

CLOSE = 1e-5
OFF = -math.inf
WIDTH, HEADS = 12, 3
SOME_FRAMES = (*range(1, 41), 47, 63, 64, 65, 96, 100, 127, 150, 199, 200)

# local frames, anchors, local bias, anchor bias, trained frames for entropy scaling
SCOPES = [
    (8, 16, 0.0, 10.0, None),  # the paper's, early
    (8, 16, 10.0, 0.0, None),  # the paper's, late
    (8, 16, 0.0, 0.0, None),
    (0, 16, 0.0, 0.0, None),
    (0, 0, 0.0, 0.0, None),
    (3, 0, 1.5, 0.0, None),
    (2, 5, -1.0, 2.0, None),
    (8, 16, OFF, 0.0, None),
    (8, 16, OFF, 10.0, None),
    (8, 16, 0.0, OFF, None),
    (1, 3, 10.0, OFF, None),
    (30, 1, 0.5, -0.5, None),
    (8, 16, 0.0, 10.0, 16),
    (8, 16, 10.0, 0.0, 24),
    (2, 4, OFF, -1.0, 16),
    (0, 0, 3.0, 0.0, 16),
]


def dense(values: tuple[int, int, float, float, int | None]) -> DenseScopes:
    return DenseScopes(*values)


def engine(values: tuple[int, int, float, float, int | None]) -> Scopes:
    local, anchors, local_bias, anchor_bias, trained = values
    return Scopes(local, anchors, local_bias, anchor_bias, entropy_scaling=trained is not None)


def attention() -> Attention:
    layer = fill(Attention(WIDTH, heads=HEADS, head_width=4))
    assert isinstance(layer, Attention)
    return layer


def expected(layer: Attention, x: Tensor, scopes: DenseScopes | None) -> Tensor:
    """Return the attention by its definition. x: (b, F, n, c)."""
    q, k, v = (
        project(x).unflatten(-1, (HEADS, -1)).permute(0, 2, 3, 1, 4)  # (b, n, heads, F, d)
        for project in (layer.to_q, layer.to_k, layer.to_v)
    )
    out = dense_attention(q, k, v, *dense_bias(x.shape[1], scopes))
    return layer.to_out[0](out.permute(0, 3, 1, 2, 4).flatten(3))


def computed(layer: Attention, x: Tensor, plan: AttentionPlan, own: range) -> Tensor:
    """Our attention on one rank, given the frames that its route fetches. own: the rank's frames."""
    return torch.cat([computed_branch(layer, branch, plan, own) for branch in x.split(1)])


def computed_branch(layer: Attention, x: Tensor, plan: AttentionPlan, own: range) -> Tensor:
    mine = x[:, own.start : own.stop]

    def fetch() -> Remote:
        return Remote.of(OwnFrames.of(mine, plan), x[:, list(plan.route.wanted)], plan)

    out = torch.full_like(mine, math.nan)
    for rows, part in dual_scope_attention(layer, nn.Identity(), mine, fetch, plan):
        out[:, rows] = part
    return out


@pytest.mark.parametrize("values", SCOPES, ids=str)
def test_one_rank_equals_the_dense_definition_for_any_number_of_frames(
    values: tuple[int, int, float, float, int | None], record_worst: Callable[[str, float], None]
) -> None:
    layer, worst = attention(), 0.0
    for frames in SOME_FRAMES:
        x = torch.randn(1, frames, 2, WIDTH)
        plan = plan_attention(FrameShards(frames), 0, engine(values), trained_frames=values[4] or 16)
        error = (computed(layer, x, plan, range(frames)) - expected(layer, x, dense(values))).abs().max()
        assert error <= CLOSE, f"{frames} frames"
        worst = max(worst, error.item())
    record_worst("attention, one rank", worst)


@pytest.mark.parametrize("block", [1, 2, 7, 32, 1000])
def test_the_block_size_does_not_change_the_result(block: int) -> None:
    layer = attention()
    for values in SCOPES:
        for frames in (1, 5, 33, 70):
            x = torch.randn(2, frames, 3, WIDTH)
            plan = plan_attention(
                FrameShards(frames), 0, engine(values), trained_frames=values[4] or 16, block=block
            )
            assert len(plan.blocks) == math.ceil(frames / block)
            torch.testing.assert_close(
                computed(layer, x, plan, range(frames)), expected(layer, x, dense(values)), rtol=0, atol=CLOSE
            )


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_whole_groups_give_the_same_results(ranks: int) -> None:
    """Of every rank, also where it holds a part of a unit and of a block only."""
    layer = attention()
    for values in SCOPES:
        for frames in (5, 37, 83):
            x, shards = torch.randn(1, frames, 2, WIDTH), FrameShards(frames, ranks, group=1000)
            parts = []
            for rank in range(ranks):
                plan = plan_attention(shards, rank, engine(values), trained_frames=values[4] or 16)
                parts.append(computed(layer, x, plan, shards.held(rank)))
            torch.testing.assert_close(
                torch.cat(parts, 1), expected(layer, x, dense(values)), rtol=0, atol=CLOSE
            )


@pytest.mark.parametrize("frames", [1, 2, 15, 16, 24, 40])
def test_attention_without_scopes_is_plain_attention_over_all_frames(frames: int) -> None:
    layer, x = attention(), torch.randn(1, frames, 2, WIDTH)
    for ranks in {1, min(3, frames)}:
        shards = FrameShards(frames, ranks)
        parts = [
            computed(layer, x, plan_attention(shards, rank, None), shards.held(rank)) for rank in range(ranks)
        ]
        torch.testing.assert_close(torch.cat(parts, 1), expected(layer, x, None), rtol=0, atol=CLOSE)


@pytest.mark.parametrize("values", SCOPES, ids=str)
def test_the_results_of_all_ranks_equal_those_of_one(
    values: tuple[int, int, float, float, int | None],
) -> None:
    layer, scopes = attention(), engine(values)
    for frames in (5, 11, 17, 40, 83, 200):
        x = torch.randn(1, frames, 2, WIDTH)
        alone = computed(layer, x, plan_attention(FrameShards(frames), 0, scopes), range(frames))
        for ranks in (2, 3, 4, 5):
            shards = FrameShards(frames, ranks)
            parts = []
            for rank in range(ranks):
                plan = plan_attention(shards, rank, scopes, block=9)
                parts.append(computed(layer, x, plan, shards.held(rank)))
            torch.testing.assert_close(torch.cat(parts, 1), alone, rtol=0, atol=CLOSE)


def test_a_frame_in_both_scopes_counts_once() -> None:
    """If all frames are nearby and anchors, equal biases change nothing: attention is plain."""
    layer, x = attention(), torch.randn(1, 9, 2, WIDTH)
    plan = plan_attention(FrameShards(9), 0, Scopes(local=8, anchors=9, local_bias=4.0, anchor_bias=4.0))
    torch.testing.assert_close(
        computed(layer, x, plan, range(9)), expected(layer, x, None), rtol=0, atol=CLOSE
    )


def test_only_neighbours_and_anchors_can_change_a_frame() -> None:
    layer, frames = attention(), 100
    scopes = Scopes(local=8, anchors=4, local_bias=0.0, anchor_bias=0.0)
    plan = plan_attention(FrameShards(frames), 0, scopes)
    x = torch.randn(1, frames, 1, WIDTH)
    before = computed(layer, x, plan, range(frames))[0, 50]
    for changed in range(frames):
        y = x.clone()
        y[:, changed] += 1.0
        moved = not torch.equal(computed(layer, y, plan, range(frames))[0, 50], before)
        assert moved == (abs(changed - 50) <= 8 or changed in (12, 37, 62, 87)), changed


@pytest.mark.parametrize("ranks", [1, 4])
def test_cost_grows_linearly_with_the_frames(ranks: int) -> None:
    def cost(frames: int) -> int:
        shards = FrameShards(frames, ranks)
        plans = [plan_attention(shards, rank, Scopes(8, 16, local_bias=1.0)) for rank in range(ranks)]
        return sum(
            len(intersection(block.rows, plan.held)) * (0 if block.bias is None else block.bias.shape[1])
            for plan in plans
            for block in plan.blocks
        )

    costs = [cost(frames) for frames in (512, 1024, 2048, 4096)]
    # a block of 32 queries sees itself, 8 frames on either side and 16 anchors
    assert costs[-1] <= 4096 * (32 + 2 * 8 + 16)
    for less, more in pairwise(costs):
        assert 1.9 < more / less < 2.1


def test_the_number_of_fetched_frames_does_not_grow_with_the_video() -> None:
    for frames in (100, 1000, 10000):
        plan = plan_attention(FrameShards(frames, 4), 1, Scopes(8, 16))
        assert len(plan.route.wanted) <= 2 * 8 + 16


def test_a_scope_that_is_off_is_not_communicated() -> None:
    shards = FrameShards(100, 4)
    near = plan_attention(shards, 1, Scopes(8, 16, local_bias=0.0, anchor_bias=OFF)).route.wanted
    far = plan_attention(shards, 1, Scopes(8, 16, local_bias=OFF, anchor_bias=0.0)).route.wanted
    assert near == (*range(17, 25), *range(50, 58))
    assert len(far) == 12
    assert not {24, 50} & set(far)


@pytest.mark.parametrize(
    "scopes",
    [
        Scopes(8, 16, local_bias=OFF, anchor_bias=OFF),
        Scopes(8, 0, local_bias=OFF, anchor_bias=0.0),
    ],
)
def test_scopes_without_any_key_for_a_frame_are_refused(scopes: Scopes) -> None:
    with pytest.raises(ValueError, match="leave a frame without a key"):
        plan_attention(FrameShards(40), 0, scopes)


def test_large_logits_do_not_overflow() -> None:
    layer, x = attention(), 1e3 * torch.randn(1, 30, 1, WIDTH)
    plan = plan_attention(FrameShards(30), 0, Scopes(4, 4, local_bias=10.0, anchor_bias=0.0))
    out = computed(layer, x, plan, range(30))
    torch.testing.assert_close(out, expected(layer, x, DenseScopes(4, 4, 10.0, 0.0)), rtol=1e-4, atol=1e-2)


def test_statistics_of_parts_are_bitwise_those_of_the_whole() -> None:
    norm = torch.nn.GroupNorm(4, 16)
    x = torch.randn(2, 24, 3, 5, 16) * torch.linspace(0.1, 10.0, 24)[:, None, None, None] + 5.0

    def sums_of(part: Tensor, chunk_bytes: int) -> Tensor:
        shards = FrameShards(part.shape[1])
        ctx = temporal_context(LocalExchange(), shards, 0, None, chunk_bytes=chunk_bytes)
        return video_sums(split_frames(part, ctx), 4, ctx)

    def affine(sums: Tensor) -> tuple[Tensor, Tensor]:
        normalise = VideoNorm.of(norm, sums, one_scene(24))
        return normalise.scale, normalise.shift

    whole = affine(sums_of(x, 2**30))
    for sizes in ((1, 23), (8, 8, 8), (5, 12, 7), (1,) * 24):
        parts = sum(sums_of(part, 3000) for part in x.split(sizes, dim=1))
        assert isinstance(parts, torch.Tensor)
        assert all(torch.equal(one, other) for one, other in zip(affine(parts), whole, strict=True))
    grouped = x.unflatten(-1, (4, 4))
    scale = (grouped.var((1, 2, 3, 5), correction=0) + norm.eps).rsqrt()
    torch.testing.assert_close(whole[0].squeeze(), scale.repeat_interleave(4, 1), rtol=1e-5, atol=0)
    shift = -grouped.mean((1, 2, 3, 5)) * scale
    torch.testing.assert_close(whole[1].squeeze(), shift.repeat_interleave(4, 1), rtol=1e-5, atol=0)


def part_of(
    layer: nn.Module,
    x: Tensor,
    shards: FrameShards,
    scopes: Scopes | None,
    rank: int,
    exchange: FrameExchange,
) -> Tensor:
    """Return a rank's part of a layer's output."""
    own = shards.held(rank)
    return layer(x[:, own.start : own.stop], temporal_context(exchange, shards, rank, scopes))


@pytest.mark.parametrize("ranks", [2, 3, 4, 5])
@pytest.mark.parametrize("scopes", [None, Scopes(2, 3, 0.0, 10.0), Scopes(8, 16, 10.0, 0.0)], ids=str)
def test_temporal_layers_on_communicating_ranks_equal_one_rank(ranks: int, scopes: Scopes | None) -> None:
    """Convolution, norms and attention, with an exchange that sends only the frames of the routes."""
    layers = [
        fill(TemporalConvLayer(16, groups=4)),
        fill(TemporalTransformer(16, heads=2, head_width=8, groups=4)),
    ]
    for frames in (5, 13, 22):
        x = torch.randn(2, frames, 3, 2, 16) * torch.linspace(0.2, 3.0, frames)[:, None, None, None]
        one = temporal_context(LocalExchange(), FrameShards(frames), 0, scopes)
        shards = FrameShards(frames, ranks)
        for layer in layers:
            alone = layer(x, one)
            parts = on_ranks(shards, functools.partial(part_of, layer, x, shards, scopes))
            torch.testing.assert_close(torch.cat(parts, 1), alone, rtol=0, atol=5e-5)


def test_a_temporal_convolution_frees_its_input_as_it_goes() -> None:
    """Beside the layer's input there is one hidden state, and a piece of frames with its result."""
    layer = TemporalConvLayer(16, groups=4)
    x = torch.randn(1, 80, 16, 20, 16)
    piece = x[:, :8].nbytes
    ctx = temporal_context(LocalExchange(), FrameShards(80), 0, None, chunk_bytes=piece)
    with torch.inference_mode(), LiveBytes("cpu") as live:
        layer(x, ctx)
    assert live.peak <= 2 * x.nbytes + 3 * piece


def test_norms_per_rank_differ_from_norms_over_the_video() -> None:
    layer = fill(TemporalConvLayer(16, groups=4))
    shards = FrameShards(6, 2)
    x = torch.randn(1, 6, 2, 2, 16) * torch.linspace(0.2, 3.0, 6)[:, None, None, None]

    def outputs(norm: Literal["video", "rank"]) -> Tensor:
        return torch.cat(
            on_ranks(
                shards,
                lambda rank, exchange: layer(
                    x[:, shards.held(rank).start : shards.held(rank).stop],
                    temporal_context(exchange, shards, rank, None, norm=norm),
                ),
            ),
            1,
        )

    assert (outputs("video") - outputs("rank")).abs().max() > 1e-2
