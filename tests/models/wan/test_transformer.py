"""The transformer against diffusers, and against the dense definition for videos longer than the trained clip."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from oracles.reference import on_ranks, relative_error
from oracles.wan import TRAINED, DenseJoint, make_dense_joint, our_transformer, tiny_transformer
from torch import Tensor

from vinfinity.models.frame_text import FrameText
from vinfinity.models.wan.transformer import Transformer
from vinfinity.parallel.context import temporal_context
from vinfinity.parallel.exchange import FrameExchange, LocalExchange
from vinfinity.parallel.scopes import Scopes
from vinfinity.parallel.shards import FrameShards
from vinfinity.parallel.timeline import Scene, Timeline

CLOSE = 1e-4


def inputs(frames: int, height: int, width: int, batch: int = 1) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 16, frames, height, width), torch.randn(batch, 7, 16)


def predict(
    ours: Transformer,
    x: Tensor,
    text: Tensor,
    scopes: DenseJoint | None = None,
    *,
    t: float = 500.0,
    ranks: int = 1,
) -> Tensor:
    """Return the prediction for all frames, by the engine. scopes None: plain attention."""
    frames = x.shape[2]
    shards = FrameShards(frames, ranks)
    given = scopes or DenseJoint()
    engine = Scopes(
        local=given.local,
        anchors=given.anchors,
        local_bias=given.local_bias,
        anchor_bias=given.anchor_bias,
        entropy_scaling=given.entropy,
    )
    timeline = None
    if given.shift or given.loop:
        anchors = sorted(
            ((2 * k + 1) * frames // (2 * given.anchors) + given.shift) % frames for k in range(given.anchors)
        )
        timeline = Timeline((Scene(range(frames), tuple(anchors)),), given.loop)

    def work(rank: int, exchange: FrameExchange) -> Tensor:
        ctx = temporal_context(
            LocalExchange() if ranks == 1 else exchange,
            shards,
            rank,
            None if scopes is None else engine,
            timeline=timeline,
            trained_frames=given.trained,
            joint="grouped" if given.grouped else "absolute",
        )
        held = shards.held(rank)
        embedded = ours.embed_text(FrameText.same(text))
        return ours(x[:, :, held.start : held.stop], torch.full((1,), t), embedded, ctx)

    return torch.cat(on_ranks(shards, work), dim=2)


SHAPES: dict[str, tuple[dict[str, Any], tuple[int, int, int, int]]] = {
    "1 frame": ({}, (1, 4, 6, 1)),
    "2 frames, 2 branches": ({}, (2, 6, 4, 2)),
    "5 frames, wide": ({"attention_head_dim": 16, "num_attention_heads": 3}, (5, 4, 10, 1)),
    "9 frames, 1 block, no norm of cross-attention": (
        {"num_layers": 1, "cross_attn_norm": False},
        (9, 6, 6, 1),
    ),
    "21 frames, head width 128": (
        {"attention_head_dim": 128, "num_attention_heads": 2, "freq_dim": 256},
        (21, 6, 10, 1),
    ),
    "8 channels": ({"in_channels": 8, "out_channels": 8, "eps": 1e-5}, (3, 10, 4, 1)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_transformer_matches_diffusers(name: str, record_worst: Callable[[str, float], None]) -> None:
    settings, (frames, height, width, batch) = SHAPES[name]
    reference = tiny_transformer(**settings)
    ours = our_transformer(reference)
    x, text = inputs(frames, height, width, batch)
    x = x[:, : reference.config.in_channels]
    for t in (1.0, 500.0, 999.0):
        with torch.no_grad():
            expected = reference(x, torch.full((batch,), t), text, return_dict=False)[0]
            got = predict(ours, x, text, t=t)
        error = relative_error(got, expected)
        assert error <= CLOSE
        record_worst(f"wan transformer, {name}, t={t:g}", error)


DENSE = {
    "absolute": DenseJoint(),
    "grouped": DenseJoint(grouped=True),
    "biases": DenseJoint(local_bias=2.0, anchor_bias=-1.0),
    "biases, grouped": DenseJoint(grouped=True, local_bias=0.0, anchor_bias=3.0),
    "moved anchors": DenseJoint(shift=5),
    "moved anchors, grouped": DenseJoint(shift=2, grouped=True),
    "no anchors": DenseJoint(anchor_bias=-math.inf, local=10),
    "anchors alone": DenseJoint(local_bias=-math.inf, anchors=21),
    "more than trained, entropy scaling": DenseJoint(local=6, anchors=15, entropy=True, local_bias=1.0),
    "loop": DenseJoint(loop=True),
    "loop, grouped, moved anchors": DenseJoint(loop=True, grouped=True, shift=3),
}
LENGTHS = (22, 37, 60)
# up to seven times the trained length
LONG = (
    *(pytest.param(frames, marks=pytest.mark.slow) for frames in (61, 85, 127)),
    150,
)


def check_against_the_definition(
    frames: int, scopes: DenseJoint, size: tuple[int, int], ranks: Sequence[int]
) -> float:
    """Compare the engine on one rank with the dense definition, and on several with one. Returns the relative error.

    size: height and width of a latent frame.
    """
    height, width = size
    reference = tiny_transformer()
    ours = our_transformer(reference)
    make_dense_joint(reference, frames, scopes, height=height // 2, width=width // 2)
    x, text = inputs(frames, height, width)
    with torch.no_grad():
        expected = reference(x, torch.full((1,), 500.0), text, return_dict=False)[0]
    alone = predict(ours, x, text, scopes)
    for count in ranks:
        assert torch.equal(predict(ours, x, text, scopes, ranks=count), alone), (
            f"{frames} frames, {count} ranks"
        )
    error = relative_error(alone, expected)
    assert error <= CLOSE, f"{frames} frames"
    return error


@pytest.mark.parametrize("name", DENSE)
def test_long_videos_match_the_dense_definition(
    name: str, record_worst: Callable[[str, float], None]
) -> None:
    for frames in LENGTHS:
        error = check_against_the_definition(frames, DENSE[name], (4, 6), ranks=(2, 3, 5))
        record_worst(f"wan dual scope, {name}", error)


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("frames", LONG)
def test_videos_of_up_to_150_latent_frames_match_the_dense_definition(
    frames: int, name: str, record_worst: Callable[[str, float], None]
) -> None:
    error = check_against_the_definition(frames, DENSE[name], (2, 4), ranks=(2, 3, 4, 5))
    record_worst(f"wan dual scope, {frames} latent frames", error)


def test_a_video_of_the_trained_length_is_the_same_on_any_number_of_ranks() -> None:
    ours = our_transformer(tiny_transformer())
    x, text = inputs(TRAINED, 4, 6, batch=2)
    alone = predict(ours, x, text)
    for ranks in (2, 5, 21):
        assert torch.equal(predict(ours, x, text, ranks=ranks), alone)
