"""This process's place among the ranks of a launcher, from environment variables. Imports no torch.

Launchers leave variables behind in shells and notebooks that they started, in images, and in job scripts. So a process
counts as a rank only if its variables say that several processes were started; a single process needs no launcher.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vinfinity.errors import InputError

# the variables that tell whether a process is one of several ranks
DECIDING = {"torchrun": ("RANK", "WORLD_SIZE"), "srun": ("SLURM_STEP_NUM_TASKS",)}
# the variables in which MPI's launchers store the number of processes
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


@dataclass(frozen=True)
class Place:
    """The place that a launcher gave this process: rank of size, local_rank of local_size on its node.

    launcher: "torchrun", "srun", or "vinfinity" for ranks that vinfinity started itself. attempt: how often the
    launcher has restarted the ranks.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int
    launcher: str
    attempt: int = 0

    @property
    def way_out(self) -> str:
        """What to do if the launcher's variables are left over, as the end of a message."""
        return way_out(self.launcher)

    @property
    def started_by_vinfinity(self) -> bool:
        """Whether vinfinity started the ranks, all on this node."""
        return self.launcher == "vinfinity"

    @property
    def has_rendezvous(self) -> bool:
        """Whether the launcher hosts a rendezvous that torch finds by environment variables."""
        return self.launcher == "torchrun"

    @property
    def store_host(self) -> int | None:
        """The rank that hosts the store of the ranks; None if the launcher does."""
        return 0 if self.launcher == "srun" else None

    @property
    def may_see_one_gpu(self) -> bool:
        """Whether the launcher may show each rank a single GPU, which is its own."""
        return self.launcher in ("srun", "torchrun")

    @property
    def gpu_remedy(self) -> str | None:
        """How to let the launcher give every rank a GPU; None if it has no options for that."""
        if self.launcher != "srun":
            return None
        options = f"--gpus-per-node {self.local_size} --gpu-bind=none"
        return f"start one task per GPU, and let each see all GPUs: {options}"


def way_out(launcher: str) -> str:
    """Return what to do if a launcher's variables are left over, as the end of a message."""
    return f"if {launcher} did not start this process, unset {' '.join(DECIDING[launcher])}"


def rank_names(ranks: Sequence[int]) -> str:
    """Name ranks in a message, such as "rank 1" or "ranks 0, 2 and 3"."""
    *others, last = map(str, ranks)
    return f"ranks {', '.join(others)} and {last}" if others else f"rank {last}"


def is_rank(environment: Mapping[str, str]) -> bool:
    """Return whether torchrun or srun started this process as one of several ranks. Never raises."""
    return _launcher(environment) is not None


def find_place(environment: Mapping[str, str]) -> Place | None:
    """Find this process's place among the ranks that torchrun or srun started; None if it is alone.

    Raises InputError if variables are missing or wrong, or if a launcher that vinfinity does not support started
    several processes.
    """
    launcher = _launcher(environment)
    if launcher is None:
        _refuse_mpi(environment)
        return None
    read = _torchrun if launcher == "torchrun" else _srun
    place = read(_Variables(environment, launcher))
    if not (0 <= place.rank < place.size and 0 <= place.local_rank < place.local_size <= place.size):
        shown = f"rank {place.rank} of {place.size}, local {place.local_rank} of {place.local_size}"
        remedy = f"check the sizes given to {launcher}; {place.way_out}"
        raise InputError("ranks", shown, remedy, problem="is inconsistent", source="environment")
    return place


def _launcher(environment: Mapping[str, str]) -> str | None:
    """Return the launcher that started this process as one of several ranks; None if it is alone."""
    if environment.get("RANK") and environment.get("WORLD_SIZE"):
        return None if environment["WORLD_SIZE"] == "1" else "torchrun"
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "")
    several = tasks.isdecimal() and int(tasks) > 1
    return "srun" if several and not _in_terminal_of_srun(environment) else None


