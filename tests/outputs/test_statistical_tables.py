"""What is collected of many sentences, and the summary and the doses made from it, against numpy and scipy."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import scipy.stats

from llm_entropy.outputs.inference import collecting, positions
from llm_entropy.outputs.inference.collecting import SentenceNumbers, SentenceSample
from llm_entropy.outputs.inference.doses import (
    Dosed,
    dose_table,
    relative_dose,
    residual,
    sentence_slopes,
    spearman,
)
from llm_entropy.outputs.inference.positions import PositionNumbers
from llm_entropy.outputs.inference.resampling import bootstrap_interval, sign_flip_test
from llm_entropy.outputs.inference.summary import Compared, Summary, summarise

NAN = np.nan
NO_PLACEBOS = np.empty((0, 3))


def seeded(*shape: int, seed: int = 0) -> np.ndarray:
    """Return skewed numbers around 0.3."""
    return np.random.default_rng(seed).gamma(2.0, 1.0, shape) - 1.7


def collect(standard: np.ndarray, condition: np.ndarray, cuts: tuple[int, ...] = ()) -> SentenceNumbers:
    """Collect differences in chunks that end at `cuts`."""
    collected = SentenceNumbers(standard.shape[1], 2, SentenceSample(len(standard), 0))
    for before, after in zip(np.split(standard, cuts), np.split(condition, cuts), strict=True):
        with np.errstate(invalid="ignore"):
            collected.add(after - before, [before, after])
    return collected


def compare(
    standard: np.ndarray,
    condition: np.ndarray,
    *,
    name: str = "control",
    metric: str = "entropy",
    tested: bool | list[bool] = True,
    placebos: np.ndarray = NO_PLACEBOS,
    cuts: tuple[int, ...] = (),
) -> Compared:
    where = np.broadcast_to(tested, standard.shape[1])
    return Compared(name, metric, collect(standard, condition, cuts), where, placebos)


def assert_same(one: Summary, other: Summary) -> None:
    for field in fields(Summary):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name), err_msg=field.name)


def test_the_summary_has_the_columns_of_its_definition_in_order():
    assert ",".join(field.name for field in fields(Summary)) == (
        "condition,metric,layer,n,mean_standard,mean_condition,mean_difference,median_difference,sd_difference,"
        "effect_size,ci_low,ci_high,p_value,test,p_holm,q_bh,share_increased,placebo_p,placebo_z"
    )


@pytest.mark.parametrize(("count", "test"), [(10, "exact"), (40, "permutation"), (2000, "permutation"), (2001, "t")])
def test_a_row_of_the_summary_is_what_its_sentences_say(count, test):
    standard, condition = seeded(count, 3), 0.02 + seeded(count, 3, seed=1)
    condition[0] = standard[0]  # a tie
    placebos = np.array([[9.0, 0.0, 0.0], [0.0, -9.0, 0.001], [0.0, 0.0, 0.0]])
    difference = condition - standard
    summary = summarise([compare(standard, condition, placebos=placebos)], 5)
    np.testing.assert_array_equal(summary.n, count)
    np.testing.assert_allclose(summary.mean_standard, standard.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(summary.mean_condition, condition.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(summary.mean_difference, difference.mean(axis=0), rtol=1e-11)
    single = 1e-6 if count > 2000 else 1e-12  # kept in single precision
    np.testing.assert_allclose(summary.median_difference, np.median(difference, axis=0), rtol=single)
    np.testing.assert_allclose(summary.sd_difference, difference.std(axis=0, ddof=1), rtol=1e-12)
    effect = difference.mean(axis=0) / difference.std(axis=0, ddof=1)
    np.testing.assert_allclose(summary.effect_size, effect, rtol=1e-11)
    increased = ((difference > 0).sum(axis=0) + 0.5) / count
    np.testing.assert_allclose(summary.share_increased, increased, rtol=1e-12)
    assert summary.test.tolist() == [test] * 3
    by_t = scipy.stats.ttest_rel(condition, standard)
    interval, p_value = (
        (by_t.confidence_interval(0.95), by_t.pvalue)
        if test == "t"
        else (bootstrap_interval(difference, 5), sign_flip_test(difference, 5))
    )
    np.testing.assert_allclose([summary.ci_low, summary.ci_high], interval, rtol=1e-9)
    np.testing.assert_allclose(summary.p_value, p_value, rtol=1e-9)
    larger = (np.abs(placebos) >= np.abs(difference.mean(axis=0))).sum(axis=0)
    np.testing.assert_array_equal(summary.placebo_p, (1 + larger) / 4)
    z = (difference.mean(axis=0) - placebos.mean(axis=0)) / placebos.std(axis=0, ddof=1)
    np.testing.assert_allclose(summary.placebo_z, z, rtol=1e-9)


def test_rows_are_by_condition_metric_and_layer_and_do_not_depend_on_what_else_is_there():
    standard, first, second = (seeded(40, 3, seed=seed) for seed in range(3))
    entropy = compare(standard, first, name="a")
    attention = compare(standard[:, :2], first[:, :2], name="a", metric="attention_entropy", placebos=np.empty((0, 2)))
    other = compare(standard, second, name="b", placebos=np.ones((4, 3)))
    summary = summarise([entropy, attention, other], 0)
    assert summary.condition.tolist() == ["a"] * 5 + ["b"] * 3
    assert summary.metric.tolist() == ["entropy"] * 3 + ["attention_entropy"] * 2 + ["entropy"] * 3
    assert summary.layer.tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    assert np.isnan(summary.placebo_p).tolist() == [True] * 5 + [False] * 3
    alone = summarise([other], 0)
    for name in ("n", "mean_difference", "median_difference", "ci_low", "ci_high", "p_value", "placebo_z"):
        np.testing.assert_allclose(getattr(summary, name)[5:], getattr(alone, name), rtol=1e-12)


def test_a_family_is_all_tested_layers_and_conditions_of_a_metric():
    standard = seeded(40, 3)
    shifted = [standard + size * (1 + seeded(40, 3, seed=9)) for size in (0.1, -0.2)]
    compared = [
        compare(standard, condition, name=name, metric=metric, tested=[False, True, True])
        for name, condition in zip("ab", shifted, strict=True)
        for metric in ("entropy", "margin")
    ]
    summary = summarise([*compared, compare(standard, shifted[0], metric="kl_from_standard", tested=False)], 0)
    untested = (summary.layer == 0) | (summary.metric == "kl_from_standard")
    for column in (summary.p_value, summary.p_holm, summary.q_bh):
        np.testing.assert_array_equal(np.isnan(column), untested)
    np.testing.assert_array_equal(summary.test == "", untested)
    assert np.isfinite(summary.ci_low).all()
    for metric in ("entropy", "margin"):
        family = ~untested & (summary.metric == metric)
        p_values = np.sort(summary.p_value[family])
        assert len(p_values) == 4
        assert np.sort(summary.p_holm[family])[0] == min(1, 4 * p_values[0])
        expected = scipy.stats.false_discovery_control(summary.p_value[family])
        np.testing.assert_array_equal(summary.q_bh[family], expected)


@pytest.mark.parametrize("count", [0, 1, 2, 30, 2001])
def test_sentences_that_all_change_alike_have_no_spread_and_none_say_nothing(count):
    summary = summarise([compare(np.zeros((count, 3)), np.full((count, 3), [0.1, 0.0, -0.1]))], 0)
    shift, nothing = np.array([0.1, 0.0, -0.1]), np.full(3, NAN)
    np.testing.assert_array_equal(summary.n, count)
    np.testing.assert_array_equal(summary.mean_difference, shift if count else nothing)
    np.testing.assert_array_equal(
        summary.median_difference, np.float32(shift) if count > 2000 else shift if count else nothing
    )
    np.testing.assert_array_equal(summary.share_increased, [1.0, 0.5, 0.0] if count else nothing)
    np.testing.assert_array_equal(summary.sd_difference, 0.0 if count > 1 else nothing)
    np.testing.assert_array_equal(summary.effect_size, [np.inf, 0.0, -np.inf] if count > 1 else nothing)
    np.testing.assert_array_equal(summary.ci_low, shift if count > 1 else nothing)
    np.testing.assert_array_equal(summary.ci_high, shift if count > 1 else nothing)
    sure = {0: NAN, 1: 1.0, 2: 0.5, 2001: 0.0}.get(count, 1 / 10_001)
    np.testing.assert_array_equal(summary.p_value, [sure, 1.0, sure] if count else nothing)
    assert set(summary.test) == {{0: "", 1: "exact", 2: "exact", 2001: "t"}.get(count, "permutation")}


@pytest.mark.parametrize("count", [40, 2040])
def test_a_sentence_that_is_not_finite_under_either_condition_leaves_its_row(count):
    standard, condition = seeded(count, 3), seeded(count, 3, seed=1)
    whole = summarise([compare(standard, condition)], 0)
    standard[3, 0], standard[4, 1], condition[4, 1], condition[7, 1] = NAN, np.inf, np.inf, -np.inf
    summary = summarise([compare(standard, condition, cuts=(5, 6, 6))], 0)
    assert summary.n.tolist() == [count - 1, count - 2, count]
    kept = np.delete(np.arange(count), [4, 7])
    alone = summarise([compare(standard[kept, 1:2], condition[kept, 1:2], placebos=np.empty((0, 1)))], 0)
    for field in fields(Summary)[4:14]:
        one, other, full = (getattr(table, field.name) for table in (summary, alone, whole))
        if field.name != "test":
            np.testing.assert_allclose([one[1], one[2]], [other[0], full[2]], rtol=1e-11, err_msg=field.name)


def test_the_count_of_a_column_decides_how_it_is_tested():
    standard, condition = seeded(2040, 3), 0.01 + seeded(2040, 3, seed=1)
    condition[:2030, 0] = condition[:50, 1] = NAN
    summary = summarise([compare(standard, condition)], 0)
    assert list(zip(summary.n, summary.test, strict=True)) == [(10, "exact"), (1990, "permutation"), (2040, "t")]
    difference = condition - standard
    np.testing.assert_array_equal(summary.p_value[:1], sign_flip_test(difference[2030:, :1], 0))
    interval = bootstrap_interval(difference[50:, 1:2], 0)
    np.testing.assert_allclose([summary.ci_low[1:2], summary.ci_high[1:2]], interval, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("count", [300, 2500])
def test_chunks_of_any_size_give_the_summary_of_the_whole(count):
    standard, condition = seeded(count, 3), seeded(count, 3, seed=1)
    whole = summarise([compare(standard, condition)], 0)
    parts = summarise([compare(standard, condition, cuts=(0, 1, 7, 250))], 0)
    again = summarise([compare(standard, condition, cuts=(0, 1, 7, 250))], 0)
    assert_same(parts, again)
    for field in fields(Summary)[3:]:
        if field.name != "test":
            one, other = getattr(parts, field.name), getattr(whole, field.name)
            np.testing.assert_allclose(one, other, rtol=1e-10, err_msg=field.name)


def test_of_a_large_corpus_the_median_is_that_of_a_seeded_sample_and_all_else_is_of_all(monkeypatch):
    monkeypatch.setattr(collecting, "LARGEST_KEPT", 3000)
    standard, condition = seeded(9000, 3), seeded(9000, 3, seed=1)
    condition[:8990, 0] = NAN
    summary = summarise([compare(standard, condition, cuts=(4000, 4001))], 0)
    difference = condition - standard
    chosen = SentenceSample(9000, 0).chosen
    assert len(np.unique(chosen)) == 3000
    assert not np.array_equal(chosen, SentenceSample(9000, 1).chosen)
    np.testing.assert_allclose(summary.median_difference[1:], np.median(difference[chosen, 1:], axis=0), rtol=1e-6)
    np.testing.assert_allclose(summary.mean_difference, np.nanmean(difference, axis=0), rtol=1e-11)
    assert summary.n.tolist() == [10, 9000, 9000]
    assert summary.test.tolist() == ["t", "t", "t"], "of ten sentences not all are in the sample"
    np.testing.assert_allclose(summary.p_value[0], scipy.stats.ttest_1samp(difference[8990:, 0], 0).pvalue, rtol=1e-9)


def test_numbers_are_counted_only_when_all_sentences_are_there():
    collected = SentenceNumbers(1, 0, SentenceSample(3, 0))
    collected.add(np.ones((2, 1)), [])
    with pytest.raises(AssertionError, match="2 of 3 sentences"):
        collected.totals()


def dosed(vector: str, doses: tuple[float, ...], levels: np.ndarray) -> Dosed:
    slopes = SentenceNumbers(levels.shape[2], len(doses), SentenceSample(levels.shape[1], 0))
    for part in np.array_split(levels, 3, axis=1):
        slopes.add(sentence_slopes(doses, list(part)), list(part))
    return Dosed(vector, "entropy", doses, slopes)


@pytest.mark.parametrize("count", [25, 2001])
def test_a_row_of_the_doses_is_what_the_slopes_of_its_sentences_say(count):
    first, second = (0.0, -1.0, 1.0), (0.0, 2.0)
    levels = seeded(3, count, 2)
    levels[2, :, 1] += 0.5
    table = dose_table([dosed("a", first, levels), dosed("b", second, levels[:2])], 0)
    assert table.vector.tolist() == ["a", "a", "b", "b"]
    assert table.metric.tolist() == ["entropy"] * 4
    assert table.layer.tolist() == [0, 1, 0, 1]
    slopes = np.hstack([(levels[2] - levels[1]) / 2, (levels[1] - levels[0]) / 2])
    np.testing.assert_array_equal(table.n, count)
    np.testing.assert_allclose(table.slope, slopes.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(table.share_negative, (slopes < 0).mean(axis=0), rtol=1e-10)
    by_t = scipy.stats.ttest_1samp(slopes, 0).confidence_interval(0.95)
    interval = by_t if count > 2000 else bootstrap_interval(slopes, 0)
    np.testing.assert_allclose([table.slope_ci_low, table.slope_ci_high], interval, rtol=1e-9, atol=1e-12)
    means = levels.mean(axis=1)
    rho = [scipy.stats.spearmanr(first, means[:, layer]).statistic for layer in (0, 1)]
    np.testing.assert_allclose(table.spearman, [*rho, *np.sign(means[1] - means[0])], atol=1e-12)
    # a line through three points that are one apart leaves (1, -2, 1) / 6 of the second difference
    bent = np.abs(means[1] - 2 * means[0] + means[2]) * np.sqrt((1 + 4 + 1) / 36 / 3)
    np.testing.assert_allclose(table.residual, [*bent, 0.0, 0.0], atol=1e-12)


def test_layers_that_do_not_change_have_no_slope_and_no_order():
    level = seeded(20, 2)
    table = dose_table([dosed("a", (0.0, 0.1, 0.3), np.stack([level] * 3))], 0)
    for column in (table.slope, table.slope_ci_low, table.slope_ci_high, table.residual):
        np.testing.assert_array_equal(column, 0.0)
    np.testing.assert_array_equal(table.share_negative, 0.5)
    np.testing.assert_array_equal(table.spearman, NAN)


def test_the_slope_of_each_sentence_is_that_of_polyfit():
    doses = (0.0, -1.0, 2.0, 0.5)
    levels = seeded(4 * 6, 5).reshape(4, 6, 5)
    slopes = sentence_slopes(doses, list(levels))
    np.testing.assert_allclose(slopes.ravel(), np.polyfit(doses, levels.reshape(4, -1), 1)[0], rtol=1e-9)


def test_the_slope_is_exactly_zero_where_steering_changes_nothing_and_missing_where_a_strength_is():
    level = np.array([[0.1, 0.7], [NAN, np.inf]])
    slopes = sentence_slopes((0.0, 0.1, 0.3), [level, level, level])
    np.testing.assert_array_equal(slopes, [[0.0, 0.0], [NAN, NAN]])


def test_spearman_is_that_of_scipy():
    doses = (0.0, -1.0, 2.0, 0.5, 4.0)
    means = np.random.default_rng(0).integers(0, 4, (5, 7))  # with ties
    expected = [scipy.stats.spearmanr(doses, column).statistic for column in means.T]
    np.testing.assert_allclose(spearman(doses, means), expected, atol=1e-12)
    np.testing.assert_array_equal(spearman((0.0, 1.0), [[1.0, 1.0, NAN], [3.0, 1.0, 2.0]]), [1.0, NAN, NAN])


def test_the_residual_is_what_a_straight_line_leaves():
    doses = (0.0, -1.0, 1.0)
    means = np.array([[5.0, 5.0], [4.0, 6.0], [6.0, 6.0]])  # a line; 5 + the square of the strength
    np.testing.assert_allclose(residual(doses, means), [0.0, np.sqrt((4 + 1 + 1) / 9 / 3)], atol=1e-12)


def test_the_relative_dose_is_zero_where_nothing_is_added():
    np.testing.assert_array_equal(relative_dose([0.0, 3.0, 0.0], [2.0, 6.0, 0.0]), [0.0, 0.5, 0.0])


def collect_positions(values: np.ndarray, cuts: tuple[int, ...]) -> PositionNumbers:
    collected = PositionNumbers()
    for part in np.split(values, cuts):
        collected.add(part)
    return collected


def test_mean_and_percentile_of_positions_leave_out_what_is_not_finite():
    values = seeded(1000, 1)[:, 0]
    values[[0, 500]] = NAN, np.inf
    collected = collect_positions(values, (0, 3, 700))
    finite = values[np.isfinite(values)]
    assert collected.mean == pytest.approx(finite.mean(), rel=1e-12)
    assert collected.percentile(95) == pytest.approx(np.percentile(finite, 95), rel=1e-6)
    assert np.isnan([PositionNumbers().mean, PositionNumbers().percentile(95)]).all()


@pytest.mark.parametrize("cuts", [(), (1, 2, 999), tuple(range(7, 1700, 13))])
def test_of_many_positions_some_are_kept_evenly_whatever_the_chunks_are(monkeypatch, cuts):
    monkeypatch.setattr(positions, "LARGEST_KEPT", 500)
    values = seeded(1700, 1)[:, 0]
    collected = collect_positions(values, cuts)
    assert collected.mean == pytest.approx(values.mean(), rel=1e-12)
    assert collected.percentile(95) == pytest.approx(np.percentile(values[::4], 95), rel=1e-6)
