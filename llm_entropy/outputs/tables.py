"""The files of one condition, and those of the comparison, filled a chunk of sentences at a time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Optional

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from llm_entropy.outputs import csv_text
from llm_entropy.outputs.comparison import QUANTITIES, difference, percent_change
from llm_entropy.outputs.curves import CurveBuilder, Rows, TrackBuilder
from llm_entropy.outputs.parts import Chunk, mean_by_group
from llm_entropy.schema import (
    POSITION,
    SENTENCE,
    SENTENCE_ID,
    TOKEN,
    TOKEN_END,
    TOKEN_ID,
    TOKEN_START,
    TOP_PROBABILITIES,
    TOP_TOKENS,
    TRACKED_PROBABILITIES,
    TRACKED_TOKENS,
    ModelShape,
    column,
)
from llm_entropy.settings import COMPARATIVE, COMPARISON_METRICS, CONTROL, KL_FROM_STANDARD, METRICS, STANDARD

MOST_DICTIONARY = 2**30
"""Bytes of texts in a row group up to which each is stored once."""
ROW_GROUP = 8_192
"""Records of a row group: fixed, so that the file does not depend on how the shards were cut."""
RECORD_COLUMNS = (SENTENCE_ID, SENTENCE, POSITION, TOKEN_ID, TOKEN, TOKEN_START, TOKEN_END)
"""What a record is about, whatever the condition."""


def metric_path(run_dir: Path, condition: str, model: str, metric: str) -> Path:
    """Return where a metric's CSV file is.

    Args:
        run_dir: The run's folder.
        condition: `standard`, `control` or `comparative`.
        model: The model's key.
        metric: The metric's name.

    Returns:
        Its path.
    """
    suffix = "_comparative" if condition == COMPARATIVE and metric not in COMPARISON_METRICS else ""
    return run_dir / condition / "data" / f"{model}_{metric}{suffix}.csv"


@dataclass(frozen=True)
class Target:
    """Where the tables of a model go, and how large they are."""

    folder: Path
    """A folder that is laid out as the run's own."""
    model: str
    """The model's key, the first part of every file name."""
    schema: pa.Schema
    """The shards' columns."""
    shape: ModelShape
    """The model's sizes."""
    num_sentences: int
    """How many sentences will come."""
    csv: bool
    """Whether there are CSV files."""
    parquet: bool
    """Whether every record is written as Parquet."""
    files: ExitStack
    """Holds the open files; they are complete when it is closed."""

    def open_csv(self, path: Path, header: bytes) -> CsvFile:
        """Open a CSV file, where there is to be one, and write its header."""
        file = CsvFile(path if self.csv else None, self.files)
        file.write(lambda: pa.array([header.decode()], pa.large_string()))
        return file

    def open_records(self, condition: str, schema: pa.Schema) -> list[RecordFile]:
        """Open the Parquet file of a condition, where there is to be one: a list of one, or of none."""
        if not self.parquet:
            return []
        metadata = {"llm_entropy": "records", "model": self.model, "condition": condition}
        path = self.folder / condition / "data" / f"{self.model}.parquet"
        return [RecordFile(path, schema.with_metadata(metadata), self.files)]


class CsvFile:
    """A CSV file, or none: then no line is made either."""

    def __init__(self, path: Optional[Path], files: ExitStack) -> None:
        """Open `path`, if there is one; it is complete when `files` is closed."""
        self._stream: Optional[BinaryIO] = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = files.enter_context(path.open("wb"))

    def write(self, make_lines: Callable[[], pa.LargeStringArray]) -> None:
        """Write lines.

        Args:
            make_lines: Makes them.
        """
        if self._stream is not None:
            self._stream.write(csv_text.as_bytes(make_lines()))