def _in_terminal_of_srun(environment: Mapping[str, str]) -> bool:
    """Return whether this process runs in the terminal of `srun --pty`: the step's other tasks have ended."""
    return "SLURM_PTY_PORT" in environment and os.isatty(0)


def _refuse_mpi(environment: Mapping[str, str]) -> None:
    for name in MPI_SIZES:
        count = environment.get(name, "")
        if count.isdecimal() and int(count) > 1:
            remedy = f"use --gpus, torchrun or srun; if mpirun did not start this process, unset {name}"
            problem = "says that mpirun started several processes, which is not supported"
            raise InputError(name, count, remedy, problem=problem, source="environment")


@dataclass(frozen=True)
class _Variables:
    """The variables of a launcher. The methods raise InputError for variables that are missing or wrong."""

    environment: Mapping[str, str]
    launcher: str

    def text(self, name: str) -> str:
        value = self.environment.get(name)
        if not value:
            remedy = f"start the ranks with {self.launcher}; {way_out(self.launcher)}"
            shown = " ".join(f"{key}={self.environment[key]}" for key in DECIDING[self.launcher])
            problem = f"say that there are several ranks, but {name} is missing"
            raise InputError("ranks", shown, remedy, problem=problem, source="environment")
        return value

    def number(self, name: str, default: str | None = None) -> int:
        value = self.text(name) if default is None else self.environment.get(name) or default
        try:
            return int(value)
        except ValueError:
            remedy = f"start the ranks with {self.launcher}; {way_out(self.launcher)}"
            raise InputError(
                name, value, remedy, problem="is not a whole number", source="environment"
            ) from None


def _torchrun(variables: _Variables) -> Place:
    return Place(
        rank=variables.number("RANK"),
        size=variables.number("WORLD_SIZE"),
        local_rank=variables.number("LOCAL_RANK"),
        local_size=variables.number("LOCAL_WORLD_SIZE"),
        address=variables.text("MASTER_ADDR"),
        port=variables.number("MASTER_PORT"),
        launcher="torchrun",
        attempt=variables.number("TORCHELASTIC_RESTART_COUNT", "0"),
    )


def _srun(variables: _Variables) -> Place:
    environment = variables.environment
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "127.0.0.1")
    job, step = variables.number("SLURM_JOB_ID", "0"), variables.number("SLURM_STEP_ID", "0")
    counts, node = variables.text("SLURM_STEP_TASKS_PER_NODE"), variables.number("SLURM_NODEID", "0")
    try:
        local_size = tasks_per_node(counts)[node]
    except (ValueError, IndexError):
        remedy = f"start the ranks with srun; {way_out('srun')}"
        problem = f"has no count for node {node}"
        raise InputError(
            "SLURM_STEP_TASKS_PER_NODE", counts, remedy, problem=problem, source="environment"
        ) from None
    return Place(
        rank=variables.number("SLURM_PROCID"),
        size=variables.number("SLURM_STEP_NUM_TASKS"),
        local_rank=variables.number("SLURM_LOCALID"),
        local_size=local_size,
        address=environment.get("MASTER_ADDR") or first_host(nodes),
        # ranks must agree on a port without messages, and two steps on a node should not share one
        port=variables.number("MASTER_PORT", str(20000 + (job * 7 + step) % 40000)),
        launcher="srun",
    )


def first_host(nodes: str) -> str:
    """Return the first host of SLURM's compressed list, such as `node[003-007,9]`."""
    match = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\]([^,\[]*))?", nodes)
    return "".join(part or "" for part in match.groups()) if match else nodes


def tasks_per_node(counts: str) -> list[int]:
    """Return the number of tasks on each node from SLURM's compressed list, such as `4(x2),3`."""
    tasks: list[int] = []
    for part in counts.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None:
            raise ValueError(f"SLURM_STEP_TASKS_PER_NODE={counts}")
        tasks += [int(match[1])] * int(match[2] or 1)
    return tasks
