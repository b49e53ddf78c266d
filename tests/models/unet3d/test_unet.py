"""The UNet against diffusers, and against the dense reference for videos longer than the trained clip."""

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNet3DConditionModel
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from oracles.networks import SHAPES, levels, one_rank, our_unet
from oracles.reference import DenseScopes, fill, make_dense, on_ranks, relative_error, tiny_unet
from torch import Tensor

from vinfinity.models.frame_text import FrameText
from vinfinity.models.unet3d.configs import UNetConfig
from vinfinity.models.unet3d.unet import UNet
from vinfinity.parallel.context import temporal_context
from vinfinity.parallel.exchange import FrameExchange
from vinfinity.parallel.scopes import Scopes
from vinfinity.parallel.shards import FrameShards

CLOSE = 1e-4


def inputs(
    unet: UNet3DConditionModel, frames: int, height: int, width: int, batch: int
) -> tuple[Tensor, Tensor]:
    x = torch.randn(batch, unet.config.in_channels, frames, height, width)
    return x, torch.randn(batch, 11, unet.config.cross_attention_dim)


@pytest.mark.parametrize("name", SHAPES)
def test_unet_matches_diffusers(name: str, record_worst: Callable[[str, float], None]) -> None:
    settings, shape = SHAPES[name]
    reference = tiny_unet(**settings)
    ours = our_unet(reference)
    x, text = inputs(reference, *shape)
    width = settings.get("time_cond_proj_dim")
    condition = torch.randn(1, width) if width else None
    for t in (0, 500, 999):
        with torch.no_grad():
            expected = reference(x, t, text, timestep_cond=condition).sample
            got = ours(x, torch.tensor([t]), FrameText.same(text), one_rank(shape[0]), condition=condition)
        error = relative_error(got, expected)
        assert error <= CLOSE
        record_worst(f"unet, {name}, t={t}", error)


def test_the_frame_rates_embedding_is_added_to_the_timesteps() -> None:
    reference = tiny_unet()
    width = reference.config.block_out_channels[0]
    embedding = fill(TimestepEmbedding(width, 4 * width), seed=1)
    sinusoids = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
    ours = UNet(UNetConfig.from_dict({**reference.config, "fps_cond": True})).eval()
    ours.load_state_dict(
        {**reference.state_dict(), **{f"fps_embedding.{k}": v for k, v in embedding.state_dict().items()}}
    )
    x, text = inputs(reference, 3, 6, 5, 2)
    outputs = []
    for fps in (8, 24):
        added = embedding(sinusoids(torch.tensor([fps])))
        hook = reference.time_embedding.register_forward_hook(
            lambda module, args, out, added=added: out + added
        )
        with torch.no_grad():
            expected = reference(x, 300, text).sample
            got = ours(x, torch.tensor([300]), FrameText.same(text), one_rank(3), fps=torch.tensor([fps]))
        hook.remove()
        assert relative_error(got, expected) <= CLOSE
        outputs.append(got)
    assert relative_error(outputs[0], outputs[1]) > 1e-3, "the frame rate changes nothing"


@pytest.mark.parametrize("fps_cond", [True, False])
def test_only_models_that_take_a_frame_rate_get_one(fps_cond: bool) -> None:
    reference = tiny_unet()
    ours = UNet(UNetConfig.from_dict({**reference.config, "fps_cond": fps_cond}))
    x, text = inputs(reference, 1, 4, 4, 1)
    fps = None if fps_cond else torch.tensor([8])
    with pytest.raises(ValueError, match="fps"):
        ours(x, torch.tensor([1]), FrameText.same(text), one_rank(1), fps=fps)


def test_models_without_a_condition_refuse_one() -> None:
    ours, (x, text) = our_unet(tiny_unet()), inputs(tiny_unet(), 1, 4, 4, 1)
    with pytest.raises(ValueError, match="time_cond_proj_dim"):
        ours(x, torch.tensor([1]), FrameText.same(text), one_rank(1), condition=torch.randn(1, 12))


@pytest.mark.slow
@pytest.mark.parametrize("frames", [1, 2])
def test_unet_at_videocrafter2_width_matches_diffusers(
    frames: int, record_worst: Callable[[str, float], None]
) -> None:
    config = UNetConfig()
    assert config.block_out_channels == (320, 640, 1280, 1280)
    with torch.device("meta"):
        reference = UNet3DConditionModel(attention_head_dim=64)
    reference = fill(reference.to_empty(device="cpu"))
    assert UNetConfig.from_dict({**reference.config, "sample_size": None}) == config
    ours = our_unet(reference)
    x, text = torch.randn(1, 4, frames, 8, 8), torch.randn(1, 77, 1024)
    with torch.no_grad():
        expected = reference(x, 500, text).sample
        got = ours(x, torch.tensor([500]), FrameText.same(text), one_rank(frames))
    error = relative_error(got, expected)
    assert error <= CLOSE
    record_worst(f"unet, full width, {frames} frames", error)


