"""Trends, quantiles and paired tests, against scipy."""

import tracemalloc

import numpy as np
import pytest
from scipy import stats

from vinfinity.evaluation.statistics import CONFIDENCE, DRAWS, Paired, find_trend, paired_test, t_quantile


@pytest.mark.parametrize("freedom", [1, 2, 3, 5, 10, 30, 300])
def test_quantiles_of_students_t_are_scipys(freedom: int) -> None:
    assert t_quantile(0.975, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=0.01)


def test_the_trend_of_independent_noise_is_linear_regression() -> None:
    x, noise = np.arange(200), np.random.default_rng(0).normal(size=200)
    trend = find_trend(3 * x / 199 + noise)
    expected = stats.linregress(x / 199, 3 * x / 199 + noise)
    margin = stats.t.ppf(0.975, 198) * expected.stderr
    assert trend is not None
    assert trend.rise == pytest.approx(expected.slope)
    assert trend.high - trend.rise == pytest.approx(margin, rel=0.1)
    assert trend.steady


def test_intervals_of_correlated_noise_hold_the_truth_as_often_as_they_say() -> None:
    """An AR(1) process without a trend: intervals of plain regression would miss 0 in most cases."""
    generator, missed, plain = np.random.default_rng(1), 0, 0
    for _ in range(200):
        steps = generator.normal(size=400)
        curve = np.zeros(400)
        for t in range(1, 400):
            curve[t] = 0.8 * curve[t - 1] + steps[t]
        trend = find_trend(curve)
        assert trend is not None
        missed += trend.steady
        fit = stats.linregress(np.arange(400), curve)
        plain += fit.pvalue < 0.05
    assert plain > 80
    assert missed < 25


def test_an_exact_line_has_no_interval_and_few_points_no_trend() -> None:
    trend = find_trend(np.linspace(5, 7, 20))
    assert trend is not None
    assert (trend.rise, trend.low, trend.high) == pytest.approx((2, 2, 2))
    assert find_trend(np.array([1.0, np.nan, 2.0, 3.0])) is None


@pytest.mark.parametrize("pairs", [6, 40, 60])
def test_the_paired_test_is_scipys_permutation_test(pairs: int) -> None:
    differences = np.random.default_rng(pairs).normal(0.4, 1, pairs)
    result = paired_test(list(differences))
    expected = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=9999, rng=1
    )
    assert result is not None
    assert result.p == pytest.approx(expected.pvalue, abs=0.01)
    assert result.low < result.mean < result.high
    assert paired_test([1.0]) is None


@pytest.mark.parametrize("pairs", [2, 7, 16])
@pytest.mark.parametrize("digits", [12, 1, 0])
def test_the_paired_test_counts_every_change_of_sign(pairs: int, digits: int) -> None:
    differences = np.round(
        np.random.default_rng(pairs).normal(0.4, 1, pairs), digits
    )  # few digits: many ties
    signs = 1 - 2 * (np.arange(2**pairs)[:, None] >> np.arange(pairs) & 1)
    sums = np.abs((signs * differences).sum(axis=1))
    result = paired_test(list(differences))
    assert result is not None
    assert result.p == pytest.approx((sums >= abs(differences.sum()) - 1e-9).mean(), abs=1e-12)


def test_small_chances_of_the_24_scenes_of_the_study_are_exact() -> None:
    result = paired_test([1.0] * 22 + [0.0, -0.5])
    assert result is not None
    # the ones need one sign; those of 0 and -0.5 are free
    assert result.p == 2 * 4 / 2**24


def drawn_at_once(values: np.ndarray) -> Paired:
    """Return the paired test of more than 40 pairs in its plainest form, with all draws in memory at once."""
    generator, count = np.random.default_rng(0), len(values)
    means = values[generator.integers(count, size=(DRAWS, count))].mean(axis=1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    signs = generator.choice([-1.0, 1.0], size=(DRAWS, count))
    least = abs(values.sum()) - 1e-12 * np.abs(values).sum()
    as_large = np.count_nonzero(np.abs((signs * values).sum(axis=1)) >= least)
    p = float((1 + as_large) / (1 + DRAWS))
    return Paired(count, float(values.mean()), float(low), float(high), p)


@pytest.mark.parametrize("pairs", [41, 60, 127, 1024, 3001])
def test_draws_in_blocks_are_those_of_one_draw_to_the_bit(pairs: int) -> None:
    differences = np.random.default_rng(pairs).normal(1 / np.sqrt(pairs), 1, pairs)
    result = paired_test(list(differences))
    assert result == drawn_at_once(differences)
    assert result is not None
    assert 0.01 < result.p < 0.99


def test_the_paired_test_takes_little_memory_for_thousands_of_pairs() -> None:
    differences = list(np.random.default_rng(0).normal(size=5_000))
    tracemalloc.start()
    paired_test(differences)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # all draws at once would take 800 MB
    assert peak < 16 * 2**20
