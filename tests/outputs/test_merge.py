"""Shards in, tables out: against pandas, read back by others, and exactly once."""

from __future__ import annotations

import csv
import io
import itertools
import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import shards
from shards import SENTENCES, SHAPE

from llm_entropy.outputs import records as record_files
from llm_entropy.outputs.parts import TOKEN_BYTES, Parts, Span, id_ranges
from llm_entropy.outputs.results import ModelResult
from llm_entropy.outputs.sinks import ComparisonSinks
from llm_entropy.outputs.summaries import effect_rows, summary_rows
from llm_entropy.outputs.tables import ModelTables
from llm_entropy.schema.batches import Slice, WindowNotes
from llm_entropy.schema.shards import shard_schema
from llm_entropy.settings import METRICS, AnalysisSettings, ControlSettings

MANY = [f"{SENTENCES[index % len(SENTENCES)]} {index}" for index in range(300)]


def merge(run_dir: Path, analysis: AnalysisSettings, **how) -> ModelTables:
    return shards.merge(run_dir, "tiny", analysis, **how)


def result_of(run_dir: Path, analysis: AnalysisSettings) -> ModelResult:
    return ModelResult(run_dir, "tiny", analysis, [], [])


def made_files(run_dir: Path) -> dict[str, bytes]:
    files = [path for path in run_dir.rglob("*") if path.is_file() and "shards" not in path.parts]
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in files}


def read_csv(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.reader(stream))


def to_numbers(values: list[str]) -> np.ndarray:
    return np.array([json.loads(text) for text in values], float).astype(np.float32)


def mean_by_sentence(whole: pa.Table, name: str) -> pd.DataFrame:
    """The mean over a sentence's records, by pandas."""
    frame = pd.DataFrame(whole[name].to_pylist()).astype(float)
    return frame.groupby(whole["sentence_id"].to_numpy()).mean()


# --- the numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("records", [(1,), (1, 4, 2)])
def test_every_metric_file_holds_the_mean_over_the_records_as_pandas_finds_it(tmp_path, records):
    analysis = shards.comparative(metrics=list(METRICS))
    whole = shards.write(tmp_path, "tiny", shards.table(MANY, analysis, records=records))
    merge(tmp_path, analysis)
    for condition in ("standard", "control"):
        for metric in METRICS:
            expected = mean_by_sentence(whole, f"{condition}/{metric}").to_numpy()
            if METRICS[metric].is_per_head:
                expected = expected.reshape(len(MANY), SHAPE.num_blocks, SHAPE.num_heads).mean(axis=2)
            header, *rows = read_csv(tmp_path / condition / "data" / f"tiny_{metric}.csv")
            assert header == ["sentence", "values"]
            assert [sentence for sentence, _ in rows] == MANY
            found = to_numbers([values for _, values in rows])
            np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-7 if METRICS[metric].first else 0)


def test_what_is_empty_by_definition_is_null_and_not_reported(tmp_path, caplog):
    analysis = shards.comparative(metrics=["entropy_change", "attended_entropy"])
    whole = shards.table(MANY[:20], analysis, records=(2,))
    gaps = np.array(whole["standard/attended_entropy"].to_pylist())
    gaps[:, :] = 0.5
    gaps[::2] = np.nan  # the first record of each sentence
    gaps[1] = np.nan  # both of the first sentence
    place = whole.schema.get_field_index("standard/attended_entropy")
    whole = whole.set_column(place, whole.schema.field(place), shards._array(whole.schema.field(place), gaps))
    shards.write(tmp_path, "tiny", whole)
    tables = merge(tmp_path, analysis)
    assert "not finite" not in caplog.text
    result = result_of(tmp_path, analysis)
    change, attended = (result["standard"][metric].to_numpy() for metric in analysis.metrics)
    assert np.isnan(change[:, 0]).all()
    assert np.isfinite(change[:, 1:]).all()
    assert np.isnan(attended[0]).all()
    assert (attended[1:] == 0.5).all()
    for metric in analysis.metrics:  # from the records, where there is no CSV file
        (tmp_path / f"standard/data/tiny_{metric}.csv").unlink()
        again = result_of(tmp_path, analysis)["standard"][metric].to_numpy()
        np.testing.assert_allclose(again, change if metric == "entropy_change" else attended, rtol=1e-6)
    row = next(row for row in summary_rows(tables) if row.metric == "entropy_change")
    np.testing.assert_allclose(row.first_layer, change[:, 1].mean(), rtol=1e-6)