SCHEDULES = {
    "paper, early": DenseScopes(8, 16, 0.0, 10.0),
    "paper, late": DenseScopes(8, 16, 10.0, 0.0),
    "narrow": DenseScopes(2, 3, 1.0, -1.0),
    "neighbours alone": DenseScopes(3, 16, 0.0, -math.inf),
    "anchors alone": DenseScopes(8, 5, -math.inf, 2.0),
    "entropy scaling": DenseScopes(8, 16, 10.0, 0.0, trained_frames=16),
}


def engine(scopes: DenseScopes) -> Scopes:
    return Scopes(
        scopes.local,
        scopes.anchors,
        scopes.local_bias,
        scopes.anchor_bias,
        entropy_scaling=scopes.trained_frames is not None,
    )


@pytest.mark.parametrize("frames", [5, 17, 40])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_long_video_matches_the_dense_reference(
    schedule: str, frames: int, record_worst: Callable[[str, float], None]
) -> None:
    scopes = SCHEDULES[schedule]
    reference = tiny_unet(**levels("AA"))
    ours = our_unet(reference)
    # transformer_in, 2 levels of 1 and 2 layers, the middle; two attentions each
    assert make_dense(reference, frames, scopes) == 2 * (1 + 2 * (1 + 2) + 1)
    x, text = inputs(reference, frames, 4, 3, 1)
    with torch.no_grad():
        expected = reference(x, 700, text).sample
        got = ours(x, torch.tensor([700]), FrameText.same(text), one_rank(frames, engine(scopes)))
    error = relative_error(got, expected)
    assert error <= CLOSE
    record_worst(f"unet, dense, {schedule}, {frames} frames", error)


def test_dense_reference_differs_from_plain_attention() -> None:
    """So the comparison above would fail if the scopes were ignored."""
    reference = tiny_unet(**levels("AA"))
    x, text = inputs(reference, 17, 4, 3, 1)
    with torch.no_grad():
        plain = reference(x, 700, text).sample
        for schedule, scopes in SCHEDULES.items():
            make_dense(reference, 17, scopes)
            assert relative_error(reference(x, 700, text).sample, plain) > 5e-3, schedule


@pytest.mark.parametrize("ranks", [2, 3, 4, 5])
def test_several_ranks_match_one_rank(ranks: int) -> None:
    reference = tiny_unet(**levels("A-"))
    ours = our_unet(reference)
    shards = FrameShards(19, ranks)
    x, text = inputs(reference, 19, 5, 4, 2)

    def part_of(scopes: Scopes | None, rank: int, exchange: FrameExchange) -> Tensor:
        own = shards.held(rank)
        ctx = temporal_context(exchange, shards, rank, scopes)
        return ours(x[:, :, own.start : own.stop], torch.tensor([700]), FrameText.same(text), ctx)

    for scopes in (None, Scopes(2, 4, 0.0, 10.0), Scopes(8, 16, 10.0, 0.0)):
        with torch.no_grad():
            alone = ours(x, torch.tensor([700]), FrameText.same(text), one_rank(19, scopes))
        parts = on_ranks(shards, functools.partial(part_of, scopes))
        assert relative_error(torch.cat(parts, 2), alone) <= CLOSE


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"down_block_types": ["CrossAttnDownBlockMotion", "DownBlock3D"]}, "down_block_types"),
        ({"up_block_types": ["UpBlock3D", "UpBlock2D"]}, "up_block_types"),
        ({"down_block_types": ["DownBlock3D"]}, "down_block_types"),
        ({"block_out_channels": [16, 36]}, "block_out_channels"),
        ({"attention_head_dim": 24}, "attention_head_dim"),
        ({"attention_head_dim": [8, 16]}, "attention_head_dim"),
        ({"act_fn": "sine"}, "act_fn"),
        ({"num_attention_heads": 4}, "num_attention_heads"),
        ({"addition_embed_type": "text_time"}, "addition_embed_type"),
        ({"use_linear_projection": True}, "use_linear_projection"),
    ],
    ids=str,
)
def test_unsupported_unets_are_refused_naming_the_key(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=rf"^{named}: "):
        UNetConfig.from_dict({**tiny_unet().config, **changes})


def test_equal_head_widths_in_a_list_count_as_one() -> None:
    config = UNetConfig.from_dict({**tiny_unet().config, "attention_head_dim": [8, 8]})
    assert config.attention_head_dim == 8
