"""Samplers for models trained by flow matching: Euler, UniPC and DPM-Solver++.

Levels are rounded to fp32, as in diffusers, since the logarithms of the first ones depend on their last bits.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from torch import Tensor

from vinfinity.denoise.flows import BELOW_ONE, FlowSchedule
from vinfinity.denoise.samplers import dpm_step, half_log_snr
from vinfinity.denoise.state import Noise, Sampler, State


class _OnFlow:
    """What all samplers on the flow share. _levels: signal and noise before each step and after the last one."""

    _levels: tuple[tuple[float, float], ...]

    def level(self, step: int) -> tuple[float, float]:
        return self._levels[step]

    def implied(self, state: State, clean: Tensor) -> Tensor:
        """The velocity according to which the latents of `state` are `clean` plus noise."""
        return (state.x - clean) / self._levels[state.step][1]


def _signal_and_noise(sigmas: np.ndarray) -> tuple[tuple[float, float], ...]:
    """Signal and noise of these levels of noise, with one without noise behind them."""
    return tuple((1 - sigma, sigma) for sigma in [*sigmas.astype(np.float32).tolist(), 0.0])


@dataclass(frozen=True)
class FlowEuler(_OnFlow):
    """Euler's method on the flow (diffusers' FlowMatchEulerDiscreteScheduler)."""

    schedule: FlowSchedule
    steps: int
    timesteps: tuple[float, ...] = field(init=False)
    _levels: tuple[tuple[float, float], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        trained = self.schedule.num_train_timesteps
        grid = self.schedule.shifted(np.arange(1, trained + 1, dtype=np.float32) / np.float32(trained))
        times = np.linspace(float(grid[-1]) * trained, float(grid[0]) * trained, self.steps)
        sigmas = self.schedule.shifted(times / trained).astype(np.float32)
        object.__setattr__(self, "timesteps", tuple((sigmas * np.float32(trained)).tolist()))
        object.__setattr__(self, "_levels", _signal_and_noise(sigmas))

    def step(self, state: State, prediction: Tensor, noise: Noise) -> State:
        (_, sigma), (_, following) = self._levels[state.step : state.step + 2]
        return State(step=state.step + 1, x=state.x + (following - sigma) * prediction)


@dataclass(frozen=True)
class FlowDPMSolverPP(_OnFlow):
    """DPM-Solver++ on the flow, whose signal is 1 - sigma, and its SDE form."""

    schedule: FlowSchedule
    steps: int
    stochastic: bool = False
    timesteps: tuple[float, ...] = field(init=False)
    _levels: tuple[tuple[float, float], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        trained = self.schedule.num_train_timesteps
        even = 1.0 - np.linspace(1, 1 / trained, self.steps + 1)
        sigmas = np.flip(self.schedule.shifted(even))[:-1]
        object.__setattr__(self, "timesteps", tuple(int(sigma * trained) for sigma in sigmas))
        object.__setattr__(self, "_levels", _signal_and_noise(sigmas))

    def step(self, state: State, prediction: Tensor, noise: Noise) -> State:
        s, i = self.schedule, state.step
        clean = state.x - self._levels[i][1] * prediction
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
    """Of one step of UniPC from level s to t (Zhao et al. 2023). h: step in half the logarithm of signal to noise.
    of_x, of_clean: of the latents and of the estimate of x0 before the step. slope: of the slopes of x0. ratio: of the
    step before, in units of h.
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
    timesteps: tuple[float, ...] = field(init=False)
    _levels: tuple[tuple[float, float], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        trained = self.schedule.num_train_timesteps
        sigmas = self.schedule.shifted(np.linspace(1, 1 / trained, self.steps + 1)[:-1])
        if abs(sigmas[0] - 1) < BELOW_ONE:
            sigmas[0] -= BELOW_ONE
        object.__setattr__(self, "timesteps", tuple(int(sigma * trained) for sigma in sigmas))
        object.__setattr__(self, "_levels", _signal_and_noise(sigmas))

    def step(self, state: State, prediction: Tensor, noise: Noise) -> State:
        i = state.step
        clean = state.x - self._levels[i][1] * prediction
        x = state.x
        if state.before is not None and i - 1 not in self.schedule.disable_corrector:
            x = self._corrected(state, clean)
        c = self._coefficients(i)
        after = c.of_x * x + c.of_clean * clean
        if self._order(i) == 2 and state.clean is not None:
            after = after - (0.5 * c.slope / c.ratio) * (state.clean - clean)
        return State(step=i + 1, x=after, clean=clean, older=state.clean, before=x)

    def _corrected(self, state: State, clean: Tensor) -> Tensor:
        """The latents of `state` once more, now that the estimate of x0 there is known."""
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
        """The right-hand side of the corrector's equations (Zhao et al. 2023, eq. 5), for B(h) of the solver's type."""
        scale = -h if self.schedule.solver_type == "bh1" else math.expm1(-h)
        phi = math.expm1(-h) / -h - 1
        return phi / scale, 2 * (phi / -h - 0.5) / scale


# by the name that the setting `sampler` takes
FLOW_SAMPLERS: Mapping[str, Callable[[FlowSchedule, int], Sampler]] = {
    "unipc": UniPC,
    "euler": FlowEuler,
    "dpmsolver++": FlowDPMSolverPP,
    "sde-dpmsolver++": lambda schedule, steps: FlowDPMSolverPP(schedule, steps, stochastic=True),
}
