"""Samplers: from the model's prediction at one timestep to the latents at the next.

A sampler is a frozen description. All that changes from step to step is the `State`, so a checkpoint is a `State`.
Arithmetic is in fp32, whatever the model's type.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from vinfinity.denoise.schedule import (
    SchedulerConfig,
    alphas_cumprod,
    respaced_sigmas,
    spaced_timesteps,
)

Noise = Callable[[int], Tensor]


@dataclass(frozen=True)
class State:
    """Denoising after `step` steps. x: (1, c, f, h, w) fp32. clean: the last estimate of x0, for multistep samplers."""

    step: int
    x: Tensor
    clean: Tensor | None = None

    def to(self, device: torch.device) -> "State":
        """The state on a device."""
        return State(self.step, self.x.to(device), None if self.clean is None else self.clean.to(device))


class Sampler(Protocol):
    """timesteps: the training timestep of each step. Samplers with equal settings are equal."""

    def __hash__(self) -> int: ...

    @property
    def timesteps(self) -> tuple[int, ...]: ...

    def level(self, step: int) -> tuple[float, float]:
        """(signal, sigma) before a step: its latents are signal * clean + sigma * noise."""
        ...

    def implied(self, state: State, clean: Tensor) -> Tensor:
        """The prediction according to which the latents of `state` are `clean` plus noise."""
        ...

    def step(self, state: State, prediction: Tensor, noise: Noise) -> State:
        """One step. prediction: (1, c, f, h, w) fp32, after guidance. noise: draws standard normal noise for a step,
        for samplers that add some.
        """
        ...


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

    def _lambda(self, index: int) -> float:
        alpha, sigma = self._levels[index]
        return math.inf if sigma == 0 else math.log(alpha) - math.log(sigma)

    def level(self, step: int) -> tuple[float, float]:
        return self._levels[step]

    def implied(self, state: State, clean: Tensor) -> Tensor:
        return _implied(state.x, clean, *self.level(state.step), self.config)

    def step(self, state: State, prediction: Tensor, noise: Noise) -> State:
        c, x, i = self.config, state.x, state.step
        alpha_s, sigma_s = self._levels[i]
        alpha_t, sigma_t = self._levels[i + 1]
        if c.prediction_type == "epsilon":
            clean = (x - sigma_s * prediction) / alpha_s
        else:
            clean = alpha_s * x - sigma_s * prediction
        h = self._lambda(i + 1) - self._lambda(i)
        # (1 - e^-h), or (1 - e^-2h) for the SDE: how far the step moves towards the clean latents
        towards = -math.expm1(-2 * h if self.stochastic else -h)
        x = (sigma_t / sigma_s * (math.exp(-h) if self.stochastic else 1.0)) * x + (alpha_t * towards) * clean
        # h is 0 where a respaced schedule has already reached the level at which it is to end
        if not self._first_order(i) and state.clean is not None and h > 0:
            r = (self._lambda(i) - self._lambda(i - 1)) / h
            slope = (clean - state.clean) / r
            x = x + (alpha_t * self._slope_weight(h, towards)) * slope
        if self.stochastic and sigma_t > 0:
            x = x + (sigma_t * math.sqrt(-math.expm1(-2 * h))) * noise(i)
        return State(step=i + 1, x=x, clean=clean)

    def _slope_weight(self, h: float, towards: float) -> float:
        """The weight of the clean latents' slope in a second-order step."""
        if self.config.solver_type == "midpoint":
            return 0.5 * towards
        return 1 - towards / (2 * h if self.stochastic else h)

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

    The timesteps are a subset of the `original_inference_steps` of the distillation.
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
        times = tuple(distilled[int(i * original / self.steps)] for i in range(self.steps))
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


def make_sampler(name: str, config: SchedulerConfig, *, steps: int, eta: float = 0.0) -> Sampler:
    """The sampler of that name on a model's noise schedule. Raises ValueError if the two do not go together."""
    if steps > config.num_train_timesteps:
        raise ValueError(f"steps: {steps} is more than the {config.num_train_timesteps} training steps")
    return SAMPLERS[name](config, steps, eta)
