"""The CSV files of a condition and of a comparison, filled a chunk of sentences at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from llm_entropy.outputs import csv_text
from llm_entropy.outputs.chunk import Chunk
from llm_entropy.outputs.comparison import percent_change, quantities
from llm_entropy.outputs.kept_csv import kept_fields, kept_header
from llm_entropy.outputs.views import Pair, View
from llm_entropy.schema.shards import SENTENCE, SENTENCE_ID


class CsvFile:
    """A CSV file, open only while lines are written: many conditions have more files than may be open at once."""

    def __init__(self, path: Path, header: bytes) -> None:
        """Make the file, with its header."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(header)
        self._path = path

    def write(self, lines: pa.LargeStringArray) -> None:
        """Write lines at the end."""
        with self._path.open("ab") as stream:
            stream.write(csv_text.as_bytes(lines))


class MetricCsv:
    """A metric under one condition: a line for each sentence."""

    def __init__(self, path: Path, metric: str) -> None:
        """Make the file."""
        self._file, self._metric = CsvFile(path, csv_text.METRIC_HEADER), metric

    def add(self, view: View) -> None:
        """Take the next sentences."""
        self._file.write(csv_text.lines(view.chunk.sentence_fields, csv_text.list_fields(view.rows(self._metric))))


class TokenCsv:
    """The probabilities of tracked tokens over the layers: a line for each answer and token."""

    def __init__(self, path: Path) -> None:
        """Make the file."""
        self._file = CsvFile(path, csv_text.TOKEN_HEADER)

    def add(self, view: View) -> None:
        """Take the next sentences."""
        probabilities = view.tracked_probabilities
        _, num_tracked, num_layers = probabilities.shape
        self._file.write(
            csv_text.lines(
                view.chunk.fields_by_answer(num_tracked),
                csv_text.text_fields(view.tracked_tokens),
                csv_text.list_fields(probabilities.reshape(-1, num_layers)),
            )
        )


class PredictionCsv:
    """The most likely tokens of one condition: a line for each answer and token."""

    def __init__(self, path: Path) -> None:
        """Make the file."""
        self._file = CsvFile(path, csv_text.PREDICTION_HEADER)

    def add(self, view: View) -> None:
        """Take the next sentences."""
        self._file.write(view.prediction_lines)


class GenerationCsv:
    """The texts that a model wrote under one condition: a line for each sentence, with the tokens as a JSON list."""

    def __init__(self, path: Path, kept: Sequence[str]) -> None:
        """Make the file; columns of the corpus stand behind its own."""
        self._file = CsvFile(path, kept_header(csv_text.GENERATION_HEADER, kept))

    def add(self, view: View) -> None:
        """Take the next sentences."""
        self._file.write(view.generation_lines)


class ComparativeGenerationCsv:
    """The texts of all conditions side by side: each sentence has the line of the first, then that of the next."""

    def __init__(self, path: Path, kept: Sequence[str]) -> None:
        """Make the file; columns of the corpus stand behind its own."""
        self._file = CsvFile(path, kept_header(csv_text.GENERATION_HEADER, kept))

    def add(self, views: Sequence[View]) -> None:
        """Take the next sentences, as all conditions see them."""
        self._file.write(csv_text.interleave([view.generation_lines for view in views]))


class TextCsv:
    """What is counted in the texts of one condition, and how the model finds them: a line for each sentence."""

    def __init__(self, path: Path, metrics: Sequence[str], kept: Sequence[str]) -> None:
        """Make the file: a column for each metric, of several layers the last, and behind them those of the corpus."""
        self._file = CsvFile(path, kept_header(",".join([SENTENCE, *metrics]).encode(), kept))
        self._metrics, self._kept = metrics, kept

    def add(self, view: View) -> None:
        """Take the next sentences."""
        columns = [csv_text.number_fields(view.rows(metric)[:, -1]) for metric in self._metrics]
        columns += kept_fields(view.chunk, self._kept)
        self._file.write(csv_text.lines(view.chunk.sentence_fields, *columns))


class SentenceCsv:
    """A line for each sentence: id, text, columns of the corpus, and every metric at the last layer (or block)."""

    def __init__(self, path: Path, kept: Sequence[str], metrics: Sequence[str]) -> None:
        """Make the file."""
        header = kept_header(f"{SENTENCE_ID},{SENTENCE}\n".encode(), [*kept, *metrics])
        self._file, self._kept, self._metrics = CsvFile(path, header), kept, metrics

    def add(self, view: View) -> None:
        """Take the next sentences."""
        chunk = view.chunk
        ids = pa.array(chunk.ids).cast(csv_text.LARGE)
        numbers = [csv_text.number_fields(view.rows(metric)[:, -1]) for metric in self._metrics]
        self._file.write(csv_text.lines(ids, chunk.sentence_fields, *kept_fields(chunk, self._kept), *numbers))


class FourLineCsv:
    """A metric in a comparison: both conditions, their difference and the change in percent of each sentence."""

    def __init__(self, path: Path, metric: str) -> None:
        """Make the file."""
        self._file, self._metric = CsvFile(path, csv_text.METRIC_HEADER), metric

    def add(self, pair: Pair) -> None:
        """Take the next sentences."""
        before, after = pair.baseline.rows(self._metric), pair.other.rows(self._metric)
        four = (before, after, pair.rows(self._metric), percent_change(before, after))
        names = quantities(pair.baseline.condition.name, pair.other.condition.name)
        labels = [csv_text.text_fields(pair.chunk.sentences, f" ({name})") for name in names]
        fields = map(csv_text.list_fields, four)
        self._file.write(csv_text.interleave([csv_text.lines(*line) for line in zip(labels, fields, strict=True)]))


class ComparativePredictionCsv:
    """The most likely tokens of both conditions of a comparison: each sentence has the baseline's lines first."""

    def __init__(self, path: Path) -> None:
        """Make the file."""
        self._file = CsvFile(path, csv_text.PREDICTION_HEADER)

    def add(self, pair: Pair) -> None:
        """Take the next sentences."""
        self._file.write(
            _sentence_by_sentence(pair.chunk, [pair.baseline.prediction_lines, pair.other.prediction_lines])
        )


def _sentence_by_sentence(chunk: Chunk, predictions: list[pa.LargeStringArray]) -> pa.LargeStringArray:
    """Return the lines of all conditions, so that each sentence has those of the first, then those of the next."""
    owners = np.repeat(np.arange(len(chunk.counts)), chunk.answer_counts)
    places = np.concatenate([np.repeat(owners, len(part) // len(owners)) for part in predictions])
    return pa.concat_arrays(predictions).take(pa.array(np.argsort(places, kind="stable")))
