"""Which rank counts as lost, by the heartbeats of all; and what a rank is known to wait for."""

import time
from dataclasses import replace

import pytest
from oracles.fault_work import Point

from vinfinity.errors import RankError
from vinfinity.parallel.liveness import CHECK_SECONDS, SILENCE_SECONDS, Clock, Heartbeat, HeartbeatMonitor
from vinfinity.parallel.waits import Waits

LABEL = "temporal attention 1"


def found_by_rank_0(
    heartbeats: list[list[Heartbeat]],
    *,
    waits_for: str | None = None,
    host: int | None = None,
    seconds: float = 1.0,
    timeout: float = 3.0,
) -> str | None:
    """Return the error that rank 0 raises after it has read these heartbeats of all ranks, one list every second."""
    monitor = HeartbeatMonitor(0, len(heartbeats[0]), timeout=timeout, host=host)
    error: RankError | None = None
    for index, read in enumerate(heartbeats):
        now = (index + 1) * seconds
        monitor.update(read, now=now)
        error = monitor.find_lost_rank(waits_for, now=now)
        if error is not None:
            return error.message
    return None


def heartbeats(
    count: int, *, ranks: int = 3, frozen: int | None = None, **states: Heartbeat
) -> list[list[Heartbeat]]:
    """Return readings in which every rank but a frozen one has a new heartbeat each time.

    states: what ranks r0, r1, ... are doing.
    """
    return [
        [
            replace(states.get(f"r{rank}", Heartbeat(0)), beat=0 if rank == frozen else beat)
            for rank in range(ranks)
        ]
        for beat in range(1, count + 1)
    ]


def test_ranks_with_heartbeats_are_not_lost() -> None:
    assert found_by_rank_0(heartbeats(20)) is None


def test_a_rank_whose_heartbeat_stops_is_named() -> None:
    assert found_by_rank_0(heartbeats(20, frozen=2)) == "rank 2 did not answer in time (no heartbeat for 3 s)"


def test_a_rank_without_heartbeats_is_not_given_the_time_of_one_that_works() -> None:
    assert found_by_rank_0(heartbeats(29, frozen=2), timeout=120.0) is None
    found = found_by_rank_0(heartbeats(40, frozen=2), timeout=120.0)
    assert found == f"rank 2 did not answer in time (no heartbeat for {SILENCE_SECONDS:g} s)"


def test_a_rank_that_has_left_is_not_missed() -> None:
    assert found_by_rank_0(heartbeats(20, frozen=2, r2=Heartbeat(0, left=True))) is None


def test_the_rank_that_does_not_wait_itself_is_named() -> None:
    """Rank 1 hangs; all others wait for each other, and for it."""
    found = found_by_rank_0(heartbeats(20, r2=Heartbeat(0, waits_for=LABEL)), waits_for=LABEL)
    assert found == f"rank 1 did not answer in time (waited for it in: {LABEL})"


def test_no_rank_is_named_if_all_wait_for_each_other() -> None:
    waiting = Heartbeat(0, waits_for=LABEL)
    found = found_by_rank_0(heartbeats(20, r1=waiting, r2=waiting), waits_for=LABEL)
    assert found is not None
    assert found.startswith(
        f"no messages arrive between the ranks (all wait for each other in: {LABEL}); try NCCL_P2P_DISABLE=1"
    )


def test_waits_that_end_in_time_are_no_fault() -> None:
    """A GPU that waits in every layer, but each time for less than the limit."""
    monitor = HeartbeatMonitor(0, 2, timeout=3.0)
    for second in range(40):
        monitor.update([Heartbeat(second), Heartbeat(second)], now=float(second))
        assert monitor.find_lost_rank(LABEL if second % 3 else None, now=float(second)) is None


@pytest.mark.parametrize(
    ("host", "message"),
    [(2, "rank 2 did not answer in time (no heartbeat for 3 s)"), (None, None), (0, None)],
)
def test_a_store_that_does_not_answer_says_something_of_its_host_alone(
    host: int | None, message: str | None
) -> None:
    monitor = HeartbeatMonitor(0, 3, timeout=3.0, host=host)
    monitor.update([Heartbeat(1)] * 3, now=1.0)
    assert monitor.find_lost_rank(None, now=3.5) is None
    error = monitor.find_lost_rank(None, now=9.0)
    assert (error.message if error is not None else None) == message


def test_a_suspended_process_does_not_count_the_time_it_missed() -> None:
    clock = Clock()
    clock._last -= 1000.0
    clock.tick()
    assert clock.seconds <= 10 * CHECK_SECONDS
    before = clock.seconds
    time.sleep(0.02)
    clock.tick()
    assert clock.seconds > before


def test_a_gpu_waits_if_it_has_reached_a_message_that_is_not_there() -> None:
    reached, answered = Point(passed=False), Point(passed=False)
    points = iter([Point(passed=True), Point(passed=True), reached, answered])
    waits = Waits(lambda: next(points))
    assert waits.device is None
    for label in "temporal convolution", LABEL:
        with waits.on_device(label):
            pass
    # still busy with what comes before
    assert waits.device is None
    reached.passed = True
    assert waits.device == LABEL
    answered.passed = True
    assert waits.device is None


def test_answered_waits_are_not_kept() -> None:
    waits = Waits(lambda: Point(passed=True))
    for _ in range(1000):
        with waits.on_device(LABEL):
            pass
    assert len(waits._device) <= 2


def test_the_host_waits_inside_its_block() -> None:
    waits = Waits()
    with waits.on_host("collecting facts"):
        assert waits.host == "collecting facts"
    assert waits.host is None
