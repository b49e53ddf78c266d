"""The ways of carrying out UNet calls, from the fastest to the leanest."""

from typing import Any

import pytest
from oracles.settings import run_config

from vinfinity.config import ComputeConfig
from vinfinity.denoise.execution import MIB, Execution, ladder


def rungs(device: str = "cuda", *, branches: int = 2, frames: int = 100, **settings: Any) -> list[Execution]:
    return ladder(run_config(**settings), branches=branches, frames=frames, device=device)


def test_auto_goes_from_fast_to_lean_in_steps_that_each_take_less() -> None:
    short, long = rungs(frames=16), rungs(frames=100)
    assert short[0].branches == 2
    assert short[1:] == long
    assert long[0] == Execution(branches=1, skips="device", chunk_bytes=256 * MIB)
    assert long[-1] == Execution(branches=1, skips="host", chunk_bytes=64 * MIB)


@pytest.mark.parametrize(("memory", "rung"), [("fast", 0), ("low", -1)])
def test_low_and_fast_fix_the_ends(memory: str, rung: int) -> None:
    assert rungs(memory=memory) == [rungs(frames=16)[rung]]


def test_a_cpu_has_no_second_memory_to_keep_skips_in_unless_told() -> None:
    assert {one.skips for one in rungs("cpu")} == {"device"}
    assert {one.skips for one in rungs("cpu", compute=ComputeConfig(skips="host"))} == {"host"}


def test_settings_fix_parts_of_every_rung() -> None:
    for memory in ("auto", "low", "fast"):
        for one in rungs(memory=memory, compute=ComputeConfig(branches=2, chunk=7)):
            assert (one.branches, one.chunk_bytes) == (2, 7 * MIB)


def test_a_rank_with_one_branch_takes_one_at_once() -> None:
    assert {one.branches for one in rungs(branches=1, frames=8, compute=ComputeConfig(branches=2))} == {1}
