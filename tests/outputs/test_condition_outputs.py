"""Many conditions in, a folder for each out: five strengths of a vector and two placebos, and runs without standard."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shards
from shards import SENTENCES, SHAPE

from llm_entropy.outputs import records as record_files
from llm_entropy.outputs.making import _numbers, _plain
from llm_entropy.outputs.results import ModelResult
from llm_entropy.outputs.summaries import effect_rows, summary_rows
from llm_entropy.outputs.tables import ModelTables
from llm_entropy.settings import COMPARISON_METRICS, AnalysisSettings, ControlSettings

TEXTS = [f"{SENTENCES[index % len(SENTENCES)]} {index}" for index in range(60)]
METRICS = ["entropy", "attention_entropy"]
STRENGTHS = ["control_-2", "control_-1", "control_+0", "control_+1", "control_+2"]
PLACEBOS = ["control_random_1", "control_orthogonal_1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, AnalysisSettings, pa.Table, ModelTables]:
    """The merged run of five strengths and two placebos, in several chunks."""
    run_dir, analysis = tmp_path_factory.mktemp("dose"), shards.dose(metrics=METRICS)
    whole = shards.write(run_dir, "tiny", shards.table(TEXTS, analysis, records=(1, 3)))
    return run_dir, analysis, whole, shards.merge(run_dir, "tiny", analysis, chunk_bytes=100_000)


def without_standard(**settings) -> AnalysisSettings:
    return AnalysisSettings(control=ControlSettings(control_vector=[0.1], strengths=[1, 2]), **settings)


def means(whole: pa.Table, condition: str, metric: str, num_points: int) -> np.ndarray:
    """The mean over each sentence's records, and over heads, by pandas: [sentence, layer]."""
    frame = pd.DataFrame(whole[f"{condition}/{metric}"].to_pylist()).astype(float)
    rows = frame.groupby(whole["sentence_id"].to_numpy()).mean().to_numpy()
    return rows.reshape(len(rows), num_points, -1).mean(axis=2)


def files_of(run_dir: Path) -> set[str]:
    files = (path.relative_to(run_dir) for path in run_dir.rglob("*") if path.is_file())
    return {str(path) for path in files if path.parts[0] != "shards"}


def made_files(run_dir: Path) -> dict[str, bytes]:
    return {name: (run_dir / name).read_bytes() for name in files_of(run_dir)}


# --- folders and files -------------------------------------------------------------------------------------------


def test_each_condition_and_each_comparison_has_its_folder_and_a_placebo_none(run):
    run_dir, _, _, tables = run
    own = ["data/tiny_entropy.csv", "data/tiny_attention_entropy.csv", "data/tiny_token_probabilities.csv"]
    own += ["data/tiny.parquet", "predictions/tiny_predictions.csv"]
    compared = ["data/tiny_entropy_comparative.csv", "data/tiny_attention_entropy_comparative.csv", "data/tiny.parquet"]
    compared += ["data/tiny_kl_from_standard.csv", "data/tiny_top1_changed.csv"]
    compared += ["predictions/tiny_comparative_predictions.csv"]
    expected = {f"{folder}/{name}" for folder in ("standard", *(f"control/{one}" for one in STRENGTHS)) for name in own}
    expected |= {f"comparative/{one}/{name}" for one in STRENGTHS for name in compared}
    of_all = {f"comparative/data/tiny_{name}" for name in ("placebos.parquet", "summary.csv", "dose.csv")}
    assert files_of(run_dir) == expected | of_all
    assert [condition.name for condition in tables.conditions] == ["standard", *STRENGTHS]
    assert list(tables.comparisons) == STRENGTHS


