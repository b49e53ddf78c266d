"""A process's place among the ranks, as torchrun's and srun's variables give it."""

import os

import pytest
from oracles.launchers import SRUN, TORCHRUN

from vinfinity.errors import InputError
from vinfinity.parallel.place import find_place, first_host, is_rank, tasks_per_node


def test_find_place_reads_torchrun() -> None:
    place = find_place(TORCHRUN)
    assert place is not None
    assert (place.rank, place.size, place.local_rank, place.local_size) == (3, 8, 1, 2)
    assert (place.launcher, place.address) == ("torchrun", "n0")


def test_find_place_reads_srun() -> None:
    place = find_place(SRUN)
    assert place is not None
    assert (place.rank, place.size, place.local_rank, place.local_size) == (4, 5, 0, 1)
    assert (place.launcher, place.address) == ("srun", "node003")


@pytest.mark.parametrize(
    "environment",
    [
        {},
        # one process is alone, whatever started it
        {**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
        {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "12355"},
        {**SRUN, "SLURM_STEP_NUM_TASKS": "1"},
        # a part of torchrun's variables that says nothing about other ranks
        {"LOCAL_RANK": "0", "MASTER_ADDR": "n0", "MASTER_PORT": "29500"},
        {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "many"},
        {"RANK": "", "WORLD_SIZE": ""},
        # a batch script and a shell of salloc have their job's variables, but are not a job step
        {"SLURM_JOB_ID": "12", "SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_TASKS_PER_NODE": "4"},
        {"OMPI_COMM_WORLD_SIZE": "1", "PMI_RANK": "0", "PMI_SIZE": "1"},
    ],
)
def test_a_process_that_is_alone_has_no_place(environment: dict[str, str]) -> None:
    assert find_place(environment) is None
    assert not is_rank(environment)


def test_a_terminal_of_srun_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = {**SRUN, "SLURM_PTY_PORT": "34889"}
    assert is_rank(inside)
    terminal, other = os.openpty()
    stdin = os.dup(0)
    os.dup2(other, 0)
    try:
        assert find_place(inside) is None
    finally:
        os.dup2(stdin, 0)
        for number in (stdin, terminal, other):
            os.close(number)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"RANK": "0", "WORLD_SIZE": "8", "MASTER_ADDR": "n0", "MASTER_PORT": "29500"},
            "ranks: RANK=0 WORLD_SIZE=8 (environment) say that there are several ranks, but LOCAL_RANK is missing; "
            "start the ranks with torchrun; if torchrun did not start this process, unset RANK WORLD_SIZE",
        ),
        (
            {**TORCHRUN, "LOCAL_RANK": "2"},
            "is inconsistent; check the sizes given to torchrun; if torchrun did",
        ),
        ({**TORCHRUN, "RANK": "8"}, "ranks: rank 8 of 8, local 1 of 2 (environment) is inconsistent;"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "9"}, "unset RANK WORLD_SIZE"),
        (
            {**TORCHRUN, "WORLD_SIZE": "many"},
            "WORLD_SIZE: many (environment) is not a whole number; start the",
        ),
        ({**TORCHRUN, "MASTER_PORT": "http"}, "MASTER_PORT: http (environment) is not a whole number;"),
        (
            {**SRUN, "SLURM_JOB_ID": "x"},
            "SLURM_JOB_ID: x (environment) is not a whole number; start the ranks",
        ),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "4"}, "unset SLURM_STEP_NUM_TASKS"),
        (
            {"SLURM_STEP_NUM_TASKS": "4"},
            "SLURM_STEP_NUM_TASKS=4 (environment) say that there are several ranks",
        ),
        (
            {"OMPI_COMM_WORLD_SIZE": "4"},
            "OMPI_COMM_WORLD_SIZE: 4 (environment) says that mpirun started several processes, which is not "
            "supported; use --gpus, torchrun or srun; if mpirun did not start this process, unset OMPI_COMM_WORLD",
        ),
    ],
)
def test_unusable_variables_are_refused_with_what_to_unset(environment: dict[str, str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        find_place(environment)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("n1", "n1"),
        ("node[003-007,9]", "node003"),
        ("a1,b2", "a1"),
        ("gpu[1,3]-ib", "gpu1-ib"),
        ("n-[2]", "n-2"),
    ],
)
def test_first_host_of_a_node_list(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_tasks_per_node_expands_repetitions() -> None:
    assert tasks_per_node("4(x2),3") == [4, 4, 3]
