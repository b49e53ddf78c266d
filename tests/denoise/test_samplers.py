"""Samplers compared with diffusers' schedulers, step by step, for the same predictions and the same noise."""

import functools
import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from oracles.sampling import sample
from torch import Tensor

from vinfinity.denoise.choose_sampler import make_sampler
from vinfinity.denoise.guidance import guide
from vinfinity.denoise.schedule import SchedulerConfig, alphas_cumprod
from vinfinity.denoise.state import Sampler, State

TOLERANCE = 1e-5
STEPS = (1, 4, 8, 15, 30, 50)
SPACINGS = ("leading", "trailing", "linspace")
BETAS = ("scaled_linear", "linear", "squaredcos_cap_v2")
PREDICTIONS = ("epsilon", "v_prediction")
SHAPE = (1, 4, 2, 3, 4)

DDIM_KINDS: dict[str, dict[str, Any]] = {
    "eta 0": {"eta": 0.0},
    "eta 0.5": {"eta": 0.5},
    "eta 1": {"eta": 1.0},
    "final alpha of the first step": {"eta": 0.0, "set_alpha_to_one": False},
    "eta 1, final alpha of the first step": {"eta": 1.0, "set_alpha_to_one": False},
    "clipped": {"eta": 0.5, "clip_sample": True, "clip_sample_range": 1.3},
}
DPM_KINDS: dict[str, dict[str, Any]] = {
    "midpoint": {},
    "heun": {"solver_type": "heun"},
    "first order": {"solver_order": 1},
    "sigma_min": {"final_sigmas_type": "sigma_min"},
    "sigma_min, heun": {"final_sigmas_type": "sigma_min", "solver_type": "heun"},
    "euler_at_final": {"euler_at_final": True},
    "no lower order at the end": {"lower_order_final": False, "final_sigmas_type": "sigma_min"},
    "clipped lambda": {"lambda_min_clipped": -5.1},
    "Karras sigmas": {"use_karras_sigmas": True},
    "Karras sigmas, heun": {"use_karras_sigmas": True, "solver_type": "heun"},
    "exponential sigmas": {"use_exponential_sigmas": True},
    "Lu's lambdas": {"use_lu_lambdas": True},
}


def settings(**changes: Any) -> dict[str, Any]:
    """Return the contents of a scheduler_config.json."""
    return {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, **changes}


def pair(
    name: str, config: dict[str, Any], *, steps: int, eta: float = 0.0
) -> tuple[DDIMScheduler | DPMSolverMultistepScheduler, Sampler]:
    """diffusers' scheduler and our sampler, from the same scheduler_config.json."""
    reference = (
        DDIMScheduler(**config)
        if name == "ddim"
        else DPMSolverMultistepScheduler(**config, algorithm_type=name)
    )
    reference.set_timesteps(steps)
    if isinstance(reference, DPMSolverMultistepScheduler):
        # where the first two of Karras' timesteps are equal, diffusers would start with the second and fail at the end
        reference.set_begin_index(0)
    ours = make_sampler(name, SchedulerConfig.from_dict(dict(reference.config)), steps=steps, eta=eta)
    return reference, ours


def fixed_noise(noise: Tensor, step: int) -> Tensor:
    """Return a source of noise that returns the same noise in every step."""
    return noise


