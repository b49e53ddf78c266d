"""Restarts of this job or its ranks by a launcher, found in environment variables. Imports no torch."""

from collections.abc import Mapping

# the variable in which a launcher counts restarts
RESTARTS = {"torchrun": "TORCHELASTIC_RESTART_COUNT", "SLURM": "SLURM_RESTART_COUNT"}


def was_restarted(environment: Mapping[str, str]) -> bool:
    """Return whether a launcher restarted this job: torchrun with --max-restarts, or SLURM, which requeues jobs."""
    return bool(restarted_by(environment))


def restarted_by(environment: Mapping[str, str]) -> list[str]:
    """Return the launchers that restarted this job or its ranks."""
    return [launcher for launcher, name in RESTARTS.items() if environment.get(name, "0") not in ("", "0")]


def jobs_of(environment: Mapping[str, str], *, parent: int) -> dict[str, str]:
    """Return each launcher's name for this job, which is equal on all ranks and after a restart.

    parent: the process id of this process's parent.
    """
    jobs = {}
    array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    if job := f"{array}_{task}" if array and task else environment.get("SLURM_JOB_ID"):
        jobs["SLURM"] = job
    if job := environment.get("TORCHELASTIC_RUN_ID"):
        one_node = environment.get("LOCAL_WORLD_SIZE") == environment.get("WORLD_SIZE")
        # torchrun names every job `none` by default; its process id then tells jobs apart
        jobs["torchrun"] = f"process {parent}" if job == "none" and one_node else job
    return jobs
