"""What each sentence's right and wrong answer come to at every layer, and the files that hold it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Optional

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from llm_entropy.outputs import csv_text
from llm_entropy.outputs.answer_numbers import preferred_from
from llm_entropy.outputs.chunk import Chunk
from llm_entropy.outputs.comparison import Floats
from llm_entropy.outputs.csv_sinks import CsvFile
from llm_entropy.outputs.inference.collecting import SentenceNumbers, SentenceSample
from llm_entropy.outputs.inference.resampling import Interval
from llm_entropy.outputs.inference.verdicts import mean_intervals
from llm_entropy.outputs.kept_csv import value_fields
from llm_entropy.outputs.views import View
from llm_entropy.schema.batches import TARGET_ANSWER
from llm_entropy.schema.shards import ANSWER_SURPRISAL, POSITION, SENTENCE, SENTENCE_ID, column, kept_column
from llm_entropy.settings import ACCURACY, PREFERENCE, DataSettings

TARGET, FOIL, PREFERRED_FROM = "target", "foil", "preferred_from"
NUMBERS = {
    "target_surprisal": "nats",
    "foil_surprisal": "nats",
    "preference": "nats",
    "target_rank": "tokens",
    "target_probability": "",
}
"""What the files hold of each answer, a number per layer, and the units."""
HEADER = ",".join([SENTENCE, TARGET, FOIL, *NUMBERS]).encode() + b"\n"


class _Lines(NamedTuple):
    """The answers of a chunk as files hold them: of the sentences that have one."""

    places: npt.NDArray[np.int64]
    """[answer], which sentence."""
    numbers: dict[str, Floats]
    """By column, [answer, layer]."""
    preferred_from: Floats
    """[answer]."""


def _lines_of(view: View) -> _Lines:
    found = view.answers
    places = np.flatnonzero(~np.isnan(found.target_surprisal[:, 0]) | _given(view.chunk))
    return _Lines(
        places, {name: getattr(found, name)[places] for name in NUMBERS}, preferred_from(found.preference[places])
    )


def _given(chunk: Chunk) -> npt.NDArray[np.bool_]:
    """Return which sentences have a right answer, whatever its numbers are, [sentence]."""
    rows = chunk.answer_rows
    assert rows is not None
    own = rows[SENTENCE_ID].to_numpy()[rows[POSITION].to_numpy() == -TARGET_ANSWER]
    return np.isin(chunk.ids, own)


def _texts(chunk: Chunk, name: Optional[str]) -> pa.Array:
    """Return a column of answers, [sentence]; without a name a column of nulls."""
    return pa.nulls(len(chunk.counts), pa.string()) if name is None else chunk.kept(name)


class AnswerCsv:
    """The answers under one condition: a line for each sentence that has one."""

    def __init__(self, path: Path, data: DataSettings) -> None:
        """Make the file."""
        self._file, self._names = CsvFile(path, HEADER), (data.target_column, data.foil_column)

    def add(self, view: View) -> None:
        """Take the next sentences."""
        found, chunk = _lines_of(view), view.chunk
        places = pa.array(found.places)
        answers = [value_fields(_texts(chunk, name).take(places)) for name in self._names]
        numbers = [csv_text.list_fields(found.numbers[name]) for name in NUMBERS]
        self._file.write(csv_text.lines(chunk.sentence_fields.take(places), *answers, *numbers))


class AnswerParquet:
    """The answers under one condition, with the columns of the corpus that come back: a row for each sentence."""

    def __init__(
        self, path: Path, condition: str, model: str, schema: pa.Schema, files: ExitStack, data: DataSettings
    ) -> None:
        """Open the file.

        Args:
            path: The file.
            condition: Whose answers it holds.
            model: The model's key.
            schema: The shards' columns.
            files: The file is complete when it is closed.
            data: Names the columns of the corpus.
        """
        width = schema.field(column(condition, ANSWER_SURPRISAL)).type
        fields = [pa.field(SENTENCE_ID, pa.int64(), metadata={"meaning": "row of the corpus"})]
        fields += [pa.field(name, pa.string()) for name in (SENTENCE, TARGET, FOIL)]
        fields += [pa.field(name, width, metadata={"unit": unit, "axes": "layer"}) for name, unit in NUMBERS.items()]
        about = {"meaning": "the lowest layer from which on the right answer is preferred", "unit": "layer"}
        fields.append(pa.field(PREFERRED_FROM, pa.int32(), metadata=about))
        fields += [schema.field(kept_column(name)).with_name(name) for name in data.keep_columns]
        self._schema = pa.schema(fields, metadata={"llm_entropy": "answers", "model": model, "condition": condition})
        path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = files.enter_context(pq.ParquetWriter(path, self._schema, compression="zstd"))
        self._data = data

    def add(self, view: View) -> None:
        """Take the next sentences."""
        found, chunk = _lines_of(view), view.chunk
        places = pa.array(found.places)
        if not len(places):
            return
        columns = [pa.array(chunk.ids).take(places), chunk.sentences.take(places)]
        columns += [_texts(chunk, name).take(places) for name in (self._data.target_column, self._data.foil_column)]
        for name in NUMBERS:
            rows = found.numbers[name].astype(np.float32)
            columns.append(pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1]))
        columns.append(pa.array(found.preferred_from, from_pandas=True).cast(pa.int32()))
        columns += [chunk.kept(name).take(places) for name in self._data.keep_columns]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))


@dataclass(frozen=True)
class AnswerCurves:
    """How often, and how much, the right answer is preferred to the wrong one, by layer."""

    count: int
    """Sentences with both answers."""
    accuracy: Floats
    """[layer], share of them with a preference above 0."""
    accuracy_interval: Interval
    """[layer], 95 %."""
    preference: Floats
    """[layer], mean, in nats."""
    preference_interval: Interval
    """[layer], 95 %."""
    preferred_from: npt.NDArray[np.int64]
    """[layer + 1], how many sentences prefer the right answer for good from each layer on; the last: do not."""


class AnswerBuilder:
    """Collects the curves of the answers under one condition."""

    def __init__(self, num_layers: int, num_sentences: int, seed: int) -> None:
        """Expect `num_sentences` sentences."""
        sample = SentenceSample(num_sentences, seed)
        self._numbers = {name: SentenceNumbers(num_layers, 0, sample) for name in (ACCURACY, PREFERENCE)}
        self._from = np.zeros(num_layers + 1, np.int64)
        self._count, self._seed = 0, seed

    def add(self, view: View) -> None:
        """Take the next sentences."""
        preference = view.answers.preference
        own = ~np.isnan(preference[:, -1])
        self._count += int(own.sum())
        first = np.nan_to_num(preferred_from(preference[own]), nan=preference.shape[1]).astype(np.int64)
        self._from += np.bincount(first, minlength=len(self._from))
        for name, numbers in self._numbers.items():
            numbers.add(view.rows(name), [])

    def curves(self) -> AnswerCurves:
        """Return what came together."""
        totals = {name: numbers.totals() for name, numbers in self._numbers.items()}
        intervals = {
            name: mean_intervals(totals[name], numbers.resampled(), self._seed)
            for name, numbers in self._numbers.items()
        }
        return AnswerCurves(
            self._count,
            totals[ACCURACY].mean,
            intervals[ACCURACY],
            totals[PREFERENCE].mean,
            intervals[PREFERENCE],
            self._from,
        )
