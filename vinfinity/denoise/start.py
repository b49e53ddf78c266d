"""Where denoising starts: at noise alone, or part of the way, at the latents of a video that noise was added to."""

from dataclasses import dataclass, replace

from torch import Tensor

from vinfinity.config import RunConfig
from vinfinity.denoise.choose_sampler import make_sampler
from vinfinity.denoise.flows import FlowSchedule, Schedule
from vinfinity.denoise.state import Noise, Sampler, State
from vinfinity.errors import InputError


def schedule_of(config: RunConfig, model: Schedule) -> Schedule:
    """The noise schedule of a run: its model's, with `shift` if it is set.

    Raises InputError if the model has none to shift.
    """
    if config.shift is None:
        return model
    if not isinstance(model, FlowSchedule):
        problem = "is for models trained by flow matching, which this one was not"
        raise InputError("shift", config.shift, "leave it out", problem=problem)
    return replace(model, shift=config.shift)


def pick_sampler(config: RunConfig, scheduler: Schedule) -> Sampler:
    """The sampler of a run on its schedule; from a video, its last steps.

    Raises InputError if sampler and schedule do not go together, or if no step is left.
    """
    try:
        sampler = make_sampler(config.sampler, scheduler, steps=config.steps, eta=config.eta)
    except ValueError as error:
        remedy = "choose other steps or another sampler"
        raise InputError("sampler", config.sampler, remedy, problem=f"{error}") from None
    return last_steps(sampler, config.input.effective_strength) if config.starts_from_video else sampler


@dataclass(frozen=True)
class LastSteps:
    """The last steps of `sampler`, from number `first` on, counted from 0: for latents that are not noise alone."""

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
    """The state before the first step of latents whose content is `clean` (SDEdit, Meng et al. 2022). Both
    (1, c, f, h, w) fp32.
    """
    signal, sigma = sampler.level(0)
    return State(step=0, x=signal * clean + sigma * noise)


def last_steps(sampler: Sampler, strength: float) -> Sampler:
    """The last steps of a sampler, as many as `strength` says, rounded down as in diffusers.

    Raises InputError if that is none.
    """
    steps = len(sampler.timesteps)
    kept = min(int(steps * strength), steps)
    if not kept:
        problem = f"leaves none of {steps} steps"
        remedy = f"give at least {-(-1000 // steps) / 1000:g}, or more steps"
        raise InputError("input.strength", strength, remedy, problem=problem)
    return LastSteps(sampler, steps - kept)
