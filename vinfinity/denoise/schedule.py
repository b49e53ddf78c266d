"""The noise schedule that a model was trained with, and the timesteps at which a sampler visits it."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from vinfinity.system.fields import from_zero, known_fields

# The diffusers schedulers of models that are trained with betas, and their defaults where they differ from
# `SchedulerConfig`. All other schedulers belong to models that use other timesteps or predict something else: flow
# matching, EDM, consistency models, discrete tokens.
_UNCLIPPED: Mapping[str, object] = {"clip_sample": False}
_LATER: Mapping[str, object] = {"beta_start": 0.00085, "beta_end": 0.012, **_UNCLIPPED}
SCHEDULERS: Mapping[str, Mapping[str, object]] = {
    "DDIMScheduler": {},
    "DDIMParallelScheduler": {},
    "DDIMInverseScheduler": {},
    "DDPMScheduler": {},
    "DDPMParallelScheduler": {},
    "PNDMScheduler": {"set_alpha_to_one": False, **_UNCLIPPED},
    "LMSDiscreteScheduler": _UNCLIPPED,
    "EulerDiscreteScheduler": _UNCLIPPED,
    "EulerAncestralDiscreteScheduler": _UNCLIPPED,
    "HeunDiscreteScheduler": _LATER,
    "KDPM2DiscreteScheduler": _LATER,
    "KDPM2AncestralDiscreteScheduler": _LATER,
    "DPMSolverMultistepScheduler": _UNCLIPPED,
    "DPMSolverMultistepInverseScheduler": _UNCLIPPED,
    "DPMSolverSinglestepScheduler": _UNCLIPPED,
    "DPMSolverSDEScheduler": _LATER,
    "DEISMultistepScheduler": _UNCLIPPED,
    "UniPCMultistepScheduler": _UNCLIPPED,
    "SASolverScheduler": _UNCLIPPED,
    "LCMScheduler": {"beta_schedule": "scaled_linear", **_LATER},
    "TCDScheduler": {"beta_schedule": "scaled_linear", **_LATER},
}
# The schedulers that are also available as samplers, and the names of those.
OWN_SAMPLERS: Mapping[str, tuple[str, ...]] = {
    "DDIMScheduler": ("ddim",),
    "DDIMParallelScheduler": ("ddim",),
    "DPMSolverMultistepScheduler": ("dpmsolver++", "sde-dpmsolver++"),
    "LCMScheduler": ("lcm",),
}

# The exponent of Karras et al. 2022, eq. 5.
RHO = 7.0

# Settings of DPM-Solver++. Schedulers of other methods use the same names with other meanings.
SOLVER = (
    "final_sigmas_type",
    "lower_order_final",
    "euler_at_final",
    "lambda_min_clipped",
    "solver_order",
    "solver_type",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_lu_lambdas",
)
# Their supported values; others are ignored, with a warning.
SOLVER_VALUES: Mapping[str, tuple[object, ...]] = {
    "final_sigmas_type": ("zero", "sigma_min"),
    "solver_order": (1, 2),
    "solver_type": ("midpoint", "heun"),
}
# Values that diffusers' DPM-Solver++ replaces by midpoint.
MIDPOINT = ("logrho", "bh1", "bh2")

# Settings of sampling that a user would miss, and the values that have no effect.
NOTEWORTHY: Mapping[str, tuple[object, ...]] = {
    "algorithm_type": ("dpmsolver++", "sde-dpmsolver++", "deis", "data_prediction"),
    "final_sigmas_type": ("zero",),
    "interpolation_type": ("linear",),
    "lambda_min_clipped": (-math.inf,),
    "sigma_max": (),
    "sigma_min": (),
    "solver_order": (2,),
    "solver_type": ("midpoint", *MIDPOINT),
    "thresholding": (False,),
    "use_beta_sigmas": (False,),
    "use_exponential_sigmas": (False,),
    "use_karras_sigmas": (False,),
    "use_lu_lambdas": (False,),
}
# Settings that say how the model was trained, and the only supported values.
SUPPORTED: Mapping[str, tuple[object, ...]] = {
    "use_flow_sigmas": (False,),
    "timestep_type": ("discrete",),
    "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
}


@dataclass(frozen=True)
class SchedulerConfig:
    """The settings of a diffusers scheduler_config.json that samplers follow; None means the sampler's own default.

    latent_scale, latent_scale_steps: from VideoCrafter2's training, not in diffusers: the clean latents are multiplied
    by a factor that falls linearly from 1 to latent_scale over the first latent_scale_steps timesteps, and stays there.
    even_skips: from T2V-Turbo, not in diffusers: the timesteps of `lcm` are equally far apart. scheduler: the class
    name in the file. noteworthy: settings of sampling in the file that a user would miss.

    Raises ValueError for a setting that would change the result and is not supported.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"
    timestep_spacing: str | None = None
    steps_offset: int = from_zero(0)
    set_alpha_to_one: bool = True
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    rescale_betas_zero_snr: bool = False
    final_sigmas_type: str = "zero"
    lower_order_final: bool = True
    euler_at_final: bool = False
    lambda_min_clipped: float = -math.inf
    solver_order: int = 2
    solver_type: str = "midpoint"
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_lu_lambdas: bool = False
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0
    even_skips: bool = False
    latent_scale: float = 0.7
    latent_scale_steps: int = 400
    scheduler: str | None = field(default=None, compare=False)
    noteworthy: Mapping[str, object] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        choices: Mapping[str, tuple[object, ...]] = {
            "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
            "prediction_type": ("epsilon", "v_prediction"),
            "timestep_spacing": ("leading", "trailing", "linspace", None),
            **SOLVER_VALUES,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                names = ", ".join(str(choice) for choice in allowed if choice is not None)
                raise ValueError(f"{name}: {getattr(self, name)!r} is not one of {names}")
        betas = {"beta_start": self.beta_start, "beta_end": self.beta_end}
        betas |= {f"trained_betas[{index}]": beta for index, beta in enumerate(self.trained_betas or ())}
        for name, beta in betas.items():
            if not 0 < beta < 1:
                raise ValueError(f"{name}: {beta} is not between 0 and 1")

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "SchedulerConfig":
        """Read a parsed scheduler_config.json of any diffusers scheduler for models that are trained with betas.

        Settings of the training are followed, or refused with a ValueError. Settings of sampling are followed if the
        scheduler is available as a sampler that has them; `ignored_by` names the others.
        """
        name = values.get("_class_name")
        if name is not None and name not in SCHEDULERS:
            raise ValueError(
                f"_class_name: {name} is not a known scheduler of models that predict noise or v and are trained with "
                "betas, such as DDIMScheduler"
            )
        for key, allowed in SUPPORTED.items():
            if values.get(key) is not None and values[key] not in allowed:
                raise ValueError(f"{key}: {values[key]!r} is not supported")
        given = {**SCHEDULERS.get(str(name), {}), **known_fields(cls, values, ignore=None)}
        given["solver_type"] = (
            "midpoint" if given.get("solver_type") in MIDPOINT else given.get("solver_type")
        )
        followed = name in (None, "DPMSolverMultistepScheduler")
        for key in SOLVER:
            value = given.get(key)
            if value is None or not followed or value not in SOLVER_VALUES.get(key, (value,)):
                given.pop(key, None)
        return cls(**given | {"scheduler": name, "noteworthy": unusual(values, NOTEWORTHY)})

    def ignored_by(self, sampler: str) -> str:
        """Return a warning that names the settings in the model's file that a sampler ignores; "" without any."""
        solver = sampler in OWN_SAMPLERS["DPMSolverMultistepScheduler"]
        ignored = {
            key: value
            for key, value in self.noteworthy.items()
            if not (solver and getattr(self, key, None) == value)
        }
        unavailable = None if self.scheduler in OWN_SAMPLERS else self.scheduler
        return not_followed(sampler, ignored, unavailable, follows="betas, prediction type and spacing")


def unusual(values: Mapping[str, object], usual: Mapping[str, tuple[object, ...]]) -> dict[str, object]:
    """Return the settings of a parsed scheduler_config.json that are not among the usual values."""
    return {
        key: values[key]
        for key, known in usual.items()
        if values.get(key) is not None and values[key] not in known
    }


def not_followed(
    sampler: str, ignored: Mapping[str, object], unavailable: str | None, *, follows: str
) -> str:
    """Return a warning that names what a sampler ignores in a model's scheduler_config.json; "" for nothing.

    ignored: the settings that the sampler ignores. unavailable: the model's scheduler, if it is not available as a
    sampler. follows: the settings that every sampler follows.
    """
    listed = ", ".join(f"{key}: {json.dumps(value)}" for key, value in ignored.items())
    if unavailable is not None:
        also = f", but not {listed}" if listed else ""
        return f"scheduler: the model's own, {unavailable}, is not available; {sampler} follows its {follows}{also}"
    return f"scheduler: {sampler} ignores {listed} of the model's scheduler_config.json" if listed else ""


def alphas_cumprod(config: SchedulerConfig) -> torch.Tensor:
    """Return the products of (1 - beta) up to each training timestep: (num_train_timesteps,) fp32.

    Raises ValueError if the length of `trained_betas` is not num_train_timesteps.
    """
    steps = config.num_train_timesteps
    if config.trained_betas is not None:
        betas = torch.tensor(config.trained_betas, dtype=torch.float32)
        if len(betas) != steps:
            raise ValueError(f"trained_betas: {len(betas)} values for {steps} training timesteps")
    elif config.beta_schedule == "linear":
        betas = torch.linspace(config.beta_start, config.beta_end, steps, dtype=torch.float32)
    elif config.beta_schedule == "scaled_linear":
        betas = torch.linspace(config.beta_start**0.5, config.beta_end**0.5, steps, dtype=torch.float32) ** 2
    else:
        # cosine schedule (Nichol and Dhariwal 2021, eq. 17)
        bar = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
        betas = torch.tensor([min(1 - bar[i + 1] / bar[i], 0.999) for i in range(steps)], dtype=torch.float32)
    if config.rescale_betas_zero_snr:
        betas = _zero_terminal_snr(betas)
    return torch.cumprod(1.0 - betas, dim=0)


def _zero_terminal_snr(betas: torch.Tensor) -> torch.Tensor:
    """Shift and scale the schedule so that the last timestep is pure noise (Lin et al. 2023, algorithm 1)."""
    root = torch.cumprod(1.0 - betas, dim=0).sqrt()
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    bar = root**2
    return 1.0 - torch.cat([bar[:1], bar[1:] / bar[:-1]])


def spaced_timesteps(
    spacing: str, steps: int, *, trained: int, last: int, offset: int, endpoint: bool
) -> list[int]:
    """Return the training timesteps of all steps, descending (Lin et al. 2023, table 2).

    trained: number of training timesteps. last: one past the largest that may be visited. endpoint: whether the
    smallest timestep of "linspace" and "leading" is visited (DDIM) or left to the solver's final step (DPM-Solver++).
    """
    points = steps if endpoint else steps + 1
    keep = slice(None) if endpoint else slice(-1)
    if spacing == "linspace":
        times = np.linspace(0, last - 1, points).round()[::-1][keep]
    elif spacing == "leading":
        times = (np.arange(0.0, points) * (last // points))[::-1][keep] + offset
    else:
        even = last - np.arange(steps) * (trained / steps)
        times = (even[even > 0].round() - 1).clip(0)
    return [int(t) for t in times]


def respaced_sigmas(
    config: SchedulerConfig, alphas: torch.Tensor, steps: int
) -> tuple[list[float], list[int]] | None:
    """Return the noise levels of a schedule that is not spaced by timesteps, and the timestep of each.

    Returns None if `config` has no such schedule. alphas: (num_train_timesteps,) the products of (1 - beta). The levels
    follow Karras et al. 2022, eq. 5, or have evenly spaced logarithms (Lu et al. 2022), with `use_lu_lambdas` and
    `use_exponential_sigmas`, of which only the first rounds the timesteps.
    """
    # in fp32, as in diffusers: timesteps are truncated to integers, and must come out the same
    sigmas = (((1 - alphas) / alphas).float() ** 0.5).numpy()
    logarithms = np.log(sigmas)
    low, high = float(sigmas[0]), float(sigmas[-1])
    ramp = np.linspace(0, 1, steps)
    if config.use_karras_sigmas:
        levels = (high ** (1 / RHO) + ramp * (low ** (1 / RHO) - high ** (1 / RHO))) ** RHO
    elif config.use_lu_lambdas:
        first, last = float(logarithms[-1]), float(logarithms[0])
        levels = np.exp(first + ramp * (last - first))
    elif config.use_exponential_sigmas:
        levels = np.exp(np.linspace(math.log(high), math.log(low), steps))
    else:
        return None
    wanted = np.log(levels)
    before = (np.searchsorted(logarithms, wanted, side="right") - 1).clip(0, len(sigmas) - 2)
    weight = (logarithms[before] - wanted) / (logarithms[before] - logarithms[before + 1])
    weight = weight.clip(0, 1)
    times = (1 - weight) * before + weight * (before + 1)
    if not config.use_exponential_sigmas and config.beta_schedule != "squaredcos_cap_v2":
        times = times.round()
    return levels.tolist(), [int(t) for t in times]