def worst_step(
    reference: DDIMScheduler | DPMSolverMultistepScheduler,
    ours: Sampler,
    *,
    stochastic: bool,
    eta: float = 0.0,
) -> float:
    """Return the largest error of any step, relative to the largest value, if that is more than 1.

    Both start every step from the same state.
    """
    assert ours.timesteps == tuple(reference.timesteps.tolist())
    state, worst = State(step=0, x=torch.randn(SHAPE)), 0.0
    for t in reference.timesteps:
        x = state.x
        prediction, z = 0.9 * torch.randn(SHAPE) + 0.3 * x, torch.randn(SHAPE)
        extra: dict[str, Any] = {"variance_noise": z} if stochastic else {}
        if isinstance(reference, DDIMScheduler):
            extra |= {"eta": eta, "use_clipped_model_output": False}
        expected = reference.step(prediction, t, x, **extra).prev_sample
        state = ours.step(state, prediction, functools.partial(fixed_noise, z))
        assert state.x.isfinite().all()
        if not expected.isfinite().all():
            # diffusers takes the square root of a number that rounding has made negative
            assert eta == 1.0
            expected = state.x
        worst = max(worst, ((state.x - expected).abs().max() / max(1.0, expected.abs().max().item())).item())
        # scaled down, since values explode if the schedule starts with almost no signal
        scale = max(1.0, expected.abs().max().item() / 50)
        state = State(step=state.step, x=expected / scale, clean=state.clean)
    return worst


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("kind", DDIM_KINDS)
def test_ddim_steps_equal_those_of_diffusers(
    kind: str, prediction: str, spacing: str, record_worst: Callable[[str, float], None]
) -> None:
    chosen = {"clip_sample": False, **DDIM_KINDS[kind]}
    eta, worst = chosen.pop("eta"), 0.0
    for betas, zero_snr, steps, offset in itertools.product(BETAS, (False, True), STEPS, (0, 1)):
        if (offset and spacing != "leading") or (steps >= 30 and betas != "scaled_linear"):
            continue
        if zero_snr and (prediction == "epsilon" or (steps == 1 and spacing == "leading")):
            continue
        config = settings(
            beta_schedule=betas,
            prediction_type=prediction,
            timestep_spacing=spacing,
            rescale_betas_zero_snr=zero_snr,
            steps_offset=offset,
            **chosen,
        )
        reference, ours = pair("ddim", config, steps=steps, eta=eta)
        if eta == 1.0:
            # near pure noise, eta 1 takes the root of a difference of nearly equal numbers: rounding errors in fp32
            reference.alphas_cumprod = reference.alphas_cumprod.double()
            reference.final_alpha_cumprod = reference.final_alpha_cumprod.double()
        error = worst_step(reference, ours, stochastic=eta > 0, eta=eta)
        assert error <= TOLERANCE, (betas, zero_snr, steps, offset)
        worst = max(worst, error)
    record_worst(f"ddim, {kind}, {prediction}, {spacing}", worst)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("kind", DPM_KINDS)
@pytest.mark.parametrize("name", ["dpmsolver++", "sde-dpmsolver++"])
def test_dpmsolver_steps_equal_those_of_diffusers(
    name: str, kind: str, prediction: str, spacing: str, record_worst: Callable[[str, float], None]
) -> None:
    worst = 0.0
    for betas, zero_snr, steps, offset in itertools.product(BETAS, (False, True), STEPS, (0, 1)):
        if (offset and spacing != "leading") or (steps >= 30 and betas != "scaled_linear"):
            continue
        config = settings(
            beta_schedule=betas,
            prediction_type=prediction,
            timestep_spacing=spacing,
            rescale_betas_zero_snr=zero_snr,
            steps_offset=offset,
            **DPM_KINDS[kind],
        )
        reference, ours = pair(name, config, steps=steps)
        error = worst_step(reference, ours, stochastic=name.startswith("sde"))
        # almost without signal, epsilon is divided by 2^-12, which amplifies the rounding errors of diffusers in fp32
        loose = zero_snr and prediction == "epsilon"
        assert error <= (10 * TOLERANCE if loose else TOLERANCE), (betas, zero_snr, steps, offset)
        worst = max(worst, error)
    record_worst(f"{name}, {kind}, {prediction}, {spacing}", worst)


@pytest.mark.parametrize("spaced", ["use_karras_sigmas", "use_exponential_sigmas", "use_lu_lambdas"])
@pytest.mark.parametrize("name", ["dpmsolver++", "sde-dpmsolver++"])
@pytest.mark.parametrize("steps", [2, 9, 30])
def test_a_schedule_that_ends_where_it_already_is_stays_there(steps: int, name: str, spaced: str) -> None:
    """In diffusers the last of these steps is 0 / 0."""
    config = SchedulerConfig.from_dict(settings(**{spaced: True, "final_sigmas_type": "sigma_min"}))
    sampler = make_sampler(name, config, steps=steps)
    start = State(step=0, x=torch.randn(SHAPE))
    states = list(sample(sampler, lambda x, t: 0.3 * x, start, lambda step: torch.randn(SHAPE)))
    torch.testing.assert_close(states[-1].x, [start, *states][-2].x, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["dpmsolver++", "sde-dpmsolver++"])
