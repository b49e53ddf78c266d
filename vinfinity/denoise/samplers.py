"""Samplers: from the model's prediction at one timestep to the latents at the next.

A sampler is a frozen description. All that changes from step to step is the `State`, so a checkpoint is a `State`.
Arithmetic is in fp32, whatever the model's type.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from vinfinity.denoise.schedule import (
    SchedulerConfig,
    alphas_cumprod,
    respaced_sigmas,
    spaced_timesteps,
)
from vinfinity.denoise.state import Noise, Sampler, State


@dataclass(frozen=True)
class DDIM:
    """Denoising diffusion implicit models (Song et al. 2020, eq. 12); eta 0 adds no noise, 1 is DDPM."""

    config: SchedulerConfig
    steps: int
    eta: float = 0.0
    timesteps: tuple[int, ...] = field(init=False)
    _alphas: tuple[float, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        c = self.config
        trained = c.num_train_timesteps
        times = spaced_timesteps(
            c.timestep_spacing or "leading",
            self.steps,
            trained=trained,
            last=trained,
            offset=c.steps_offset,
            endpoint=True,
        )
        object.__setattr__(self, "timesteps", tuple(min(t, trained - 1) for t in times))
        object.__setattr__(self, "_alphas", tuple(alphas_cumprod(c).double().tolist()))
        if c.prediction_type == "epsilon" and self._alphas[self.timesteps[0]] == 0:
            raise ValueError(
                "prediction_type: epsilon cannot start at zero signal; use trailing v_prediction"
            )

    def _alpha_after(self, step: int) -> float:
        """The alpha that a step leads to; with an uneven spacing, the next step starts from another one."""
        before = self.timesteps[step] - self.config.num_train_timesteps // self.steps
        final = 1.0 if self.config.set_alpha_to_one else self._alphas[0]
        return self._alphas[before] if before >= 0 else final

    def level(self, step: int) -> tuple[float, float]:
        alpha = self._alphas[self.timesteps[step]]
        return math.sqrt(alpha), math.sqrt(1 - alpha)

    def implied(self, state: State, clean: Tensor) -> Tensor:
        return _implied(state.x, clean, *self.level(state.step), self.config)

    def step(self, state: State, prediction: Tensor, noise: Noise) -> State:
        c, x = self.config, state.x
        alpha, alpha_next = self._alphas[self.timesteps[state.step]], self._alpha_after(state.step)
        signal, sigma = math.sqrt(alpha), math.sqrt(1 - alpha)
        if c.prediction_type == "epsilon":
            clean, epsilon = (x - sigma * prediction) / signal, prediction
        else:
            clean, epsilon = signal * x - sigma * prediction, signal * prediction + sigma * x
        if c.clip_sample:
            clean = clean.clamp(-c.clip_sample_range, c.clip_sample_range)
        deviation = self.eta * math.sqrt((1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next))
        x = math.sqrt(alpha_next) * clean + math.sqrt(max(1 - alpha_next - deviation**2, 0.0)) * epsilon
        if deviation > 0:
            x = x + deviation * noise(state.step)
        return State(step=state.step + 1, x=x)


Levels = Sequence[tuple[float, float]]


def half_log_snr(level: tuple[float, float]) -> float:
    """The lambda of DPM-Solver: log(alpha / sigma), of a level (alpha, sigma)."""
    alpha, sigma = level
    if sigma == 0:
        return math.inf
    return -math.inf if alpha == 0 else math.log(alpha) - math.log(sigma)


def dpm_step(
    x: Tensor,
    clean: Tensor,
    previous: Tensor | None,
    levels: Levels,
    i: int,
    *,
    solver: str,
    noise: Noise | None = None,
) -> Tensor:
    """A step of DPM-Solver++ (Lu et al. 2022, algorithm 2, or section 5 and appendix) from level i to i + 1.

    levels: (alpha, sigma) of all steps and of the end. clean: the estimate of x0. previous: the one of the step before;
    None for a step of first order. solver: "midpoint" or "heun". noise: for the SDE.
    """
    (_, sigma_s), (alpha_t, sigma_t) = levels[i], levels[i + 1]
    h = half_log_snr(levels[i + 1]) - half_log_snr(levels[i])
    # (1 - e^-h), or (1 - e^-2h) for the SDE: how far the step moves towards the clean latents
    towards = -math.expm1(-h if noise is None else -2 * h)
    x = (sigma_t / sigma_s * (1.0 if noise is None else math.exp(-h))) * x + (alpha_t * towards) * clean
    # h is 0 where a respaced schedule has already reached the level at which it is to end
    if previous is not None and h > 0:
        r = (half_log_snr(levels[i]) - half_log_snr(levels[i - 1])) / h
        slope = (clean - previous) / r
        weight = 0.5 * towards if solver == "midpoint" else 1 - towards / (h if noise is None else 2 * h)
        x = x + (alpha_t * weight) * slope
    if noise is not None and sigma_t > 0:
        x = x + (sigma_t * math.sqrt(-math.expm1(-2 * h))) * noise(i)
    return x


@dataclass(frozen=True)
class DPMSolverPP:
    """DPM-Solver++, second-order multistep (Lu et al. 2022, algorithm 2), and its SDE form (section 5 and appendix)."""

    config: SchedulerConfig
    steps: int
    stochastic: bool = False
    timesteps: tuple[int, ...] = field(init=False)
    _levels: tuple[tuple[float, float], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        c = self.config
        trained = c.num_train_timesteps
        alphas = alphas_cumprod(c).double()
        if c.rescale_betas_zero_snr:
            # as in diffusers: almost no signal, so that the first sigma is finite
            alphas[-1] = 2.0**-24
        sigmas = ((1 - alphas) / alphas).sqrt()
        last = trained - int((-sigmas.log() < c.lambda_min_clipped).sum())
        times = spaced_timesteps(
            c.timestep_spacing or "linspace",
            self.steps,
            trained=trained,
            last=last,
            offset=c.steps_offset,
            endpoint=False,
        )
        times = [min(t, trained - 1) for t in times]
        visited = [float(sigmas[t]) for t in times]
        if (respaced := respaced_sigmas(c, alphas, self.steps)) is not None:
            visited, times = respaced
        # not above the last level, which the rounding of a respaced schedule could lead to
        end = min(float(sigmas[0]), visited[-1]) if c.final_sigmas_type == "sigma_min" else 0.0
        visited.append(end)
        object.__setattr__(self, "timesteps", tuple(times))
        # (alpha, sigma) of each visited timestep and of the end, alpha² + sigma² = 1
        levels = tuple((1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma)) for sigma in visited)
        object.__setattr__(self, "_levels", levels)

    def level(self, step: int) -> tuple[float, float]:
        return self._levels[step]

    def implied(self, state: State, clean: Tensor) -> Tensor:
        return _implied(state.x, clean, *self.level(state.step), self.config)

    def step(self, state: State, prediction: Tensor, noise: Noise) -> State:
        c, x, i = self.config, state.x, state.step
        alpha, sigma = self._levels[i]
        epsilon = c.prediction_type == "epsilon"
        clean = (x - sigma * prediction) / alpha if epsilon else alpha * x - sigma * prediction
        previous = None if self._first_order(i) else state.clean
        x = dpm_step(
            x,
            clean,
            previous,
            self._levels,
            i,
            solver=c.solver_type,
            noise=noise if self.stochastic else None,
        )
        return State(step=i + 1, x=x, clean=clean)

    def _first_order(self, i: int) -> bool:
        """Whether a step leaves the slope out, for stability."""
        c = self.config
        steps = len(self.timesteps)
        last = i == steps - 1 and (
            c.euler_at_final or (c.lower_order_final and steps < 15) or c.final_sigmas_type == "zero"
        )
        return c.solver_order == 1 or last


@dataclass(frozen=True)
class VideoCrafter2:
    """DDIM as VideoCrafter2's authors run it, for a model that was trained on scaled latents.

    During training, clean latents were multiplied by a factor that depends on the timestep (`latent_scale` of the
    schedule). The estimate of x0 is divided by it, then multiplied by the factor of the next timestep. The timesteps
    are every (trained // steps)th, so 30 steps are 31 (lvdm/models/samplers/ddim.py and utils_diffusion.py of
    AILab-CVC/VideoCrafter). That code goes beyond the last timestep if the spacing divides 999; here it stops there.
    """

    config: SchedulerConfig
    steps: int
    eta: float = 0.0
    timesteps: tuple[int, ...] = field(init=False)
    _levels: tuple[tuple[float, float], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        c = self.config
        if c.prediction_type != "epsilon":
            raise ValueError(
                f"prediction_type: {c.prediction_type} is not what VideoCrafter2 predicts (epsilon)"
            )
        trained = c.num_train_timesteps
        grid = [min(t + 1, trained - 1) for t in range(0, trained, trained // self.steps)]
        times = sorted(set(grid), reverse=True)
        alphas = alphas_cumprod(c).double()
        if alphas[times[0]] == 0:
            raise ValueError("rescale_betas_zero_snr: leaves no signal to start from; use another sampler")
        factors = torch.full((trained,), c.latent_scale, dtype=torch.float64)
        falling = min(c.latent_scale_steps, trained)
        factors[:falling] = torch.linspace(1.0, c.latent_scale, c.latent_scale_steps, dtype=torch.float64)[
            :falling
        ]
        object.__setattr__(self, "timesteps", tuple(times))
        # (alpha, factor of the latents) of each visited timestep, and of the end
        levels = tuple((float(alphas[t]), float(factors[t])) for t in (*times, 0))
        object.__setattr__(self, "_levels", levels)

    def level(self, step: int) -> tuple[float, float]:
        alpha, factor = self._levels[step]
        return math.sqrt(alpha) * factor, math.sqrt(1 - alpha)

    def implied(self, state: State, clean: Tensor) -> Tensor:
        return _implied(state.x, clean, *self.level(state.step), self.config)

    def step(self, state: State, prediction: Tensor, noise: Noise) -> State:
        (alpha, factor), (alpha_next, factor_next) = self._levels[state.step : state.step + 2]
        clean = (state.x - math.sqrt(1 - alpha) * prediction) / (math.sqrt(alpha) * factor)
        deviation = self.eta * math.sqrt((1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next))
        x = math.sqrt(alpha_next) * factor_next * clean
        x = x + math.sqrt(max(1 - alpha_next - deviation**2, 0.0)) * prediction
        if deviation > 0:
            x = x + deviation * noise(state.step)
        return State(step=state.step + 1, x=x)


@dataclass(frozen=True)
class LCM:
    """Latent consistency models (Luo et al. 2023, algorithm 3): every step estimates x0, then adds fresh noise.

    The timesteps are a subset of the `original_inference_steps` of the distillation: spread over all of them, or with
    `even_skips` equally far apart, which leaves out the last ones if their number is no multiple of the steps.
    """

    config: SchedulerConfig
    steps: int
    timesteps: tuple[int, ...] = field(init=False)
    _alphas: tuple[float, ...] = field(init=False, repr=False)

    # of the boundary condition (appendix C)
    SIGMA_DATA: ClassVar[float] = 0.5

    def __post_init__(self) -> None:
        c = self.config
        original, trained = c.original_inference_steps, c.num_train_timesteps
        if not self.steps <= original <= trained:
            raise ValueError(
                f"steps: {self.steps} is more than the {original} steps of the model's distillation"
            )
        distilled = [(trained // original) * (i + 1) - 1 for i in range(original)][::-1]
        covered = original - original % self.steps if c.even_skips else original
        times = tuple(distilled[i * covered // self.steps] for i in range(self.steps))
        object.__setattr__(self, "timesteps", times)
        alphas = alphas_cumprod(c).double()
        object.__setattr__(self, "_alphas", tuple(float(alphas[t]) for t in times))
        if c.prediction_type == "epsilon" and self._alphas[0] == 0:
            raise ValueError("prediction_type: epsilon cannot start at zero signal; use v_prediction")

    def level(self, step: int) -> tuple[float, float]:
        alpha = self._alphas[step]
        return math.sqrt(alpha), math.sqrt(1 - alpha)

    def implied(self, state: State, clean: Tensor) -> Tensor:
        return _implied(state.x, clean, *self.level(state.step), self.config)

    def step(self, state: State, prediction: Tensor, noise: Noise) -> State:
        c, x, i = self.config, state.x, state.step
        signal, sigma = math.sqrt(self._alphas[i]), math.sqrt(1 - self._alphas[i])
        epsilon = c.prediction_type == "epsilon"
        clean = (x - sigma * prediction) / signal if epsilon else signal * x - sigma * prediction
        if c.clip_sample:
            clean = clean.clamp(-c.clip_sample_range, c.clip_sample_range)
        scaled = self.timesteps[i] * c.timestep_scaling
        distance = scaled**2 + self.SIGMA_DATA**2
        x = (scaled / math.sqrt(distance)) * clean + (self.SIGMA_DATA**2 / distance) * x
        if i + 1 < len(self.timesteps):
            x = math.sqrt(self._alphas[i + 1]) * x + math.sqrt(1 - self._alphas[i + 1]) * noise(i)
        return State(step=i + 1, x=x)


def predicted_clean(sampler: Sampler, state: State, prediction: Tensor) -> Tensor:
    """The clean latents (1, c, f, h, w) of a prediction: `Sampler.implied`, which is linear in them, solved."""
    at_zero, at_one = (sampler.implied(state, torch.full_like(state.x, value)) for value in (0.0, 1.0))
    return (prediction - at_zero) / (at_one - at_zero)


def _implied(x: Tensor, clean: Tensor, signal: float, sigma: float, config: SchedulerConfig) -> Tensor:
    """Sampler.implied for latents x = signal * clean + sigma * noise."""
    noise = (x - signal * clean) / sigma
    return noise if config.prediction_type == "epsilon" else signal * noise - sigma * clean


# by the name that the setting `sampler` takes; each gets (schedule, steps, eta)
SAMPLERS: Mapping[str, Callable[[SchedulerConfig, int, float], Sampler]] = {
    "ddim": lambda config, steps, eta: DDIM(config, steps, eta=eta),
    "dpmsolver++": lambda config, steps, eta: DPMSolverPP(config, steps),
    "sde-dpmsolver++": lambda config, steps, eta: DPMSolverPP(config, steps, stochastic=True),
    "videocrafter2": lambda config, steps, eta: VideoCrafter2(config, steps, eta=eta),
    "lcm": lambda config, steps, eta: LCM(config, steps),
}
