"""Every scheduler that a model's folder can name, with its usual settings: which samplers follow it, what they ignore,
and which belong to models that cannot run here.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, LCMScheduler
from oracles.reference import configure
from oracles.runs import config_of
from safetensors.torch import load_file
from torch import Tensor

from vinfinity.denoise.schedule import SCHEDULERS, SchedulerConfig, alphas_cumprod
from vinfinity.denoise.state import State
from vinfinity.errors import InputError
from vinfinity.job import prepare
from vinfinity.job_report import concerns
from vinfinity.run import run
from vinfinity.weights.inspect import describe_model

CLOSE = 1e-5
SHAPE = (1, 4, 2, 3, 4)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
KARRAS = {**BETAS, "use_karras_sigmas": True}

# By the id of the test: the class, and the settings that differ from its own defaults.
USUAL: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIM": ("DDIMScheduler", {**BETAS, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    "DDIM with thresholding": ("DDIMScheduler", {**BETAS, "clip_sample": False, "thresholding": True}),
    "DDIMParallel": ("DDIMParallelScheduler", {**BETAS, "clip_sample": False, "steps_offset": 1}),
    "DDIMInverse": ("DDIMInverseScheduler", {**BETAS, "clip_sample": False}),
    "DDPM": ("DDPMScheduler", {**BETAS, "clip_sample": False}),
    "DDPM, v, zero SNR": (
        "DDPMScheduler",
        {
            **BETAS,
            "clip_sample": False,
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
        },
    ),
    "DDPMParallel": ("DDPMParallelScheduler", {**BETAS, "clip_sample": False}),
    "PNDM": ("PNDMScheduler", {**BETAS, "skip_prk_steps": True, "steps_offset": 1}),
    "LMSDiscrete": ("LMSDiscreteScheduler", {**KARRAS, "timestep_spacing": "linspace"}),
    "EulerDiscrete": ("EulerDiscreteScheduler", {**BETAS, "timestep_spacing": "leading", "steps_offset": 1}),
    "EulerDiscrete, Karras": ("EulerDiscreteScheduler", {**KARRAS, "interpolation_type": "log_linear"}),
    "EulerAncestralDiscrete": ("EulerAncestralDiscreteScheduler", {**BETAS, "timestep_spacing": "trailing"}),
    "HeunDiscrete": ("HeunDiscreteScheduler", KARRAS),
    "KDPM2Discrete": ("KDPM2DiscreteScheduler", KARRAS),
    "KDPM2AncestralDiscrete": ("KDPM2AncestralDiscreteScheduler", BETAS),
    "DPMSolverMultistep": ("DPMSolverMultistepScheduler", BETAS),
    "DPMSolverMultistep, SDE": (
        "DPMSolverMultistepScheduler",
        {**BETAS, "algorithm_type": "sde-dpmsolver++"},
    ),
    "DPMSolverMultistep, Karras": ("DPMSolverMultistepScheduler", KARRAS),
    "DPMSolverMultistep, order 3": ("DPMSolverMultistepScheduler", {**BETAS, "solver_order": 3}),
    "DPMSolverMultistep, order 3, thresholding": (
        "DPMSolverMultistepScheduler",
        {**BETAS, "solver_order": 3, "thresholding": True},
    ),
    "DPMSolverMultistepInverse": ("DPMSolverMultistepInverseScheduler", {**BETAS, "solver_order": 3}),
    "DPMSolverSinglestep": ("DPMSolverSinglestepScheduler", {**KARRAS, "solver_order": 3}),
    "DPMSolverSDE": ("DPMSolverSDEScheduler", {**KARRAS, "timestep_spacing": "linspace"}),
    "DEISMultistep": ("DEISMultistepScheduler", {**KARRAS, "solver_order": 3}),
    "UniPCMultistep": ("UniPCMultistepScheduler", BETAS),
    "UniPCMultistep, Karras, order 3": ("UniPCMultistepScheduler", {**KARRAS, "solver_order": 3}),
    "UniPCMultistep, v, trailing": (
        "UniPCMultistepScheduler",
        {**BETAS, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    ),
    "SASolver": ("SASolverScheduler", {**KARRAS, "predictor_order": 3}),
    "LCM": ("LCMScheduler", {"original_inference_steps": 40}),
    "TCD": ("TCDScheduler", {}),
}
# These need packages that are not installed: scipy, torchsde.
UNAVAILABLE = ("LMSDiscreteScheduler", "DPMSolverSDEScheduler")

# What a warning says of settings besides the class.
IGNORED: dict[str, dict[str, str]] = {
    "DDIM with thresholding": dict.fromkeys(("ddim", "dpmsolver++", "lcm"), "thresholding: true"),
    "LMSDiscrete": dict.fromkeys(("ddim", "dpmsolver++", "lcm"), "use_karras_sigmas: true"),
    "EulerDiscrete, Karras": dict.fromkeys(
        ("ddim", "dpmsolver++", "lcm"), 'interpolation_type: "log_linear", use_karras_sigmas: true'
    ),
    "HeunDiscrete": dict.fromkeys(("ddim", "dpmsolver++", "lcm"), "use_karras_sigmas: true"),
    "KDPM2Discrete": dict.fromkeys(("ddim", "dpmsolver++", "lcm"), "use_karras_sigmas: true"),
    "DPMSolverMultistep, Karras": dict.fromkeys(("ddim", "lcm"), "use_karras_sigmas: true"),
    "DPMSolverMultistep, order 3": dict.fromkeys(("ddim", "dpmsolver++", "lcm"), "solver_order: 3"),
    "DPMSolverMultistep, order 3, thresholding": dict.fromkeys(
        ("ddim", "dpmsolver++", "lcm"), "solver_order: 3, thresholding: true"
    ),
    "DPMSolverMultistepInverse": dict.fromkeys(("ddim", "dpmsolver++", "lcm"), "solver_order: 3"),
    "DPMSolverSinglestep": dict.fromkeys(
        ("ddim", "dpmsolver++", "lcm"), "solver_order: 3, use_karras_sigmas: true"
    ),
    "DPMSolverSDE": dict.fromkeys(("ddim", "dpmsolver++", "lcm"), "use_karras_sigmas: true"),
    "DEISMultistep": dict.fromkeys(
        ("ddim", "dpmsolver++", "lcm"), "solver_order: 3, use_karras_sigmas: true"
    ),
    "UniPCMultistep, Karras, order 3": dict.fromkeys(
        ("ddim", "dpmsolver++", "lcm"), "solver_order: 3, use_karras_sigmas: true"
    ),
    "SASolver": dict.fromkeys(("ddim", "dpmsolver++", "lcm"), "use_karras_sigmas: true"),
}
OWN = ("DDIMScheduler", "DDIMParallelScheduler", "DPMSolverMultistepScheduler", "LCMScheduler")


def scheduler_file(name: str) -> dict[str, Any]:
    """Return the scheduler_config.json that diffusers writes."""
    kind, settings = USUAL[name]
    if kind in UNAVAILABLE:
        values = {"_class_name": kind, "num_train_timesteps": 1000, "prediction_type": "epsilon"}
        return {**values, "steps_offset": 0, "trained_betas": None, **settings}
    values = json.loads(getattr(diffusers, kind)(**settings).to_json_string())
    assert values["_class_name"] == kind
    return values


def reference_for(sampler: str, values: dict[str, Any]) -> Any:
    """diffusers' scheduler of a sampler's method, with the training and the spacing of a file of another one."""
    shared = {
        "num_train_timesteps": values["num_train_timesteps"],
        "beta_start": values["beta_start"],
        "beta_end": values["beta_end"],
        "beta_schedule": values["beta_schedule"],
        "prediction_type": values["prediction_type"],
        "rescale_betas_zero_snr": values.get("rescale_betas_zero_snr", False),
        "steps_offset": values.get("steps_offset", 0),
    }
    if (spacing := values.get("timestep_spacing")) is not None:
        shared["timestep_spacing"] = spacing
    if sampler == "dpmsolver++":
        karras = values["_class_name"] == "DPMSolverMultistepScheduler" and values["use_karras_sigmas"]
        return DPMSolverMultistepScheduler(**shared, use_karras_sigmas=karras)
    clean = {"clip_sample": values.get("clip_sample", False)}
    if sampler == "lcm":
        original = values.get("original_inference_steps", 50)
        return LCMScheduler(**shared, **clean, original_inference_steps=original)
    return DDIMScheduler(**shared, **clean, set_alpha_to_one=values.get("set_alpha_to_one", True))


def worst_step(reference: Any, ours: Any, sampler: str) -> float:
    """Return the largest error of any step, each taken from the same state; 1 is the size of its largest value."""
    assert ours.timesteps == tuple(reference.timesteps.tolist())
    state, worst = State(step=0, x=torch.randn(SHAPE)), 0.0
    for index, t in enumerate(reference.timesteps):
        x = state.x
        prediction = 0.9 * torch.randn(SHAPE) + 0.3 * x
        noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(index))
        extra = {"generator": torch.Generator().manual_seed(index)} if sampler == "lcm" else {}
        wanted = reference.step(prediction, t, x, **extra).prev_sample
        state = ours.step(state, prediction, functools.partial(fixed, noise))
        worst = max(worst, ((state.x - wanted).abs().max() / max(1.0, wanted.abs().max().item())).item())
        state = State(step=state.step, x=wanted / max(1.0, wanted.abs().max().item() / 50), clean=state.clean)
    return worst


def fixed(noise: Tensor, step: int) -> Tensor:
    return noise


@pytest.fixture
def model_with(own_model: Path) -> Callable[[dict[str, Any]], Path]:
    def write(values: dict[str, Any]) -> Path:
        path = own_model / "scheduler" / "scheduler_config.json"
        path.write_text(json.dumps(values), encoding="utf-8")
        return own_model

    return write


@pytest.mark.parametrize("name", USUAL)
def test_samplers_follow_the_schedule_and_say_what_they_ignore(
    name: str,
    model_with: Callable[[dict[str, Any]], Path],
    record_worst: Callable[[str, float], None],
) -> None:
    kind, _ = USUAL[name]
    values = scheduler_file(name)
    model = model_with(values)
    default = prepare(configure(model, device="cpu").config)
    assert default.config.sampler in ("ddim", "dpmsolver++", "sde-dpmsolver++", "lcm")
    for sampler in ("ddim", "dpmsolver++", "lcm"):
        job = prepare(configure(model, sampler=sampler, steps=7, device="cpu").config)
        reference = reference_for(sampler, values)
        reference.set_timesteps(7)
        if sampler == "dpmsolver++":
            reference.set_begin_index(0)
        error = worst_step(reference, job.sampler, sampler)
        assert error <= CLOSE
        record_worst(f"scheduler file, {name}, {sampler}", error)
        warnings = [concern for concern in concerns(job) if concern.startswith("scheduler: ")]
        print(f"{name}, {sampler}: {warnings}")
        ignored = IGNORED.get(name, {}).get(sampler, "")
        if kind not in OWN:
            also = f", but not {ignored}" if ignored else ""
            followed = f"{sampler} follows its betas, prediction type and spacing{also}"
            assert warnings == [f"scheduler: the model's own, {kind}, is not available; {followed}"]
        elif ignored:
            assert warnings == [
                f"scheduler: {sampler} ignores {ignored} of the model's scheduler_config.json"
            ]
        else:
            assert warnings == []
    rows, problems = describe_model(model)
    assert not problems
    assert kind in dict(rows)["scheduler"] or "scheduler_config.json" in dict(rows)["scheduler"]


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_settings_that_a_file_lacks_are_those_of_its_class(kind: str) -> None:
    ours = SchedulerConfig.from_dict({"_class_name": kind})
    if kind in UNAVAILABLE:
        assert (ours.beta_start, ours.beta_end) in ((0.0001, 0.02), (0.00085, 0.012))
        return
    reference = getattr(diffusers, kind)()
    torch.testing.assert_close(alphas_cumprod(ours), reference.alphas_cumprod, rtol=0, atol=1e-7)
    for key in ("prediction_type", "set_alpha_to_one", "steps_offset", "num_train_timesteps"):
        assert getattr(ours, key) == getattr(reference.config, key, getattr(SchedulerConfig(), key)), key
    # latents are not pictures: schedulers that know no clipping are not clipped by others
    assert ours.clip_sample == getattr(reference.config, "clip_sample", False)


def test_every_class_is_tried() -> None:
    assert {kind for kind, _ in USUAL.values()} == set(SCHEDULERS)


FOREIGN = (
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "EDMEulerScheduler",
    "EDMDPMSolverMultistepScheduler",
    "CogVideoXDDIMScheduler",
    "CogVideoXDPMScheduler",
    "CMStochasticIterativeScheduler",
    "CosineDPMSolverMultistepScheduler",
    "DDPMWuerstchenScheduler",
    "IPNDMScheduler",
    "KarrasVeScheduler",
    "RePaintScheduler",
    "ScoreSdeVeScheduler",
    "SCMScheduler",
    "UnCLIPScheduler",
    "VQDiffusionScheduler",
    "AmusedScheduler",
    "MyOwnScheduler",
)


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("sampler", [None, "ddim"])
def test_schedulers_of_other_models_are_refused_by_name(
    sampler: str | None, kind: str, model_with: Callable[[dict[str, Any]], Path]
) -> None:
    values = {"_class_name": kind}
    needed = {"VQDiffusionScheduler": {"num_vec_classes": 8}, "AmusedScheduler": {"mask_token_id": 0}}
    if hasattr(diffusers, kind) and kind not in ("CosineDPMSolverMultistepScheduler",):
        values = json.loads(getattr(diffusers, kind)(**needed.get(kind, {})).to_json_string())
    with pytest.raises(InputError) as raised:
        prepare(configure(model_with(values), sampler=sampler, device="cpu").config)
    line = str(raised.value)
    print(line)
    assert raised.value.exit_code == 2
    assert "\n" not in line
    assert f"_class_name: {kind} is not a known scheduler of models that predict noise or v" in line


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"prediction_type": "flow_prediction", "use_flow_sigmas": True},
            "use_flow_sigmas: True is not supported",
        ),
        ({"prediction_type": "sample"}, "prediction_type: 'sample' is not one of epsilon, v_prediction"),
        ({"timestep_type": "continuous"}, "timestep_type: 'continuous' is not supported"),
        ({"variance_type": "learned_range"}, "variance_type: 'learned_range' is not supported"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule: 'sigmoid' is not one of linear, scaled_linear"),
        (
            {"timestep_spacing": "golden"},
            "timestep_spacing: 'golden' is not one of leading, trailing, linspace",
        ),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas: 2 values for 1000 training timesteps"),
    ],
    ids=str,
)
@pytest.mark.parametrize("sampler", ["ddim", "dpmsolver++"])
def test_what_concerns_the_model_stops_every_sampler(
    sampler: str, changes: dict[str, Any], line: str, model_with: Callable[[dict[str, Any]], Path]
) -> None:
    model = model_with({**scheduler_file("EulerDiscrete"), **changes})
    with pytest.raises(InputError) as raised:
        prepare(configure(model, sampler=sampler, device="cpu").config)
    assert line in str(raised.value)


def test_a_run_by_ddim_is_that_of_a_folder_with_ddim(
    model_with: Callable[[dict[str, Any]], Path], tmp_path: Path
) -> None:
    def latents(values: dict[str, Any]) -> Tensor:
        path = tmp_path / "latents.safetensors"
        settings = {"save_latents": str(path), "overwrite": True, "sampler": "ddim"}
        run(config_of(model_with(values), tmp_path / "v.mp4", **settings))
        return load_file(path)["latents"]

    ddim = {"_class_name": "DDIMScheduler", **BETAS, "clip_sample": False, "timestep_spacing": "linspace"}
    ours = latents(scheduler_file("UniPCMultistep, Karras, order 3"))
    assert torch.equal(ours, latents(ddim))
