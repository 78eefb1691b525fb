"""The Parquet files of a condition and of a comparison: a row for each record."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from llm_entropy.outputs.chunk import Chunk
from llm_entropy.outputs.comparison import DIFFERENCE, difference
from llm_entropy.outputs.views import Pair, View
from llm_entropy.schema.shards import (
    ANSWER_COLUMNS,
    POSITION,
    SENTENCE,
    SENTENCE_ID,
    TOKEN,
    TOKEN_END,
    TOKEN_ID,
    TOKEN_START,
    column,
    kept_column,
)
from llm_entropy.settings import BASELINE_METRICS, COMPARISON_METRICS, WORD_METRICS, Comparison, Condition, DataSettings

MOST_DICTIONARY = 2**30
"""Bytes of texts in a row group up to which each is stored once."""
ROW_GROUP = 8_192
"""Records of a row group: fixed, so that the file does not depend on how the shards were cut."""
RECORD_COLUMNS = (SENTENCE_ID, SENTENCE, POSITION, TOKEN_ID, TOKEN, TOKEN_START, TOKEN_END)
"""What a record is about, whatever the condition."""


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


class ConditionParquet:
    """Every record under one condition."""

    def __init__(
        self,
        path: Path,
        condition: Condition,
        metrics: list[str],
        model: str,
        schema: pa.Schema,
        files: ExitStack,
        data: DataSettings,
    ) -> None:
        """Open the file.

        Args:
            path: The file.
            condition: Whose columns it holds.
            metrics: Which metrics were asked for.
            model: The model's key.
            schema: The shards' columns.
            files: The file is complete when it is closed.
            data: Names the columns of the corpus that come back.
        """
        prefix = column(condition.name, "")
        left_out = {*COMPARISON_METRICS, *BASELINE_METRICS, *WORD_METRICS} - set(metrics)
        left_out |= set(ANSWER_COLUMNS)
        self._names = [name for name in schema.names if _belongs(name, prefix, left_out)]
        self._kept = kept_fields(schema, data)
        fields = [schema.field(name).with_name(name.removeprefix(prefix)) for name in self._names]
        fields += self._kept
        self._file = RecordFile(path, pa.schema(fields, metadata=_about(model, condition.name)), files)

    def add(self, view: View) -> None:
        """Take the next sentences."""
        columns = [*view.chunk.table.select(self._names).columns, *kept_by_record(view.chunk, self._kept)]
        self._file.add(columns, view.chunk.sentence_column)


class DifferenceParquet:
    """The differences of every record in a comparison, and the metrics that lie between its conditions."""

    def __init__(
        self,
        path: Path,
        comparison: Comparison,
        metrics: list[str],
        model: str,
        schema: pa.Schema,
        files: ExitStack,
        data: DataSettings,
    ) -> None:
        """Open the file.

        Args:
            path: The file.
            comparison: Which conditions are compared.
            metrics: Which metrics have differences.
            model: The model's key.
            schema: The shards' columns.
            files: The file is complete when it is closed.
            data: Names the columns of the corpus that come back.
        """
        self._metrics = metrics
        baseline, other = comparison.baseline.name, comparison.other.name
        fields = [schema.field(name) for name in RECORD_COLUMNS]
        for metric in metrics:
            field = schema.field(column(other, metric))
            about = {**field.metadata, b"meaning": f"{other} - {baseline}".encode()}
            fields.append(field.with_name(f"{metric}_{DIFFERENCE}").with_metadata(about))
        fields += [schema.field(column(other, metric)).with_name(metric) for metric in COMPARISON_METRICS]
        self._kept = kept_fields(schema, data)
        fields += self._kept
        # The folder names what the records are of: `comparative`, or with several conditions `comparative/NAME`.
        of = _about(model, comparison.other.comparison_folder)
        self._file = RecordFile(path, pa.schema(fields, metadata=of), files)

    def add(self, pair: Pair) -> None:
        """Take the next sentences."""
        before, after = pair.baseline, pair.other
        changes = [difference(before.numbers(metric), after.numbers(metric)) for metric in self._metrics]
        between = [after.numbers(metric) for metric in COMPARISON_METRICS]
        columns = [*pair.chunk.table.select(RECORD_COLUMNS).columns, *map(_as_lists, changes), *map(_as_lists, between)]
        columns += kept_by_record(pair.chunk, self._kept)
        self._file.add(columns, pair.chunk.sentence_column)


def kept_fields(schema: pa.Schema, data: DataSettings) -> list[pa.Field]:
    """Return the columns of the corpus that come back, by their own names."""
    return [schema.field(kept_column(name)).with_name(name) for name in data.keep_columns]


def kept_by_record(chunk: Chunk, fields: list[pa.Field]) -> list[pa.Array]:
    """Return the columns of the corpus that come back, [record] each."""
    return [chunk.kept(field.name).take(chunk.owners) for field in fields]


def _about(model: str, condition: str) -> dict[str, str]:
    return {"llm_entropy": "records", "model": model, "condition": condition}


def _belongs(name: str, prefix: str, left_out: set[str]) -> bool:
    """Whether a shard's column is part of a condition's records, and not what is left out of them."""
    return name in RECORD_COLUMNS or (name.startswith(prefix) and name.removeprefix(prefix) not in left_out)


def _as_lists(values: npt.NDArray[np.floating]) -> pa.Array:
    with np.errstate(over="ignore"):
        numbers = values.astype(np.float32)
    return pa.FixedSizeListArray.from_arrays(pa.array(numbers.ravel()), numbers.shape[1])