class RecordFile:
    """A Parquet file of records, whose row groups do not depend on the tables it is filled from.

    The text of a sentence is stored once in each row group: the column is a dictionary.
    """

    def __init__(self, path: Path, schema: pa.Schema, files: ExitStack) -> None:
        """Open `path`; it is complete when `files` is closed."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._place = schema.get_field_index(SENTENCE)
        text = schema.field(self._place).with_type(pa.dictionary(pa.int32(), pa.string()))
        self._schema = schema.set(self._place, text)
        writer = pq.ParquetWriter(path, self._schema, compression="zstd", dictionary_pagesize_limit=MOST_DICTIONARY)
        self._writer = files.enter_context(writer)
        self._waiting = self._schema.empty_table()
        files.callback(lambda: self._write(len(self._waiting)))

    def add(self, columns: list[pa.Array], sentences: pa.DictionaryArray) -> None:
        """Take the columns of the next records, in the order of the schema, and the texts that go into their place."""
        columns = [*columns[: self._place], sentences, *columns[self._place + 1 :]]
        table = pa.Table.from_arrays(columns, schema=self._schema)
        self._waiting = pa.concat_tables([self._waiting, table])
        self._write(len(self._waiting) // ROW_GROUP * ROW_GROUP)

    def _write(self, num_rows: int) -> None:
        for start in range(0, num_rows, ROW_GROUP):
            group = self._waiting.slice(start, min(ROW_GROUP, num_rows - start)).combine_chunks()
            texts = _used_alone(group[SENTENCE].combine_chunks())
            group = group.set_column(self._place, self._schema.field(self._place), texts)
            self._writer.write_table(group, row_group_size=ROW_GROUP)
        self._waiting = self._waiting.slice(num_rows)


def _used_alone(texts: pa.DictionaryArray) -> pa.DictionaryArray:
    """Return a column whose dictionary has the texts that occur, in their order, and no other."""
    used, indices = np.unique(texts.indices.to_numpy(), return_inverse=True)
    return pa.DictionaryArray.from_arrays(pa.array(indices, pa.int32()), texts.dictionary.take(pa.array(used)))


class Condition:
    """The files and curves of one condition."""

    def __init__(self, name: str, target: Target) -> None:
        """Open the condition's files."""
        self.name, self._shape, self._csv = name, target.shape, target.csv
        metrics = [metric for metric in METRICS if column(name, metric) in target.schema.names]
        self.curves = {metric: CurveBuilder(_width(metric, target), target.num_sentences) for metric in metrics}
        self._metric_files = {metric: _open_metric(target, name, metric) for metric in metrics}
        folder = target.folder / name
        path = folder / "predictions" / f"{target.model}_predictions.csv"
        self._predictions = target.open_csv(path, csv_text.PREDICTION_HEADER)
        num_tracked = target.schema.field(column(name, TRACKED_TOKENS)).type.list_size
        self.tracks = TrackBuilder(num_tracked, self._shape.num_layers, target.num_sentences)
        path = folder / "data" / f"{target.model}_token_probabilities.csv"
        self._token_file = target.open_csv(path, csv_text.TOKEN_HEADER)
        self._fields = {field.name: _own_name(field, name) for field in target.schema if _belongs(field.name, name)}
        self._record_files = target.open_records(name, pa.schema(self._fields.values()))

    def add(self, chunk: Chunk) -> tuple[dict[str, Rows], pa.LargeStringArray]:
        """Take the next sentences.

        Args:
            chunk: Their records.

        Returns:
            Each metric, [sentence, layer], and the lines of predictions, as many for each answer, if there is CSV.
        """
        sentences = csv_text.text_fields(chunk.sentences)
        rows = {metric: self._rows(chunk, metric) for metric in self.curves}
        for metric, values in rows.items():
            self.curves[metric].add(values)
            self._metric_files[metric].write(partial(_metric_lines, sentences, values))
        predictions = self._prediction_lines(chunk, sentences) if self._csv else sentences
        self._predictions.write(lambda: predictions)
        self._add_tracks(chunk, sentences)
        for file in self._record_files:
            file.add(chunk.table.select(list(self._fields)).columns, chunk.sentence_column)
        return rows, predictions

    def _rows(self, chunk: Chunk, metric: str) -> Rows:
        values = chunk.numbers(column(self.name, metric))
        if METRICS[metric].axis == "layer":
            return mean_by_group(values, chunk.counts)
        heads = values.reshape(len(values), self._shape.num_blocks, self._shape.num_heads)
        return np.asarray(mean_by_group(heads, chunk.counts).mean(axis=2))

    def _prediction_lines(self, chunk: Chunk, sentences: pa.LargeStringArray) -> pa.LargeStringArray:
        probabilities = chunk.numbers(column(self.name, TOP_PROBABILITIES))[chunk.answers]
        num_top = probabilities.shape[1]
        tokens = _of_answers(chunk, column(self.name, TOP_TOKENS), num_top)
        numbers = csv_text.number_texts(probabilities.ravel())
        answered = _repeat(sentences, chunk.answer_counts * num_top)
        return csv_text.lines(answered, csv_text.text_fields(tokens), numbers, self.name)

    def _add_tracks(self, chunk: Chunk, sentences: pa.LargeStringArray) -> None:
        num_layers = self._shape.num_layers
        flat = chunk.numbers(column(self.name, TRACKED_PROBABILITIES))[chunk.answers]
        probabilities = flat.reshape(len(flat), -1, num_layers)
        num_tracked = probabilities.shape[1]
        tokens = _of_answers(chunk, column(self.name, TRACKED_TOKENS), num_tracked)
        self._token_file.write(
            lambda: csv_text.lines(
                _repeat(sentences, chunk.answer_counts * num_tracked),
                csv_text.text_fields(tokens),
                csv_text.list_fields(probabilities.reshape(-1, num_layers)),
            )
        )
        self.tracks.add(chunk, tokens.to_pylist(), probabilities)


