"""Intervals, tests, corrections, placebo ranks: against scipy, by hand, by brute force, and in simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats

from llm_entropy.outputs.comparison import Moments
from llm_entropy.outputs.inference.corrections import benjamini_hochberg, holm
from llm_entropy.outputs.inference.placebo_ranks import placebo_ranks
from llm_entropy.outputs.inference.resampling import (
    LARGEST_RESAMPLED,
    _whole_numbers,
    bootstrap_interval,
    packed,
    sign_flip_test,
)
from llm_entropy.outputs.inference.student import t_interval, t_test

NAN = np.nan


def seeded(*shape: int, seed: int = 0) -> np.ndarray:
    """Return skewed numbers around 0.3, a column each of another size."""
    numbers = np.random.default_rng(seed).gamma(2.0, 1.0, shape) - 1.7
    return numbers * np.geomspace(1e-6, 1e6, shape[1])


def test_the_bootstrap_interval_is_that_of_scipy_with_the_same_resamples():
    values = seeded(30, 5)
    # scipy draws the same integers from the same generator; the stream of n sentences is (seed, 0, n)
    generator = np.random.default_rng([7, 0, 30])
    expected = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, axis=0, method="BCa", random_state=generator
    )
    interval = bootstrap_interval(values, 7)
    np.testing.assert_allclose(interval.low, expected.confidence_interval.low, rtol=1e-9)
    np.testing.assert_allclose(interval.high, expected.confidence_interval.high, rtol=1e-9)


@pytest.mark.parametrize("num_sentences", [1, 2, 8, 12])
def test_few_sentences_are_tested_by_all_flips_of_their_signs(num_sentences):
    values = seeded(num_sentences, 4)
    values[:, 3] = np.resize([1.0, -1.0, 2.0, 2.0], num_sentences)  # ties
    means = [np.array(signs) @ values for signs in itertools.product([1, -1], repeat=num_sentences)]
    expected = (np.abs(means) >= np.abs(values.sum(axis=0)) * (1 - 1e-9)).mean(axis=0)
    np.testing.assert_array_equal(sign_flip_test(values, 0), expected)


def test_the_smallest_tests_by_hand():
    assert sign_flip_test([[3.0]], 0) == 1.0
    assert sign_flip_test([[3.0], [1.0]], 0) == 0.5
    assert sign_flip_test(np.ones((8, 1)), 0) == 2 / 2**8
    # of the signs of 1, 1, 2 those with abs(sum) >= 2: the two of 4, and four of 2
    assert sign_flip_test([[1.0], [-1.0], [2.0]], 0) == 6 / 8


@pytest.mark.parametrize("num_sentences", [9, 40])
def test_the_permutation_test_agrees_with_that_of_scipy(num_sentences):
    values = seeded(num_sentences, 6, seed=3)
    expected = scipy.stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=10_000, axis=0, vectorized=True, random_state=1
    )
    p_values = sign_flip_test(values, 0)
    # exact, or twice 10,000 independent flips: five standard errors of their difference
    budget = 1e-12 if num_sentences <= 12 else 5 * np.sqrt(2 * p_values * (1 - p_values) / 10_000) + 2e-4
    assert (np.abs(p_values - expected.pvalue) <= budget).all()


def test_what_random_flips_never_reach_has_one_in_ten_thousand_and_one():
    np.testing.assert_array_equal(sign_flip_test(1 + seeded(50, 1) * 1e-3, 0), 1 / 10_001)


def test_flips_that_are_as_large_on_paper_count_whatever_rounding_does():
    tenths = np.random.default_rng(0).integers(-3, 5, (40, 200))
    np.testing.assert_array_equal(sign_flip_test(tenths * 0.1, 0), sign_flip_test(tenths, 0))


def test_means_that_are_the_same_on_paper_are_ties_of_the_bootstrap():
    tenths = np.random.default_rng(0).integers(-3, 5, (40, 200)).astype(float)
    exact, rounded = bootstrap_interval(tenths, 0), bootstrap_interval(tenths * 0.1, 0)
    np.testing.assert_allclose(rounded, np.array(exact) * 0.1, atol=1e-12)


def test_differences_that_are_all_the_same_are_their_own_interval():
    interval = bootstrap_interval(np.full((30, 3), [0.1, 0.0, -7.0]), 0)
    np.testing.assert_array_equal(interval.low, [0.1, 0.0, -7.0])
    np.testing.assert_array_equal(interval.high, [0.1, 0.0, -7.0])
    np.testing.assert_array_equal(sign_flip_test(np.zeros((30, 2)), 0), 1.0)
    np.testing.assert_array_equal(sign_flip_test(np.zeros((5, 2)), 0), 1.0)


def test_an_interval_lies_within_the_numbers_that_it_is_of():
    changed = np.zeros((13, 1))
    changed[4] = -1.0  # of thirteen answers one is no longer right: the end that is 0 is exactly that
    interval = bootstrap_interval(changed, 0)
    assert interval.high[0] == 0.0
    assert -1.0 <= interval.low[0] < 0.0


def test_too_few_sentences_give_no_interval():
    for count in (0, 1):
        assert np.isnan(bootstrap_interval(np.ones((count, 2)), 0)).all()
        assert np.isnan(t_interval([count], [NAN if count == 0 else 1.0], [NAN])).all()
    assert np.isnan(sign_flip_test(np.ones((0, 2)), 0)).all()
    low, high = bootstrap_interval([[1.0], [2.0]], 0)
    assert (low, high) == (1.0, 2.0)


@pytest.mark.parametrize("num_sentences", [10, 50])
def test_a_column_with_gaps_gives_what_its_finite_numbers_alone_give(num_sentences):
    full = seeded(num_sentences, 6)
    gaps = np.vstack([full[:4], np.full((3, 6), [NAN, np.inf, -np.inf, NAN, NAN, NAN]), full[4:]])
    gaps[0, 5] = NAN  # another count than the rest
    np.testing.assert_array_equal(packed(gaps, num_sentences)[:, :5], full[:, :5])
    for function in (bootstrap_interval, sign_flip_test):
        with_gaps, alone = np.array(function(gaps, 0)), np.array(function(full[:, :5], 0))
        np.testing.assert_array_equal(with_gaps[..., :5], alone)
        np.testing.assert_array_equal(with_gaps[..., 5:], np.array(function(full[1:, 5:], 0)))


def test_the_numbers_of_a_column_do_not_depend_on_its_neighbours_to_the_last_bit():
    values = seeded(200, 300)
    for function in (bootstrap_interval, sign_flip_test):
        together = np.array(function(values, 0))
        for some in (slice(5, 6), slice(250, 300)):
            np.testing.assert_array_equal(np.array(function(values[:, some], 0)), together[..., some])
        assert not np.array_equal(function(values, 1), together)


def test_sums_of_resamples_are_exact_in_any_order():
    # Of the largest sums that occur: otherwise they would depend on how many threads multiply the matrices
    whole, unit = _whole_numbers(np.random.default_rng(0).normal(5, 1, (3, LARGEST_RESAMPLED)))
    largest = [sum(int(number) for number in row) for row in whole]
    np.testing.assert_array_equal(whole[:, ::-1].sum(axis=1), largest)
    np.testing.assert_array_equal(whole[:, ::-1].cumsum(axis=1)[:, -1], largest)
    assert max(abs(int(number)) for number in whole.ravel()) * LARGEST_RESAMPLED < 2**53
    np.testing.assert_array_equal(np.frexp(unit)[0], 0.5)


def test_the_t_interval_and_the_t_test_are_those_of_scipy():
    before, after = seeded(50, 4), seeded(50, 4, seed=1)
    moments = Moments.of(after - before)
    numbers = moments.count, moments.mean, moments.sample_deviation
    expected = scipy.stats.ttest_rel(after, before)
    np.testing.assert_allclose(t_test(*numbers), expected.pvalue, rtol=1e-9)
    np.testing.assert_allclose(t_interval(*numbers), expected.confidence_interval(0.95), rtol=1e-9)


def test_the_t_test_of_differences_without_spread_is_sure():
    np.testing.assert_array_equal(t_test([9, 9, 1, 0], [0.0, 2.0, 2.0, NAN], [0.0, 0.0, NAN, NAN]), [1, 0, NAN, NAN])
    np.testing.assert_array_equal(t_interval([9], [2.0], [0.0]), [[2.0], [2.0]])


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, NAN, 0.04, 0.03, 0.005]), [0.03, NAN, 0.06, 0.06, 0.02], rtol=1e-12)
    np.testing.assert_array_equal(holm([0.6, 0.5, 0.9]), 1.0)
    np.testing.assert_array_equal(holm([0.02, 0.02]), 0.04)
    np.testing.assert_array_equal(holm([NAN, NAN]), NAN)
    assert holm([]).shape == (0,)


def test_benjamini_hochberg_is_that_of_scipy_and_leaves_out_what_was_not_tested():
    p_values = np.random.default_rng(0).uniform(size=20) ** 3
    with_gaps = np.insert(p_values, [0, 7, 20], NAN)
    expected = np.insert(scipy.stats.false_discovery_control(p_values), [0, 7, 20], NAN)
    np.testing.assert_array_equal(benjamini_hochberg(with_gaps), expected)
    np.testing.assert_allclose(benjamini_hochberg([0.01, 0.04, 0.03, 0.005]), [0.02, 0.04, 0.04, 0.02], rtol=1e-12)
    np.testing.assert_array_equal(benjamini_hochberg([NAN]), NAN)


def test_the_ranks_among_placebos_by_hand():
    placebos = [[1.0, 0.0, 3.0, NAN], [-2.0, 0.0, NAN, NAN], [0.0, 0.0, 1.0, NAN], [1.0, 0.0, -1.0, NAN]]
    ranks = placebo_ranks([-2.0, 0.0, NAN, 1.0], placebos)
    np.testing.assert_allclose(ranks.p_value, [2 / 5, 1.0, NAN, NAN])  # a tie counts as at least as large
    np.testing.assert_allclose(ranks.z, [-2 / np.sqrt(2), 0.0, NAN, NAN])
    beyond = placebo_ranks([9.0], np.arange(-3.0, 4.0)[:, None])
    assert beyond.p_value == 1 / 8
    np.testing.assert_allclose(beyond.z, 9 / np.arange(-3.0, 4.0).std(ddof=1))
    (one,) = placebo_ranks([9.0], [[1.0]]).p_value
    assert one == 0.5
    assert np.isnan(placebo_ranks([9.0], [[1.0]]).z).all()
    assert np.isnan(placebo_ranks([9.0, 1.0], np.empty((0, 2)))).all()


def normal(generator: np.random.Generator, *shape: int) -> np.ndarray:
    return generator.normal(size=shape)


def heavy_tailed(generator: np.random.Generator, *shape: int) -> np.ndarray:
    return generator.standard_t(3, shape)


@pytest.mark.parametrize("draw", [normal, heavy_tailed])
def test_without_an_effect_at_most_five_percent_of_runs_find_one_after_correction(draw):
    # Over 15 seeds the rate is 3.7 %, for both kinds of numbers; for 1,000 runs of one seed give or take 0.6, so that
    # a few seeds exceed 5 % by chance. With this one both are near the mean.
    generator = np.random.default_rng(3)
    shared, own = draw(generator, 30, 1000, 1), draw(generator, 30, 1000, 12)
    differences = np.sqrt(0.6) * shared + np.sqrt(0.4) * own  # 12 layers of 30 sentences, correlated by 0.6
    p_values = sign_flip_test(differences.reshape(30, -1), 0).reshape(1000, 12)
    false_alarms = np.mean([holm(run).min() < 0.05 for run in p_values])
    assert false_alarms <= 0.05
    assert 0.03 < (p_values < 0.05).mean() < 0.07, "the test of a single layer is neither blind nor wild"


@pytest.mark.parametrize(
    ("draw", "num_sentences", "least", "most"),
    [
        (normal, 30, 0.93, 0.97),
        # A bootstrap cannot know tails that it has not seen: it covers too rarely, less so with more sentences.
        (heavy_tailed, 30, 0.88, 0.93),
        (heavy_tailed, 100, 0.90, 0.95),
    ],
)
def test_the_interval_covers_a_known_effect_about_as_often_as_it_says(draw, num_sentences, least, most):
    differences = 0.5 + draw(np.random.default_rng(0), num_sentences, 4000)
    low, high = bootstrap_interval(differences, 0)
    assert least <= ((low <= 0.5) & (high >= 0.5)).mean() <= most


def test_the_t_interval_of_many_heavy_tailed_sentences_covers_a_known_effect():
    differences = 0.5 + heavy_tailed(np.random.default_rng(0), 2001, 2000)
    moments = Moments.of(differences)
    low, high = t_interval(moments.count, moments.mean, moments.sample_deviation)
    assert 0.93 <= ((low <= 0.5) & (high >= 0.5)).mean() <= 0.97
