"""Choose an execution that fits the machine's memory, or refuse the run."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vinfinity.denoise.execution import Execution
from vinfinity.errors import InputError
from vinfinity.job import Job
from vinfinity.parallel.devices import pick_device
from vinfinity.parallel.place import find_place
from vinfinity.parallel.ranks import Ranks
from vinfinity.planning.alternatives import nearest_settings
from vinfinity.planning.machines import free_on_device
from vinfinity.planning.memory import (
    Budget,
    RunMemory,
    gigabytes,
    memory_bound,
    trace_memory,
)
from vinfinity.planning.outline import DeviceType, Outline, outline
from vinfinity.system.memory import free_on_host

# a run that needs less than this fraction of a GPU's free memory is not rehearsed
AMPLE_SHARE = 0.6


@dataclass(frozen=True)
class Fit:
    """Which executions fit this machine's memory.

    executions: those expected to fit, from the fastest to the leanest. ample: whether the fastest leaves so much memory
    that no rehearsal is needed. keeps: whether all networks can stay loaded.
    """

    executions: Sequence[Execution]
    ample: bool
    keeps: bool

    @property
    def fastest(self) -> Execution:
        """The fastest execution that is expected to fit."""
        return self.executions[0]


def find_fit(job: Job, ranks: Ranks, *, loaded: int = 0, keep: bool = False) -> Fit:
    """Return the executions that `job` allows, from the fastest that fits the rank with the least memory.

    Rank 0 decides for all ranks, which must do the same. loaded: bytes of weights already on the device that the job
    uses or frees. keep: whether to keep networks loaded for other jobs, if that needs no leaner execution. Raises
    InputError on every rank if no execution fits.
    """
    run = outline_of(job, device=_type(ranks), ranks=ranks.size)
    budgets = ranks.all_gather(_budget(ranks, loaded=loaded))
    decision = ranks.on_first(lambda: decide(run, smallest(budgets), keep=keep))
    if isinstance(decision, InputError):
        raise decision
    return decision


def networks_fit(job: Job, ranks: Ranks) -> bool:
    """Return whether `find_fit` would keep all networks of a job loaded, on one rank alone."""
    run, budget = outline_of(job, device=_type(ranks), ranks=1), _budget(ranks)
    return _surely_fits(run, budget) or replace(choose(run, budget)[0], kept=True).fits(budget, run.device)


def _type(ranks: Ranks) -> DeviceType:
    return "cuda" if ranks.device.type == "cuda" else "cpu"


def _budget(ranks: Ranks, *, loaded: int = 0) -> Budget:
    """Return the memory of this rank. loaded: bytes of weights on its device that count as free."""
    host = free_on_host(sharing=ranks.local_size)
    if _type(ranks) == "cpu":
        return Budget(device=None, host=host + loaded, where=str(ranks.device))
    return Budget(device=free_on_device(ranks.device) + loaded, host=host, where=str(ranks.device))


def refuse_early(job: Job) -> None:
    """Raise InputError if a run on the CPU cannot fit, before ranks start. Only ranks know the free memory of GPUs."""
    config = job.config
    if (
        find_place(os.environ) is None
        and pick_device(config.device, local_size=config.gpus or 1).type == "cpu"
    ):
        ranks = config.gpus or 1
        budget = Budget(device=None, host=free_on_host(sharing=ranks), where="cpu")
        decision = decide(outline_of(job, device="cpu", ranks=ranks), budget)
        if isinstance(decision, InputError):
            raise decision


def outline_of(job: Job, *, device: DeviceType, ranks: int) -> Outline:
    """Return the outline of a job, which in an edit computes only a part of the video."""
    return outline(
        job.config, job.card, device=device, ranks=ranks, denoised_frames=len(job.selection.frames)
    )


def choose(run: Outline, budget: Budget) -> tuple[RunMemory, bool]:
    """Return the memory of the fastest execution that fits, and True; or that of the leanest, and False."""
    for execution in run.executions:
        memory = trace_memory(run, execution)
        if memory.fits(budget, run.device):
            return memory, True
    return memory, False


def _surely_fits(run: Outline, budget: Budget) -> bool:
    """Return whether a run on the CPU needs so little memory that it fits without a trace."""
    host = budget.host
    return run.device == "cpu" and host is not None and memory_bound(run, run.executions[0]) < host / 2


def decide(run: Outline, budget: Budget, *, keep: bool = False) -> Fit | InputError:
    """Return the executions that fit, or the error that refuses the run. keep: as in `find_fit`."""
    executions = run.executions
    if _surely_fits(run, budget):
        return Fit(executions, ample=True, keeps=keep)
    memory, fits = choose(run, budget)
    if not fits:
        return refusal(run, memory, budget)
    kept = replace(memory, kept=True)
    if keep and kept.fits(budget, run.device):
        memory = kept
    ample = all(
        have is None or need < AMPLE_SHARE * have
        for need, have in zip(memory.needs(run.device), (budget.device, budget.host), strict=True)
    )
    return Fit(executions[executions.index(memory.execution) :], ample, keeps=memory.kept)


def smallest(budgets: list[Budget]) -> Budget:
    """Return the budget that every rank has: the minimum over all ranks."""
    device = min(budgets, key=lambda budget: budget.device or 0)
    host = min(budget.host or 0 for budget in budgets)
    return replace(device, host=host)


def refusal(run: Outline, memory: RunMemory, budget: Budget) -> InputError:
    """Return the error for a run that does not fit: what it needs, what is free, and the nearest settings that fit."""
    on_device, on_host = memory.needs(run.device)
    each = " per rank" if run.ranks > 1 else ""
    short = [
        f"{gigabytes(need)}{each} on {where} ({gigabytes(have)} free)"
        for need, have, where in (
            (on_device, budget.device, budget.where),
            (on_host, budget.host, "the host"),
        )
        if have is not None and need > have
    ]
    proposals = [" ".join(options) for options in nearest_settings(run, budget)]
    remedy = f"try {', or '.join(proposals)}" if proposals else "use a machine with more memory"
    return InputError("frames", run.config.frames, remedy, problem=f"need {' and '.join(short)}")
