"""Whole videos against diffusers' WanPipeline, from the same noise."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
)
from oracles.reference import relative_error
from oracles.wan import save_wan

from vinfinity.denoise.noise import frame_noise
from vinfinity.pipeline import Pipeline

CLOSE = 1e-4
PROMPT, NEGATIVE = "a red ball bounces over  green grass", "dark &amp; blurred"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_wan(tmp_path_factory.mktemp("wan") / "tiny")


@pytest.fixture(scope="module")
def reference(folder: Path) -> WanPipeline:
    pipeline = WanPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize(
    ("frames", "size", "settings"),
    [
        (1, (48, 32), {}),
        (5, (32, 64), {"steps": 5}),
        (17, (16, 48), {"guidance": 1.0}),
        (81, (32, 16), {"guidance": 7.5}),
        (9, (32, 48), {"sampler": "euler"}),
        (9, (48, 32), {"sampler": "dpmsolver++", "steps": 6}),
        (5, (32, 16), {"shift": 5.0}),
    ],
    ids=str,
)
def test_whole_videos_match_diffusers(
    frames: int,
    size: tuple[int, int],
    settings: dict[str, Any],
    folder: Path,
    reference: WanPipeline,
    record_worst: Callable[[str, float], None],
) -> None:
    width, height = size
    chosen = {"steps": 4, "guidance": 5.0, "sampler": "unipc", **settings}
    video = Pipeline.from_pretrained(folder, device="cpu")(
        PROMPT, negative=NEGATIVE, frames=frames, size=f"{width}x{height}", seed=3, **chosen
    )
    kind = {"euler": FlowMatchEulerDiscreteScheduler, "dpmsolver++": DPMSolverMultistepScheduler}
    own = UniPCMultistepScheduler.from_config(reference.scheduler.config)
    if chosen["sampler"] == "euler":
        reference.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    elif "shift" in chosen:
        reference.scheduler = UniPCMultistepScheduler.from_config(own.config, flow_shift=chosen["shift"])
    elif chosen["sampler"] in kind:
        reference.scheduler = kind[chosen["sampler"]].from_config(own.config)
    latent_frames = 1 + (frames - 1) // 4
    noise = frame_noise(3, range(latent_frames), (4, height // 8, width // 8))
    made: dict[str, torch.Tensor] = {}

    def note(pipeline: Any, step: int, t: Any, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        made["latents"] = values["latents"]
        return values

    expected = reference(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        height=height,
        width=width,
        num_frames=frames,
        num_inference_steps=chosen["steps"],
        guidance_scale=chosen["guidance"],
        latents=noise,
        callback_on_step_end=note,
    ).frames[0]
    reference.scheduler = own
    error = relative_error(video.latents, made["latents"])
    assert error <= CLOSE
    record_worst(f"WanPipeline, {frames} frames of {width}x{height}, {chosen['sampler']}", error)
    assert video.frames.shape == (frames, height, width, 3)
    assert np.abs(video.frames / 255 - expected).max() <= 0.5 / 255 + 1e-4
