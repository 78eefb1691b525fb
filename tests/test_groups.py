"""Groups of sentences: curves, tables, and the differences between them, against scipy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from llm_entropy import run_analysis
from llm_entropy.errors import ReportedError
from llm_entropy.outputs.inference.groups import permutation_test, welch
from llm_entropy.outputs.results import RunResult

TEXTS = ["The capital of France is", "A dog is a kind of", "We hear with our", "The opposite of hot is"]


def rows(num_pairs: int = 4) -> list[dict[str, Any]]:
    """Two groups, a pair of sentences for each item, and one sentence without a group."""
    made = [
        {"text": f"{start} {TEXTS[item % len(TEXTS)]}", "group": group, "item": item}
        for item in range(num_pairs)
        for group, start in (("plain", "Now and then"), ("odd, too", "Purple colourless"))
    ]
    return [*made, {"text": "It is a", "group": None, "item": 0}]


def write_rows(path: Path, made: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return str(path)


def analyse(folder: Path, data: dict[str, Any], *, plots: bool = False, **settings: Any) -> RunResult:
    output = {"dir": str(folder), "run_name": "run", "plots": plots}
    about = {"metrics": ["entropy", "attention_entropy"], "output": output, "quiet": True}
    models = {"gpt2": "builtin:tiny-gpt2"}
    data = {"text_column": "text", "group_column": "group", **data}
    return run_analysis(models, data=data, **{**about, **settings})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    folder = tmp_path_factory.mktemp("groups")
    path = write_rows(folder / "corpus.jsonl", rows())
    return analyse(folder, {"path": path}, plots=True, compare_control=True, control_vector=[0.2, -0.1])


def by_group(result: RunResult, condition: str = "standard") -> dict[str, np.ndarray]:
    frame = result["gpt2"][condition]["entropy"].to_numpy()[:, :]
    groups = np.array([row["group"] or "" for row in rows()])
    return {group: frame[groups == group].astype(float) for group in ("plain", "odd, too")}


@pytest.mark.parametrize("condition", ["standard", "control"])
def test_each_group_has_its_curve(run: RunResult, condition: str) -> None:
    table = pd.read_csv(run.run_dir / condition / "data" / "gpt2_groups.csv")
    assert table["group"].drop_duplicates().tolist() == ["plain", "odd, too"]
    for group, values in by_group(run, condition).items():
        own = table[(table["group"] == group) & (table["metric"] == "entropy")]
        assert own["n"].tolist() == [4] * 6
        np.testing.assert_allclose(own["mean"], values.mean(0), rtol=1e-6)
        np.testing.assert_allclose(own["sd"], values.std(0, ddof=1), rtol=1e-5)
        low, high = stats.t.interval(0.95, 3, values.mean(0), stats.sem(values))
        np.testing.assert_allclose(own["ci_low"], low, rtol=1e-5)
        np.testing.assert_allclose(own["ci_high"], high, rtol=1e-5)
    assert (run.run_dir / "standard" / "plots" / "gpt2_entropy_groups.png").is_file()
    assert (run.run_dir / "standard" / "plots" / "gpt2_attention_entropy_groups.png").is_file()


def test_unpaired_groups_are_compared_by_permutation_and_welch(run: RunResult) -> None:
    table = pd.read_csv(run.run_dir / "standard" / "data" / "gpt2_group_differences.csv")
    assert not (run.run_dir / "control" / "data" / "gpt2_group_differences.csv").exists()
    own = table[table["metric"] == "entropy"]
    assert (own["group_a"] == "plain").all()
    assert not own["paired"].any()
    assert (own["test"] == "exact").all()
    values = by_group(run)
    one, other = values["plain"], values["odd, too"]
    np.testing.assert_allclose(own["mean_difference"], other.mean(0) - one.mean(0), rtol=1e-4, atol=1e-6)
    expected = stats.permutation_test(
        (other, one), lambda a, b, axis: a.mean(axis) - b.mean(axis), n_resamples=np.inf, axis=0
    )
    np.testing.assert_allclose(own["p_value"], expected.pvalue)
    interval = stats.ttest_ind(other, one, equal_var=False).confidence_interval()
    np.testing.assert_allclose(own["ci_low"], interval.low, rtol=1e-4)
    np.testing.assert_allclose(own["ci_high"], interval.high, rtol=1e-4)
    assert (own["p_holm"] >= own["p_value"]).all()


def test_paired_groups_are_compared_pair_by_pair(tmp_path: Path) -> None:
    made = rows()[::-1]  # partners need not follow each other in any order
    path = write_rows(tmp_path / "corpus.jsonl", made)
    result = analyse(tmp_path, {"path": path, "pair_column": "item"})
    own = pd.read_csv(result.run_dir / "standard" / "data" / "gpt2_group_differences.csv").query("metric == 'entropy'")
    frame = result["gpt2"]["standard"]["entropy"].to_numpy().astype(float)
    of = {(row["group"], row["item"]): numbers for row, numbers in zip(made, frame, strict=True)}
    a, b = own["group_a"].iloc[0], own["group_b"].iloc[0]
    change = np.stack([of[b, item] - of[a, item] for item in range(4)])
    assert own["paired"].all()
    assert own["n_a"].tolist() == [4] * 6
    np.testing.assert_allclose(own["mean_difference"], change.mean(0), rtol=1e-4, atol=1e-6)
    expected = stats.permutation_test(
        (change,), lambda x, axis: x.mean(axis), permutation_type="samples", n_resamples=np.inf, axis=0
    )
    np.testing.assert_allclose(own["p_value"], expected.pvalue)


def test_a_group_of_one_has_a_curve_and_no_interval(tmp_path: Path) -> None:
    made = [*rows(3)[:-1], {"text": "It is a", "group": "alone", "item": 9}]
    result = analyse(tmp_path, {"path": write_rows(tmp_path / "corpus.jsonl", made)})
    table = pd.read_csv(result.run_dir / "standard" / "data" / "gpt2_groups.csv").query("group == 'alone'")
    assert table["mean"].notna().all()
    assert table[["sd", "ci_low", "ci_high"]].isna().all().all()
    differences = pd.read_csv(result.run_dir / "standard" / "data" / "gpt2_group_differences.csv")
    own = differences.query("group_b == 'alone' and metric == 'entropy'")
    assert len(own) == 12
    assert own["ci_low"].isna().all()
    assert (own["p_value"] >= 1 / 4).all()


@pytest.mark.parametrize(
    ("data", "made", "message"),
    [
        (
            {},
            [{"text": f"word {n}", "group": n, "item": n} for n in range(13)],
            "'group' of .* holds 13 groups; expected",
        ),
        ({}, [{"text": "word", "group": None, "item": 1}], "'group' of .* holds 0 groups"),
        ({"group_column": "grup"}, rows(), r"data.group_column: .* no column 'grup' \(did you mean 'group'\?\)"),
        ({"group_column": None, "pair_column": "item"}, rows(), "data.pair_column: got 'item' without groups"),
        ({"pair_column": "item"}, [*rows(), rows()[0]], "two sentences of the pair '0' are in the group 'plain'"),
    ],
)
def test_groups_that_cannot_be_compared_are_refused_first(
    tmp_path: Path, data: dict[str, Any], made: list[dict[str, Any]], message: str
) -> None:
    path = write_rows(tmp_path / "corpus.jsonl", made)
    with pytest.raises(ReportedError, match=message):
        analyse(tmp_path / "out", {"path": path, **data})
    assert not list(tmp_path.glob("out/*"))


def test_a_stream_with_too_many_groups_is_refused_at_the_merge(tmp_path: Path) -> None:
    made = [{"text": f"word {n}", "group": n, "item": n} for n in range(13)]
    path = write_rows(tmp_path / "corpus.jsonl", made)
    with pytest.raises(ReportedError, match="'group' holds more than 12 groups"):
        analyse(tmp_path, {"path": path, "streaming": True})


def test_seeded_permutations_agree_with_scipy_and_gaps_do_not_count() -> None:
    random = np.random.default_rng(0)
    one, other = random.normal(0, 1, (40, 3)), random.normal([0.0, 0.5, 1.0], 1, (30, 3))
    p_values, is_exact = permutation_test(one, other, seed=1)
    expected = stats.permutation_test(
        (one, other), lambda a, b, axis: a.mean(axis) - b.mean(axis), n_resamples=9_999, axis=0, rng=random
    )
    assert not is_exact.any()
    np.testing.assert_allclose(p_values, expected.pvalue, atol=0.015)
    gaps = one.copy()
    gaps[5:9, 1] = np.nan
    alone, _ = permutation_test(np.delete(one[:, 1:2], slice(5, 9), axis=0), other[:, 1:2], seed=1)
    with_gaps, _ = permutation_test(gaps, other, seed=1)
    assert with_gaps.tolist() == [p_values[0], alone[0], p_values[2]]


def test_welch_agrees_with_scipy_and_constants_have_no_width() -> None:
    random = np.random.default_rng(0)
    one, other = random.normal(0, 1, (7, 2)), random.normal(1, 3, (11, 2))
    about = [[f(group) for group in (one, other)] for f in (lambda x: np.full(2, len(x)), lambda x: x.mean(0))]
    interval, p_values = welch(*map(tuple, about), (one.std(0, ddof=1), other.std(0, ddof=1)))
    expected = stats.ttest_ind(other, one, equal_var=False)
    np.testing.assert_allclose(p_values, expected.pvalue)
    np.testing.assert_allclose(interval.low, expected.confidence_interval().low)
    n, zero = np.array([3, 3, 1]), np.array([0.0, 0.0, np.nan])
    interval, p_values = welch((n, n), (np.zeros(3), np.array([0.0, 2.0, 2.0])), (zero, zero))
    assert interval.low[:2].tolist() == interval.high[:2].tolist() == [0.0, 2.0]
    np.testing.assert_array_equal(p_values, [1.0, 0.0, np.nan])
