"""The whole pipeline compared with diffusers' TextToVideoSDPipeline, from the same model files and noise."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, TextToVideoSDPipeline
from oracles.reference import configure, decoded, relative_error, save_model, tiny_pipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from vinfinity.run import run

TOLERANCE = 1e-4
PROMPT, NEGATIVE = "a red ball bouncing over green grass", "a blue boat, blurry"
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULERS: dict[str, Callable[[], Any]] = {
    "ddim": lambda: DDIMScheduler(**BETAS, clip_sample=False, steps_offset=1, set_alpha_to_one=False),
    "ddim, v": lambda: DDIMScheduler(
        **BETAS,
        clip_sample=False,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    ),
    "dpmsolver++": lambda: DPMSolverMultistepScheduler(**BETAS),
    "dpmsolver++, v": lambda: DPMSolverMultistepScheduler(
        **BETAS, prediction_type="v_prediction", timestep_spacing="leading", steps_offset=1
    ),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folder of a tiny model for each scheduler."""
    root = tmp_path_factory.mktemp("pipelines")
    return {
        name: save_model(root / name.replace(", ", "-"), tiny_pipeline(make()))
        for name, make in SCHEDULERS.items()
    }


def latents_of_both(
    model: Path, folder: Path, *, frames: int, size: tuple[int, int], guidance: float, steps: int = 6
) -> tuple[Tensor, Tensor]:
    """Return the latents by vinfinity and those by diffusers, from the same noise. size: (width, height) in pixels."""
    width, height = size
    noise = torch.randn(1, 4, frames, height // 8, width // 8)
    save_file({"noise": noise}, folder / "noise.safetensors")
    config = configure(
        model,
        prompt=PROMPT,
        negative=NEGATIVE,
        frames=frames,
        size=f"{width}x{height}",
        steps=steps,
        guidance=guidance,
        noise_from=str(folder / "noise.safetensors"),
        save_latents=str(folder / "latents.safetensors"),
        out=str(folder / "video.mp4"),
        device="cpu",
        dtype="fp32",
    ).config
    run(config)
    pipeline = TextToVideoSDPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    reference = pipeline(
        PROMPT,
        negative_prompt=NEGATIVE,
        num_frames=frames,
        width=width,
        height=height,
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=noise.clone(),
        output_type="latent",
    ).frames
    return load_file(folder / "latents.safetensors")["latents"], reference


@pytest.mark.parametrize("guidance", [9.0, 1.0])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_latents_match_those_of_diffusers(
    scheduler: str,
    guidance: float,
    models: dict[str, Path],
    tmp_path: Path,
    record_worst: Callable[[str, float], None],
) -> None:
    ours, reference = latents_of_both(models[scheduler], tmp_path, frames=5, size=(40, 56), guidance=guidance)
    error = relative_error(ours, reference)
    assert error <= TOLERANCE
    record_worst(f"pipeline, {scheduler}, guidance {guidance:g}", error)


@pytest.mark.parametrize("frames", [1, 16])
@pytest.mark.parametrize("steps", [1, 20])
def test_clips_up_to_the_trained_length_match_the_base_model(
    frames: int,
    steps: int,
    models: dict[str, Path],
    tmp_path: Path,
    record_worst: Callable[[str, float], None],
) -> None:
    ours, reference = latents_of_both(
        models["dpmsolver++"], tmp_path, frames=frames, size=(32, 24), guidance=7.5, steps=steps
    )
    error = relative_error(ours, reference)
    assert error <= TOLERANCE
    record_worst(f"pipeline, {frames} frames, {steps} steps", error)


def test_the_negative_prompt_has_an_effect(models: dict[str, Path], tmp_path: Path) -> None:
    """If the negative prompt were ignored, the comparisons above would fail."""
    with_negative, _ = latents_of_both(models["ddim"], tmp_path, frames=2, size=(32, 24), guidance=9.0)
    noise = load_file(tmp_path / "noise.safetensors")["noise"]
    pipeline = TextToVideoSDPipeline.from_pretrained(models["ddim"])
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_frames": 2, "width": 32, "height": 24, "num_inference_steps": 6, "output_type": "latent"}
    without_negative = pipeline(PROMPT, guidance_scale=9.0, latents=noise, **options).frames
    assert relative_error(with_negative, without_negative) > 1e-3


def test_decoded_frames_match_those_of_diffusers(models: dict[str, Path], tmp_path: Path) -> None:
    ours, reference = latents_of_both(models["ddim"], tmp_path, frames=3, size=(40, 56), guidance=9.0)
    pipeline = TextToVideoSDPipeline.from_pretrained(models["ddim"])
    with torch.no_grad():
        video = pipeline.decode_latents(reference)
    expected = pipeline.video_processor.postprocess_video(video=video, output_type="np")[0]
    frames = decoded(models["ddim"], ours, size=(40, 56))
    assert frames.shape == expected.shape == (3, 56, 40, 3)
    assert expected.std() > 0.01
    assert np.abs(frames / 255 - expected).max() <= 1 / 255


def test_longer_videos_differ_from_the_base_model(models: dict[str, Path], tmp_path: Path) -> None:
    ours, reference = latents_of_both(models["ddim"], tmp_path, frames=17, size=(24, 24), guidance=1.0)
    assert relative_error(ours, reference) > 1e-3
