"""A chunk of sentences as one condition, or one comparison, sees it: what several outputs need of it is made once."""

from __future__ import annotations

import json
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llm_entropy.outputs import csv_text
from llm_entropy.outputs.answer_numbers import AnswerNumbers, answer_numbers
from llm_entropy.outputs.chunk import Chunk, mean_by_group
from llm_entropy.outputs.comparison import Floats, difference
from llm_entropy.outputs.kept_csv import kept_fields
from llm_entropy.outputs.points import mean_over_heads, num_points
from llm_entropy.outputs.texts import FROM_TEXTS, text_rows
from llm_entropy.schema.shards import (
    CONTINUATION,
    TARGET,
    TARGET_ID,
    TOP_PROBABILITIES,
    TOP_TOKENS,
    TRACKED_PROBABILITIES,
    TRACKED_TOKENS,
    column,
)
from llm_entropy.settings import ALL_METRICS, ANSWER_METRICS, Condition


class View:
    """The records of a chunk under one condition."""

    def __init__(self, chunk: Chunk, condition: Condition) -> None:
        """See the records of `condition`."""
        self.chunk, self.condition = chunk, condition
        self._rows: dict[str, Floats] = {}

    def numbers(self, name: str) -> npt.NDArray[np.float32]:
        """Return a column of the condition, [record, size]."""
        return self.chunk.numbers(column(self.condition.name, name))

    def rows(self, metric: str) -> Floats:
        """Return a metric, [sentence, layer]: the mean over each sentence's records, and over heads."""
        if metric not in self._rows and metric in ANSWER_METRICS:
            self._rows[metric] = getattr(self.answers, metric)
        if metric not in self._rows:
            self._rows[metric] = text_rows(self.texts, metric) if metric in FROM_TEXTS else self._means(metric)
        return self._rows[metric]

    def _means(self, metric: str) -> Floats:
        values, counts = self.numbers(metric), self.chunk.counts
        if self.chunk.is_generated:
            values, counts = values[self._is_written], np.array([len(text) for text in self.texts])
        means = mean_by_group(values, counts, has_gaps=ALL_METRICS[metric].has_gaps)
        shape = self.chunk.shape
        width = num_points(metric, shape)
        return means if means.shape[1] == width else mean_over_heads(means, width, shape.heads)

    @cached_property
    def _is_written(self) -> npt.NDArray[np.bool_]:
        """[record], whether the condition has written a token there: its text may have ended before."""
        ids = self.chunk.table[column(self.condition.name, TARGET_ID)].combine_chunks()
        return np.asarray(ids.is_valid().to_numpy(zero_copy_only=False))

    @cached_property
    def texts(self) -> list[npt.NDArray[np.int64]]:
        """[sentence], the ids of the tokens that the condition has written, at least one."""
        ids = self.chunk.table[column(self.condition.name, TARGET_ID)].fill_null(0).to_numpy()
        return [
            ids[start : start + count][self._is_written[start : start + count]]
            for start, count in zip(self.chunk.starts, self.chunk.counts, strict=True)
        ]

    @cached_property
    def generation_lines(self) -> pa.LargeStringArray:
        """[sentence], the lines of the texts that the condition has written, with their tokens as JSON lists.

        The columns of the corpus that come back are behind them.
        """
        written = self.chunk.table[column(self.condition.name, CONTINUATION)].combine_chunks()
        said = self.chunk.table[column(self.condition.name, TARGET)].to_pylist()
        ends = (self.chunk.starts + self.chunk.counts).tolist()
        tokens = [
            json.dumps([token for token in said[start:end] if token is not None], ensure_ascii=False)
            for start, end in zip(self.chunk.starts.tolist(), ends, strict=True)
        ]
        return csv_text.lines(
            self.chunk.sentence_fields,
            csv_text.text_fields(written.take(pa.array(self.chunk.starts))),
            self.condition.name,
            csv_text.text_fields(pa.array(tokens, pa.string())),
            *kept_fields(self.chunk, self.chunk.data.keep_columns),
        )

    @cached_property
    def answers(self) -> AnswerNumbers:
        """The answers to the sentences; only where there are any."""
        return answer_numbers(self.chunk, self.condition.name)

    @cached_property
    def prediction_lines(self) -> pa.LargeStringArray:
        """[answer * top], the lines of predictions."""
        probabilities = self.numbers(TOP_PROBABILITIES)[self.chunk.answers]
        tokens = self.chunk.strings_by_answer(column(self.condition.name, TOP_TOKENS))
        numbers = csv_text.number_texts(probabilities.ravel())
        sentences = self.chunk.fields_by_answer(probabilities.shape[1])
        return csv_text.lines(sentences, csv_text.text_fields(tokens), numbers, self.condition.name)

    @cached_property
    def tracked_tokens(self) -> pa.StringArray:
        """[answer * tracked], the tokens that are followed over the layers."""
        return self.chunk.strings_by_answer(column(self.condition.name, TRACKED_TOKENS))

    @cached_property
    def tracked_probabilities(self) -> npt.NDArray[np.float32]:
        """[answer, tracked, layer], their probabilities."""
        flat = self.numbers(TRACKED_PROBABILITIES)[self.chunk.answers]
        return flat.reshape(len(flat), -1, self.chunk.shape.num_layers)


class Pair:
    """The records of a chunk under the two conditions of a comparison."""

    def __init__(self, baseline: View, other: View) -> None:
        """Compare two views of one chunk."""
        assert baseline.chunk is other.chunk
        self.chunk, self.baseline, self.other = baseline.chunk, baseline, other
        self._rows: dict[str, Floats] = {}

    def rows(self, metric: str) -> Floats:
        """Return the differences of a metric, other - baseline, [sentence, layer]."""
        if metric not in self._rows:
            self._rows[metric] = difference(self.baseline.rows(metric), self.other.rows(metric))
        return self._rows[metric]
