"""The denoising loop around a prediction that is a plain function."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from vinfinity.denoise.loop import Denoiser, denoise
from vinfinity.denoise.state import Noise, Sampler, State
from vinfinity.parallel.ranks import Ranks


class FunctionCall:
    """A network call that is a function of latents and timestep."""

    dtype = torch.float32

    def __init__(self, predict: Callable[[Tensor, int], Tensor]) -> None:
        self._predict = predict

    @property
    def network(self) -> nn.Module:
        return nn.Identity()

    @property
    def middle(self) -> None:
        return None

    def __call__(self, x: Tensor, t: float, *, renew: bool = True) -> Tensor:
        return self._predict(x, int(t))

    def non_finite_layers(self, x: Tensor, t: float, *, renew: bool = True) -> Sequence[str]:
        return ()


def sample(
    sampler: Sampler, predict: Callable[[Tensor, int], Tensor], start: State, noise: Noise
) -> Iterator[State]:
    """Yield the state after each step of one rank without guidance."""
    denoiser, alone = Denoiser(FunctionCall(predict), guidance=1.0), Ranks(device=torch.device("cpu"))
    for state, _ in denoise(denoiser, sampler, start, noise=noise, ranks=alone):
        yield state
