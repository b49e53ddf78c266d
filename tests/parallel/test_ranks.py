"""Several ranks as real processes that communicate through gloo: their number never changes the video."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from oracles.networks import SHAPES
from oracles.rank_work import Case, call_unets
from oracles.reference import (
    DenseScopes,
    fill,
    make_dense,
    relative_error,
    save_model,
    tiny_pipeline,
    tiny_unet,
)
from oracles.runs import latents_on
from oracles.video import read_video
from safetensors.torch import save_file
from torch import Tensor

from vinfinity.models.unet3d.unet import UNetConfig
from vinfinity.parallel.launch import launch
from vinfinity.parallel.ranks import Ranks
from vinfinity.parallel.scopes import Scopes

CLOSE = 1e-4
TIMEOUT = 60.0
# not divisible by 2, 3, 4 or 5
FRAMES = 11
SCOPES = {
    "plain": None,
    "dual": Scopes(local=2, anchors=3, local_bias=0.0, anchor_bias=3.0),
    "wide": Scopes(local=8, anchors=16, local_bias=10.0),
    "no local scope": Scopes(local=2, anchors=4, local_bias=-math.inf),
    "no anchors": Scopes(local=3, anchors=4, anchor_bias=-math.inf),
    "entropy": Scopes(local=2, anchors=3, anchor_bias=1.0, entropy_scaling=True),
}


def cases() -> list[Case]:
    """Every network shape with dual scopes, and the first shape with every kind of scopes."""
    found = []
    for index, (settings, (_, height, width, batch)) in enumerate(SHAPES.values()):
        reference = tiny_unet(**settings)
        config = UNetConfig.from_dict(dict(reference.config))
        x = torch.randn(batch, config.in_channels, FRAMES, height, width)
        text = torch.randn(batch, 5, config.cross_attention_dim)
        for name, scopes in SCOPES.items():
            if index == 0 or name == "dual":
                found.append(Case(config, reference.state_dict(), x, text, scopes))
    return found


@pytest.fixture(scope="module")
def alone() -> tuple[list[Case], list[Tensor]]:
    torch.manual_seed(0)
    every_case = cases()
    outputs = call_unets(every_case, Ranks(device=torch.device("cpu")))
    return every_case, outputs


@pytest.mark.parametrize(
    "ranks", [2, 3, pytest.param(4, marks=pytest.mark.slow), pytest.param(5, marks=pytest.mark.slow)]
)
def test_every_network_predicts_the_same_on_any_number_of_ranks(
    ranks: int, alone: tuple[list[Case], list[Tensor]], record_worst: Callable[[str, float], None]
) -> None:
    some, expected = alone
    outputs = launch(call_unets, some, gpus=ranks, device="cpu", timeout=TIMEOUT)
    worst = max(relative_error(ours, reference) for ours, reference in zip(outputs, expected, strict=True))
    record_worst(f"{len(some)} networks and scopes, {ranks} ranks against 1", worst)
    assert worst <= CLOSE


def test_three_ranks_equal_the_dense_reference(record_worst: Callable[[str, float], None]) -> None:
    reference = tiny_unet()
    config = UNetConfig.from_dict(dict(reference.config))
    x, text = torch.randn(2, 4, FRAMES, 6, 5), torch.randn(2, 5, config.cross_attention_dim)
    some = [Case(config, reference.state_dict(), x, text, scopes) for scopes in SCOPES.values()]
    outputs = launch(call_unets, some, gpus=3, device="cpu", timeout=TIMEOUT)
    worst = 0.0
    for ours, scopes in zip(outputs, SCOPES.values(), strict=True):
        dense = tiny_unet()
        dense.load_state_dict(reference.state_dict())
        wanted = None
        if scopes is not None:
            assert isinstance(scopes.anchors, int)
            wanted = DenseScopes(
                local=scopes.local,
                anchors=scopes.anchors,
                local_bias=scopes.local_bias,
                anchor_bias=scopes.anchor_bias,
                trained_frames=16 if scopes.entropy_scaling else None,
            )
        make_dense(dense, FRAMES, wanted)
        with torch.inference_mode():
            worst = max(worst, relative_error(ours, dense(x, 500, text).sample))
    record_worst("3 ranks against the dense reference", worst)
    assert worst <= CLOSE


def test_norms_per_rank_differ_from_norms_over_the_video() -> None:
    reference = fill(tiny_unet())
    config = UNetConfig.from_dict(dict(reference.config))
    x, text = torch.randn(1, 4, FRAMES, 6, 5), torch.randn(1, 5, config.cross_attention_dim)
    some = [Case(config, reference.state_dict(), x, text, None, norm) for norm in ("video", "rank")]
    video, rank = launch(call_unets, some, gpus=2, device="cpu", timeout=TIMEOUT)
    alone = call_unets(some, Ranks(device=torch.device("cpu")))
    torch.testing.assert_close(alone[0], alone[1])
    assert relative_error(video, alone[0]) <= CLOSE
    assert relative_error(rank, alone[0]) > 100 * CLOSE


def test_a_whole_run_gives_the_same_latents_on_three_ranks(
    model_folder: Path, tmp_path: Path, record_worst: Callable[[str, float], None]
) -> None:
    """With 20 frames on 3 ranks, a rank has fewer frames than the local scope."""
    settings = {"frames": 20, "steps": 8, "sampler": "sde-dpmsolver++", "guidance": 5.0}
    lossless = ("video.crf=0", "video.pixel_format=yuv444p", "decode.frames=3")
    one = latents_on(model_folder, tmp_path, *lossless, ranks=1, **settings)
    three = latents_on(model_folder, tmp_path, *lossless, "decode.where=ranks", ranks=3, **settings)
    # relative, since a random network's latents are large
    worst = relative_error(three, one)
    record_worst("whole run, 3 ranks against 1", worst)
    assert worst <= CLOSE
    # decoded by three ranks or by one, the frames are equal up to the rounding of the difference in the latents
    assert read_video(tmp_path / "3.mp4").shape == (20, 32, 32, 3)
    difference = np.abs(
        read_video(tmp_path / "3.mp4").astype(int) - read_video(tmp_path / "1.mp4").astype(int)
    )
    # a difference of one in RGB may become two by the conversion to YUV and back
    assert difference.max() <= 2
    assert difference.mean() < 0.01


@pytest.mark.parametrize(
    ("ranks", "overrides"),
    [
        (2, ("parallel.split_guidance=true",)),
        (3, ("parallel.split_guidance=true", "checkpoint.every=2steps")),
        (2, ("reuse.interval=2",)),
        (5, ("reuse.interval=3", "reuse.depth=1", "parallel.split_guidance=true", "compute.skips=host")),
    ],
    ids=str,
)
def test_the_division_of_work_among_ranks_does_not_change_the_latents(
    ranks: int, overrides: tuple[str, ...], model_folder: Path, tmp_path: Path
) -> None:
    """Guidance branches on separate teams of equal and unequal sizes, and reused features."""
    settings = {"frames": 20, "steps": 6, "sampler": "sde-dpmsolver++", "guidance": 5.0}
    reuse = [one for one in overrides if one.startswith("reuse")]
    one = latents_on(model_folder, tmp_path, *reuse, ranks=1, **settings)
    several = latents_on(model_folder, tmp_path, *overrides, ranks=ranks, **settings)
    assert relative_error(several, one) <= CLOSE
    if reuse:
        exact = latents_on(model_folder, tmp_path, ranks=1, **settings)
        assert relative_error(one, exact) > 1e-3


def test_ranks_above_and_below_the_short_clip_limit_agree_on_the_execution(
    model_folder: Path, tmp_path: Path
) -> None:
    """65 frames on 2 ranks: one rank is within the limit for computing both guidance branches at once, one above it."""
    one = latents_on(model_folder, tmp_path, ranks=1, frames=65, guidance=5.0)
    two = latents_on(model_folder, tmp_path, ranks=2, frames=65, guidance=5.0)
    assert relative_error(two, one) <= CLOSE


@pytest.mark.parametrize("decoder", ["plain", "in tiles, by another decoder"])
def test_frames_decode_identically_on_one_rank_and_on_all(
    decoder: str, model_folder: Path, tmp_path: Path
) -> None:
    settings = ["decode.frames=2"]
    flags: dict[str, Any] = {"frames": 7}
    if decoder != "plain":
        fill(AutoencoderTiny()).save_pretrained(tmp_path / "taesd")
        # without decode.frames, a block has 8 frames: one rank decodes two blocks, the other one
        settings, flags = ["decode.tile=32"], {"frames": 17, "size": "72x40"}
        flags["decoder"] = str(tmp_path / "taesd")
    videos = {}
    for where in ("rank0", "ranks"):
        (tmp_path / where).mkdir()
        # lossless, since x264 does not always encode tiny pictures in the same way
        all_settings = (*settings, f"decode.where={where}", "video.crf=0", "video.pixel_format=yuv444p")
        latents_on(model_folder, tmp_path / where, *all_settings, ranks=2, **flags)
        videos[where] = read_video(tmp_path / where / "2.mp4")
    assert videos["ranks"].std() > 1
    assert np.array_equal(videos["rank0"], videos["ranks"])


def test_a_video_of_the_trained_length_equals_the_base_models_on_three_ranks(
    tmp_path: Path, record_worst: Callable[[str, float], None]
) -> None:
    pipeline = tiny_pipeline()
    model = save_model(tmp_path / "model", pipeline)
    noise = torch.randn(1, 4, 16, 4, 5)
    save_file({"noise": noise}, tmp_path / "noise.safetensors")
    settings = {"frames": 16, "size": "40x32", "steps": 8, "guidance": 4.0, "negative": "a blue boat"}
    ours = latents_on(model, tmp_path, ranks=3, noise_from=str(tmp_path / "noise.safetensors"), **settings)
    reference = pipeline(
        "a red ball",
        negative_prompt="a blue boat",
        num_frames=16,
        width=40,
        height=32,
        num_inference_steps=8,
        guidance_scale=4.0,
        latents=noise,
        output_type="latent",
    ).frames
    worst = relative_error(ours, reference)
    record_worst("diffusers' pipeline against 3 ranks", worst)
    assert worst <= CLOSE


@pytest.mark.slow
@pytest.mark.parametrize("frames", [53, 37])
def test_the_embedded_model_gives_the_same_latents_on_one_to_five_ranks(
    frames: int, tmp_path: Path, record_worst: Callable[[str, float], None]
) -> None:
    """With 37 frames on 5 ranks, a rank has fewer frames than the local scope."""
    settings = {"frames": frames, "steps": 8, "sampler": "sde-dpmsolver++", "guidance": 6.0}
    prompt = "a red ball bouncing over green grass"
    one = latents_on("mini", tmp_path, ranks=1, prompt=prompt, **settings)
    for ranks in (2, 3, 4, 5):
        worst = (
            (one - latents_on("mini", tmp_path, ranks=ranks, prompt=prompt, **settings)).abs().max().item()
        )
        record_worst(f"mini, {frames} frames, {ranks} ranks against 1, largest difference", worst)
        assert worst <= CLOSE
