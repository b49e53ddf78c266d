"""The denoising loop: predict, vote, guide, step."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vinfinity.denoise.guidance import guide
from vinfinity.denoise.state import Noise, Sampler, State
from vinfinity.errors import NotFiniteError
from vinfinity.models.network_call import NetworkCall
from vinfinity.parallel.ranks import Ranks
from vinfinity.parallel.teams import BranchSwap
from vinfinity.parallel.votes import Vote, Votes


@dataclass(frozen=True)
class Denoiser:
    """A model's guided prediction for the frames of one rank.

    call: the network, for the guidance branches of this rank. guidance: the guidance scale. swap: fetches the other
    branch if each of two teams of ranks computes one. reuse_interval: the whole network runs every N steps.
    """

    call: NetworkCall
    guidance: float
    swap: BranchSwap | None = None
    reuse_interval: int = 1

    def renews(self, step: int) -> bool:
        """Return whether the whole network runs in this step."""
        return step % self.reuse_interval == 0

    def guided(self, predictions: Tensor) -> Tensor:
        """Combine the predictions of this rank's branches (b, c, f, h, w) into the guided one (1, c, f, h, w) fp32."""
        if self.swap is not None:
            predictions = self.swap(predictions)
        return guide(predictions.float(), self.guidance)


@torch.no_grad()
def denoise(
    denoiser: Denoiser,
    sampler: Sampler,
    state: State,
    *,
    noise: Noise,
    ranks: Ranks,
    vote: Callable[[bool], Vote] = Vote,
    watch: Callable[[State, Tensor], object] | None = None,
) -> Iterator[tuple[State, Votes]]:
    """Yield the state after each step, from `state` to the end, with the ranks' votes in that step.

    vote: makes this rank's vote, given whether its prediction is finite; ranks exchange votes once per step.
    watch: called in each step with the state before it and the guided prediction.
    Raises NotFiniteError on every rank if the prediction of any rank is NaN or infinite.
    """
    while state.step < len(sampler.timesteps):
        t, renew = sampler.timesteps[state.step], denoiser.renews(state.step)
        predictions = denoiser.call(state.x, t, renew=renew)
        votes = Votes(ranks.all_gather(vote(ranks.wait_for(predictions.isfinite().all()))))
        if not votes.finite:
            layers = ranks.all_gather(denoiser.call.non_finite_layers(state.x, t, renew=renew))
            layer = next((names[0] for names in layers if names), "output")
            where = f"step {state.step + 1} (timestep {t:g})"
            raise not_finite(where, f"the network's layer {layer}", denoiser.call.dtype)
        guided = denoiser.guided(predictions)
        if watch is not None:
            watch(state, guided)
        state = sampler.step(state, guided, noise)
        yield state, votes


def not_finite(where: str, what: str, dtype: torch.dtype) -> NotFiniteError:
    """Make the error for NaN or infinite values."""
    name = str(dtype).removeprefix("torch.")
    half = "try dtype=bf16, or dtype=fp32" if dtype == torch.float16 else "try dtype=fp32"
    remedy = "check the weights, the noise and the LoRAs" if dtype == torch.float32 else half
    return NotFiniteError(f"{where}: {what} produced NaN or infinite values in {name}; {remedy}")
