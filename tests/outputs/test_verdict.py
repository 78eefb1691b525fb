"""The summary and the doses, made again from the files that hold sentences, by other code."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import shards
from shards import SENTENCES, SHAPE

from llm_entropy.outputs.effects import SteeringFacts
from llm_entropy.outputs.merge import MergeSource
from llm_entropy.outputs.results import ModelResult
from llm_entropy.settings import AnalysisSettings

METRICS = ["entropy", "attention_entropy"]
FACTS = {
    **{f"control_{strength:+g}": SteeringFacts(2, [0.0, 0.0, 0.5, 1.0, 2.0]) for strength in (-2, -1, 1, 2)},
    "control_+0": SteeringFacts(None, [0.0] * 5),
}
STRENGTHS = {"control_-2": -2.0, "control_-1": -1.0, "control_+0": 0.0, "control_+1": 1.0, "control_+2": 2.0}


def merged(folder: Path, num_sentences: int, records: tuple[int, ...] = (1, 3)) -> tuple[AnalysisSettings, ModelResult]:
    analysis = shards.dose(metrics=METRICS)
    texts = [f"{SENTENCES[index % len(SENTENCES)]} {index}" for index in range(num_sentences)]
    shards.write(folder, "tiny", shards.table(texts, analysis, records=records))
    source = MergeSource("tiny", "tiny", "causal", SHAPE, shards.ledger_of(folder, "tiny"), FACTS, seed=3)
    shards.merge(folder, "tiny", analysis, source=source)
    return analysis, ModelResult(folder, "tiny", analysis, [], [])


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelResult]:
    """Ten sentences: every flip of signs can be made."""
    folder = tmp_path_factory.mktemp("few")
    return folder, merged(folder, 10)[1]


def lines_of(path: Path) -> np.ndarray:
    """Return the numbers of a CSV file, [line, layer]."""
    return np.array([json.loads(text) for text in pd.read_csv(path)["values"]], np.float64)


def both_of(folder: Path, condition: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a metric under standard and under a condition, [sentence, layer], from the files of sentences."""
    if metric in METRICS:
        before, after = (
            folder / place / "data" / f"tiny_{metric}.csv" for place in ("standard", f"control/{condition}")
        )
        return lines_of(before), lines_of(after)
    values = lines_of(folder / "comparative" / condition / "data" / f"tiny_{metric}.csv")
    return np.zeros_like(values), values


def exact_p_value(differences: np.ndarray) -> float:
    """Of all flips of the signs, the share whose mean is at least as far from 0."""
    flips = np.array(list(itertools.product([1, -1], repeat=len(differences))))
    means = np.abs(flips @ differences)
    return float((means >= abs(differences.sum()) * (1 - 1e-9)).mean())


def step_down(p_values: np.ndarray) -> np.ndarray:
    """Holm (1979)."""
    order, largest = np.argsort(p_values), 0.0
    adjusted = np.empty(len(p_values))
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def step_up(p_values: np.ndarray) -> np.ndarray:
    """Benjamini and Hochberg (1995)."""
    order, least = np.argsort(p_values)[::-1], 1.0
    adjusted = np.empty(len(p_values))
    for rank, place in enumerate(order):
        least = min(least, p_values[place] * len(p_values) / (len(p_values) - rank))
        adjusted[place] = least
    return adjusted


def test_every_column_of_the_summary_follows_from_the_sentences(few: tuple[Path, ModelResult]) -> None:
    folder, result = few
    summary, placebos = result.summary, result.placebos
    metrics = list(dict.fromkeys(summary["metric"]))
    assert metrics[:3] == [*METRICS, "kl_from_standard"]
    assert list(dict.fromkeys(summary["condition"])) == list(STRENGTHS)
    for metric in metrics:
        rows = summary[summary["metric"] == metric].reset_index(drop=True)
        for _, row in rows.iterrows():
            before, after = (values[:, row["layer"]] for values in both_of(folder, row["condition"], metric))
            check_row(row, before, after, placebos[placebos["metric"] == metric])
        tested = rows[rows["p_value"].notna()]
        if metric not in METRICS:
            assert tested.empty, "it cannot be negative"
            continue
        assert set(tested["condition"]) == set(STRENGTHS) - {"control_+0"}
        assert set(tested["layer"]) == set(range(2, SHAPE.num_layers if metric == "entropy" else SHAPE.num_blocks))
        p_values = tested["p_value"].to_numpy()
        np.testing.assert_allclose(tested["p_holm"], step_down(p_values), rtol=1e-12)
        np.testing.assert_allclose(tested["q_bh"], step_up(p_values), rtol=1e-12)
        untested = rows[rows["p_value"].isna()]
        assert untested[["p_holm", "q_bh", "test"]].isna().all(axis=None)


