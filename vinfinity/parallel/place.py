"""This process's place among the ranks of a launcher, from environment variables. Imports no torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from vinfinity.errors import InputError


@dataclass(frozen=True)
class Place:
    """The place that a launcher gave this process: rank of size, local_rank of local_size on its node.

    attempt: how often the ranks were started before.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int
    launcher: str
    attempt: int = 0


def is_rank(environment: Mapping[str, str]) -> bool:
    """Whether torchrun, or srun with several tasks, started this process."""
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "")
    return _by_torchrun(environment) or (tasks.isdecimal() and int(tasks) > 1)


def _by_torchrun(environment: Mapping[str, str]) -> bool:
    return "TORCHELASTIC_RUN_ID" in environment or {"RANK", "WORLD_SIZE"} <= environment.keys()


def find_place(environment: Mapping[str, str]) -> Place | None:
    """This process's place under torchrun or srun; None if neither started it.

    Raises InputError if the variables are incomplete or not numbers.
    """
    if not is_rank(environment):
        return None
    if _by_torchrun(environment):
        launcher = "torchrun"
        names = {
            "rank": "RANK",
            "size": "WORLD_SIZE",
            "local_rank": "LOCAL_RANK",
            "local_size": "LOCAL_WORLD_SIZE",
        }
        address, port = environment.get("MASTER_ADDR", "127.0.0.1"), environment.get("MASTER_PORT", "29500")
    else:
        launcher = "srun"
        names = {"rank": "SLURM_PROCID", "size": "SLURM_STEP_NUM_TASKS", "local_rank": "SLURM_LOCALID"}
        nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "127.0.0.1")
        address = environment.get("MASTER_ADDR") or first_host(nodes)
        job, step = environment.get("SLURM_JOB_ID", "0"), environment.get("SLURM_STEP_ID", "0")
        # the ranks of a job step must agree on a port without a message; two steps on a node should not share one
        port = environment.get("MASTER_PORT") or str(20000 + (int(job) * 7 + int(step)) % 40000)
    try:
        numbers = {field: int(environment[name]) for field, name in names.items()}
        if launcher == "srun":
            counts = tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])
            numbers["local_size"] = counts[int(environment.get("SLURM_NODEID", "0"))]
        attempt = int(environment.get("TORCHELASTIC_RESTART_COUNT") or 0)
        place = Place(**numbers, address=address, port=int(port), launcher=launcher, attempt=attempt)
    except (KeyError, ValueError, IndexError) as error:
        problem = f"is missing or wrong among {launcher}'s variables"
        raise InputError(
            "ranks", error, f"start the ranks with {launcher}, or with --gpus", problem=problem
        ) from None
    if not (0 <= place.rank < place.size and 0 <= place.local_rank < place.local_size <= place.size):
        shown = f"rank {place.rank} of {place.size}, local {place.local_rank} of {place.local_size}"
        raise InputError("ranks", shown, f"check the sizes given to {launcher}", problem="is inconsistent")
    return place


def first_host(nodes: str) -> str:
    """The first host of SLURM's compressed list, such as `node[003-007,9]`."""
    match = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\]([^,\[]*))?", nodes)
    return "".join(part or "" for part in match.groups()) if match else nodes


def tasks_per_node(counts: str) -> list[int]:
    """The tasks on each node from SLURM's compressed list, such as `4(x2),3`."""
    tasks: list[int] = []
    for part in counts.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None:
            raise ValueError(f"SLURM_STEP_TASKS_PER_NODE={counts}")
        tasks += [int(match[1])] * int(match[2] or 1)
    return tasks
