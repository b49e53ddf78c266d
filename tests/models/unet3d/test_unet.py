"""The UNet against diffusers', and against the dense reference for videos beyond the trained clip."""

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

from vinfinity.models.unet3d.unet import UNet, UNetConfig
from vinfinity.parallel.context import temporal_context
from vinfinity.parallel.scopes import Scopes
from vinfinity.parallel.shards import FrameShards

CLOSE = 1e-4


def inputs(
    unet: UNet3DConditionModel, frames: int, height: int, width: int, batch: int
) -> tuple[Tensor, Tensor]:
    x = torch.randn(batch, unet.config.in_channels, frames, height, width)
    return x, torch.randn(batch, 11, unet.config.cross_attention_dim)


@pytest.mark.parametrize("name", SHAPES)
def test_unet_equals_that_of_diffusers(name: str, record_worst: Callable[[str, float], None]) -> None:
    settings, shape = SHAPES[name]
    theirs = tiny_unet(**settings)
    ours = our_unet(theirs)
    x, text = inputs(theirs, *shape)
    width = settings.get("time_cond_proj_dim")
    condition = torch.randn(1, width) if width else None
    for t in (0, 500, 999):
        with torch.no_grad():
            wanted = theirs(x, t, text, timestep_cond=condition).sample
            got = ours(x, torch.tensor([t]), text, one_rank(shape[0]), condition=condition)
        error = relative_error(got, wanted)
        assert error <= CLOSE
        record_worst(f"unet, {name}, t={t}", error)


def test_frame_rate_adds_its_embedding_to_that_of_the_timestep() -> None:
    theirs = tiny_unet()
    width = theirs.config.block_out_channels[0]
    embedding = fill(TimestepEmbedding(width, 4 * width), seed=1)
    sinusoids = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
    ours = UNet(UNetConfig.from_dict({**theirs.config, "fps_cond": True})).eval()
    ours.load_state_dict(
        {**theirs.state_dict(), **{f"fps_embedding.{k}": v for k, v in embedding.state_dict().items()}}
    )
    x, text = inputs(theirs, 3, 6, 5, 2)
    outputs = []
    for fps in (8, 24):
        added = embedding(sinusoids(torch.tensor([fps])))
        hook = theirs.time_embedding.register_forward_hook(lambda module, args, out, added=added: out + added)
        with torch.no_grad():
            wanted = theirs(x, 300, text).sample
            got = ours(x, torch.tensor([300]), text, one_rank(3), fps=torch.tensor([fps]))
        hook.remove()
        assert relative_error(got, wanted) <= CLOSE
        outputs.append(got)
    assert relative_error(outputs[0], outputs[1]) > 1e-3, "the frame rate changes nothing"


@pytest.mark.parametrize("fps_cond", [True, False])
def test_frame_rate_is_given_to_those_models_that_take_one(fps_cond: bool) -> None:
    theirs = tiny_unet()
    ours = UNet(UNetConfig.from_dict({**theirs.config, "fps_cond": fps_cond}))
    x, text = inputs(theirs, 1, 4, 4, 1)
    fps = None if fps_cond else torch.tensor([8])
    with pytest.raises(ValueError, match="fps"):
        ours(x, torch.tensor([1]), text, one_rank(1), fps=fps)


def test_condition_is_refused_by_models_that_have_none() -> None:
    ours, (x, text) = our_unet(tiny_unet()), inputs(tiny_unet(), 1, 4, 4, 1)
    with pytest.raises(ValueError, match="time_cond_proj_dim"):
        ours(x, torch.tensor([1]), text, one_rank(1), condition=torch.randn(1, 12))


@pytest.mark.slow
@pytest.mark.parametrize("frames", [1, 2])
def test_unet_of_full_videocrafter2_width_equals_that_of_diffusers(
    frames: int, record_worst: Callable[[str, float], None]
) -> None:
    config = UNetConfig()
    assert config.block_out_channels == (320, 640, 1280, 1280)
    with torch.device("meta"):
        theirs = UNet3DConditionModel(attention_head_dim=64)
    theirs = fill(theirs.to_empty(device="cpu"))
    assert UNetConfig.from_dict({**theirs.config, "sample_size": None}) == config
    ours = our_unet(theirs)
    x, text = torch.randn(1, 4, frames, 8, 8), torch.randn(1, 77, 1024)
    with torch.no_grad():
        wanted = theirs(x, 500, text).sample
        got = ours(x, torch.tensor([500]), text, one_rank(frames))
    error = relative_error(got, wanted)
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
def test_long_video_equals_the_dense_reference(
    schedule: str, frames: int, record_worst: Callable[[str, float], None]
) -> None:
    scopes = SCHEDULES[schedule]
    theirs = tiny_unet(**levels("AA"))
    ours = our_unet(theirs)
    # transformer_in, 2 levels of 1 and 2 layers, the middle; two attentions each
    assert make_dense(theirs, frames, scopes) == 2 * (1 + 2 * (1 + 2) + 1)
    x, text = inputs(theirs, frames, 4, 3, 1)
    with torch.no_grad():
        wanted = theirs(x, 700, text).sample
        got = ours(x, torch.tensor([700]), text, one_rank(frames, engine(scopes)))
    error = relative_error(got, wanted)
    assert error <= CLOSE
    record_worst(f"unet, dense, {schedule}, {frames} frames", error)


def test_dense_reference_differs_from_plain_attention() -> None:
    """The comparison above would notice scopes that are ignored."""
    theirs = tiny_unet(**levels("AA"))
    x, text = inputs(theirs, 17, 4, 3, 1)
    with torch.no_grad():
        plain = theirs(x, 700, text).sample
        for schedule, scopes in SCHEDULES.items():
            make_dense(theirs, 17, scopes)
            assert relative_error(theirs(x, 700, text).sample, plain) > 5e-3, schedule


@pytest.mark.parametrize("ranks", [2, 3, 4, 5])
def test_ranks_that_talk_equal_one_rank(ranks: int) -> None:
    theirs = tiny_unet(**levels("A-"))
    ours = our_unet(theirs)
    shards = FrameShards(19, ranks)
    x, text = inputs(theirs, 19, 5, 4, 2)
    for scopes in (None, Scopes(2, 4, 0.0, 10.0), Scopes(8, 16, 10.0, 0.0)):
        with torch.no_grad():
            alone = ours(x, torch.tensor([700]), text, one_rank(19, scopes))
        parts = on_ranks(
            shards,
            lambda rank, exchange, scopes=scopes: ours(
                x[:, :, shards.held(rank).start : shards.held(rank).stop],
                torch.tensor([700]),
                text,
                temporal_context(exchange, shards, rank, scopes),
            ),
        )
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
def test_architecture_that_this_unet_is_not_is_refused_by_the_name_of_its_key(
    changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=rf"^{named}: "):
        UNetConfig.from_dict({**tiny_unet().config, **changes})


def test_head_widths_listed_alike_are_taken_as_one() -> None:
    config = UNetConfig.from_dict({**tiny_unet().config, "attention_head_dim": [8, 8]})
    assert config.attention_head_dim == 8