def test_schedules_with_fewer_steps_than_requested_match_those_of_diffusers(name: str) -> None:
    """With trailing spacing, clipping lambda leaves 49 of 50 timesteps."""
    config = settings(
        beta_schedule="linear",
        timestep_spacing="trailing",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        lambda_min_clipped=-5.1,
    )
    reference, ours = pair(name, config, steps=50)
    assert worst_step(reference, ours, stochastic=name.startswith("sde")) <= TOLERANCE


@pytest.mark.parametrize("name", ["ddim", "dpmsolver++"])
def test_trained_betas_are_used(name: str) -> None:
    betas = [0.001 + 0.00002 * i for i in range(100)]
    config = {"num_train_timesteps": 100, "trained_betas": betas, "timestep_spacing": "trailing"}
    reference, ours = pair(name, {**config, **({"clip_sample": False} if name == "ddim" else {})}, steps=9)
    assert worst_step(reference, ours, stochastic=False) <= TOLERANCE


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", ["ddim", "dpmsolver++"])
def test_a_schedule_has_one_timestep_per_step_for_any_number_of_steps(name: str, spacing: str) -> None:
    config = SchedulerConfig.from_dict(settings(timestep_spacing=spacing, prediction_type="v_prediction"))
    for steps in (*range(1, 130), 201, 397, 499, 998):
        times = make_sampler(name, config, steps=steps).timesteps
        assert len(times) == steps
        assert min(times) >= 0, f"{steps} steps"
        assert max(times) <= 999
        assert list(times) == sorted(times, reverse=True)


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("zero_snr", [False, True])
def test_noise_schedule_equals_that_of_diffusers(betas: str, zero_snr: bool) -> None:
    config = settings(beta_schedule=betas, rescale_betas_zero_snr=zero_snr)
    ours = alphas_cumprod(SchedulerConfig.from_dict(config))
    torch.testing.assert_close(ours, DDIMScheduler(**config).alphas_cumprod, rtol=0, atol=1e-7)
    assert (ours[-1] == 0) == zero_snr


@pytest.mark.parametrize("name", ["ddim", "dpmsolver++", "sde-dpmsolver++"])
@pytest.mark.parametrize("steps", [1, 7, 15])
def test_resuming_after_any_step_gives_the_same_result(name: str, steps: int) -> None:
    config = SchedulerConfig.from_dict(settings(beta_schedule="scaled_linear"))
    sampler = make_sampler(name, config, steps=steps, eta=0.5)

    def predict(x: Tensor, t: int) -> Tensor:
        return 0.5 * x.roll(1, dims=-1) + math.sin(t)

    def noise(step: int) -> Tensor:
        return torch.randn(SHAPE, generator=torch.Generator().manual_seed(step))

    states = list(sample(sampler, predict, State(step=0, x=torch.randn(SHAPE)), noise))
    assert [state.step for state in states] == list(range(1, steps + 1))
    for state in states[:-1]:
        clean = None if state.clean is None else state.clean.clone()
        copy = State(step=state.step, x=state.x.clone(), clean=clean)
        rest = list(sample(sampler, predict, copy, noise))
        assert len(rest) == steps - state.step
        assert torch.equal(rest[-1].x, states[-1].x), state.step
    assert list(sample(sampler, predict, states[-1], noise)) == []


@pytest.mark.parametrize(
    ("name", "eta", "draws"),
    [
        ("ddim", 0.0, False),
        ("ddim", 0.3, True),
        ("dpmsolver++", 0.0, False),
        ("sde-dpmsolver++", 0.0, True),
    ],
)
def test_only_stochastic_samplers_draw_noise_and_pass_its_step(name: str, eta: float, draws: bool) -> None:
    config = SchedulerConfig.from_dict(settings(beta_schedule="scaled_linear"))
    drawn: list[int] = []

    def noise(step: int) -> Tensor:
        drawn.append(step)
        return torch.randn(SHAPE)

    sampler = make_sampler(name, config, steps=6, eta=eta)
    list(sample(sampler, lambda x, t: 0.1 * x, State(step=0, x=torch.randn(SHAPE)), noise))
    # the last step ends with clean latents and adds no noise
    assert drawn == ([0, 1, 2, 3, 4] if draws else [])


