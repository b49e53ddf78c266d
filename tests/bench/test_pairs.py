"""Messages between each two ranks."""

from functools import partial

import pytest
from oracles.pretend.ranks import on_pretend_ranks

from vinfinity.bench.pairs import PairRequest, _measure_on_rank, fewest_lanes, least_rate, measure_pairs
from vinfinity.machine.nvidia import Link


def test_every_pair_of_ranks_is_measured() -> None:
    found = measure_pairs(ranks=3, sizes=(1000, 4096), rounds=1, device="cpu")
    assert [(pair.first, pair.second, pair.size) for pair in found] == [
        (first, second, size) for first, second in ((0, 1), (0, 2), (1, 2)) for size in (1000, 4096)
    ]
    assert all(pair.intact and pair.rate > 0 for pair in found)


def test_pairs_of_pretend_gpus_are_measured() -> None:
    request = PairRequest(sizes=(4096,), rounds=1)
    outcomes = on_pretend_ranks(partial(_measure_on_rank, request), ranks=3)
    assert [outcome.error for outcome in outcomes] == [None] * 3
    first = outcomes[0].result
    assert [(pair.first, pair.second) for pair in first] == [(0, 1), (0, 2), (1, 2)]
    assert all(pair.intact and pair.rate > 0 for pair in first)
    assert all(outcome.findings.races == [] for outcome in outcomes)
    for outcome in outcomes:
        # each rank exchanges once with both others, and twice with each of them; however many exchanges follow each
        # other, the device waits before the first and after the last
        assert len(outcome.findings.waits_in("bench/pairs.py:seconds")) == 2 * (1 + 2 * 2)


@pytest.mark.parametrize(
    ("kinds", "lanes", "rate"),
    [
        ((), 0, 8e9),
        (("PHB",), 0, 8e9),
        (("NV4",), 4, 25e9),
        (("NV12", "NV12", "NV12"), 12, 75e9),
        (("NV18",), 18, 112.5e9),
        (("NV4", "SYS", "SYS"), 0, 8e9),
        (("NV1", "NV2", "NV1"), 1, 8e9),
    ],
)
def test_pairs_should_reach_half_of_what_the_lanes_between_them_have(
    kinds: tuple[str, ...], lanes: int, rate: float
) -> None:
    links = [Link(first=0, second=1, kind=kind) for kind in kinds]
    assert fewest_lanes(links) == lanes
    assert least_rate(links) == rate
