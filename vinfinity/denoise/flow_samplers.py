"""Samplers for models trained by flow matching: Euler, UniPC and DPM-Solver++.

Levels are rounded to fp32, as in diffusers, since the logarithms of the first ones depend on their last bits.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from torch import Tensor

from vinfinity.denoise.flows import BELOW_ONE, FlowSchedule
from vinfinity.denoise.samplers import Levels, dpm_step, half_log_snr
from vinfinity.denoise.state import Noise, Sampler, State


class _OnFlow(ABC):
    """What all samplers on a flow have in common: latents are x = (1 - sigma) * x0 + sigma * noise."""

    schedule: FlowSchedule

    @property
    @abstractmethod
    def _sigmas(self) -> np.ndarray:
        """The noise level before each step."""

    @cached_property
    def _levels(self) -> Levels:
        """Signal and noise before each step, and after the last one, where no noise is left."""
        return tuple((1 - sigma, sigma) for sigma in [*self._sigmas.astype(np.float32).tolist(), 0.0])

    @cached_property
    def timesteps(self) -> tuple[float, ...]:
        trained = self.schedule.num_train_timesteps
        return tuple(int(sigma * trained) for sigma in self._sigmas)

    def level(self, step: int) -> tuple[float, float]:
        return self._levels[step]

    def implied(self, state: State, clean: Tensor) -> Tensor:
        _, sigma = self.level(state.step)
        return (state.x - clean) / sigma

    def _clean(self, state: State, prediction: Tensor) -> Tensor:
        """Return the estimate of x0: the inverse of `implied`."""
        _, sigma = self.level(state.step)
        return state.x - sigma * prediction


@dataclass(frozen=True)
class FlowEuler(_OnFlow):
    """Euler's method on the flow (diffusers' FlowMatchEulerDiscreteScheduler)."""

    schedule: FlowSchedule
    steps: int

    @cached_property
    def _sigmas(self) -> np.ndarray:
        trained = self.schedule.num_train_timesteps
        grid = self.schedule.shifted(np.arange(1, trained + 1, dtype=np.float32) / np.float32(trained))
        times = np.linspace(float(grid[-1]) * trained, float(grid[0]) * trained, self.steps)
        sigmas: np.ndarray = self.schedule.shifted(times / trained).astype(np.float32)
        return sigmas

    @cached_property
    def timesteps(self) -> tuple[float, ...]:
        trained = self.schedule.num_train_timesteps
        return tuple((self._sigmas * np.float32(trained)).tolist())

    def step(self, state: State, prediction: Tensor, noise: Noise) -> State:
        (_, sigma), (_, sigma_next) = self.level(state.step), self.level(state.step + 1)
        return State(step=state.step + 1, x=state.x + (sigma_next - sigma) * prediction)


@dataclass(frozen=True)
class FlowDPMSolverPP(_OnFlow):
    """DPM-Solver++ on the flow, whose signal is 1 - sigma, and its SDE form."""

    schedule: FlowSchedule
    steps: int
    stochastic: bool = False

    @cached_property
    def _sigmas(self) -> np.ndarray:
        even = 1.0 - np.linspace(1, 1 / self.schedule.num_train_timesteps, self.steps + 1)
        return np.flip(self.schedule.shifted(even))[:-1]

    def step(self, state: State, prediction: Tensor, noise: Noise) -> State:
        s, i = self.schedule, state.step
        clean = self._clean(state, prediction)
        first_order = s.solver_order == 1 or i == len(self.timesteps) - 1
        x = dpm_step(
            state.x,
            clean,
            None if first_order else state.clean,
            self._levels,
            i,
            solver="heun" if s.solver_type == "heun" else "midpoint",
            noise=noise if self.stochastic else None,
        )
        return State(step=i + 1, x=x, clean=clean)


class _Coefficients(NamedTuple):
    """The coefficients of one step of UniPC, from level s to t (Zhao et al. 2023).

    of_x, of_clean: factors of the latents and of the estimate of x0 before the step. slope: factor of the slopes of x0.
    ratio: the length of the previous step in units of h. h: the length of the step in log(signal / noise).
    """

    of_x: float
    of_clean: float
    slope: float
    ratio: float
    h: float


@dataclass(frozen=True)
class UniPC(_OnFlow):
    """UniPC of up to second order on the flow (Zhao et al. 2023): a predictor, and in the next step a corrector."""

    schedule: FlowSchedule
    steps: int

    @cached_property
    def _sigmas(self) -> np.ndarray:
        sigmas = self.schedule.shifted(
            np.linspace(1, 1 / self.schedule.num_train_timesteps, self.steps + 1)[:-1]
        )
        if abs(sigmas[0] - 1) < BELOW_ONE:
            sigmas[0] -= BELOW_ONE
        return sigmas

    def step(self, state: State, prediction: Tensor, noise: Noise) -> State:
        i = state.step
        clean = self._clean(state, prediction)
        x = state.x
        if state.before is not None and i - 1 not in self.schedule.disable_corrector:
            x = self._corrected(state, clean)
        c = self._coefficients(i)
        after = c.of_x * x + c.of_clean * clean
        if self._order(i) == 2 and state.clean is not None:
            after = after - (0.5 * c.slope / c.ratio) * (state.clean - clean)
        return State(step=i + 1, x=after, clean=clean, older=state.clean, before=x)

    def _corrected(self, state: State, clean: Tensor) -> Tensor:
        """Return the latents of `state`, corrected now that the estimate of x0 there is known."""
        assert state.clean is not None and state.before is not None
        i = state.step - 1
        c = self._coefficients(i)
        x = c.of_x * state.before + c.of_clean * state.clean
        if self._order(i) == 1 or state.older is None:
            return x - (0.5 * c.slope) * (clean - state.clean)
        first, second = self._moments(c.h)
        older = (first - second) / (1 - c.ratio)
        slopes = older / c.ratio * (state.older - state.clean) + (first - older) * (clean - state.clean)
        return x - c.slope * slopes

    def _order(self, i: int) -> int:
        s = self.schedule
        most = min(s.solver_order, len(self.timesteps) - i) if s.lower_order_final else s.solver_order
        return min(most, i + 1) if self._levels[i + 1][1] > 0 else 1

    def _coefficients(self, i: int) -> _Coefficients:
        (_, sigma_s), (alpha, sigma_t) = self._levels[i : i + 2]
        *earlier, at, to = (half_log_snr(level) for level in self._levels[max(0, i - 1) : i + 2])
        h = to - at
        towards = math.expm1(-h)
        return _Coefficients(
            of_x=sigma_t / sigma_s,
            of_clean=-alpha * towards,
            slope=alpha * (-h if self.schedule.solver_type == "bh1" else towards),
            ratio=(earlier[0] - at) / h if earlier else 1.0,
            h=h,
        )

    def _moments(self, h: float) -> tuple[float, float]:
        """Return the right-hand side of the corrector's equations (Zhao et al. 2023, eq. 5), with the solver's B(h)."""
        scale = -h if self.schedule.solver_type == "bh1" else math.expm1(-h)
        phi = math.expm1(-h) / -h - 1
        return phi / scale, 2 * (phi / -h - 0.5) / scale


# by the value of the setting `sampler`
FLOW_SAMPLERS: Mapping[str, Callable[[FlowSchedule, int], Sampler]] = {
    "unipc": UniPC,
    "euler": FlowEuler,
    "dpmsolver++": FlowDPMSolverPP,
    "sde-dpmsolver++": lambda schedule, steps: FlowDPMSolverPP(schedule, steps, stochastic=True),
}
