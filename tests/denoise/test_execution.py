"""The trade-offs between speed and memory of a network call, from the fastest to the leanest."""

from typing import Any

import pytest
from oracles.settings import run_config

from vinfinity.config import ComputeConfig
from vinfinity.denoise.execution import MIB, Execution, ladder


def rungs(device: str = "cuda", *, branches: int = 2, frames: int = 100, **settings: Any) -> list[Execution]:
    return ladder(run_config(**settings), branches=branches, frames=frames, device=device)


def test_auto_offers_executions_from_the_fastest_to_the_leanest() -> None:
    short, long = rungs(frames=16), rungs(frames=100)
    assert short[0].branches == 2
    assert short[1:] == long
    assert long[0] == Execution(branches=1, skips="device", chunk_bytes=256 * MIB)
    assert long[-1] == Execution(branches=1, skips="host", chunk_bytes=64 * MIB)


@pytest.mark.parametrize(("memory", "rung"), [("fast", 0), ("low", -1)])
def test_fast_and_low_choose_the_two_ends(memory: str, rung: int) -> None:
    assert rungs(memory=memory) == [rungs(frames=16)[rung]]


def test_a_cpu_keeps_skips_on_the_device_unless_set_otherwise() -> None:
    assert {one.skips for one in rungs("cpu")} == {"device"}
    assert {one.skips for one in rungs("cpu", compute=ComputeConfig(skips="host"))} == {"host"}


def test_settings_override_every_rung() -> None:
    for memory in ("auto", "low", "fast"):
        for one in rungs(memory=memory, compute=ComputeConfig(branches=2, chunk=7)):
            assert (one.branches, one.chunk_bytes) == (2, 7 * MIB)


def test_a_rank_with_one_branch_computes_one_at_a_time() -> None:
    assert {one.branches for one in rungs(branches=1, frames=8, compute=ComputeConfig(branches=2))} == {1}
