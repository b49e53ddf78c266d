"""VideoCrafter2's own sampler, latent consistency models, and guidance as an input of the model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LatentConsistencyModelPipeline, LCMScheduler
from diffusers.schedulers import scheduling_lcm
from oracles.reference import configure, relative_error, save_model, tiny_pipeline
from oracles.sampling import sample
from safetensors.torch import load_file
from torch import Tensor

from vinfinity.denoise.choose_sampler import make_sampler
from vinfinity.denoise.schedule import SchedulerConfig
from vinfinity.denoise.state import State
from vinfinity.job import prepare
from vinfinity.job_report import concerns
from vinfinity.models.unet3d.call import guidance_features
from vinfinity.models.unet3d.published import TURBO_SCHEDULE
from vinfinity.models.unet3d.unet import UNet
from vinfinity.run import run
from vinfinity.weights.card import read_card

CLOSE = 1e-5
SHAPE = (1, 4, 2, 3, 4)
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
Note = Callable[[str, float], None]


def ddim_of_lvdm(
    x: np.ndarray,
    predictions: list[np.ndarray],
    noises: list[np.ndarray],
    *,
    steps: int,
    eta: float,
    scale_b: float = 0.7,
    mid_step: int = 400,
) -> tuple[list[int], list[np.ndarray]]:
    """Return the published formulas in float64, line by line: register_schedule and LatentDiffusion.__init__ of
    lvdm/models/ddpm3d.py, make_ddim_timesteps and make_ddim_sampling_parameters of lvdm/models/utils_diffusion.py,
    p_sample_ddim of lvdm/models/samplers/ddim.py (AILab-CVC/VideoCrafter, use_scale: true).
    """
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=np.float64) ** 2
    alphas_cumprod = np.cumprod(1.0 - betas)
    scale_arr = np.concatenate([np.linspace(1.0, scale_b, mid_step), np.full(1000, scale_b)])
    ddim_timesteps = np.arange(0, 1000, 1000 // steps) + 1
    a, s = alphas_cumprod[ddim_timesteps], scale_arr[ddim_timesteps]
    a_prev = np.append(alphas_cumprod[0], alphas_cumprod[ddim_timesteps[:-1]])
    s_prev = np.append(scale_arr[0], scale_arr[ddim_timesteps[:-1]])
    sigmas = eta * np.sqrt((1 - a_prev) / (1 - a) * (1 - a / a_prev))
    states = []
    for i in range(len(ddim_timesteps)):
        index = len(ddim_timesteps) - i - 1
        e_t = predictions[i]
        pred_x0 = (x - np.sqrt(1 - a[index]) * e_t) / np.sqrt(a[index])
        direction = np.sqrt(1.0 - a_prev[index] - sigmas[index] ** 2) * e_t
        pred_x0 = pred_x0 / s[index]
        x = np.sqrt(a_prev[index]) * s_prev[index] * pred_x0 + direction + sigmas[index] * noises[i]
        states.append(x)
    return ddim_timesteps[::-1].tolist(), states


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 4, 8, 25, 30, 50])
def test_videocrafter2_steps_equal_the_published_formulas(steps: int, eta: float, record_worst: Note) -> None:
    ours = make_sampler("videocrafter2", SchedulerConfig.from_dict({**BETAS}), steps=steps, eta=eta)
    count, start = len(ours.timesteps), torch.randn(SHAPE)
    predictions, noises = (
        [torch.randn(SHAPE, generator=torch.Generator().manual_seed(i + base)) for i in range(count)]
        for base in (10, 1000)
    )
    timesteps, states = ddim_of_lvdm(
        start.double().numpy(),
        [x.double().numpy() for x in predictions],
        [x.double().numpy() for x in noises],
        steps=steps,
        eta=eta,
    )
    assert list(ours.timesteps) == timesteps
    worst, before = 0.0, start
    for i, wanted in enumerate(torch.from_numpy(x) for x in states):
        # each step from the reference's own state before it
        state = ours.step(State(step=i, x=before), predictions[i], lambda step: noises[step])
        worst = max(worst, ((state.x - wanted).abs().max() / max(1.0, wanted.abs().max().item())).item())
        before = wanted.float()
    assert worst <= CLOSE
    record_worst(f"videocrafter2, {steps} steps, eta {eta}", worst)


def test_the_scale_of_the_latents_matters() -> None:
    plain = SchedulerConfig.from_dict({**BETAS, "latent_scale": 1.0})
    scaled = SchedulerConfig.from_dict({**BETAS})
    x, prediction = torch.randn(SHAPE), torch.randn(SHAPE)
    one, other = (
        make_sampler("videocrafter2", config, steps=5).step(State(step=3, x=x), prediction, lambda _: x).x
        for config in (plain, scaled)
    )
    assert relative_error(one, other) > 0.01


@pytest.mark.parametrize("steps", [*range(1, 60), 111, 333, 499, 1000])
def test_timesteps_stay_within_the_schedule_for_any_number_of_steps(steps: int) -> None:
    """Theirs asks for timestep 1000 of 0..999 where 1000 // steps divides 999, such as 27 and 37 steps."""
    times = make_sampler("videocrafter2", SchedulerConfig.from_dict({**BETAS}), steps=steps).timesteps
    assert len(times) >= min(steps, 999)
    assert list(times) == sorted(set(times), reverse=True)
    assert (times[0] <= 999, times[-1]) == (True, 1)


