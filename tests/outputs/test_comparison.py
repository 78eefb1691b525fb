"""Differences, percent changes, effects and moments against NumPy and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from llm_entropy.outputs.comparison import (
    Moments,
    difference,
    evenly_spaced,
    percent_change,
    relative_depth,
    share_of_log_vocabulary,
    standardised_effect,
)


def test_the_difference_is_other_minus_baseline_in_double_precision():
    standard, control = np.float32([1.0, 0.1, 5.0]), np.float32([3.0, 0.3, 4.0])
    np.testing.assert_array_equal(difference(standard, control), control.astype(float) - standard.astype(float))


def test_percent_change_is_missing_where_standard_is_zero_and_keeps_its_sign():
    result = percent_change([0.0, 0.0, 2.0, -2.0, 4.0], [0.0, 1.0, 3.0, -3.0, 1.0])
    np.testing.assert_array_equal(result, [np.nan, np.nan, 50.0, 50.0, -75.0])


def test_the_effect_is_the_mean_over_the_deviation_and_zero_where_nothing_changed():
    result = standardised_effect([0.0, 1.0, -1.0, 3.0, np.nan], [0.0, 0.0, 0.0, 2.0, 1.0])
    np.testing.assert_array_equal(result, [0.0, np.inf, -np.inf, 1.5, np.nan])


def test_the_effect_of_samples_is_that_of_a_paired_test_up_to_its_ddof():
    differences = np.random.default_rng(0).normal(0.3, 2.0, (50, 4))
    moments = Moments.of(differences)
    t_statistic = standardised_effect(moments.mean, moments.deviation) * np.sqrt(50 - 1)
    scipy_stats = pytest.importorskip("scipy.stats")
    np.testing.assert_allclose(t_statistic, scipy_stats.ttest_1samp(differences, 0.0).statistic, rtol=1e-12)


@pytest.mark.parametrize("cuts", [[], [1], [500], [3, 4, 900], list(range(1, 1000, 7))])
def test_moments_of_parts_add_up_to_the_moments_of_the_whole(cuts):
    values = np.random.default_rng(1).lognormal(0, 3, (1000, 5))
    total = Moments.of(values[:0])
    for part in np.split(values, cuts):
        total = total + Moments.of(part)
    assert total.rows == 1000
    np.testing.assert_allclose(total.mean, values.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(total.deviation, values.std(axis=0), rtol=1e-12)


def test_moments_do_not_cancel_far_from_zero():
    values = 1e9 + np.random.default_rng(2).normal(0, 1e-3, (4000, 1))
    total = sum((Moments.of(part) for part in np.split(values, 40)), Moments.of(values[:0]))
    np.testing.assert_allclose(total.deviation, values.std(axis=0), rtol=1e-6)


def test_numbers_that_are_not_finite_are_left_out_and_counted():
    values = np.array([[1.0, np.nan, np.nan], [3.0, 2.0, np.inf], [5.0, np.inf, -np.inf]])
    total = Moments.of(values[:1]) + Moments.of(values[1:])
    np.testing.assert_array_equal(total.mean, [3.0, 2.0, np.nan])
    np.testing.assert_array_equal(total.deviation, [np.sqrt(8 / 3), 0.0, np.nan])
    np.testing.assert_array_equal(total.sample_deviation, [2.0, np.nan, np.nan])
    np.testing.assert_array_equal(total.count, [3, 1, 0])
    assert total.missing.sum() == 5


@pytest.mark.parametrize(("count", "most"), [(1, 1), (1, 5), (5, 5), (7, 3), (10_000, 2_000), (2_001, 2_000)])
def test_evenly_spaced_indices_are_different_and_reach_both_ends(count, most):
    indices = evenly_spaced(count, most)
    assert len(indices) == min(count, most)
    assert (np.diff(indices) > 0).all()
    assert indices[0] == 0
    assert most == 1 or indices[-1] == count - 1


def test_relative_depth_runs_from_the_first_layer_to_the_last():
    np.testing.assert_array_equal(relative_depth(5), [0.0, 0.25, 0.5, 0.75, 1.0])
    np.testing.assert_array_equal(relative_depth(1), [0.0])


def test_the_uniform_entropy_is_the_whole_of_ln_v():
    np.testing.assert_allclose(share_of_log_vocabulary([np.log(7), 0.0], 7), [1.0, 0.0])