def test_a_layer_that_should_have_a_value_and_has_none_is_reported(tmp_path, caplog):
    analysis = AnalysisSettings(metrics=["entropy_change"])
    whole = shards.table(MANY[:20], analysis)
    values = np.array(whole["standard/entropy_change"].to_pylist())
    values[3, 2] = np.nan
    place = whole.schema.get_field_index("standard/entropy_change")
    whole = whole.set_column(place, whole.schema.field(place), shards._array(whole.schema.field(place), values))
    shards.write(tmp_path, "tiny", whole)
    merge(tmp_path, analysis)
    assert "tiny, standard: 1 of the numbers of entropy_change are not finite" in caplog.text


def test_blocks_without_attention_are_null_and_not_reported_and_another_null_is(tmp_path, caplog):
    shape = SHAPE._replace(heads=(0, 2, 0, 2))
    analysis = shards.comparative(metrics=["attention_entropy"])
    whole = shards.write(tmp_path, "tiny", shards.table(MANY[:20], analysis, shape))
    tables = shards.merge(tmp_path, "tiny", analysis, shape)
    assert not caplog.text
    found = result_of(tmp_path, analysis)["control"]["attention_entropy"]
    assert np.isfinite(found).all().tolist() == [False, True, False, True]
    assert not np.isfinite(found[[0, 2]]).any().any()
    (row,) = summary_rows(tables)
    np.testing.assert_allclose([row.first_layer, row.last_layer], tables.curves["standard"][row.metric].mean[[1, 3]])
    values = np.array(whole["control/attention_entropy"].to_pylist())
    values[4, 2:4] = np.nan
    place = whole.schema.get_field_index("control/attention_entropy")
    changed = whole.set_column(place, whole.schema.field(place), shards._array(whole.schema.field(place), values))
    shards.write(tmp_path / "again", "tiny", changed)
    shards.merge(tmp_path / "again", "tiny", analysis, shape)
    (message,) = caplog.messages
    assert message.startswith("tiny, control: 1 of the numbers of attention_entropy are not finite")


def test_the_last_block_with_attention_stands_for_the_last_one(tmp_path):
    shape = SHAPE._replace(heads=(2, 2, 0, 0))
    analysis = shards.comparative(metrics=["entropy", "attention_entropy"])
    shards.write(tmp_path, "tiny", shards.table(MANY[:20], analysis, shape))
    tables = shards.merge(tmp_path, "tiny", analysis, shape)
    rows = [row.columns for row in effect_rows(tables, analysis.run_conditions) if row.at == "last"]
    last = {row["metric"]: row["layer"] for row in rows}
    assert last == {"entropy": 4, "attention_entropy": 1, "kl_from_standard": 4, "top1_changed": 4}
    assert all(np.isfinite(row["mean_difference"]) for row in rows)


def test_single_records_are_restored_bit_for_bit(tmp_path):
    analysis = AnalysisSettings()
    whole = shards.write(tmp_path, "tiny", shards.table(MANY, analysis))
    merge(tmp_path, analysis)
    _, *rows = read_csv(tmp_path / "standard/data/tiny_margin.csv")
    written = np.array(whole["standard/margin"].to_pylist(), np.float32)
    np.testing.assert_array_equal(to_numbers([values for _, values in rows]), written)


