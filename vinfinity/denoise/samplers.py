"""Samplers: from the model's prediction at one timestep to the latents at the next.

A sampler is a frozen description. Everything that changes from step to step is in `State`, so a checkpoint is a
`State`. Arithmetic is in fp32, whatever the model's type.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
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

Levels = Sequence[tuple[float, float]]


class _OnBetas(ABC):
    """What all samplers on a schedule of betas have in common.

    Latents are x = signal * x0 + sigma * noise. A model predicts the noise (epsilon), or with signal² + sigma² = 1
    v = signal * noise - sigma * x0 (Salimans and Ho 2022, arXiv 2202.00512, appendix D).
    """

    config: SchedulerConfig

    @property
    @abstractmethod
    def _levels(self) -> Levels:
        """(signal, sigma) before each step, and after the last one in samplers that use it."""

    def level(self, step: int) -> tuple[float, float]:
        return self._levels[step]

    def implied(self, state: State, clean: Tensor) -> Tensor:
        signal, sigma = self.level(state.step)
        noise = (state.x - signal * clean) / sigma
        return noise if self.config.prediction_type == "epsilon" else signal * noise - sigma * clean

    def _clean(self, state: State, prediction: Tensor) -> Tensor:
        """Return the estimate of x0: the inverse of `implied`."""
        signal, sigma = self.level(state.step)
        if self.config.prediction_type == "epsilon":
            return (state.x - sigma * prediction) / signal
        return signal * state.x - sigma * prediction

    def _noise(self, state: State, prediction: Tensor) -> Tensor:
        """Return the estimate of the noise in the latents."""
        signal, sigma = self.level(state.step)
        if self.config.prediction_type == "epsilon":
            return prediction
        return signal * prediction + sigma * state.x

    def _clipped(self, clean: Tensor) -> Tensor:
        limit = self.config.clip_sample_range
        return clean.clamp(-limit, limit) if self.config.clip_sample else clean


def _levels_of(alphas: Sequence[float]) -> Levels:
    """Return (signal, sigma) for products of (1 - beta)."""
    return tuple((math.sqrt(alpha), math.sqrt(1 - alpha)) for alpha in alphas)


def ddim_step(
    clean: Tensor,
    epsilon: Tensor,
    alpha: float,
    alpha_next: float,
    *,
    eta: float,
    step: int,
    noise: Noise,
    scale: float = 1.0,
) -> Tensor:
    """Take a step of DDIM from `alpha` to `alpha_next` (Song et al. 2020, eq. 12 and 16).

    clean, epsilon: the estimates of x0 and of the noise. scale: factor of the clean latents after the step.
    """
    deviation = eta * math.sqrt((1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next))
    x = math.sqrt(alpha_next) * scale * clean
    x = x + math.sqrt(max(1 - alpha_next - deviation**2, 0.0)) * epsilon
    return x + deviation * noise(step) if deviation > 0 else x


@dataclass(frozen=True)
class DDIM(_OnBetas):
    """Denoising diffusion implicit models (Song et al. 2020, eq. 12); eta 0 adds no noise, 1 is DDPM."""

    config: SchedulerConfig
    steps: int
    eta: float = 0.0

    def __post_init__(self) -> None:
        signal, _ = self.level(0)
        if self.config.prediction_type == "epsilon" and signal == 0:
            raise ValueError(
                "prediction_type: epsilon cannot start at zero signal; use trailing v_prediction"
            )

    @cached_property
    def timesteps(self) -> tuple[int, ...]:
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
        return tuple(min(t, trained - 1) for t in times)

    @cached_property
    def _alphas(self) -> tuple[float, ...]:
        """The product of (1 - beta) at each training timestep."""
        return tuple(alphas_cumprod(self.config).double().tolist())

    @cached_property
    def _levels(self) -> Levels:
        return _levels_of([self._alphas[t] for t in self.timesteps])

    def _alpha_after(self, step: int) -> float:
        """Return alpha at the end of a step, as in diffusers: `trained // steps` below its timestep.

        With an uneven spacing, that is not the timestep of the next step.
        """
        after = self.timesteps[step] - self.config.num_train_timesteps // self.steps
        final = 1.0 if self.config.set_alpha_to_one else self._alphas[0]
        return self._alphas[after] if after >= 0 else final

    def step(self, state: State, prediction: Tensor, noise: Noise) -> State:
        x = ddim_step(
            self._clipped(self._clean(state, prediction)),
            self._noise(state, prediction),
            self._alphas[self.timesteps[state.step]],
            self._alpha_after(state.step),
            eta=self.eta,
            step=state.step,
            noise=noise,
        )
        return State(step=state.step + 1, x=x)


def half_log_snr(level: tuple[float, float]) -> float:
    """Return the lambda of DPM-Solver, log(alpha / sigma), at a level (alpha, sigma)."""
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
    """Take a step of DPM-Solver++ (Lu et al. 2022, algorithm 2, or section 5 and appendix) from level i to i + 1.

    levels: (alpha, sigma) before each step and after the last one. clean: the estimate of x0. previous: the estimate in
    the previous step; None for a first-order step. solver: "midpoint" or "heun". noise: for the SDE; None for the ODE.
    """
    (_, sigma_s), (alpha_t, sigma_t) = levels[i], levels[i + 1]
    h = half_log_snr(levels[i + 1]) - half_log_snr(levels[i])
    # (1 - e^-h), or (1 - e^-2h) for the SDE: how far the step moves towards the clean latents
    towards = -math.expm1(-h if noise is None else -2 * h)
    x = (sigma_t / sigma_s * (1.0 if noise is None else math.exp(-h))) * x + (alpha_t * towards) * clean
    # h is 0 where a respaced schedule reaches its final level one step early
    if previous is not None and h > 0:
        r = (half_log_snr(levels[i]) - half_log_snr(levels[i - 1])) / h
        slope = (clean - previous) / r
        weight = 0.5 * towards if solver == "midpoint" else 1 - towards / (h if noise is None else 2 * h)
        x = x + (alpha_t * weight) * slope
    if noise is not None and sigma_t > 0:
        x = x + (sigma_t * math.sqrt(-math.expm1(-2 * h))) * noise(i)
    return x


@dataclass(frozen=True)
class DPMSolverPP(_OnBetas):
    """DPM-Solver++, second-order multistep (Lu et al. 2022, algorithm 2), and its SDE form (section 5 and appendix)."""

    config: SchedulerConfig
    steps: int
    stochastic: bool = False

    def __post_init__(self) -> None:
        # refuse a schedule that cannot be computed
        self.level(0)

    @cached_property
    def _visited(self) -> tuple[list[int], list[float]]:
        """The timestep of each step, and its sigma with signal 1."""
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
        # rounding of a respaced schedule must not raise sigma at the end
        end = min(float(sigmas[0]), visited[-1]) if c.final_sigmas_type == "sigma_min" else 0.0
        return times, [*visited, end]

    @cached_property
    def timesteps(self) -> tuple[int, ...]:
        times, _ = self._visited
        return tuple(times)

    @cached_property
    def _levels(self) -> Levels:
        _, sigmas = self._visited
        # alpha² + sigma² = 1
        return tuple((1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma)) for sigma in sigmas)

    def step(self, state: State, prediction: Tensor, noise: Noise) -> State:
        i = state.step
        clean = self._clean(state, prediction)
        x = dpm_step(
            state.x,
            clean,
            None if self._first_order(i) else state.clean,
            self._levels,
            i,
            solver=self.config.solver_type,
            noise=noise if self.stochastic else None,
        )
        return State(step=i + 1, x=x, clean=clean)

    def _first_order(self, i: int) -> bool:
        """Return whether a step omits the slope, for stability."""
        c = self.config
        steps = len(self.timesteps)
        last = i == steps - 1 and (
            c.euler_at_final or (c.lower_order_final and steps < 15) or c.final_sigmas_type == "zero"
        )
        return c.solver_order == 1 or last


@dataclass(frozen=True)
class VideoCrafter2(_OnBetas):
    """DDIM as VideoCrafter2's authors run it, for a model that was trained on scaled latents.

    During training, clean latents were multiplied by a factor that depends on the timestep (`latent_scale` of the
    schedule). The estimate of x0 is divided by it, then multiplied by the factor of the next timestep. The timesteps
    are every (trained // steps)th, so 30 steps are 31 (lvdm/models/samplers/ddim.py and utils_diffusion.py of
    AILab-CVC/VideoCrafter). That code goes beyond the last timestep if the spacing divides 999; here it stops there.
    """

    config: SchedulerConfig
    steps: int
    eta: float = 0.0

    def __post_init__(self) -> None:
        c = self.config
        if c.prediction_type != "epsilon":
            raise ValueError(
                f"prediction_type: {c.prediction_type} is not what VideoCrafter2 predicts (epsilon)"
            )
        alpha, _ = self._alphas_and_scales[0]
        if alpha == 0:
            raise ValueError("rescale_betas_zero_snr: leaves no signal to start from; use another sampler")

    @cached_property
    def timesteps(self) -> tuple[int, ...]:
        trained = self.config.num_train_timesteps
        grid = [min(t + 1, trained - 1) for t in range(0, trained, trained // self.steps)]
        return tuple(sorted(set(grid), reverse=True))

    @cached_property
    def _alphas_and_scales(self) -> tuple[tuple[float, float], ...]:
        """(alpha, factor of the clean latents) at each timestep, and after the last step."""
        c = self.config
        alphas = alphas_cumprod(c).double()
        scales = torch.full((c.num_train_timesteps,), c.latent_scale, dtype=torch.float64)
        falling = min(c.latent_scale_steps, c.num_train_timesteps)
        ramp = torch.linspace(1.0, c.latent_scale, c.latent_scale_steps, dtype=torch.float64)
        scales[:falling] = ramp[:falling]
        return tuple((float(alphas[t]), float(scales[t])) for t in (*self.timesteps, 0))

    @cached_property
    def _levels(self) -> Levels:
        return tuple(
            (math.sqrt(alpha) * scale, math.sqrt(1 - alpha)) for alpha, scale in self._alphas_and_scales
        )

    def step(self, state: State, prediction: Tensor, noise: Noise) -> State:
        (alpha, _), (alpha_next, scale_next) = self._alphas_and_scales[state.step : state.step + 2]
        x = ddim_step(
            self._clean(state, prediction),
            prediction,
            alpha,
            alpha_next,
            eta=self.eta,
            step=state.step,
            noise=noise,
            scale=scale_next,
        )
        return State(step=state.step + 1, x=x)


@dataclass(frozen=True)
class LCM(_OnBetas):
    """Latent consistency models (Luo et al. 2023, algorithm 3): every step estimates x0, then adds fresh noise.

    The timesteps are a subset of the `original_inference_steps` of the distillation: spread over all of them, or with
    `even_skips` equally far apart, which drops the last ones if `original_inference_steps` is not a multiple of
    `steps`.
    """

    config: SchedulerConfig
    steps: int

    # the constant of the boundary condition (appendix C)
    SIGMA_DATA: ClassVar[float] = 0.5

    def __post_init__(self) -> None:
        c = self.config
        original = c.original_inference_steps
        if not self.steps <= original <= c.num_train_timesteps:
            raise ValueError(
                f"steps: {self.steps} is more than the {original} steps of the model's distillation"
            )
        signal, _ = self.level(0)
        if c.prediction_type == "epsilon" and signal == 0:
            raise ValueError("prediction_type: epsilon cannot start at zero signal; use v_prediction")

    @cached_property
    def timesteps(self) -> tuple[int, ...]:
        c = self.config
        original = c.original_inference_steps
        skip = c.num_train_timesteps // original
        distilled = [skip * (i + 1) - 1 for i in range(original)][::-1]
        covered = original - original % self.steps if c.even_skips else original
        return tuple(distilled[i * covered // self.steps] for i in range(self.steps))

    @cached_property
    def _levels(self) -> Levels:
        alphas = alphas_cumprod(self.config).double()
        return _levels_of([float(alphas[t]) for t in self.timesteps])

    def step(self, state: State, prediction: Tensor, noise: Noise) -> State:
        i = state.step
        clean = self._clipped(self._clean(state, prediction))
        scaled = self.timesteps[i] * self.config.timestep_scaling
        distance = scaled**2 + self.SIGMA_DATA**2
        x = (scaled / math.sqrt(distance)) * clean + (self.SIGMA_DATA**2 / distance) * state.x
        if i + 1 < len(self.timesteps):
            signal, sigma = self.level(i + 1)
            x = signal * x + sigma * noise(i)
        return State(step=i + 1, x=x)


def predicted_clean(sampler: Sampler, state: State, prediction: Tensor) -> Tensor:
    """Return the clean latents (1, c, f, h, w) of a prediction: solve `Sampler.implied`, which is linear in them."""
    at_zero, at_one = (sampler.implied(state, torch.full_like(state.x, value)) for value in (0.0, 1.0))
    return (prediction - at_zero) / (at_one - at_zero)


# by the value of the setting `sampler`; each is called with (schedule, steps, eta)
SAMPLERS: Mapping[str, Callable[[SchedulerConfig, int, float], Sampler]] = {
    "ddim": lambda config, steps, eta: DDIM(config, steps, eta=eta),
    "dpmsolver++": lambda config, steps, eta: DPMSolverPP(config, steps),
    "sde-dpmsolver++": lambda config, steps, eta: DPMSolverPP(config, steps, stochastic=True),
    "videocrafter2": lambda config, steps, eta: VideoCrafter2(config, steps, eta=eta),
    "lcm": lambda config, steps, eta: LCM(config, steps),
}
