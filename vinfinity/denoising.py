"""Everything that the denoising loop of one rank needs, set up in one place for runs and for `Pipeline`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from vinfinity.denoise.execution import Execution
from vinfinity.denoise.loop import Denoiser, denoise
from vinfinity.denoise.selection import StepNoise
from vinfinity.denoise.state import Sampler, State
from vinfinity.denoiser import fitting_denoiser
from vinfinity.inputs import shared_text, steered
from vinfinity.job import Job
from vinfinity.media.latents import LatentSource
from vinfinity.networks import Networks
from vinfinity.parallel.exchange import FrameExchange
from vinfinity.parallel.ranks import Ranks
from vinfinity.parallel.teams import Team
from vinfinity.parallel.votes import Vote, Votes
from vinfinity.planning.fit import Fit


@dataclass(frozen=True)
class Denoising:
    """The denoising loop of one rank, ready to run.

    sampler: holds kept frames to their latents. execution: how the network's calls are carried out.
    """

    denoiser: Denoiser
    sampler: Sampler
    noise: StepNoise
    execution: Execution
    ranks: Ranks

    def steps_from(
        self,
        state: State,
        *,
        vote: Callable[[bool], Vote] = Vote,
        watch: Callable[[Sampler, State, Tensor], object] | None = None,
    ) -> Iterator[tuple[State, Votes]]:
        """Yield the state after each step that follows `state`, and the votes of all ranks; see `denoise`.

        watch: called in each step with the sampler, the state before the step and the guided prediction.
        """
        return denoise(
            self.denoiser,
            self.sampler,
            state.to(self.ranks.device),
            noise=self.noise,
            ranks=self.ranks,
            vote=vote,
            watch=None if watch is None else partial(watch, self.sampler),
        )


def prepare_denoising(
    job: Job,
    networks: Networks,
    ranks: Ranks,
    *,
    team: Team,
    exchange: FrameExchange,
    fit: Fit,
    pictures: LatentSource | None,
    step: int = 0,
) -> Denoising:
    """Encode the text, load the denoiser, and find the fastest execution that fits into memory.

    Every rank must call this. exchange: the one through which the team's ranks reach each other. fit: the executions to
    try. pictures: the latents of the images that frames are set to. step: the number of steps that are done already.
    Raises OutOfMemoryError, NotFiniteError, WeightsError.
    """
    own, device = job.selection.of(team.held), ranks.device
    text = shared_text(job, networks, ranks)
    denoiser, execution = fitting_denoiser(
        job, networks.denoiser(job), text, team, exchange, ranks, fit=fit, t=job.sampler.timesteps[step]
    )
    return Denoising(
        denoiser,
        sampler=steered(job, own, device=device, pictures=pictures),
        noise=StepNoise(job.selection, own, job.latent, device, steps=len(job.sampler.timesteps)),
        execution=execution,
        ranks=ranks,
    )
