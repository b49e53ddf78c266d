"""A process's place among the ranks, as torchrun's and srun's variables give it."""

import pytest
from oracles.launchers import SRUN, TORCHRUN

from vinfinity.errors import InputError
from vinfinity.parallel.place import find_place, first_host, tasks_per_node


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


def test_find_place_is_none_without_a_launcher() -> None:
    assert find_place({}) is None
    # a batch script has its job's variables, but is not a job step
    assert find_place({"SLURM_JOB_ID": "12", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}) is None


@pytest.mark.parametrize(
    "wrong", [{"LOCAL_RANK": "2"}, {"RANK": "8"}, {"WORLD_SIZE": "many"}, {"LOCAL_WORLD_SIZE": "9"}]
)
def test_inconsistent_sizes_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(InputError, match="torchrun"):
        find_place({**TORCHRUN, **wrong})


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
