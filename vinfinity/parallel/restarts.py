"""Whether a launcher restarted this job or its ranks, from environment variables. Imports no torch."""

from collections.abc import Mapping

# set by launchers that start a job or its ranks again
RESTARTS = {"torchrun": "TORCHELASTIC_RESTART_COUNT", "SLURM": "SLURM_RESTART_COUNT"}


def was_restarted(environment: Mapping[str, str]) -> bool:
    """Whether a launcher restarted this job or its ranks: torchrun's --max-restarts, or a requeued SLURM job."""
    return bool(restarted_by(environment))


def restarted_by(environment: Mapping[str, str]) -> list[str]:
    """The launchers that restarted this job or its ranks."""
    return [launcher for launcher, name in RESTARTS.items() if environment.get(name, "0") not in ("", "0")]


def jobs_of(environment: Mapping[str, str], *, parent: int) -> dict[str, str]:
    """What this job is to each launcher, the same after a restart and on all ranks. parent: process of this one."""
    jobs = {}
    array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    if job := f"{array}_{task}" if array and task else environment.get("SLURM_JOB_ID"):
        jobs["SLURM"] = job
    if job := environment.get("TORCHELASTIC_RUN_ID"):
        one_node = environment.get("LOCAL_WORLD_SIZE") == environment.get("WORLD_SIZE")
        # torchrun gives all jobs the same name unless it is told one; its own process then tells them apart
        jobs["torchrun"] = f"process {parent}" if job == "none" and one_node else job
    return jobs