def test_videocrafter2_refuses_other_predictions() -> None:
    cases: list[dict[str, Any]] = [{"prediction_type": "v_prediction"}, {"rescale_betas_zero_snr": True}]
    for changes in cases:
        if "rescale_betas_zero_snr" in changes:
            changes["timestep_spacing"] = "trailing"
        config = SchedulerConfig.from_dict({**BETAS, **changes})
        steps = 27  # visits the last timestep
        with pytest.raises(ValueError, match=next(iter(changes))):
            make_sampler("videocrafter2", config, steps=steps)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("original", [50, 200])
@pytest.mark.parametrize("steps", [1, 2, 4, 6, 8, 30])
def test_lcm_steps_equal_those_of_diffusers(
    steps: int, original: int, prediction: str, record_worst: Note, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = LCMScheduler(original_inference_steps=original, prediction_type=prediction)
    reference.set_timesteps(steps)
    ours = make_sampler("lcm", SchedulerConfig.from_dict(dict(reference.config)), steps=steps)
    assert list(ours.timesteps) == reference.timesteps.tolist()
    z = torch.randn(SHAPE)
    monkeypatch.setattr(
        scheduling_lcm, "randn_tensor", lambda *_, **__: z
    )  # diffusers takes no noise from outside
    state, worst = State(step=0, x=torch.randn(SHAPE)), 0.0
    for t in reference.timesteps:
        x, model = state.x, torch.randn(SHAPE)
        wanted = reference.step(model, t, x).prev_sample
        state = ours.step(state, model, lambda _: z)
        worst = max(worst, ((state.x - wanted).abs().max() / max(1.0, wanted.abs().max().item())).item())
        state = State(step=state.step, x=wanted)
    assert worst <= CLOSE
    record_worst(f"lcm, {steps} of {original} steps, {prediction}", worst)


@pytest.mark.parametrize("steps", [1, 2, 4, 6, 8, 16, 50])
def test_t2v_turbo_visits_its_authors_timesteps(steps: int) -> None:
    """scheduler/t2v_turbo_scheduler.py of Ji4chenLi/t2v-turbo."""
    schedule = SchedulerConfig.from_dict({**BETAS, **TURBO_SCHEDULE})
    original = list(range(19, 1000, 20))
    expected = original[:: -(50 // steps)][:steps]
    assert list(make_sampler("lcm", schedule, steps=steps).timesteps) == expected


def test_lcm_clips_as_diffusers_does() -> None:
    reference = LCMScheduler(clip_sample=True, clip_sample_range=0.8)
    reference.set_timesteps(1)
    ours = make_sampler("lcm", SchedulerConfig.from_dict(dict(reference.config)), steps=1)
    x, model = torch.randn(SHAPE), torch.randn(SHAPE)
    wanted = reference.step(model, reference.timesteps[0], x).prev_sample
    torch.testing.assert_close(
        ours.step(State(step=0, x=x), model, lambda _: x).x, wanted, rtol=0, atol=CLOSE
    )


def test_lcm_has_no_more_steps_than_its_distillation() -> None:
    with pytest.raises(ValueError, match=r"^steps: 51 is more than the 50"):
        make_sampler("lcm", SchedulerConfig.from_dict({**BETAS}), steps=51)


@pytest.mark.parametrize("name", ["videocrafter2", "lcm"])
def test_resuming_in_the_middle_gives_the_same_end(name: Any) -> None:
    sampler = make_sampler(name, SchedulerConfig.from_dict({**BETAS}), steps=5, eta=1.0)

    def noise(step: int) -> Tensor:
        return torch.randn(SHAPE, generator=torch.Generator().manual_seed(step))

    states = list(sample(sampler, lambda x, t: 0.1 * x + t / 1e4, State(step=0, x=torch.randn(SHAPE)), noise))
    again = list(sample(sampler, lambda x, t: 0.1 * x + t / 1e4, states[1], noise))
    assert torch.equal(again[-1].x, states[-1].x)


@pytest.mark.parametrize("width", [255, 256, 12])
@pytest.mark.parametrize("weight", [0.0, 1.0, 7.5, 12.3])
def test_guidance_features_equal_those_of_diffusers(weight: float, width: int) -> None:
    reference = LatentConsistencyModelPipeline.get_guidance_scale_embedding(
        None, torch.tensor([weight]), embedding_dim=width
    )
    # sines of angles up to 12,300: in fp32, 1 / 2,000 of a turn
    torch.testing.assert_close(guidance_features(weight, width), reference, rtol=0, atol=2e-3)


def test_eta_gives_a_warning_for_samplers_that_ignore_it(model_folder: Path) -> None:
    for sampler, warnings in (("videocrafter2", 0), ("ddim", 0), ("lcm", 1), ("dpmsolver++", 1)):
        config = configure(model_folder, sampler=sampler, eta="1", device="cpu").config
        assert sum(line.startswith("eta: ") for line in concerns(prepare(config))) == warnings


# ---- whole runs ----


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny model that takes guidance as an input, with an LCM scheduler."""
    pipeline = tiny_pipeline(LCMScheduler(clip_sample=False, **BETAS), time_cond_proj_dim=32)
    return save_model(tmp_path_factory.mktemp("models") / "distilled", pipeline)


def latents_of(model: Path, folder: Path, **flags: Any) -> Tensor:
    path = folder / "latents.safetensors"
    settings = {"frames": 2, "size": "16x16", "save_latents": str(path), "overwrite": True, "device": "cpu"}
    resolved = configure(model, out=str(folder / "a.mp4"), **{**settings, **flags})
    assert run(resolved.config) is not None
    return load_file(path)["latents"]


def test_the_card_of_a_distilled_model_sets_its_defaults(distilled: Path) -> None:
    card = read_card(str(distilled))
    assert card.traits.denoiser.guidance_width == 32
    assert (card.defaults["sampler"], card.defaults["steps"]) == ("lcm", 4)


def test_a_distilled_model_is_called_once_per_step(
    distilled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    forward = UNet.forward

    def counted(self: UNet, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        batches.append(x.shape[0])
        return forward(self, x, *args, **kwargs)

    monkeypatch.setattr(UNet, "forward", counted)
    latents_of(distilled, tmp_path, steps=4, guidance="7.5", negative="blue")
    assert batches == [1, 1, 1, 1]


def test_guidance_has_an_effect_and_the_negative_prompt_has_none(distilled: Path, tmp_path: Path) -> None:
    plain = latents_of(distilled, tmp_path, guidance="7.5")
    assert torch.equal(plain, latents_of(distilled, tmp_path, guidance="7.5", negative="blue"))
    assert relative_error(latents_of(distilled, tmp_path, guidance="1"), plain) > 1e-4
    resolved = configure(
        distilled, guidance="7.5", negative="blue", out=str(tmp_path / "b.mp4"), device="cpu"
    )
    assert any("takes guidance as an input" in line for line in concerns(prepare(resolved.config)))


def test_the_whole_run_equals_diffusers_unet_and_scheduler(distilled: Path, tmp_path: Path) -> None:
    """Two LCM steps; the noise between them is taken from our own run's seed."""
    from diffusers import UNet3DConditionModel
    from transformers import CLIPTextModel

    from vinfinity.denoise.noise import frame_noise
    from vinfinity.models.unet3d.tokenizer import load_tokenizer

    unet = UNet3DConditionModel.from_pretrained(distilled / "unet").eval()
    encoder = CLIPTextModel.from_pretrained(distilled / "text_encoder").eval()
    scheduler = LCMScheduler.from_pretrained(distilled / "scheduler")
    scheduler.set_timesteps(2)
    ids = load_tokenizer(distilled / "tokenizer", length=16)("a red ball").ids
    condition = LatentConsistencyModelPipeline.get_guidance_scale_embedding(
        None, torch.tensor([7.5]), embedding_dim=32
    )
    x = frame_noise(0, range(2), (4, 2, 2))
    with torch.no_grad():
        text = encoder(torch.tensor([ids])).last_hidden_state
        alphas = scheduler.alphas_cumprod
        for index, t in enumerate(scheduler.timesteps):
            model = unet(x, t, text, timestep_cond=condition).sample
            x = scheduler.step(model, t, x).denoised
            if index == 0:
                then = scheduler.timesteps[1]
                noise = frame_noise(0, range(2), (4, 2, 2), draw=1)
                x = alphas[then].sqrt() * x + (1 - alphas[then]).sqrt() * noise
    ours = latents_of(distilled, tmp_path, steps=2, guidance="7.5")
    assert relative_error(ours, x) <= 1e-4


def test_steps_beyond_the_distillation_are_refused_in_one_line(distilled: Path, tmp_path: Path) -> None:
    from vinfinity.errors import InputError

    with pytest.raises(InputError, match="51 is more than the 50 steps of the model's distillation"):
        latents_of(distilled, tmp_path, steps=51)