def test_the_comparison_has_four_rows_per_sentence_and_null_where_standard_is_zero(tmp_path):
    analysis = shards.comparative(metrics=["target_rank", "entropy"])
    whole = shards.write(tmp_path, "tiny", shards.table(MANY, analysis, records=(1, 2)))
    merge(tmp_path, analysis)
    for metric in analysis.metrics:
        header, *rows = read_csv(tmp_path / f"comparative/data/tiny_{metric}_comparative.csv")
        assert header == ["sentence", "values"]
        before, after = (mean_by_sentence(whole, f"{name}/{metric}").to_numpy() for name in ("standard", "control"))
        with np.errstate(divide="ignore", invalid="ignore"):
            expected = [before, after, after - before, np.where(before == 0, np.nan, 100 * (after - before) / before)]
        names = ["standard", "control", "difference", "percent_change"]
        assert [row[0] for row in rows] == [f"{sentence} ({name})" for sentence in MANY for name in names]
        found = to_numbers([row[1] for row in rows]).reshape(len(MANY), 4, -1)
        np.testing.assert_allclose(found, np.stack(expected, axis=1).astype(np.float32), rtol=1e-6)
    assert np.isnan(result_of(tmp_path, analysis)["comparative"]["target_rank"].loc[(MANY[0], "percent_change"), 4])
    assert "null" in (tmp_path / "comparative/data/tiny_target_rank_comparative.csv").read_text()
    kl = mean_by_sentence(whole, "control/kl_from_standard").to_numpy()
    np.testing.assert_allclose(result_of(tmp_path, analysis)["comparative"]["kl_from_standard"], kl, rtol=1e-6)


def test_numbers_that_are_not_finite_are_null_and_reported(tmp_path, caplog):
    analysis = AnalysisSettings(metrics=["entropy"])
    whole = shards.table(SENTENCES, analysis)
    place = whole.schema.get_field_index("standard/entropy")
    numbers = np.array(whole["standard/entropy"].to_pylist(), np.float32)
    numbers[2, 1], numbers[3, 0] = np.nan, np.inf
    changed = pa.FixedSizeListArray.from_arrays(pa.array(numbers.ravel()), SHAPE.num_layers)
    shards.write(tmp_path, "tiny", whole.set_column(place, whole.schema.field(place), changed))
    with caplog.at_level(logging.WARNING, "llm_entropy"):
        result = merge(tmp_path, analysis)
    assert "tiny, standard: 2 of the numbers of entropy are not finite" in caplog.text
    frame = result_of(tmp_path, analysis)["standard"]["entropy"]
    assert np.argwhere(frame.isna().to_numpy()).tolist() == [[2, 1], [3, 0]]
    masked = np.ma.masked_invalid(numbers.astype(float))
    np.testing.assert_allclose(result.curves["standard"]["entropy"].mean, masked.mean(axis=0), rtol=1e-12)


def test_the_curves_are_the_moments_over_all_sentences_and_the_sample_is_evenly_spaced(tmp_path, monkeypatch):
    monkeypatch.setattr("llm_entropy.outputs.curves.SAMPLE_SIZE", 50)
    analysis = shards.comparative()
    whole = shards.write(tmp_path, "tiny", shards.table(MANY, analysis, records=(2, 1)))
    result = merge(tmp_path, analysis, chunk_bytes=20_000)
    assert (result.num_sentences, result.num_records) == (300, 450)
    before, after = (mean_by_sentence(whole, f"{name}/entropy").to_numpy() for name in ("standard", "control"))
    chosen = np.linspace(0, 299, 50).round().astype(int)
    compared = result.comparisons["control"]
    comparison = compared.metrics["entropy"]
    for curves, rows in (
        (comparison.baseline, before),
        (comparison.other, after),
        (comparison.difference, after - before),
    ):
        assert curves.count == 300
        np.testing.assert_allclose(curves.mean, rows.mean(axis=0), rtol=1e-10)
        np.testing.assert_allclose(curves.deviation, rows.std(axis=0), rtol=1e-10)
        np.testing.assert_array_equal(curves.sample, rows[chosen].astype(np.float32))
    assert compared.between["kl_from_standard"].count == 300
    assert result.curves["control"]["attention_entropy"].mean.shape == (SHAPE.num_blocks,)


