"""Samplers for flow matching compared with diffusers' schedulers, step by step, for the same predictions."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

from vinfinity.denoise.choose_sampler import make_sampler
from vinfinity.denoise.flows import FlowSchedule, read_schedule
from vinfinity.denoise.state import State

TOLERANCE = 1e-5
STEPS = (1, 2, 3, 4, 8, 15, 30, 50)
SHIFTS = (1.0, 3.0, 5.0, 12.0)
SHAPE = (1, 16, 3, 2, 4)
FLOW: dict[str, Any] = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
SCHEDULERS: dict[str, tuple[str, type, dict[str, Any]]] = {
    "euler": ("euler", FlowMatchEulerDiscreteScheduler, {}),
    "unipc": ("unipc", UniPCMultistepScheduler, FLOW),
    "unipc, bh1": ("unipc", UniPCMultistepScheduler, {**FLOW, "solver_type": "bh1"}),
    "unipc, first order": ("unipc", UniPCMultistepScheduler, {**FLOW, "solver_order": 1}),
    "unipc, first steps not corrected": (
        "unipc",
        UniPCMultistepScheduler,
        {**FLOW, "disable_corrector": [0, 1]},
    ),
    "dpmsolver++": ("dpmsolver++", DPMSolverMultistepScheduler, FLOW),
    "dpmsolver++, heun": ("dpmsolver++", DPMSolverMultistepScheduler, {**FLOW, "solver_type": "heun"}),
    "dpmsolver++, first order": ("dpmsolver++", DPMSolverMultistepScheduler, {**FLOW, "solver_order": 1}),
    "sde-dpmsolver++": (
        "sde-dpmsolver++",
        DPMSolverMultistepScheduler,
        {**FLOW, "algorithm_type": "sde-dpmsolver++"},
    ),
}


def same_noise(noise: Tensor, step: int) -> Tensor:
    return noise


@pytest.mark.parametrize("name", SCHEDULERS)
def test_steps_equal_those_of_diffusers(name: str, record_worst: Callable[[str, float], None]) -> None:
    sampler, kind, config = SCHEDULERS[name]
    worst = 0.0
    for shift in SHIFTS:
        for steps in STEPS:
            key = "shift" if kind is FlowMatchEulerDiscreteScheduler else "flow_shift"
            reference = kind(**config, **{key: shift})
            reference.set_timesteps(steps)
            reference.set_begin_index(0)
            values = {**reference.config, "_class_name": kind.__name__}
            ours = make_sampler(sampler, read_schedule(values, flow=True), steps=steps)
            assert ours.timesteps == tuple(reference.timesteps.tolist())
            state = State(step=0, x=torch.randn(SHAPE))
            for t in reference.timesteps:
                prediction, z = torch.randn(SHAPE) - 0.5 * state.x, torch.randn(SHAPE)
                extra = {"variance_noise": z} if sampler.startswith("sde") else {}
                expected = reference.step(prediction, t, state.x, **extra, return_dict=False)[0]
                state = ours.step(state, prediction, functools.partial(same_noise, z))
                error = (state.x - expected).abs().max() / max(1.0, expected.abs().max().item())
                worst = max(worst, error.item())
                # both start the next step from the same latents
                state = State(**{**vars(state), "x": expected})
    assert worst <= TOLERANCE
    record_worst(f"flow sampler, {name}", worst)


@pytest.mark.parametrize("name", ["euler", "unipc", "dpmsolver++"])
def test_the_implied_prediction_leads_to_the_wanted_latents(name: str) -> None:
    sampler = make_sampler(name, FlowSchedule(shift=3.0), steps=6)
    clean = torch.randn(SHAPE)
    state = State(step=0, x=torch.randn(SHAPE))
    for _ in sampler.timesteps:
        state = sampler.step(state, sampler.implied(state, clean), lambda _: clean)
    assert torch.allclose(state.x, clean, atol=1e-4)


def test_a_schedule_is_read_by_what_its_file_says() -> None:
    unipc = {"_class_name": "UniPCMultistepScheduler", "flow_shift": 3.0, **FLOW}
    assert read_schedule(unipc, flow=True) == FlowSchedule(shift=3.0)
    euler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 5.0}
    assert read_schedule(euler, flow=True) == FlowSchedule(shift=5.0)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"use_dynamic_shifting": True}, "use_dynamic_shifting"),
        ({"solver_order": "two"}, "solver_order"),
        ({"shift_terminal": 0.1}, "shift_terminal"),
        ({"flow_shift": 0.0}, "shift"),
        ({"use_flow_sigmas": False}, "use_flow_sigmas"),
        ({"_class_name": "EDMEulerScheduler"}, "_class_name"),
    ],
)
def test_what_would_change_the_result_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        read_schedule({"_class_name": "UniPCMultistepScheduler", **FLOW, **changes}, flow=True)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"solver_order": 3}, "solver_order: 3"),
        ({"solver_type": "other"}, 'solver_type: "other"'),
        ({"use_karras_sigmas": True}, "use_karras_sigmas: true"),
        ({"use_beta_sigmas": True, "predict_x0": False}, "predict_x0: false, use_beta_sigmas: true"),
        ({"final_sigmas_type": "sigma_min"}, 'final_sigmas_type: "sigma_min"'),
        ({"algorithm_type": "dpmsolver"}, 'algorithm_type: "dpmsolver"'),
    ],
    ids=str,
)
def test_what_concerns_the_steps_alone_is_ignored_with_a_warning(changes: dict[str, Any], named: str) -> None:
    schedule = read_schedule({"_class_name": "DPMSolverMultistepScheduler", **FLOW, **changes}, flow=True)
    assert schedule == FlowSchedule()
    expected = f"scheduler: dpmsolver++ ignores {named} of the model's scheduler_config.json"
    assert schedule.ignored_by("dpmsolver++") == expected


def test_a_scheduler_that_is_no_sampler_here_is_named_in_a_warning() -> None:
    schedule = read_schedule({"_class_name": "FlowMatchHeunDiscreteScheduler", "shift": 5.0}, flow=True)
    assert schedule == FlowSchedule(shift=5.0)
    assert schedule.ignored_by("unipc") == (
        "scheduler: the model's own, FlowMatchHeunDiscreteScheduler, is not available; unipc follows its shift"
    )


def test_a_sampler_for_betas_is_refused_for_flows_and_the_other_way_round() -> None:
    with pytest.raises(ValueError, match="flow matching"):
        make_sampler("ddim", FlowSchedule(), steps=4)
    with pytest.raises(ValueError, match="betas"):
        make_sampler("unipc", read_schedule({}, flow=False), steps=4)
