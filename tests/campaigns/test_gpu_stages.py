"""Stages of the scripts that try GPUs, on a pretend GPU: the parts of them that run on GPUs only."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from oracles.disturbed_runs import Ended
from oracles.machines import machine
from oracles.pretend.device import PretendCuda

from vinfinity.bench.gpus import Trial
from vinfinity.bench.stages import Figure, Stage

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs here")


def load(path: str) -> ModuleType:
    """Return a script as a module."""
    name = path.replace("/", "_").removesuffix(".py")
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


TEST, BENCH = load("tests/campaigns/gpu.py"), load("benchmarks/gpu.py")


def figures(script: ModuleType, name: str, folder: Path) -> list[Figure]:
    """Return the figures of a stage on the pretend GPU, at tiny sizes."""
    stages: dict[str, Stage[Trial]] = {stage.name: stage for stage in script.STAGES}
    trial = Trial(device="cuda", ranks=1, quick=True, folder=folder, facts=machine(), faults=())
    with PretendCuda():
        return list(stages[name].run(trial))


@pytest.mark.parametrize(
    "name", ["attention", "against-cpu", pytest.param("half-precision", marks=pytest.mark.slow)]
)
def test_a_stage_of_the_trial_passes_on_a_pretend_gpu(name: str, tmp_path: Path) -> None:
    found = figures(TEST, name, tmp_path)
    assert [figure.line for figure in found if figure.passed is False] == []
    assert any(figure.passed for figure in found)


def test_calls_take_the_memory_that_was_traced(tmp_path: Path) -> None:
    found = figures(BENCH, "calls", tmp_path)
    # the time of a pretend GPU says nothing
    failed = [figure.line for figure in found if figure.passed is False and "time to that" not in figure.name]
    assert failed == []
    named = [figure.name for figure in found]
    for words in ("allocated to the trace", "reserved", "retries of the allocator"):
        assert sum(words in name for name in named) == 4


@pytest.mark.parametrize("name", ["cudnn-attention", "decoding"])
def test_a_stage_of_the_measurements_passes_on_a_pretend_gpu(name: str, tmp_path: Path) -> None:
    found = figures(BENCH, name, tmp_path)
    assert [figure.line for figure in found if figure.passed is False] == []
    assert found


def test_the_limits_of_memory_lie_between_the_needs_of_executions_and_above_decoding() -> None:
    """So a run can only fail in its steps, and a process within a limit between two needs must take the leaner one."""
    traced = TEST.traced_memory("cpu")
    ample, *between, too_little = TEST.memory_limits(traced)
    needs = sorted({memory.step.device for memory in traced}, reverse=True)
    assert len(needs) == len(between) + 1 >= 2
    assert ample > needs[0]
    for limit, more, less in zip(between, needs, needs[1:], strict=False):
        # with room for the allocator and the workspaces of libraries
        assert 1.15 * less + 64 * 2**20 < limit < 0.95 * more
    assert needs[-1] > too_little > 1.2 * traced[0].decoding.device

    def passes(limit: float, code: int, message: str = "", rung: int | None = None) -> bool:
        found = list(TEST.judged(traced, limit, Ended(code, 1.0, message), rung))
        return all(figure.passed is not False for figure in found)

    leanest, refused = len(traced) - 1, "error: cuda:0: out of memory; try memory=low"
    assert passes(ample, 0, rung=0)
    assert not passes(ample, 0, rung=leanest)
    for limit in between:
        assert passes(limit, 0, rung=leanest)
        # a ladder that never goes down fails here, or has not been limited
        assert not passes(limit, 2, refused)
        assert not passes(limit, 0, rung=0)
    assert passes(too_little, 2, refused)
    assert not passes(too_little, 1, "error: RuntimeError: CUDA error")
    assert not passes(too_little, 0, rung=leanest)
