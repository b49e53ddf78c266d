"""The state that denoising changes from step to step, and the protocol of samplers.

Dimensions: c channels, f latent frames of this rank, h and w latent height and width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

Noise = Callable[[int], Tensor]


@dataclass(frozen=True)
class State:
    """Denoising after `step` steps.

    x: the latents, (1, c, f, h, w) fp32. The others have the same shape, for multistep samplers: clean, older: the last
    estimate of x0, and the one before it. before: the latents before the last step.
    """

    step: int
    x: Tensor
    clean: Tensor | None = None
    older: Tensor | None = None
    before: Tensor | None = None

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """All tensors of the state that are not None, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "step"}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def to(self, device: torch.device) -> "State":
        """Return the state on a device."""
        return State(self.step, **{name: tensor.to(device) for name, tensor in self.tensors.items()})


class Sampler(Protocol):
    """A sampling method: each step takes the latents from one noise level to the next.

    timesteps: the training timestep of each step. Samplers with equal settings are equal.
    """

    def __hash__(self) -> int: ...

    @property
    def timesteps(self) -> tuple[float, ...]: ...

    def level(self, step: int) -> tuple[float, float]:
        """Return (signal, sigma) before a step: its latents are signal * clean + sigma * noise."""
        ...

    def implied(self, state: State, clean: Tensor) -> Tensor:
        """Return the prediction according to which the latents of `state` are `clean` plus noise."""
        ...

    def step(self, state: State, prediction: Tensor, noise: Noise) -> State:
        """Take one step.

        prediction: (1, c, f, h, w) fp32, after guidance. noise: draws standard normal noise for a step, for samplers
        that add some.
        """
        ...


def steady_state(sampler: Sampler, x: Tensor) -> State:
    """Return a state after enough steps that the sampler holds all the history it ever keeps. x: sets the shape."""
    state = State(step=0, x=x)
    while state.step < min(2, len(sampler.timesteps) - 1):
        state = sampler.step(state, x, lambda _: x)
    return state
