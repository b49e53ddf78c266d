"""Timings of a pretend GPU: the clock is read when the device has nothing left to do."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from oracles.pretend.clocks import HOST
from oracles.pretend.device import PretendCuda
from torch.profiler import profile

from vinfinity.bench import calls
from vinfinity.bench.calls import measure_call, profile_call, timed
from vinfinity.bench.subjects import find_subject
from vinfinity.bench.timing import time_in_turn
from vinfinity.denoise.execution import MIB, Execution


@pytest.fixture
def cuda() -> Iterator[PretendCuda]:
    with PretendCuda() as cuda:
        yield cuda


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda", 0)


def is_idle(cuda: PretendCuda, device: torch.device) -> bool:
    """Whether the host has waited for all that the device was given."""
    stream = cuda.stream(device).name
    return cuda.clocks.knows(HOST, stream, cuda.clocks.now(stream).get(stream, 0))


@pytest.fixture
def idle(cuda: PretendCuda, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each reading of the clock, whether the device was idle."""
    found: list[bool] = []
    real = time.perf_counter

    def perf_counter() -> float:
        found.append(is_idle(cuda, device))
        return real()

    monkeypatch.setattr(time, "perf_counter", perf_counter)
    return found


@pytest.fixture
def work(cuda: PretendCuda, device: torch.device) -> Callable[[], object]:
    x = torch.ones(4, device=device)
    return partial(torch.add, x, x)


def test_a_call_is_timed_to_its_end(
    work: Callable[[], object], idle: list[bool], device: torch.device
) -> None:
    timed(work, device)
    timed(work, device)
    assert idle[1:] == [True] * 3


def test_calls_in_turn_are_timed_to_their_ends(work: Callable[[], object], idle: list[bool]) -> None:
    time_in_turn({"one": work, "other": work}, rounds=2)
    assert idle[1:] == [True] * (len(idle) - 1)
    assert len(idle) >= 2 * 2 * 2


def test_the_warming_up_of_a_measured_call_is_not_timed(idle: list[bool], device: torch.device) -> None:
    subject = find_subject("mini", size=(32, 32))
    network = subject.load(torch.float32, str(device))
    execution = Execution(branches=1, skips="device", chunk_bytes=MIB)
    measure_call(subject, network, frames=4, execution=execution, rounds=2)
    assert idle == [True] * 4


def test_a_profile_begins_and_ends_with_an_idle_device(
    cuda: PretendCuda, work: Callable[[], object], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[bool] = []

    class Profile(profile):
        def __enter__(self) -> Any:
            found.append(is_idle(cuda, device))
            return super().__enter__()

        def __exit__(self, *error: Any) -> None:
            found.append(is_idle(cuda, device))
            super().__exit__(*error)

    monkeypatch.setattr(calls, "profile", Profile)
    work()
    profile_call(work, device)
    assert found == [True, True]
