"""The tables of words: surprisal summed over the tokens of each, at every layer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Optional

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llm_entropy.outputs import csv_text
from llm_entropy.outputs.chunk import Chunk
from llm_entropy.outputs.csv_sinks import CsvFile
from llm_entropy.outputs.kept_csv import kept_header, value_fields
from llm_entropy.outputs.views import View
from llm_entropy.schema.batches import NO_WORD
from llm_entropy.schema.shards import SENTENCE_ID, TOKEN, WORD_END, WORD_START
from llm_entropy.settings import LOG_BOUNDARY

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

HEADER = b"sentence_id,word,start,end,num_tokens,surprisal,corrected_surprisal,entropy_before\n"
ROW_GROUP = 8_192
"""Words of a row group: fixed, so that the file does not depend on how the shards were cut."""


class WordTable(NamedTuple):
    """The words of some sentences under one condition, in order."""

    sentence_id: Integers
    """[word]."""
    word: list[str]
    """[word], the text between `start` and `end`."""
    start: Integers
    """[word], its first character in the sentence."""
    end: Integers
    """[word], one past the last."""
    num_tokens: Integers
    """[word]."""
    surprisal: Floats
    """[word, layer]: -ln of the probability of all its tokens; NaN for a word whose first token nothing predicts."""
    corrected_surprisal: Floats
    """[word, layer]: the same, with the end of the word paid for here, and not at the next word; NaN: undefined."""
    entropy_before: Floats
    """[word, layer]: of the distribution of its first token."""
    kept: dict[str, pa.Array]
    """The columns of the corpus that come back, by name, [word]: those of its sentence."""


def word_table(view: View) -> WordTable:
    """Return the words of a chunk of sentences under one condition.

    With B the probability that the next token begins a word or ends the text, the corrected surprisal is the sum over
    the tokens of -ln p, minus ln B behind the word, plus ln B at its first token (Pimentel and Meister 2024; Oh and
    Schuler 2024). A text begins with a word: at its first one, and behind a special token, B is 1 for certain. So it is
    behind a token that holds the white space behind its word, as a full stop with a line end: it has paid already.
    """
    chunk = view.chunk
    starts, ends = (chunk.table[name].to_numpy() for name in (WORD_START, WORD_END))
    ids = chunk.table[SENTENCE_ID].to_numpy()
    surprisal, entropy, boundary = (
        view.numbers(name).astype(np.float64) for name in ("surprisal", "entropy", LOG_BOUNDARY)
    )
    is_first = _changes(ids, starts) & (starts >= 0)
    counts = _sizes(is_first, starts >= 0)
    firsts = np.flatnonzero(is_first)
    if chunk.kind == "causal":  # the record of a token predicts the next one
        surprisal, entropy = _behind(surprisal, ids), _behind(entropy, ids)
        is_certain = (_ends_blank(chunk) | (starts == NO_WORD))[:, None] & ~np.isnan(boundary)
        boundary = np.where(is_certain, 0.0, boundary)
        change = _behind(boundary, ids)[firsts] - boundary[firsts + counts - 1]
    else:
        change = np.full((len(firsts), boundary.shape[1]), np.nan)  # the model sees where the word ends
    # from the first token of a word to that of the next, but for the tokens between that belong to none
    of_words = np.where((starts >= 0)[:, None], surprisal, 0.0)
    total = np.add.reduceat(of_words, firsts) if len(firsts) else of_words[:0]
    owners = np.searchsorted(chunk.starts, firsts, side="right") - 1
    return WordTable(
        ids[firsts],
        _texts(chunk, owners, starts[firsts], ends[firsts]),
        starts[firsts],
        ends[firsts],
        counts,
        total,
        total + change,
        entropy[firsts],
        {name: chunk.kept(name).take(pa.array(owners)) for name in chunk.data.keep_columns},
    )


def _changes(ids: Integers, starts: Integers) -> npt.NDArray[np.bool_]:
    """Return whether each record is of another word, or sentence, than the one before."""
    return np.concatenate([[True], (ids[1:] != ids[:-1]) | (starts[1:] != starts[:-1])])


def _sizes(is_first: npt.NDArray[np.bool_], is_inside: npt.NDArray[np.bool_]) -> Integers:
    """Return how many records each word has."""
    word = np.cumsum(is_first) - 1
    return np.bincount(word[is_inside], minlength=int(is_first.sum()))


def _ends_blank(chunk: Chunk) -> npt.NDArray[np.bool_]:
    """Return whether the token of each record ends with white space."""
    tokens = chunk.table[TOKEN].combine_chunks()
    ends: npt.NDArray[np.bool_] = pc.not_equal(pc.utf8_rtrim_whitespace(tokens), tokens).to_numpy(zero_copy_only=False)
    return ends


def _behind(values: Floats, ids: Integers) -> Floats:
    """Return for each record what the one before has in the same sentence; NaN where there is none."""
    moved = np.full_like(values, np.nan)
    moved[1:] = np.where((ids[1:] == ids[:-1])[:, None], values[:-1], np.nan)
    return moved


def _texts(chunk: Chunk, owners: Integers, starts: Integers, ends: Integers) -> list[str]:
    sentences = chunk.sentences.to_pylist()
    places = zip(owners.tolist(), starts.tolist(), ends.tolist(), strict=True)
    return [sentences[owner][start:end] for owner, start, end in places]


class WordSink:
    """The words of one condition, as CSV, as Parquet, or both."""

    def __init__(self, *files: WordCsv | WordParquet) -> None:
        """Fill some files."""
        self._files = files

    def add(self, view: View) -> None:
        """Take the next sentences."""
        table = word_table(view)
        for file in self._files:
            file.add(table)


class WordCsv:
    """A line for each word."""

    def __init__(self, path: Path, kept: Sequence[str]) -> None:
        """Make the file; columns of the corpus stand behind its own."""
        self._file = CsvFile(path, kept_header(HEADER, kept))

    def add(self, table: WordTable) -> None:
        """Take the next words."""
        if not table.word:
            return
        whole = [pa.array(getattr(table, name)).cast(csv_text.LARGE) for name in _NUMBERS]
        words = csv_text.text_fields(pa.array(table.word, pa.string()))
        numbers = [csv_text.list_fields(getattr(table, name)) for name in _MEANINGS]
        kept = map(value_fields, table.kept.values())
        self._file.write(csv_text.lines(whole[0], words, *whole[1:], *numbers, *kept))


class WordParquet:
    """A row for each word."""

    def __init__(
        self, path: Path, num_layers: int, model: str, condition: str, files: ExitStack, kept: list[pa.Field]
    ) -> None:
        """Open the file.

        Args:
            path: The file.
            num_layers: L + 1.
            model: The model's key.
            condition: Whose words they are.
            files: The file is complete when it is closed.
            kept: The columns of the corpus that come back.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"llm_entropy": "words", "model": model, "condition": condition}
        self._own = _fields(num_layers)
        self._schema = pa.schema([*self._own, *kept], metadata=about)
        self._writer = files.enter_context(pq.ParquetWriter(path, self._schema, compression="zstd"))
        self._waiting = self._schema.empty_table()
        files.callback(lambda: self._write(len(self._waiting)))

    def add(self, table: WordTable) -> None:
        """Take the next words."""
        columns = [_column(getattr(table, field.name), field.type) for field in self._own]
        columns += table.kept.values()
        self._waiting = pa.concat_tables([self._waiting, pa.Table.from_arrays(columns, schema=self._schema)])
        self._write(len(self._waiting) // ROW_GROUP * ROW_GROUP)

    def _write(self, num_rows: int) -> None:
        for start in range(0, num_rows, ROW_GROUP):
            group = self._waiting.slice(start, min(ROW_GROUP, num_rows - start)).combine_chunks()
            self._writer.write_table(group, row_group_size=ROW_GROUP)
        self._waiting = self._waiting.slice(num_rows)


_NUMBERS = ("sentence_id", "start", "end", "num_tokens")
_MEANINGS = {
    "surprisal": "sum over the tokens of -ln p",
    "corrected_surprisal": "surprisal - ln B(behind the word) + ln B(at its first token)",
    "entropy_before": "of the distribution of the first token",
}


def _fields(num_layers: int) -> list[pa.Field]:
    numbers = pa.list_(pa.float32(), num_layers)
    units = {"start": "characters", "end": "characters", "num_tokens": "tokens"}
    return [
        pa.field("sentence_id", pa.int64(), metadata={"meaning": "row of the corpus"}),
        pa.field("word", pa.string()),
        *(pa.field(name, pa.int32(), metadata={"unit": unit}) for name, unit in units.items()),
        *(
            pa.field(name, numbers, metadata={"unit": "nats", "axes": "layer", "meaning": meaning})
            for name, meaning in _MEANINGS.items()
        ),
    ]


def _column(values: Integers | Floats | list[str], kind: pa.DataType) -> pa.Array:
    """Return a column; a row of numbers that are all undefined is null."""
    if isinstance(values, list) or values.ndim == 1:
        return pa.array(values, kind)
    undefined: Optional[pa.Array] = pa.array(np.isnan(values).all(axis=1))
    flat = pa.array(values.astype(np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=undefined)