def check_row(row: Any, before: np.ndarray, after: np.ndarray, placebos: pd.DataFrame) -> None:
    """Compare one row with what a condition's sentences give; the files hold float32."""
    differences = after - before
    close = {"rtol": 1e-4, "atol": 1e-5}
    assert row["n"] == len(differences)
    np.testing.assert_allclose(row["mean_standard"], before.mean(), **close)
    np.testing.assert_allclose(row["mean_condition"], after.mean(), **close)
    np.testing.assert_allclose(row["mean_difference"], differences.mean(), **close)
    np.testing.assert_allclose(row["median_difference"], np.median(differences), **close)
    deviation = differences.std(ddof=1)
    np.testing.assert_allclose(row["sd_difference"], deviation, **close)
    np.testing.assert_allclose(row["share_increased"], (differences > 0).mean() + (differences == 0).mean() / 2)
    if deviation > 1e-4 and row["metric"] in METRICS:  # of shares the ends are steps
        np.testing.assert_allclose(row["effect_size"], differences.mean() / deviation, rtol=2e-3)
        random = np.random.default_rng(1)
        made = scipy.stats.bootstrap((differences,), np.mean, n_resamples=20_000, method="BCa", random_state=random)
        interval = made.confidence_interval
        slack = 0.06 * (interval.high - interval.low)
        assert abs(row["ci_low"] - interval.low) < slack
        assert abs(row["ci_high"] - interval.high) < slack
    if not np.isnan(row["p_value"]):
        assert row["test"] == "exact"
        np.testing.assert_allclose(row["p_value"], exact_p_value(differences), atol=2 / 2 ** len(differences))
    pushes = placebos[placebos["layer"] == row["layer"]]["mean_difference"].to_numpy()
    assert len(pushes) == 2
    if abs(np.abs(pushes) - abs(row["mean_difference"])).min() > 1e-6:
        larger = (np.abs(pushes) >= abs(row["mean_difference"])).sum()
        assert row["placebo_p"] == pytest.approx((1 + larger) / 3)
    if pushes.std() > 1e-6:
        z = (row["mean_difference"] - pushes.mean()) / pushes.std(ddof=1)
        np.testing.assert_allclose(row["placebo_z"], z, rtol=1e-6)


def test_the_doses_follow_from_the_sentences(few: tuple[Path, ModelResult]) -> None:
    folder, result = few
    doses = result.doses
    slopes = doses[doses["slope"].notna()]
    assert set(slopes["vector"]) == {"control"}
    assert len(slopes) == SHAPE.num_layers + SHAPE.num_blocks
    for _, row in slopes.iterrows():
        steered = {name: strength for name, strength in STRENGTHS.items() if strength}
        levels = [both_of(folder, name, row["metric"]) for name in steered]
        levels = [levels[0][0], *(after for _, after in levels)]
        numbers = np.stack([level[:, row["layer"]] for level in levels])
        strengths = [0.0, *steered.values()]
        fits = np.array([np.polyfit(strengths, own, 1)[0] for own in numbers.T])
        np.testing.assert_allclose(row["slope"], fits.mean(), rtol=1e-3, atol=1e-5)
        assert row["slope_ci_low"] <= row["slope"] <= row["slope_ci_high"]
        if np.abs(fits).min() > 1e-5:
            np.testing.assert_allclose(row["share_negative"], (fits < 0).mean())
        means = numbers.mean(axis=1)
        if means.std() > 1e-4:
            assert row["spearman"] == pytest.approx(scipy.stats.spearmanr(strengths, means).statistic)


def test_how_strong_a_dose_is_follows_from_the_records(few: tuple[Path, ModelResult]) -> None:
    folder, result = few
    doses, records = result.doses, pd.read_parquet(sorted((folder / "shards").rglob("*.parquet")))
    norms = np.stack(records["standard/residual_norm"]).mean(axis=0)
    relative = doses[doses["metric"] == "relative_dose"].set_index(["condition", "layer"])["relative_dose"]
    for name in STRENGTHS:
        added = np.array(FACTS[name].added_norms)
        np.testing.assert_allclose(relative[name], added[1:] / norms[1:], rtol=1e-6)
    last = doses[(doses["metric"] == "kl_from_standard") & doses["kl_mean"].notna()].set_index("condition")
    assert dict(last["strength"]) == STRENGTHS
    for name in STRENGTHS:
        kl = np.stack(records[f"{name}/kl_from_standard"])[:, -1].astype(np.float64)
        np.testing.assert_allclose(last["kl_mean"][name], kl.mean(), rtol=1e-6)
        np.testing.assert_allclose(last["kl_p95"][name], np.percentile(kl, 95), rtol=1e-5)


def test_more_sentences_have_other_tests_and_the_same_columns(tmp_path: Path) -> None:
    for number, (count, test) in enumerate([(40, "permutation"), (2_001, "t")]):
        folder = tmp_path / str(number)
        _, result = merged(folder, count, records=(1,))
        summary = result.summary
        rows = summary[summary["p_value"].notna()]
        assert set(rows["test"]) == {test}
        for _, row in rows[rows["condition"] == "control_+2"].iterrows():
            before, after = (values[:, row["layer"]] for values in both_of(folder, "control_+2", row["metric"]))
            by_t = scipy.stats.ttest_rel(after, before)
            least = 1 / 10_001 if test == "permutation" else 0.0
            assert row["p_value"] == pytest.approx(max(by_t.pvalue, least), abs=0.02)
            interval = by_t.confidence_interval()
            slack = (0.1 if test == "permutation" else 1e-3) * (interval.high - interval.low) + 1e-6
            assert abs(row["ci_low"] - interval.low) < slack
            assert abs(row["ci_high"] - interval.high) < slack