@pytest.mark.parametrize(
    "changes",
    [
        {"use_flow_sigmas": True},
        {"prediction_type": "sample"},
        {"prediction_type": "flow_prediction"},
        {"beta_schedule": "laplace"},
        {"timestep_spacing": "random"},
        {"timestep_type": "continuous"},
        {"variance_type": "learned_range"},
    ],
    ids=str,
)
def test_unsupported_settings_that_change_the_result_are_refused_by_name(changes: dict[str, Any]) -> None:
    [(key, value)] = changes.items()
    with pytest.raises(ValueError, match=rf"^{key}: {value!r} is not"):
        SchedulerConfig.from_dict(settings(**changes))


@pytest.mark.parametrize("key", ["beta_start", "beta_end", "trained_betas"])
@pytest.mark.parametrize("beta", [-0.1, 0, 1.0, 1e30])
def test_betas_that_are_no_shares_of_noise_are_refused(key: str, beta: float) -> None:
    changes = {"trained_betas": [0.1, beta]} if key == "trained_betas" else {key: beta}
    name = "trained_betas[1]" if key == "trained_betas" else key
    with pytest.raises(
        ValueError, match=rf"^{re.escape(name)}: {re.escape(str(beta))} is not between 0 and 1$"
    ):
        SchedulerConfig.from_dict(settings(**changes))


def test_betas_of_another_length_are_refused() -> None:
    config = SchedulerConfig.from_dict(settings(trained_betas=[0.1, 0.2]))
    with pytest.raises(ValueError, match=r"^trained_betas: 2 values"):
        make_sampler("ddim", config, steps=2)


@pytest.mark.parametrize("name", ["ddim", "dpmsolver++"])
def test_more_steps_than_in_training_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^steps: 1001 "):
        make_sampler(name, SchedulerConfig.from_dict(settings()), steps=1001)


def test_epsilon_prediction_from_pure_noise_is_refused() -> None:
    config = settings(rescale_betas_zero_snr=True, prediction_type="epsilon", timestep_spacing="trailing")
    with pytest.raises(ValueError, match=r"^prediction_type: epsilon"):
        make_sampler("ddim", SchedulerConfig.from_dict(config), steps=5)


def test_guidance_extrapolates_from_the_prediction_without_the_prompt_to_that_with_it() -> None:
    both = torch.randn(2, 4, 3, 2, 2)
    torch.testing.assert_close(guide(both, 0.0), both[:1])
    torch.testing.assert_close(guide(both, 1.0), both[1:], rtol=0, atol=1e-6)
    torch.testing.assert_close(guide(both, 7.5), both[:1] + 7.5 * (both[1:] - both[:1]))
    assert torch.equal(guide(both[:1], 7.5), both[:1])


@pytest.mark.parametrize(
    ("name", "prediction"),
    [
        *itertools.product(["ddim", "dpmsolver++", "sde-dpmsolver++", "lcm"], ["epsilon", "v_prediction"]),
        ("videocrafter2", "epsilon"),
    ],
)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_predictions_that_imply_certain_latents_lead_to_them(
    name: str, prediction: str, spacing: str
) -> None:
    config = SchedulerConfig(
        beta_schedule="scaled_linear",
        timestep_spacing=spacing,
        clip_sample=False,
        prediction_type=prediction,
        set_alpha_to_one=True,
        original_inference_steps=8,
    )
    sampler = make_sampler(name, config, steps=8)
    clean, state = torch.randn(SHAPE), State(step=0, x=torch.randn(SHAPE))
    while state.step < len(sampler.timesteps):
        before = state.x
        state = sampler.step(state, sampler.implied(state, clean), lambda _: torch.randn(SHAPE))
        assert state.clean is None or torch.allclose(state.clean, clean, atol=1e-3)
        assert not torch.equal(state.x, before)
    # some noise remains: in LCM by x = c_skip * x + c_out * x0, in VideoCrafter2's sampler by sigma_min
    assert (state.x - clean).abs().mean() < {"lcm": 0.1, "videocrafter2": 0.1}.get(name, 1e-3)