def test_every_condition_and_every_difference_has_the_numbers_of_its_own_columns(run):
    run_dir, analysis, whole, tables = run
    result = ModelResult(run_dir, "tiny", analysis, [], [])
    for metric, width in (("entropy", SHAPE.num_layers), ("attention_entropy", SHAPE.num_blocks)):
        before = means(whole, "standard", metric, width)
        for name in STRENGTHS:
            after = means(whole, name, metric, width)
            np.testing.assert_allclose(result[name][metric], after, rtol=1e-6)
            four = result[f"comparative/{name}"][metric]
            assert four.index[:4].tolist() == [
                (TEXTS[0], quantity) for quantity in ("standard", name, "difference", "percent_change")
            ]
            np.testing.assert_allclose(four.xs("difference", level="quantity"), after - before, rtol=1e-5, atol=1e-6)
            curves = tables.comparisons[name].metrics[metric]
            assert curves.other is tables.curves[name][metric]
            np.testing.assert_allclose(curves.difference.mean, (after - before).mean(axis=0), rtol=1e-9, atol=1e-9)
    for name in STRENGTHS:
        for metric in COMPARISON_METRICS:
            expected = means(whole, name, metric, SHAPE.num_layers)
            np.testing.assert_allclose(result[f"comparative/{name}"][metric], expected, rtol=1e-6)
            np.testing.assert_allclose(tables.comparisons[name].between[metric].mean, expected.mean(axis=0))


def test_lines_and_columns_are_labelled_by_the_names_of_the_conditions(run):
    run_dir, analysis, whole, _ = run
    labels = (run_dir / "comparative/control_-2/data/tiny_entropy_comparative.csv").read_text(encoding="utf-8")
    counts = {label: labels.count(f"({label})") for label in ("standard", "control_-2", "difference", "percent_change")}
    assert counts == dict.fromkeys(counts, len(TEXTS))
    result = ModelResult(run_dir, "tiny", analysis, [], [])
    assert set(result["control_+2"].predictions["Analysis"]) == {"control_+2"}
    both = result["comparative/control_+2"].predictions
    assert both["Analysis"][:10].tolist() == ["standard"] * 5 + ["control_+2"] * 5
    table = pq.read_table(run_dir / "comparative/control_+2/data/tiny.parquet")
    assert table.field("entropy_difference").metadata[b"meaning"] == b"control_+2 - standard"
    assert table["kl_from_standard"].to_pylist() == whole["control_+2/kl_from_standard"].to_pylist()
    own = pq.read_table(run_dir / "control/control_+2/data/tiny.parquet")
    assert own.schema.metadata[b"condition"] == b"control_+2"
    assert own["top_tokens"].to_pylist() == whole["control_+2/top_tokens"].to_pylist()
    assert "kl_from_standard" not in own.column_names


def test_a_run_without_standard_has_a_folder_for_each_condition_and_compares_nothing(tmp_path):
    analysis = without_standard(metrics=["margin"])
    shards.write(tmp_path, "tiny", shards.table(SENTENCES, analysis))
    tables = shards.merge(tmp_path, "tiny", analysis)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*/data")} == {
        "control/control_+1/data",
        "control/control_+2/data",
    }
    assert not (tmp_path / "comparative").exists()
    assert tables.comparisons == {}
    assert [condition.name for condition in tables.baselines] == ["control_+1", "control_+2"]
    assert [(row.condition, row.metric) for row in summary_rows(tables)] == [
        ("control_+1", "margin"),
        ("control_+2", "margin"),
    ]
    assert effect_rows(tables, analysis.run_conditions) == []
    assert ModelResult(tmp_path, "tiny", analysis, [], []).summary.empty
    assert list(ModelResult(tmp_path, "tiny", analysis, [], [])) == ["control_+1", "control_+2"]


# --- placebos ----------------------------------------------------------------------------------------------------


