"""Plans leave enough for torch's allocator on a GPU, by a model of it that carries out real allocations."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from oracles.allocators import (
    MIB,
    Allocator,
    ExpandableAllocator,
    OutOfCapacity,
    SegmentAllocator,
    replay,
    step_events,
)

from vinfinity.denoise.execution import Execution
from vinfinity.denoise.samplers import DPMSolverPP
from vinfinity.denoise.schedule import SchedulerConfig
from vinfinity.models.unet3d.configs import UNetConfig
from vinfinity.models.unet3d.family import UNET3D
from vinfinity.parallel.scopes import Scopes
from vinfinity.parallel.shards import FrameShards
from vinfinity.planning.memory import allocator_overhead
from vinfinity.planning.trace import CallShape, trace_step

SAMPLER = DPMSolverPP(SchedulerConfig(), 30, stochastic=True)


@dataclass(frozen=True)
class Run:
    """VideoCrafter2 at 512x320 in fp16. frames: of the whole video."""

    frames: int
    ranks: int
    branches: int
    chunk: int

    @property
    def shape(self) -> CallShape:
        return CallShape(
            family=UNET3D,
            config=UNetConfig(fps_cond=True),
            shards=FrameShards(self.frames, self.ranks),
            rank=self.ranks // 2,
            latent_size=(40, 64),
            scopes=Scopes(anchor_bias=10.0),
            dtype=torch.float16,
        )

    @property
    def execution(self) -> Execution:
        return Execution(branches=self.branches, skips="device", chunk_bytes=self.chunk * MIB)


RUNS = {
    "8 x 288 frames, 256 MiB": Run(2300, 8, branches=1, chunk=256),
    "8 x 288 frames, 64 MiB": Run(2300, 8, branches=1, chunk=64),
    "1 x 600 frames, 64 MiB": Run(600, 1, branches=1, chunk=64),
    "1 x 900 frames, 256 MiB": Run(900, 1, branches=1, chunk=256),
    "1 x 100 frames, both branches, 256 MiB": Run(100, 1, branches=2, chunk=256),
}
SHORT = ("1 x 100 frames, both branches, 256 MiB", "8 x 288 frames, 256 MiB")


@pytest.mark.parametrize(
    "name", [name if name in SHORT else pytest.param(name, marks=pytest.mark.slow) for name in RUNS]
)
@pytest.mark.parametrize(
    ("settings", "allocator"),
    [("expandable_segments:True", ExpandableAllocator), ("expandable_segments:False", SegmentAllocator)],
)
def test_a_step_fits_into_the_memory_that_is_planned_for_it(
    name: str,
    settings: str,
    allocator: Callable[[float], Allocator],
    monkeypatch: pytest.MonkeyPatch,
    record_worst: Callable[[str, float], None],
) -> None:
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", settings)
    run = RUNS[name]
    events = step_events(run.shape, run.execution, SAMPLER, branches=2, few_pieces=name in SHORT)
    planned = trace_step(run.shape, run.execution, SAMPLER, branches=2).device
    # without the parts of memory in which the plan is an upper bound
    assert events.peak <= planned <= 1.02 * events.peak
    unlimited = allocator(math.inf)
    replay(events, unlimited)
    record_worst(f"{name}, {settings}: planned, GB", planned / 1e9)
    record_worst(f"{name}, {settings}: reserved of planned", unlimited.peak / planned)
    replay(events, allocator(allocator_overhead("cuda") * planned))


def test_without_expandable_segments_a_step_does_not_fit_into_a_tenth_more_than_its_tensors() -> None:
    """The reason why they are on by default."""
    run = RUNS[SHORT[0]]
    events = step_events(run.shape, run.execution, SAMPLER, branches=2, few_pieces=True)
    replay(events, ExpandableAllocator(1.10 * events.peak))
    with pytest.raises(OutOfCapacity):
        replay(events, SegmentAllocator(1.10 * events.peak))


# ---- the models themselves ----


def test_small_and_large_allocations_reserve_whole_segments() -> None:
    for allocator, large in ((SegmentAllocator(math.inf), 20), (ExpandableAllocator(math.inf), 20)):
        allocator.allocate(1, 700)
        assert allocator.peak == 2 * MIB
        allocator.allocate(2, 3 * MIB)
        assert allocator.peak == (2 + large) * MIB
    single = SegmentAllocator(math.inf)
    single.allocate(1, 10 * MIB + 1)
    assert single.peak == 12 * MIB


def test_freed_neighbours_merge_and_are_used_again() -> None:
    for allocator in (SegmentAllocator(math.inf), ExpandableAllocator(math.inf)):
        for key in range(3):
            allocator.allocate(key, 6 * MIB)
        for key in (0, 2, 1):
            allocator.free(key)
        allocator.allocate(3, 20 * MIB)
        assert allocator.peak == 20 * MIB


def test_a_gap_between_blocks_is_lost_to_segments_but_not_to_expandable_ones() -> None:
    """Two gaps of 20 MiB do not hold 40 MiB together; the pages of an expandable segment can move."""
    for allocator, fits in ((SegmentAllocator(300 * MIB), False), (ExpandableAllocator(300 * MIB), True)):
        for key in range(5):
            allocator.allocate(key, 60 * MIB)
        for key in (1, 3):
            allocator.free(key)
            # the first of these leaves 20 MiB, too little for the second
            allocator.allocate(10 + key, 40 * MIB)
        if fits:
            allocator.allocate(20, 40 * MIB)
            assert allocator.flushes == 1
        else:
            with pytest.raises(OutOfCapacity):
                allocator.allocate(20, 40 * MIB)
