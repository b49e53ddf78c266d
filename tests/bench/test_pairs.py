"""Messages between each two ranks."""

from vinfinity.bench.pairs import measure_pairs


def test_every_pair_of_ranks_is_measured() -> None:
    found = measure_pairs(ranks=3, sizes=(1000, 4096), rounds=1, device="cpu")
    assert [(pair.first, pair.second, pair.size) for pair in found] == [
        (first, second, size) for first, second in ((0, 1), (0, 2), (1, 2)) for size in (1000, 4096)
    ]
    assert all(pair.intact and pair.rate > 0 for pair in found)
