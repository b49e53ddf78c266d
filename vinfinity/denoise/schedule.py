"""The noise schedule that a model was trained with, and the timesteps at which a sampler visits it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from vinfinity.system.fields import known_fields


@dataclass(frozen=True)
class SchedulerConfig:
    """The settings of a diffusers scheduler_config.json that a sampler honours; None is the sampler's own default.

    latent_scale, latent_scale_steps: of VideoCrafter2's training, which diffusers does not know: the clean latents are
    multiplied by a factor that falls linearly from 1 to latent_scale over that many timesteps, and stays there.

    Raises ValueError for a setting that would change the result and is not supported.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"
    timestep_spacing: str | None = None
    steps_offset: int = 0
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
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0
    latent_scale: float = 0.7
    latent_scale_steps: int = 400

    def __post_init__(self) -> None:
        choices = {
            "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
            "prediction_type": ("epsilon", "v_prediction"),
            "timestep_spacing": ("leading", "trailing", "linspace", None),
            "final_sigmas_type": ("zero", "sigma_min"),
            "solver_order": (1, 2),
            "solver_type": ("midpoint", "heun"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                names = ", ".join(str(choice) for choice in allowed if choice is not None)
                raise ValueError(f"{name}: {getattr(self, name)!r} is not one of {names}")

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "SchedulerConfig":
        """From a parsed scheduler_config.json of any diffusers scheduler."""
        unsupported = (
            "thresholding",
            "use_karras_sigmas",
            "use_exponential_sigmas",
            "use_beta_sigmas",
            "use_lu_lambdas",
            "use_flow_sigmas",
        )
        for name in unsupported:
            if values.get(name):
                raise ValueError(f"{name}: {values[name]!r} is not supported")
        return cls(**known_fields(cls, values, ignore=None))


def alphas_cumprod(config: SchedulerConfig) -> torch.Tensor:
    """The products of (1 - beta) up to each training timestep: (num_train_timesteps,) fp32.

    Raises ValueError for a schedule of another length than num_train_timesteps.
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
    """Shifts and scales the schedule so that the last timestep is pure noise (Lin et al. 2023, algorithm 1)."""
    root = torch.cumprod(1.0 - betas, dim=0).sqrt()
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    bar = root**2
    return 1.0 - torch.cat([bar[:1], bar[1:] / bar[:-1]])


def spaced_timesteps(
    spacing: str, steps: int, *, trained: int, last: int, offset: int, endpoint: bool
) -> list[int]:
    """Descending training timesteps (Lin et al. 2023, table 2).

    trained: training timesteps. last: one past the largest that may be visited. endpoint: whether the smallest step of
    "linspace" and "leading" is visited (DDIM) or left to the solver's final step (DPM-Solver++).
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
