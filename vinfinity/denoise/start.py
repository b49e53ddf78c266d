"""Where denoising starts: at pure noise, or part of the way, at a video's latents with noise added."""

from dataclasses import dataclass, replace

from torch import Tensor

from vinfinity.config import RunConfig
from vinfinity.denoise.choose_sampler import make_sampler
from vinfinity.denoise.flows import FlowSchedule, Schedule
from vinfinity.denoise.state import Noise, Sampler, State
from vinfinity.errors import InputError


def schedule_of(config: RunConfig, model: Schedule) -> Schedule:
    """Return the noise schedule of a run: its model's, with `shift` if it is set.

    Raises InputError if the model's schedule has no shift.
    """
    if config.shift is None:
        return model
    if not isinstance(model, FlowSchedule):
        problem = "is for models trained by flow matching, which this one was not"
        raise InputError("shift", config.shift, "remove it", problem=problem)
    return replace(model, shift=config.shift)


def pick_sampler(config: RunConfig, scheduler: Schedule) -> Sampler:
    """Return the sampler of a run on its schedule; only the sampler's last steps if the run starts from a video.

    Raises InputError if the sampler does not suit the schedule, or if no step is left.
    """
    try:
        sampler = make_sampler(config.sampler, scheduler, steps=config.steps, eta=config.eta)
    except ValueError as error:
        remedy = "use another sampler or another number of steps"
        raise InputError("sampler", config.sampler, remedy, problem=f"{error}") from None
    return last_steps(sampler, config.input.effective_strength) if config.starts_from_video else sampler


@dataclass(frozen=True)
class LastSteps:
    """The last steps of a sampler, for latents that are not pure noise. first: the first of these steps."""

    sampler: Sampler
    first: int

    @property
    def timesteps(self) -> tuple[float, ...]:
        return self.sampler.timesteps[self.first :]

    def level(self, step: int) -> tuple[float, float]:
        return self.sampler.level(self.first + step)

    def implied(self, state: State, clean: Tensor) -> Tensor:
        return self.sampler.implied(self._inside(state), clean)

    def step(self, state: State, prediction: Tensor, noise: Noise) -> State:
        after = self.sampler.step(self._inside(state), prediction, lambda step: noise(step - self.first))
        return replace(after, step=after.step - self.first)

    def _inside(self, state: State) -> State:
        return replace(state, step=state.step + self.first)


def noised(sampler: Sampler, clean: Tensor, noise: Tensor) -> State:
    """Add noise to clean latents; return the state before the first step (SDEdit, Meng et al. 2022).

    clean, noise: (1, c, f, h, w) fp32.
    """
    signal, sigma = sampler.level(0)
    return State(step=0, x=signal * clean + sigma * noise)


def last_steps(sampler: Sampler, strength: float) -> Sampler:
    """Return the last steps of a sampler. strength: the fraction of its steps, rounded down as in diffusers.

    Raises InputError if no step is left.
    """
    steps = len(sampler.timesteps)
    kept = min(int(steps * strength), steps)
    if not kept:
        problem = f"leaves none of {steps} steps"
        remedy = f"use at least {-(-1000 // steps) / 1000:g}, or more steps"
        raise InputError("input.strength", strength, remedy, problem=problem)
    return LastSteps(sampler, steps - kept)
