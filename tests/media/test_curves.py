"""Seams and drift of curves whose answers are known."""

import numpy as np
import pytest

from vinfinity.media.curves import chance, end_to_end, find_seams


def pairs(frames: int = 40) -> np.ndarray:
    """Return a curve of pairs: nothing at frame 0, and 1 or 1.2 elsewhere."""
    curve = np.where(np.arange(frames) % 2, 1.0, 1.2)
    curve[0] = np.nan
    return curve


def test_a_border_is_compared_with_all_other_pairs_and_with_those_around_it() -> None:
    curve = pairs()
    curve[20] = 3.3
    curve[30:] *= 2
    found = find_seams(curve, [10, 20])
    assert found is not None
    elsewhere = np.delete(curve, [0, 10, 20])
    assert found.elsewhere == pytest.approx(elsewhere.mean())
    assert found.ratio == pytest.approx((1.2 + 3.3) / 2 / elsewhere.mean())
    seam = found.seams[1]
    assert (seam.frame, seam.percentile) == (20, 100)
    assert seam.ratio == pytest.approx(3.3 / elsewhere.mean())
    assert seam.local_ratio == pytest.approx(3.0)
    assert found.worst == seam.ratio


def test_intended_cuts_count_on_neither_side() -> None:
    curve = pairs()
    curve[[10, 20]] = 50
    found = find_seams(curve, [10, 30], without=[10, 20])
    assert found is not None
    assert [seam.frame for seam in found.seams] == [30]
    assert found.ratio == pytest.approx(1.2 / 1.1, rel=0.02)


def test_without_borders_or_pairs_elsewhere_there_is_nothing_to_say() -> None:
    assert find_seams(pairs(), []) is None
    assert find_seams(pairs(), [0, 40, 99]) is None
    assert find_seams(pairs(3), [1, 2]) is None
    unknown = pairs()
    unknown[5] = np.nan
    assert find_seams(unknown, [5]) is None


def test_in_a_frozen_video_there_is_no_ratio() -> None:
    found = find_seams(np.zeros(20), [10])
    assert found is not None
    assert (found.ratio, found.worst) == (None, None)


def test_chance_is_uniform_for_ordinary_borders_and_small_for_seams() -> None:
    generator = np.random.default_rng(0)
    values = []
    for _ in range(60):
        curve = generator.normal(5, 1, 100)
        seams = find_seams(curve, [25, 50, 75])
        assert seams is not None
        values.append(chance(curve, seams, draws=199))
    assert 0.3 < np.mean(values) < 0.7
    assert np.mean(np.array(values) < 0.05) < 0.2
    curve[[25, 50, 75]] += 5
    seams = find_seams(curve, [25, 50, 75])
    assert seams is not None
    assert chance(curve, seams) < 0.01


def test_chance_leaves_intended_cuts_out() -> None:
    curve = np.random.default_rng(0).normal(1, 0.05, 96)
    curve[[20, 40, 60]] = 3
    plain = find_seams(curve, [20, 40, 60])
    cuts = [24, 48, 72]
    curve[cuts] = 60
    seams = find_seams(curve, [20, 40, 60], without=cuts)
    assert plain is not None
    assert seams is not None
    assert seams.ratio == pytest.approx(plain.ratio, rel=0.01)
    assert chance(curve, seams) < 0.002


def test_drift_is_between_the_first_and_last_15_percent() -> None:
    assert end_to_end(np.arange(100.0)) == pytest.approx((7.0, 92.0))
    assert end_to_end(np.array([1.0, np.nan, 5.0])) == (1.0, 5.0)
    first, last = end_to_end(np.array([np.nan, 2.0, 3.0]))
    assert np.isnan(first)
    assert last == 3
