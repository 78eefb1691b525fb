"""The records of some whole sentences, which the merge hands to every output."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Optional

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llm_entropy.outputs import csv_text
from llm_entropy.schema.shape import ModelShape
from llm_entropy.schema.shards import POSITION, SENTENCE, SENTENCE_ID, kept_column
from llm_entropy.settings import DataSettings, Kind

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Chunk:
    """The records of some whole sentences, in corpus order."""

    table: pa.Table
    """One row per record."""
    kind: Kind
    """Whether the model is causal or masked."""
    shape: ModelShape
    """The model's sizes."""
    is_generated: bool = False
    """Whether the records are those of texts that the model wrote, of a length of its own under each condition."""
    answer_rows: Optional[pa.Table] = None
    """One row per answer; None: none are read."""
    data: DataSettings = field(default_factory=DataSettings)
    """Which columns of the corpus go with the sentences."""

    @cached_property
    def starts(self) -> Integers:
        """[sentence], the first record of each sentence."""
        ids = self.table[SENTENCE_ID].to_numpy()
        return np.flatnonzero(np.concatenate([[True], np.diff(ids) != 0]))

    @cached_property
    def counts(self) -> Integers:
        """[sentence], how many records each sentence has."""
        return np.diff(self.starts, append=len(self.table))

    @cached_property
    def answers(self) -> Integers:
        """[answer], the records that answer the sentence: a causal model's last one, each mask of a masked model.

        Of a text that was written it is the first one, which every condition has.
        """
        if self.is_generated:
            return self.starts
        return self.starts + self.counts - 1 if self.kind == "causal" else np.arange(len(self.table))

    @cached_property
    def answer_counts(self) -> Integers:
        """[sentence], how many answers each sentence has."""
        return np.ones_like(self.counts) if self.kind == "causal" else self.counts

    @cached_property
    def sentences(self) -> pa.StringArray:
        """[sentence], the texts: of each sentence the first one that its records hold."""
        return self.table[SENTENCE].combine_chunks().take(self._holders)

    @cached_property
    def _holders(self) -> pa.Array:
        """[sentence], the first record of each sentence that holds its text, and what goes with it."""
        filled = np.flatnonzero(self.table[SENTENCE].is_valid().to_numpy())
        owners = np.searchsorted(self.starts, filled, side="right") - 1
        firsts = filled[np.flatnonzero(np.diff(owners, prepend=-1))]
        assert len(firsts) == len(self.starts), "a part has the text of each of its sentences"
        return pa.array(firsts)

    def kept(self, name: str) -> pa.Array:
        """Return a column of the corpus that goes with the sentences, [sentence]."""
        values: pa.Array = self.table[kept_column(name)].combine_chunks().take(self._holders)
        return values

    @property
    def owners(self) -> pa.Array:
        """[record], the place of each record's sentence."""
        return pa.array(np.repeat(np.arange(len(self.counts)), self.counts))

    @cached_property
    def ids(self) -> Integers:
        """[sentence], the row of the corpus."""
        return np.asarray(self.table[SENTENCE_ID].to_numpy()[self.starts])

    @cached_property
    def sentence_column(self) -> pa.DictionaryArray:
        """[record], the text of each record's sentence, each text once."""
        owners = np.repeat(np.arange(len(self.counts), dtype=np.int32), self.counts)
        return pa.DictionaryArray.from_arrays(pa.array(owners), self.sentences)

    @cached_property
    def sentence_fields(self) -> pa.LargeStringArray:
        """[sentence], the texts as CSV fields."""
        return csv_text.text_fields(self.sentences)

    def fields_by_answer(self, num_lines: int) -> pa.LargeStringArray:
        """Return the texts as CSV fields, so many times for each answer: [answer * num_lines]."""
        owners = np.repeat(np.arange(len(self.counts)), self.answer_counts * num_lines)
        return self.sentence_fields.take(pa.array(owners))

    def strings_by_answer(self, name: str) -> pa.StringArray:
        """Return a column of fixed-size lists of strings at the answers, flat.

        Args:
            name: The column.

        Returns:
            [answer * size].
        """
        values = self.table[name].combine_chunks()
        size = values.type.list_size
        places = self.answers[:, None] * size + np.arange(size)
        return values.flatten().take(pa.array(places.ravel()))

    def numbers(self, name: str) -> npt.NDArray[np.float32]:
        """Return a column of fixed-size lists of numbers.

        Args:
            name: The column.

        Returns:
            [record, size], a view.
        """
        values = self.table[name].combine_chunks()
        flat: npt.NDArray[np.float32] = values.flatten().to_numpy()
        return flat.reshape(len(self.table), values.type.list_size)


def chunk_of(table: pa.Table, kind: Kind, shape: ModelShape, data: DataSettings, is_generated: bool = False) -> Chunk:
    """Return the rows of some sentences as a chunk: records, and answers, which have positions below 0.

    Args:
        table: Rows of shards, in corpus order.
        kind: Whether the model is causal or masked.
        shape: The model's sizes.
        data: Of the run.
        is_generated: Whether the records are those of texts that the model wrote.
    """
    about: Any = {"data": data, "is_generated": is_generated}
    if data.target_column is None:
        return Chunk(table, kind, shape, **about)
    is_answer = pa.array(table[POSITION].to_numpy() < 0)
    records = table.filter(pc.invert(is_answer)).combine_chunks()
    return Chunk(records, kind, shape, answer_rows=table.filter(is_answer).combine_chunks(), **about)


def mean_by_group(
    values: npt.NDArray[np.float32], counts: Integers, *, has_gaps: bool = False
) -> npt.NDArray[np.float64]:
    """Return the mean of each group of consecutive rows, in float64.

    Args:
        values: [row, ...].
        counts: [group], how many rows each group has.
        has_gaps: Whether NaN stands for no value and is left out; otherwise the mean is NaN.

    Returns:
        [group, ...]; NaN where a group has no value.
    """
    starts = np.cumsum(counts) - counts
    numbers, sizes = values.astype(np.float64), counts.reshape(-1, *[1] * (values.ndim - 1))
    if has_gaps:
        is_there = ~np.isnan(numbers)
        numbers = np.where(is_there, numbers, 0.0)
        sizes = np.add.reduceat(is_there, starts, axis=0, dtype=np.int64)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.add.reduceat(numbers, starts, axis=0) / sizes)