def test_the_placebos_have_the_mean_and_the_sample_deviation_of_their_differences(run):
    run_dir, analysis, whole, _ = run
    frame = ModelResult(run_dir, "tiny", analysis, [], []).placebos
    assert frame.columns.tolist() == [
        *("condition", "source", "kind", "metric", "layer", "mean_difference", "sd_difference", "n"),
    ]
    assert pd.api.types.is_integer_dtype(frame["layer"])
    assert set(frame["source"]) == {"control"}
    assert frame.groupby("condition", sort=False)["kind"].unique().explode().to_dict() == {
        "control_random_1": "random",
        "control_orthogonal_1": "orthogonal",
    }
    rows = frame.set_index(["condition", "metric"])
    for name in PLACEBOS:
        expected = {metric: means(whole, name, metric, SHAPE.num_layers) for metric in COMPARISON_METRICS}
        for metric, width in (("entropy", SHAPE.num_layers), ("attention_entropy", SHAPE.num_blocks)):
            expected[metric] = means(whole, name, metric, width) - means(whole, "standard", metric, width)
        assert list(dict.fromkeys(frame[frame["condition"] == name]["metric"])) == [*METRICS, *COMPARISON_METRICS]
        for metric, changes in expected.items():
            found = rows.loc[(name, metric)]
            assert found["layer"].tolist() == list(range(changes.shape[1]))
            assert set(found["n"]) == {len(TEXTS)}
            np.testing.assert_allclose(found["mean_difference"], changes.mean(axis=0), rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(found["sd_difference"], changes.std(axis=0, ddof=1), rtol=1e-9, atol=1e-12)


def test_a_placebo_of_one_sentence_has_no_deviation_and_what_is_not_finite_is_not_counted(tmp_path):
    analysis = shards.dose(metrics=["entropy"])
    shards.write(tmp_path / "one", "tiny", shards.table(TEXTS[:1], analysis))
    shards.merge(tmp_path / "one", "tiny", analysis, csv=False, parquet=False)
    of_all = {f"comparative/data/tiny_{name}" for name in ("placebos.parquet", "summary.csv", "dose.csv")}
    assert files_of(tmp_path / "one") == of_all, "small, and written whatever else is"
    frame = ModelResult(tmp_path / "one", "tiny", analysis, [], []).placebos
    assert frame["sd_difference"].isna().all()
    assert np.isfinite(frame["mean_difference"]).all()
    assert set(frame["n"]) == {1}
    whole = shards.table(TEXTS[:9], analysis)
    place = whole.schema.get_field_index("control_random_1/entropy")
    numbers = np.array(whole["control_random_1/entropy"].to_pylist(), np.float32)
    numbers[2, 1], numbers[3, 1] = np.nan, np.inf
    changed = pa.FixedSizeListArray.from_arrays(pa.array(numbers.ravel()), SHAPE.num_layers)
    shards.write(tmp_path / "bad", "tiny", whole.set_column(place, whole.schema.field(place), changed))
    shards.merge(tmp_path / "bad", "tiny", analysis)
    frame = ModelResult(tmp_path / "bad", "tiny", analysis, [], []).placebos.set_index(["condition", "metric"])
    found = frame.loc[("control_random_1", "entropy")]
    assert found["n"].tolist() == [9, 7, 9, 9, 9]
    change = np.delete(numbers - np.array(whole["standard/entropy"].to_pylist(), np.float64), [2, 3], axis=0)[:, 1]
    assert found["mean_difference"].iloc[1] == pytest.approx(change.mean(), rel=1e-9)
    assert found["sd_difference"].iloc[1] == pytest.approx(change.std(ddof=1), rel=1e-9)


def test_a_run_without_placebos_has_an_empty_table_of_them_and_no_file(tmp_path):
    analysis = shards.comparative(metrics=["entropy"])
    shards.write(tmp_path, "tiny", shards.table(SENTENCES, analysis))
    shards.merge(tmp_path, "tiny", analysis)
    frame = ModelResult(tmp_path, "tiny", analysis, [], []).placebos
    assert frame.empty
    assert frame.groupby("condition")["n"].sum().empty
    assert not list(tmp_path.rglob("*placebos*"))


# --- one pass ----------------------------------------------------------------------------------------------------


def test_how_the_shards_were_cut_changes_no_byte_of_any_condition(tmp_path, monkeypatch):
    monkeypatch.setattr(record_files, "ROW_GROUP", 16)
    analysis = shards.dose(metrics=METRICS)
    ids = np.cumsum(np.random.default_rng(5).integers(1, 9, len(TEXTS)))
    whole = shards.table(TEXTS, analysis, records=(1, 2, 5), ids=ids)
    results = []
    for index, num_files in enumerate((1, 7)):
        run_dir = tmp_path / str(index)
        shards.write(run_dir, "tiny", whole, num_files=num_files, seed=index, rows_per_window=20)
        shards.merge(run_dir, "tiny", analysis, chunk_bytes=50_000)
        results.append(made_files(run_dir))
    assert len(results[0]) == 6 * 5 + 5 * 6 + 3
    assert results[1] == results[0]
    shards.write(tmp_path / "whole", "tiny", whole)
    shards.merge(tmp_path / "whole", "tiny", analysis)
    # sums of chunks, which follow the windows of the corpus
    summed = {f"comparative/data/tiny_{name}" for name in ("placebos.parquet", "summary.csv", "dose.csv")}
    again = made_files(tmp_path / "whole")
    assert {name for name in again if again[name] != results[0][name]} <= summed
    one, other = (ModelResult(tmp_path / folder, "tiny", analysis, [], []) for folder in ("0", "whole"))
    for name in ("placebos", "summary", "doses"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name), rtol=1e-9, atol=1e-12)


