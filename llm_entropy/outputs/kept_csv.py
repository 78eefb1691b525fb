"""One line for each sentence, with the columns of the corpus that come back, for people who analyse elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import pyarrow as pa

from llm_entropy.outputs import csv_text
from llm_entropy.outputs.csv_sinks import CsvFile
from llm_entropy.outputs.views import View
from llm_entropy.schema import SENTENCE, SENTENCE_ID


class SentenceCsv:
    """A line for each sentence: id, text, columns of the corpus, and every metric at the last layer (or block)."""

    def __init__(self, path: Path, kept: Sequence[str], metrics: Sequence[str]) -> None:
        """Make the file."""
        names = pa.array([SENTENCE_ID, SENTENCE, *kept, *metrics])
        header = ",".join(csv_text.text_fields(names).to_pylist()) + "\n"
        self._file, self._kept, self._metrics = CsvFile(path, header.encode()), kept, metrics

    def add(self, view: View) -> None:
        """Take the next sentences."""
        chunk = view.chunk
        ids = pa.array(chunk.ids).cast(csv_text.LARGE)
        kept = [value_fields(chunk.kept(name)) for name in self._kept]
        numbers = [csv_text.number_fields(view.rows(metric)[:, -1]) for metric in self._metrics]
        self._file.write(csv_text.lines(ids, chunk.sentence_fields, *kept, *numbers))


def value_fields(values: pa.Array) -> pa.LargeStringArray:
    """Return values of any type as CSV fields: text as it is, lists and objects as JSON, nothing for null."""
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return csv_text.text_fields(values.fill_null(""))
    return csv_text.text_fields(pa.array([_words(value) for value in values.to_pylist()], csv_text.LARGE))


def value_words(values: pa.Array) -> list[Optional[str]]:
    """Return values of any type in the words of `value_fields`; None for null."""
    return [None if value is None else _words(value) for value in values.to_pylist()]


def _words(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (bool, list, dict)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