# --- predictions and tokens --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "answers"), [("causal", [0, 3, 4]), ("masked", [0, 1, 2, 3, 4])])
def test_predictions_are_those_of_a_causal_models_last_record_and_of_every_mask(tmp_path, kind, answers):
    analysis = shards.comparative(top_k=2, positions="all")
    whole = shards.write(tmp_path, "tiny", shards.table(SENTENCES[:3], analysis, records=(1, 3, 1)))
    merge(tmp_path, analysis, kind=kind)
    lines = {}
    for condition in ("standard", "control"):
        lines[condition] = [
            [whole["sentence"][row].as_py(), token, np.float32(probability), condition]
            for row in answers
            for token, probability in zip(
                whole[f"{condition}/top_tokens"][row].as_py(),
                whole[f"{condition}/top_probabilities"][row].as_py(),
                strict=True,
            )
        ]
        header, *rows = read_csv(tmp_path / condition / "predictions/tiny_predictions.csv")
        assert header == ["Sentence", "Token", "Probability", "Analysis"]
        assert [[row[0], row[1], np.float32(row[2]), row[3]] for row in rows] == lines[condition]
    _, *rows = read_csv(tmp_path / "comparative/predictions/tiny_comparative_predictions.csv")
    expected = [line for text in SENTENCES[:3] for name in lines for line in lines[name] if line[0] == text]
    assert [[row[0], row[1], np.float32(row[2]), row[3]] for row in rows] == expected


def test_tracked_tokens_are_written_per_answer_and_averaged_over_the_sentences(tmp_path):
    analysis = AnalysisSettings(tracked_tokens=2)
    whole = shards.write(tmp_path, "tiny", shards.table(MANY[:9], analysis, records=(2, 1)))
    tracks = merge(tmp_path, analysis, kind="masked").tracks["standard"]
    probabilities = np.array(whole["standard/tracked_probabilities"].to_pylist(), np.float32)
    tokens = whole["standard/tracked_tokens"].to_pylist()
    header, *rows = read_csv(tmp_path / "standard/data/tiny_token_probabilities.csv")
    assert header == ["sentence", "token", "values"]
    assert [row[0] for row in rows] == np.repeat(whole["sentence"].to_pylist(), 2).tolist()
    assert [row[1] for row in rows] == [token for few in tokens for token in few]
    np.testing.assert_array_equal(to_numbers([row[2] for row in rows]), probabilities.reshape(-1, SHAPE.num_layers))
    expected = mean_by_sentence(whole, "standard/tracked_probabilities").mean().to_numpy()
    np.testing.assert_allclose(tracks.mean.ravel(), expected, rtol=1e-12)
    assert tracks.count == 9
    assert [example[0] for example in tracks.examples] == [MANY[index] for index in (0, 3, 5, 8)]
    last = tracks.examples[-1]
    assert last[1] == tokens[-2]
    np.testing.assert_array_equal(last[2].ravel(), probabilities[-2])


# --- the files ---------------------------------------------------------------------------------------------------


def test_hard_sentences_come_back_through_pandas_and_csv_unchanged(tmp_path):
    analysis = shards.comparative()
    shards.write(tmp_path, "tiny", shards.table(SENTENCES, analysis))
    merge(tmp_path, analysis)
    for path in sorted(tmp_path.glob("*/*/*.csv")):
        frame = pd.read_csv(path, keep_default_na=False, dtype=str)
        header, *rows = read_csv(path)
        assert frame.columns.tolist() == header
        assert frame.to_numpy().tolist() == rows
        assert path.read_bytes().count(b'"[') == (len(rows) if "values" in header else 0)
    assert (
        pd.read_csv(tmp_path / "standard/data/tiny_entropy.csv", keep_default_na=False)["sentence"].tolist()
        == SENTENCES
    )
    assert result_of(tmp_path, analysis)["control"]["entropy"].index.tolist() == SENTENCES