def test_many_conditions_are_merged_where_few_files_may_be_open(tmp_path):
    control = ControlSettings(control_vector=[0.1], strengths=[float(number) for number in range(12)])
    analysis = AnalysisSettings(compare_control=True, control=control, metrics=["entropy"])
    shards.write(tmp_path, "tiny", shards.table(SENTENCES, analysis))
    with few_open_files(30):
        shards.merge(tmp_path, "tiny", analysis, parquet=False)
    assert len(files_of(tmp_path)) == 13 * 3 + 12 * 4 + 2


@contextmanager
def few_open_files(more: int) -> Iterator[None]:
    """Allow so many open files beyond those that there are."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    now = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 100
    resource.setrlimit(resource.RLIMIT_NOFILE, (now + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- for Python and the terminal ---------------------------------------------------------------------------------


def test_a_result_has_the_conditions_then_the_comparisons_and_no_placebo(run):
    run_dir, analysis, _, _ = run
    result = ModelResult(run_dir, "tiny", analysis, [], [])
    assert list(result) == ["standard", *STRENGTHS, *(f"comparative/{name}" for name in STRENGTHS)]
    assert len(result) == 11
    assert list(result["control_+1"]) == METRICS
    assert list(result["comparative/control_+1"]) == [*METRICS, *COMPARISON_METRICS]
    assert len(result["comparative/control_+1"].records) == result["standard"].records["position"].size
    with pytest.raises(KeyError, match=re.escape("'control_random_1': the run has standard, control_-2")):
        result["control_random_1"]
    with pytest.raises(KeyError, match="'kl_from_standard': the run has entropy, attention_entropy"):
        result["control_+1"]["kl_from_standard"]


def test_a_result_of_two_conditions_is_called_as_it_was(tmp_path):
    result = ModelResult(tmp_path, "tiny", shards.comparative(), [], [])
    assert list(result) == ["standard", "control", "comparative"]
    assert list(ModelResult(tmp_path, "tiny", AnalysisSettings(), [], [])) == ["standard"]


def test_the_effects_are_the_rows_of_the_summary_at_two_layers_and_survive_json(run):
    run_dir, analysis, whole, tables = run
    entropy = next(row for row in summary_rows(tables) if row.metric == "entropy")
    assert entropy.condition == "standard"
    before = means(whole, "standard", "entropy", SHAPE.num_layers)
    effects = effect_rows(tables, analysis.run_conditions)
    summary = ModelResult(run_dir, "tiny", analysis, [], []).summary
    for name in STRENGTHS:
        after = means(whole, name, "entropy", SHAPE.num_layers)
        changes = after - before
        own = {one.at: one for one in effects if (one.columns["condition"], one.columns["metric"]) == (name, "entropy")}
        assert own["last"].columns["mean_difference"] == pytest.approx(changes.mean(axis=0)[-1])
        assert own["last"].num_placebos == 2
        if own["last"].strength == 0 and "largest" not in own:
            continue
        rows = summary[(summary["condition"] == name) & (summary["metric"] == "entropy")].reset_index(drop=True)
        largest = rows["effect_size"].replace([np.inf, -np.inf], np.nan).abs().idxmax()
        assert own["largest"].columns["layer"] == rows["layer"][largest]
    for row in effects:
        again = json.loads(json.dumps(_plain(row), allow_nan=False))
        columns = _numbers(again["columns"])
        for column_name, value in row.columns.items():
            is_lost = isinstance(value, float) and not np.isfinite(value)
            assert np.isnan(columns[column_name]) if is_lost else columns[column_name] == value
