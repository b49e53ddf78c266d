"""Build the denoiser of a rank, and find the fastest execution of it that fits into memory."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from vinfinity.denoise.execution import Execution
from vinfinity.denoise.loop import Denoiser
from vinfinity.denoise.scopes import ScheduledContexts
from vinfinity.errors import OutOfMemoryError
from vinfinity.job import Job
from vinfinity.models.frame_text import FrameText
from vinfinity.models.network_call import CallOptions
from vinfinity.models.offload import store_for
from vinfinity.parallel.exchange import FrameExchange
from vinfinity.parallel.ranks import Ranks
from vinfinity.parallel.teams import BranchSwap, Team
from vinfinity.planning.fit import Fit
from vinfinity.system.out_of_memory import describe, is_out_of_memory
from vinfinity.system.progress import note


def make_denoiser(
    job: Job,
    network: nn.Module,
    text: FrameText,
    team: Team,
    exchange: FrameExchange,
    execution: Execution,
) -> Denoiser:
    """Return the guided prediction of `network` for this rank's frames. text: the text of all guidance branches."""
    config, device = job.config, text.states.device
    swap = None
    if team.branch is not None:
        text, swap = text.branch(team.branch), BranchSwap(team, exchange.counters)
    contexts = ScheduledContexts(
        config.attention,
        job.selection,
        job.prompts.scenes,
        loop=config.loop,
        timesteps=job.sampler.timesteps,
        team=team,
        exchange=exchange,
        chunk_bytes=execution.chunk_bytes,
        device=device,
        joint=job.card.traits.denoiser.joint,
    )
    options = CallOptions(
        branches_at_once=execution.branches,
        store=store_for(execution.skips, device),
        fps=float(config.fps_condition or config.fps),
        guidance=config.guidance,
        reuse_depth=config.reuse.depth if config.reuse.interval > 1 else None,
    )
    call = job.card.family.network_call(network, text, contexts, options)
    return Denoiser(call, config.guidance, swap, config.reuse.interval)


def fitting_denoiser(
    job: Job,
    network: nn.Module,
    text: FrameText,
    team: Team,
    exchange: FrameExchange,
    ranks: Ranks,
    *,
    fit: Fit,
    t: float,
    rehearsed: bool | None = None,
) -> tuple[Denoiser, Execution]:
    """Return the denoiser with the first execution of `fit` that runs in the memory there is, and that execution.

    t: the training timestep of the next step. rehearsed: whether to try executions before ranks need each other; by
    default on GPUs with little free memory, and for compilation. Raises OutOfMemoryError, on every rank, if none fits.
    """
    execution = fit.fastest
    if rehearsed is None:
        rehearsed = job.config.compile or (ranks.device.type != "cpu" and not fit.ample)
    if rehearsed:
        silent = team.rehearsal_exchange()
        c, h, w = job.latent
        x = torch.zeros(1, c, len(team.held), h, w, device=ranks.device)

        def rehearsal(execution: Execution) -> None:
            denoiser = make_denoiser(job, network, text, team, silent, execution)
            ranks.wait_for(denoiser.call(x, t).isfinite().all())

        execution = rehearse(fit.executions, rehearsal, ranks)
    return make_denoiser(job, network, text, team, exchange, execution), execution


@torch.no_grad()
def rehearse(
    executions: Sequence[Execution], rehearsal: Callable[[Execution], object], ranks: Ranks
) -> Execution:
    """Return the first execution, from the fastest to the leanest, for which all ranks have enough memory.

    Plans count tensors, but not other programs on a GPU or the workspaces of its libraries. In a rehearsal no rank
    waits for another, so running out of memory leaves no rank hanging, and one-time work (library setup, compilation)
    is done before ranks depend on each other. rehearsal: runs a step that sends nothing. Raises OutOfMemoryError, on
    every rank, if none fits.
    """
    problems: list[str] = []
    for execution in executions:
        problem = _lack_of_memory(partial(rehearsal, execution), ranks)
        ranks.barrier()
        problems = [found for found in ranks.all_gather(problem) if found is not None]
        if not problems:
            return execution
        if ranks.is_first:
            note(f"{problems[0].partition(';')[0]}; trying with less")
    raise OutOfMemoryError(problems[0])


def _lack_of_memory(work: Callable[[], object], ranks: Ranks) -> str | None:
    """Return the message if `work` runs out of memory, or None."""
    try:
        work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        problem = describe(error, where=str(ranks))
    else:
        return None
    # until here, the exception kept the tensors of the step alive
    if ranks.device.type == "cuda":
        torch.cuda.empty_cache()
    return problem