def test_lines_are_those_of_pythons_csv(tmp_path):
    analysis = AnalysisSettings()
    texts = [text for text in SENTENCES if "\r" not in text]
    shards.write(tmp_path, "tiny", shards.table(texts, analysis))
    merge(tmp_path, analysis)
    for name in ("data/tiny_entropy.csv", "data/tiny_token_probabilities.csv", "predictions/tiny_predictions.csv"):
        path = tmp_path / "standard" / name
        again = tmp_path / "again.csv"
        with again.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream, lineterminator="\n").writerows(read_csv(path))
        assert again.read_bytes() == path.read_bytes()


def test_the_parquet_file_is_the_shards_in_corpus_order_with_their_units(tmp_path):
    analysis = shards.comparative()
    whole = shards.write(tmp_path, "tiny", shards.table(MANY, analysis, records=(1, 3)))
    merge(tmp_path, analysis)
    for condition in ("standard", "control"):
        table = pq.read_table(tmp_path / condition / "data/tiny.parquet")
        assert not any("/" in name for name in table.column_names)
        for name in table.column_names:
            source = name if name in whole.column_names else f"{condition}/{name}"
            assert table[name].to_pylist() == whole[source].to_pylist()
            assert table.field(name).metadata == whole.field(source).metadata
        assert table.field("attention_entropy").metadata[b"shape"] == b"4 2"
        assert table.field("entropy").metadata[b"unit"] == b"nats"
        assert table.schema.metadata[b"condition"] == condition.encode()
    table = pq.read_table(tmp_path / "comparative/data/tiny.parquet")
    before, after = (np.array(whole[f"{name}/attention_entropy"].to_pylist()) for name in ("standard", "control"))
    np.testing.assert_allclose(table["attention_entropy_difference"].to_pylist(), after - before, atol=1e-6)
    assert table["kl_from_standard"].to_pylist() == whole["control/kl_from_standard"].to_pylist()
    assert table.field("margin_difference").metadata[b"unit"] == b"logits"