class Comparative:
    """The files and curves of the comparison of both conditions."""

    def __init__(self, target: Target, metrics: list[str]) -> None:
        """Open the comparison's files."""
        sizes = target.num_sentences
        self.curves = {metric: CurveBuilder(_width(metric, target), sizes) for metric in metrics}
        self.kl_from_standard = CurveBuilder(target.shape.num_layers, sizes)
        self._metric_files = {metric: _open_metric(target, COMPARATIVE, metric) for metric in metrics}
        self._kl_file = _open_metric(target, COMPARATIVE, KL_FROM_STANDARD)
        path = target.folder / COMPARATIVE / "predictions" / f"{target.model}_comparative_predictions.csv"
        self._predictions = target.open_csv(path, csv_text.PREDICTION_HEADER)
        self._record_files = target.open_records(COMPARATIVE, _difference_schema(target.schema, metrics))

    def add(
        self, chunk: Chunk, standard: dict[str, Rows], control: dict[str, Rows], predictions: list[pa.LargeStringArray]
    ) -> None:
        """Take the next sentences.

        Args:
            chunk: Their records.
            standard: Each metric, [sentence, layer].
            control: Each metric, [sentence, layer].
            predictions: The lines of predictions of the standard, then of the control condition.
        """
        for metric, builder in self.curves.items():
            before, after = standard[metric], control[metric]
            change = difference(before, after)
            builder.add(change)
            self._metric_files[metric].write(partial(_four_lines, chunk, before, after, change))
        kl = chunk.numbers(column(CONTROL, KL_FROM_STANDARD))
        means = mean_by_group(kl, chunk.counts)
        self.kl_from_standard.add(means)
        self._kl_file.write(lambda: csv_text.lines(csv_text.text_fields(chunk.sentences), csv_text.list_fields(means)))
        self._predictions.write(lambda: _sentence_by_sentence(chunk, predictions))
        for file in self._record_files:
            columns = [*chunk.table.select(RECORD_COLUMNS).columns, *self._differences(chunk), _as_lists(kl)]
            file.add(columns, chunk.sentence_column)

    def _differences(self, chunk: Chunk) -> list[pa.Array]:
        pairs = [[chunk.numbers(column(name, metric)) for name in (STANDARD, CONTROL)] for metric in self.curves]
        return [_as_lists(difference(before, after)) for before, after in pairs]


def _width(metric: str, target: Target) -> int:
    return target.shape.num_layers if METRICS[metric].axis == "layer" else target.shape.num_blocks


def _open_metric(target: Target, condition: str, metric: str) -> CsvFile:
    return target.open_csv(metric_path(target.folder, condition, target.model, metric), csv_text.METRIC_HEADER)


def _belongs(name: str, condition: str) -> bool:
    """Whether a shard's column is part of a condition's records; what compares is in the comparison's."""
    return name in RECORD_COLUMNS or (
        name.startswith(column(condition, "")) and name != column(condition, KL_FROM_STANDARD)
    )


def _own_name(field: pa.Field, condition: str) -> pa.Field:
    return field.with_name(field.name.removeprefix(column(condition, "")))


def _difference_schema(schema: pa.Schema, metrics: list[str]) -> pa.Schema:
    fields = [schema.field(name) for name in RECORD_COLUMNS]
    for metric in metrics:
        field = schema.field(column(CONTROL, metric))
        about = {**field.metadata, b"meaning": b"control - standard"}
        fields.append(field.with_name(f"{metric}_{QUANTITIES[2]}").with_metadata(about))
    return pa.schema([*fields, schema.field(column(CONTROL, KL_FROM_STANDARD)).with_name(KL_FROM_STANDARD)])


def _as_lists(values: npt.NDArray[np.floating]) -> pa.Array:
    with np.errstate(over="ignore"):
        numbers = values.astype(np.float32)
    return pa.FixedSizeListArray.from_arrays(pa.array(numbers.ravel()), numbers.shape[1])


def _metric_lines(sentences: pa.LargeStringArray, values: Rows) -> pa.LargeStringArray:
    return csv_text.lines(sentences, csv_text.list_fields(values))


def _four_lines(chunk: Chunk, before: Rows, after: Rows, change: Rows) -> pa.LargeStringArray:
    """Return the four lines of each sentence in a comparison."""
    labels = [csv_text.text_fields(chunk.sentences, f" ({quantity})") for quantity in QUANTITIES]
    four = (before, after, change, percent_change(before, after))
    return csv_text.interleave(
        [csv_text.lines(name, csv_text.list_fields(rows)) for name, rows in zip(labels, four, strict=True)]
    )


def _of_answers(chunk: Chunk, name: str, size: int) -> pa.StringArray:
    """Return a column of lists of strings at the answers, flat: [answer * size]."""
    places = chunk.answers[:, None] * size + np.arange(size)
    return chunk.strings(name).take(pa.array(places.ravel()))


def _repeat(texts: pa.LargeStringArray, times: npt.NDArray[np.int64]) -> pa.LargeStringArray:
    return texts.take(pa.array(np.repeat(np.arange(len(texts)), times)))


def _sentence_by_sentence(chunk: Chunk, predictions: list[pa.LargeStringArray]) -> pa.LargeStringArray:
    """Return the lines of both conditions, so that each sentence has its standard lines, then its control lines."""
    owners = np.repeat(np.arange(len(chunk.counts)), chunk.answer_counts)
    places = np.concatenate([np.repeat(owners, len(part) // len(owners)) for part in predictions])
    return pa.concat_arrays(predictions).take(pa.array(np.argsort(places, kind="stable")))
