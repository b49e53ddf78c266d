"""Which rank is judged not to answer, by the signs of life of all; and what a rank is known to wait for."""

import time
from dataclasses import replace

import pytest
from oracles.fault_work import Point

from vinfinity.errors import RankError
from vinfinity.parallel.liveness import LOOK, SILENCE, Clock, Judge, Line
from vinfinity.parallel.waits import Waits

LABEL = "temporal attention 1"


def judged(
    lines: list[list[Line]],
    *,
    waits_for: str | None = None,
    host: int | None = None,
    seconds: float = 1.0,
    timeout: float = 3.0,
) -> str | None:
    """What rank 0 says after it has read these lines of all ranks, one list every second."""
    judge = Judge(0, len(lines[0]), timeout=timeout, host=host)
    error: RankError | None = None
    for index, read in enumerate(lines):
        now = (index + 1) * seconds
        judge.read(read, now=now)
        error = judge.look(waits_for, now=now)
        if error is not None:
            return error.message
    return None


def lines(count: int, *, ranks: int = 3, frozen: int | None = None, **states: Line) -> list[list[Line]]:
    """Readings in which the lines of all ranks change, but for one that is frozen. states: of the ranks r0, r1, ..."""
    return [
        [
            replace(states.get(f"r{rank}", Line(0)), beat=0 if rank == frozen else beat)
            for rank in range(ranks)
        ]
        for beat in range(1, count + 1)
    ]


def test_ranks_that_live_are_not_judged() -> None:
    assert judged(lines(20)) is None


def test_a_rank_whose_line_stands_still_is_named() -> None:
    assert judged(lines(20, frozen=2)) == "rank 2 did not answer in time (no sign of life for 3 s)"


def test_a_rank_without_signs_of_life_is_not_given_the_time_of_one_that_works() -> None:
    assert judged(lines(29, frozen=2), timeout=120.0) is None
    found = judged(lines(40, frozen=2), timeout=120.0)
    assert found == f"rank 2 did not answer in time (no sign of life for {SILENCE:g} s)"


def test_a_rank_that_has_left_is_not_missed() -> None:
    assert judged(lines(20, frozen=2, r2=Line(0, left=True))) is None


def test_the_rank_that_does_not_wait_itself_is_named() -> None:
    """Rank 1 hangs; all others wait for each other, and for it."""
    found = judged(lines(20, r2=Line(0, waits_for=LABEL)), waits_for=LABEL)
    assert found == f"rank 1 did not answer in time (waited for it in: {LABEL})"


def test_no_rank_is_named_if_all_wait_for_each_other() -> None:
    waiting = Line(0, waits_for=LABEL)
    found = judged(lines(20, r1=waiting, r2=waiting), waits_for=LABEL)
    assert found is not None
    assert found.startswith(
        f"no messages arrive between the ranks (all wait for each other in: {LABEL}); set NCCL_DEBUG"
    )


def test_waits_that_end_in_time_are_no_fault() -> None:
    """A GPU that waits in every layer, but each time for less than the limit."""
    judge = Judge(0, 2, timeout=3.0)
    for second in range(40):
        judge.read([Line(second), Line(second)], now=float(second))
        assert judge.look(LABEL if second % 3 else None, now=float(second)) is None


@pytest.mark.parametrize(
    ("host", "message"),
    [(2, "rank 2 did not answer in time (no sign of life for 3 s)"), (None, None), (0, None)],
)
def test_a_store_that_does_not_answer_says_something_of_its_host_alone(
    host: int | None, message: str | None
) -> None:
    judge = Judge(0, 3, timeout=3.0, host=host)
    judge.read([Line(1)] * 3, now=1.0)
    assert judge.look(None, now=3.5) is None
    error = judge.look(None, now=9.0)
    assert (error.message if error is not None else None) == message


def test_a_suspended_process_does_not_count_the_time_it_missed() -> None:
    clock = Clock()
    clock._last -= 1000.0
    clock.tick()
    assert clock.seconds <= 10 * LOOK
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