def test_neither_the_chunks_nor_the_number_of_files_change_a_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(record_files, "ROW_GROUP", 16)
    analysis = shards.comparative()
    ids = np.cumsum(np.random.default_rng(5).integers(1, 9, 60))
    whole = shards.table(MANY[:60], analysis, records=(1, 2, 5), ids=ids)
    results = []
    for index, (num_files, chunk_bytes) in enumerate([(1, 2**30), (7, 2**30), (3, 1), (12, 20_000)]):
        run_dir = tmp_path / str(index)
        shards.write(run_dir, "tiny", whole, num_files=num_files, seed=index)
        merge(run_dir, analysis, chunk_bytes=chunk_bytes)
        results.append(made_files(run_dir))
    assert len(results[0]) == 2 * (6 + 1 + 1 + 1) + (6 + 2 + 1 + 1) + 1
    name = "comparative/data/tiny_summary.csv"  # sums of chunks: the same to the last digits alone
    summaries = [pd.read_csv(io.BytesIO(files.pop(name))) for files in results]
    for other, summary in zip(results[1:], summaries[1:], strict=True):
        assert other == results[0]
        pd.testing.assert_frame_equal(summary, summaries[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mode", ["standard", "control", "comparative"])
def test_a_run_leaves_the_folders_that_its_mode_needs(tmp_path, mode):
    control = ControlSettings(control_vector=None if mode == "standard" else [0.1])
    analysis = AnalysisSettings(compare_control=mode == "comparative", control=control)
    assert analysis.mode == mode
    shards.write(tmp_path, "tiny", shards.table(SENTENCES, analysis))
    result = merge(tmp_path, analysis, parquet=False)
    folders = {"standard", "control", "comparative"} if mode == "comparative" else {mode}
    assert {path.name for path in tmp_path.iterdir()} == {"shards", *folders}
    assert not list((tmp_path / mode).rglob("*.parquet"))
    assert set(result.curves) == folders - {"comparative"}
    assert list(result.comparisons) == (["control"] if mode == "comparative" else [])


# --- exactly once ------------------------------------------------------------------------------------------------


def test_a_part_without_a_marker_is_not_read(tmp_path):
    analysis = AnalysisSettings()
    whole = shards.write(tmp_path, "tiny", shards.table(SENTENCES, analysis))
    folder = tmp_path / "shards/tiny/task-00000-of-00001/rank-0000"
    pq.write_table(whole, folder / ".part-000009.parquet.host-1.tmp")
    pq.write_table(whole, folder / "part-000009.parquet")
    assert merge(tmp_path, analysis).num_records == len(SENTENCES)


@pytest.mark.parametrize("chunk_bytes", [1, 2**30])
def test_a_missing_a_double_and_an_unknown_sentence_are_named(tmp_path, chunk_bytes):
    analysis = AnalysisSettings()
    whole = shards.table(MANY, analysis, ids=range(10, 310))
    kept = pc.invert(pc.is_in(whole["sentence_id"], pa.array([17, 200, 201])))
    records = pa.concat_tables([whole.filter(kept), whole.slice(3, 1)])
    shards.write(tmp_path, "tiny", records, expected=range(10, 309))
    with pytest.raises(ValueError, match="expected every sentence exactly once") as error:
        merge(tmp_path, analysis, chunk_bytes=chunk_bytes)
    message = str(error.value)
    assert "1 sentence is missing (id 17)" in message
    assert "2 sentences are missing (id 200, 201)" in message
    assert "1 sentence is there more than once (id 13)" in message
    assert made_files(tmp_path) == {}


def test_a_record_that_lies_outside_of_the_corpus_is_counted(tmp_path):
    analysis = AnalysisSettings()
    shards.write(tmp_path, "tiny", shards.table(MANY, analysis), expected=range(299))
    with pytest.raises(ValueError, match="1 records lie outside of the corpus"):
        merge(tmp_path, analysis)


def test_a_missing_sentence_of_a_sample_is_told_by_its_window(tmp_path):
    analysis = AnalysisSettings()
    ids = np.arange(0, 600, 2)
    whole = shards.table(MANY, analysis, ids=ids)
    kept = pc.invert(pc.is_in(whole["sentence_id"], pa.array([100])))
    shards.write(tmp_path, "tiny", whole.filter(kept), expected=ids)
    with pytest.raises(ValueError, match="of the 40 sentences with ids from 80 to 158 there are 39"):
        merge(tmp_path, analysis)


def test_many_missing_sentences_are_counted_and_only_the_first_named(tmp_path):
    analysis = AnalysisSettings()
    shards.write(tmp_path, "tiny", shards.table(MANY[:5], analysis), expected=range(100), rows_per_window=100)
    with pytest.raises(ValueError, match=r"95 sentences are missing \(id 5, 6, 7, 8, 9, \.\.\.\)"):
        merge(tmp_path, analysis)


def test_two_positions_of_one_sentence_are_no_doubles(tmp_path):
    analysis = AnalysisSettings()
    shards.write(tmp_path, "tiny", shards.table(MANY[:5], analysis, records=(3,)))
    assert merge(tmp_path, analysis).num_records == 15


def test_a_corpus_without_records_and_foreign_columns_are_refused(tmp_path):
    nothing = shards.table(SENTENCES, AnalysisSettings()).slice(0, 0)
    shards.write(tmp_path / "none", "tiny", nothing, expected=range(7))
    with pytest.raises(ValueError, match="tiny: none of the 7 rows holds a token to read"):
        merge(tmp_path / "none", AnalysisSettings())
    shards.write(tmp_path, "tiny", shards.table(SENTENCES, AnalysisSettings()))
    with pytest.raises(ValueError, match=r"standard/top_tokens \(fixed_size_list.*standard/margin \(not asked for\)"):
        merge(tmp_path, AnalysisSettings(top_k=3, metrics=["entropy"]))


def test_a_corrupt_part_is_named_and_nothing_is_written(tmp_path):
    analysis = AnalysisSettings()
    shards.write(tmp_path, "tiny", shards.table(MANY, analysis))
    part = tmp_path / "shards/tiny/task-00000-of-00001/rank-0001/part-000001.parquet"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    with pytest.raises(ValueError, match=r"part-000001\.parquet: is corrupt, its checksum"):
        merge(tmp_path, analysis)
    assert made_files(tmp_path) == {}


def test_what_a_killed_merge_left_is_removed(tmp_path):
    shards.write(tmp_path, "tiny", shards.table(SENTENCES, AnalysisSettings()))
    (tmp_path / ".merge-1234/standard").mkdir(parents=True)
    merge(tmp_path, AnalysisSettings())
    assert not list(tmp_path.glob(".merge-*"))


def test_without_csv_tables_are_read_from_the_records(tmp_path):
    analysis = shards.comparative(metrics=["entropy", "attention_entropy"])
    whole = shards.table(MANY, analysis, records=(1, 3))
    for name, has_csv in (("with", True), ("without", False)):
        shards.write(tmp_path / name, "tiny", whole)
        merge(tmp_path / name, analysis, csv=has_csv)
    assert [path.name for path in (tmp_path / "without").rglob("*.csv")] == ["tiny_summary.csv"]
    results = {name: result_of(tmp_path / name, analysis) for name in ("with", "without")}
    for condition, metric in itertools.product(("standard", "control", "comparative"), analysis.metrics):
        expected, found = (result[condition][metric] for result in results.values())
        pd.testing.assert_frame_equal(found, expected, rtol=1e-4, atol=1e-5)
    pd.testing.assert_frame_equal(*(result["comparative"]["kl_from_standard"] for result in results.values()))
    with pytest.raises(FileNotFoundError, match=r"set output\.csv or output\.parquet"):
        ModelResult(tmp_path / "without", "other", analysis, [], [])["standard"]["entropy"]


def span(first: int, *slices: Slice) -> Span:
    return Span(first, first + 100, WindowNotes(first, first + 100, 100, False), list(slices))


def test_the_ranges_hold_every_slice_once_and_about_as_many_bytes_as_asked_for():
    schema = shard_schema(AnalysisSettings(), SHAPE, {})
    row_bytes = TOKEN_BYTES + sum(4 * field.type.list_size for field in schema if hasattr(field.type, "list_size"))
    spans = [
        span(0, Slice(0, 100, 0, 0)),
        span(100, Slice(100, 0, 0, 0)),
        span(200, Slice(200, 600, 0, 0), Slice(210, 2500, 0, 0), Slice(250, 900, 0, 0)),
        span(2**40, Slice(2**40, 50, 0, 0)),
        span(2**40 + 100, Slice(2**40 + 100, 60, 0, 0)),
    ]
    assert id_ranges(spans, schema, 1000 * row_bytes) == [
        (0, 210),
        (210, 250),  # more than was asked for: a slice is never cut
        (250, 2**40 + 100),
        (2**40 + 100, 2**40 + 200),
    ]


def test_long_texts_and_lines_that_repeat_them_make_ranges_short():
    schema = shard_schema(AnalysisSettings(), SHAPE, {})
    spans = [span(0, *(Slice(first, 1, 1000, 50_000) for first in range(0, 100, 10)))]
    assert len(id_ranges(spans, schema, 10**6)) == 1
    assert len(id_ranges(spans, schema, 20_000)) == 5
    assert len(id_ranges(spans, schema, 10**6, lines_per_record=8)) == 5


def test_a_hundred_thousand_windows_are_looked_through_once():
    schema = shard_schema(AnalysisSettings(), SHAPE, {})
    spans = [span(first, Slice(first, 3, 0, 0)) for first in range(0, 10_000_000, 100)]
    ranges = id_ranges(spans, schema, 2**30)
    assert (ranges[0][0], ranges[-1][1]) == (0, 10_000_000)
    assert all(before[1] == after[0] for before, after in itertools.pairwise(ranges))


def test_the_parts_of_a_range_are_those_that_overlap_it(tmp_path):
    analysis = AnalysisSettings(metrics=["entropy"])
    shards.write(tmp_path, "tiny", shards.table(MANY, analysis), num_files=7, rows_per_window=25)
    markers = shards.ledger_of(tmp_path, "tiny").markers
    random = np.random.default_rng(0)
    spread = [
        replace(marker, first_id=int(first), end_id=int(first + size))
        for marker, first, size in zip(
            markers * 30, random.integers(0, 1000, 210), random.integers(1, 90, 210), strict=True
        )
    ]
    parts = Parts(spread, shard_schema(analysis, SHAPE, {}))
    for lowest, end in ((0, 1), (0, 2000), (500, 520), (999, 1000), (1100, 1200)):
        overlapping = [marker.part for marker in spread if marker.first_id < end and marker.end_id > lowest]
        assert sorted(parts.near(lowest, end)) == sorted(overlapping)


def test_the_text_of_a_long_document_is_stored_once_in_each_row_group(tmp_path, monkeypatch):
    monkeypatch.setattr(record_files, "ROW_GROUP", 500)
    random = np.random.default_rng(0)
    texts = ["".join(map(chr, random.integers(0x4E00, 0x9FFF, 40_000))) for _ in range(3)]  # it does not compress
    analysis = AnalysisSettings(metrics=["entropy"])
    whole = shards.write(tmp_path, "tiny", shards.table(texts, analysis, records=(700, 1, 300)))
    merge(tmp_path, analysis, kind="causal")
    path = tmp_path / "standard/data/tiny.parquet"
    own = pq.read_table(path, columns=["sentence"])["sentence"]
    assert own.to_pylist() == whole["sentence"].to_pylist()
    about = pq.ParquetFile(path).metadata
    sizes = [about.row_group(group).column(1).total_uncompressed_size for group in range(about.num_row_groups)]
    text_bytes = len(texts[0].encode())
    assert [round(size / text_bytes) for size in sizes] == [1, 3, 1]


def test_an_interrupted_merge_leaves_no_file_and_does_not_touch_the_old_ones(tmp_path, monkeypatch):
    analysis = shards.comparative()
    shards.write(tmp_path, "tiny", shards.table(MANY, analysis))
    calls = []

    def interrupt(self, pair):
        calls.append(pair)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, pair)

    original = ComparisonSinks.add
    with monkeypatch.context() as patch:
        patch.setattr(ComparisonSinks, "add", interrupt)
        with pytest.raises(KeyboardInterrupt):
            merge(tmp_path, analysis, chunk_bytes=20_000)
        assert [path.name for path in tmp_path.iterdir()] == ["shards"]
    merge(tmp_path, analysis)
    before = made_files(tmp_path)
    calls.clear()
    monkeypatch.setattr(ComparisonSinks, "add", interrupt)
    with pytest.raises(KeyboardInterrupt):
        merge(tmp_path, analysis, chunk_bytes=20_000)
    assert made_files(tmp_path) == before


def test_the_summary_has_the_first_and_last_layer_of_each_metric(tmp_path):
    analysis = shards.comparative(metrics=["entropy", "attention_entropy"])
    whole = shards.write(tmp_path, "tiny", shards.table(MANY, analysis))
    tables = merge(tmp_path, analysis)
    entropy, attention = summary_rows(tables)
    before, after = (mean_by_sentence(whole, f"{name}/entropy").mean() for name in ("standard", "control"))
    assert entropy[:4] == ("tiny", "entropy", "nats", "standard")
    np.testing.assert_allclose(entropy[4:6], [before.iloc[0], before.iloc[-1]], rtol=1e-6)
    effect = next(row.columns for row in effect_rows(tables, analysis.run_conditions) if row.at == "last")
    assert (effect["condition"], effect["metric"]) == ("control", "entropy")
    assert effect["mean_difference"] == pytest.approx((after - before).iloc[-1], rel=1e-5)
    assert attention.metric == "attention_entropy"
    alone = AnalysisSettings(control=ControlSettings(control_vector=[0.1]), metrics=["margin"])
    shards.write(tmp_path / "alone", "tiny", shards.table(SENTENCES, alone))
    (margin,) = summary_rows(merge(tmp_path / "alone", alone))
    assert (margin.unit, margin.condition) == ("logits", "control")
