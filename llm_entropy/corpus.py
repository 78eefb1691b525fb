"""From rows to batches: picking the sentences of a run, tokenising them, planning batches.

What the encoder makes of a sentence is not this file's business.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value

from llm_entropy.schema import SENTENCE, SENTENCE_ID, Example
from llm_entropy.settings import DataSettings, Kind
from llm_entropy.sources import (
    BLANK,
    ROWS_AT_ONCE,
    as_value_error,
    column_chunks,
    open_rows,
    progress_bars,
    text_column,
)

MASKED = "masked"
"""Column of the built-in corpus that holds the form for masked models."""
NULL = "null"
"""Reason why a row is skipped, as `BLANK` is: it has no value."""


@dataclass(frozen=True)
class Corpus:
    """The sentences of a run."""

    sentences: Dataset
    """Columns `sentence_id` (int64, row number in the source) and `sentence`; the built-in corpus also `masked`."""
    source: str
    """What it was, for people."""
    num_rows: int
    """Rows of the source; when streaming, rows that were read."""
    skipped: list[tuple[int, str]]
    """Row number and reason of every row without text, `BLANK` or `NULL`."""
    fingerprint: str
    """Names the content of `sentences`, wherever it came from."""

    def for_kind(self, kind: Kind) -> Dataset:
        """Return the columns `sentence_id` and `sentence` as a model of this kind reads them."""
        if MASKED not in self.sentences.column_names:
            return self.sentences
        if kind == "masked":
            return self.sentences.remove_columns(SENTENCE).rename_column(MASKED, SENTENCE)
        return self.sentences.remove_columns(MASKED)


@dataclass(frozen=True)
class EncodedCorpus:
    """The sentences as one model reads them."""

    examples: Dataset
    """One row per example: the fields of `Example`, `was_cut`, and `num_tokens`; in corpus order."""
    unread: list[int]
    """Ids of the sentences that gave no example."""
    num_cut: int
    """Number of sentences of which an example was cut."""


class SentenceEncoder(Protocol):
    """What makes examples of sentences."""

    @property
    def fingerprint(self) -> str:
        """Name of everything that decides what an example is."""
        ...

    def __call__(self, sentence_ids: Sequence[int], sentences: Sequence[str]) -> list[tuple[Example, bool]]:
        """Return the examples of some sentences, each with whether it was cut."""
        ...


# --- picking sentences -------------------------------------------------------------------------------------------


def load_corpus(data: DataSettings, num_sentences: int | None, seed: int, *, quiet: bool = False) -> Corpus:
    """Open the corpus, find its text, leave out rows without any, and pick sentences.

    The pick depends on the seed and the number of rows alone, and keeps corpus order. When streaming, it is the
    first `num_sentences` rows that hold text.

    Args:
        data: What to read.
        num_sentences: How many; None: all.
        seed: Of the pick.
        quiet: Whether progress bars are hidden.

    Raises:
        ValueError: The corpus cannot be read, its text column cannot be told, or it holds too few sentences.
    """
    if data.streaming and num_sentences is None:
        raise ValueError(
            "data.streaming: reads rows until there are analysis.num_sentences, but that is null; "
            "give a number there, or set data.streaming to false"
        )
    with progress_bars(shown=not quiet):
        if data.path is None:
            rows, source = _builtin(), "built-in sentences"
            columns = {SENTENCE: SENTENCE, MASKED: MASKED}
        else:
            rows, source = open_rows(data, data.path)
            columns = {text_column(rows, data, source): SENTENCE}
        if data.streaming:
            assert num_sentences is not None
            return _first_sentences(rows, columns, source, num_sentences)
        return _picked_sentences(rows, columns, source, num_sentences, seed)


def corpus_of_sentences(sentences: Sequence[str], num_sentences: int | None, seed: int) -> Corpus:
    """Make a corpus of sentences that are in memory, as `load_corpus` does of a file's.

    Args:
        sentences: The texts.
        num_sentences: How many; None: all.
        seed: Of the pick.

    Raises:
        ValueError: There are too few sentences, or something else than texts.
    """
    if isinstance(sentences, str) or not all(isinstance(sentence, str) for sentence in sentences):
        raise ValueError("sentences: expected a sequence of str, a sentence each")
    rows = Dataset.from_dict({SENTENCE: list(sentences)}, features=Features({SENTENCE: Value("string")}))
    return _picked_sentences(rows, {SENTENCE: SENTENCE}, "given sentences", num_sentences, seed)


def _builtin() -> Dataset:
    from llm_entropy.builtin import read_sentences

    return Dataset.from_list([{SENTENCE: row["prompt"], MASKED: row["masked"]} for row in read_sentences()])


def _picked_sentences(
    rows: Dataset, columns: dict[str, str], source: str, num_sentences: int | None, seed: int
) -> Corpus:
    text = next(iter(columns))
    missing = [chunk.is_null().to_numpy() for chunk in column_chunks(rows, text)]
    blank = [
        pc.equal(pc.binary_length(pc.utf8_trim_whitespace(chunk.fill_null(""))), 0).to_numpy()
        for chunk in column_chunks(rows, text)
    ]
    is_null, is_blank = (np.concatenate(flags) if flags else np.empty(0, bool) for flags in (missing, blank))
    skipped = [(int(row), NULL if is_null[row] else BLANK) for row in np.flatnonzero(is_blank)]
    _check_enough(len(rows) - len(skipped), len(skipped), num_sentences, source)
    sentences = rows.select_columns(list(columns)).rename_columns(columns)
    sentences = sentences.add_column(SENTENCE_ID, np.arange(len(rows), dtype=np.int64))
    if num_sentences is not None:
        order = np.random.default_rng(seed).permutation(len(rows))
        sentences = sentences.select(np.sort(order[~is_blank[order]][:num_sentences]))
    elif skipped:
        sentences = sentences.select(np.flatnonzero(~is_blank))
    sentences = sentences.select_columns([SENTENCE_ID, *columns.values()])
    return Corpus(sentences, source, len(rows), skipped, _content_of(sentences))


def _first_sentences(
    rows: Iterable[dict[str, Any]], columns: dict[str, str], source: str, num_sentences: int
) -> Corpus:
    text = next(iter(columns))
    taken: list[dict[str, Any]] = []
    skipped: list[tuple[int, str]] = []
    with as_value_error(f"data.path: could not read {source}"):
        for row_number, row in enumerate(rows):
            if row[text] is None or not row[text].strip():
                skipped.append((row_number, NULL if row[text] is None else BLANK))
                continue
            taken.append({SENTENCE_ID: row_number, **{name: row[column] for column, name in columns.items()}})
            if len(taken) == num_sentences:
                break
    _check_enough(len(taken), len(skipped), num_sentences, source)
    sentences = Dataset.from_list(taken)
    return Corpus(sentences, source, len(taken) + len(skipped), skipped, _content_of(sentences))


def _check_enough(num_found: int, num_skipped: int, num_asked: int | None, source: str) -> None:
    without = f"; {num_skipped} rows hold no text" if num_skipped else ""
    if num_found == 0:
        raise ValueError(f"data.path: {source} has no sentences{without or '; it has no rows'}")
    if num_asked is not None and num_asked > num_found:
        raise ValueError(
            f"analysis.num_sentences: got {num_asked}, but {source} has only {num_found} sentences{without}; "
            "ask for fewer, or null for all"
        )


def _content_of(sentences: Dataset) -> str:
    """Return a hash of the ids and texts, the same wherever and in whatever pieces they are stored."""
    digest = hashlib.sha256()
    for table in sentences.with_format("arrow").iter(batch_size=ROWS_AT_ONCE):
        for name in sorted(table.column_names):
            column = table.column(name)
            if name != SENTENCE_ID:
                digest.update(pc.binary_length(column).to_numpy().astype(np.int64).tobytes())
                digest.update("".join(column.to_pylist()).encode("utf-8", "surrogatepass"))
            else:
                digest.update(column.to_numpy().tobytes())
    return digest.hexdigest()[:32]


# --- tokenising --------------------------------------------------------------------------------------------------

_INTEGERS = List(Value("int32"))
_EXAMPLE_FEATURES = Features(
    {
        "sentence_id": Value("int64"),
        "sentence": Value("string"),
        "input_ids": _INTEGERS,
        "positions": _INTEGERS,
        "targets": _INTEGERS,
        "starts": _INTEGERS,
        "ends": _INTEGERS,
        "was_cut": Value("bool"),
        "num_tokens": Value("int32"),
    }
)


def encode_corpus(sentences: Dataset, encoder: SentenceEncoder, *, quiet: bool = False) -> EncodedCorpus:
    """Make the examples of all sentences, or read them from the cache of `datasets` if they were made before.

    The cache file is named by the content of the sentences and the encoder's fingerprint. It is written under a
    temporary name and moved, so that processes that encode the same corpus at once do not disturb each other.

    Args:
        sentences: Columns `sentence_id` and `sentence`, as `Corpus.for_kind` gives them.
        encoder: Makes the examples.
        quiet: Whether the progress bar is hidden.

    Raises:
        ValueError: No sentence gave an example, or the cache cannot be written.
    """
    fingerprint = hashlib.sha256(f"{_content_of(sentences)} {encoder.fingerprint}".encode()).hexdigest()[:32]
    cache = Path(datasets.config.HF_DATASETS_CACHE).expanduser() / "llm_entropy"
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write the cache {str(cache)!r} ({error}); set HF_DATASETS_CACHE") from error
    with progress_bars(shown=not quiet):
        examples = sentences.map(
            _ExampleRows(encoder),
            batched=True,
            remove_columns=sentences.column_names,
            features=_EXAMPLE_FEATURES,
            cache_file_name=str(cache / f"{fingerprint}.arrow"),
            new_fingerprint=fingerprint,
            load_from_cache_file=True,
            desc="Tokenising",
        )
    if not len(examples):
        raise ValueError(f"data.path: none of the {len(sentences)} sentences holds a token to read")
    ids = numbers_of(examples, "sentence_id")
    unread = np.setdiff1d(numbers_of(sentences, SENTENCE_ID), ids)
    return EncodedCorpus(examples, unread.tolist(), len(np.unique(ids[numbers_of(examples, "was_cut").astype(bool)])))


class _ExampleRows:
    """The encoder, as `datasets.map` calls it."""

    def __init__(self, encoder: SentenceEncoder) -> None:
        self.encoder = encoder

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        rows: dict[str, list[Any]] = {name: [] for name in _EXAMPLE_FEATURES}
        for example, was_cut in self.encoder(batch[SENTENCE_ID], batch[SENTENCE]):
            values = (*example, was_cut, len(example.input_ids))
            for name, value in zip(_EXAMPLE_FEATURES, values, strict=True):
                rows[name].append(value)
        return rows


def numbers_of(rows: Dataset, name: str) -> npt.NDArray[Any]:
    """Return a column of numbers or truth values as an array."""
    return np.concatenate([chunk.to_numpy() for chunk in column_chunks(rows, name)])


def plan_batches(
    lengths: Sequence[int] | npt.NDArray[np.int64], tokens_per_batch: int, window: int = 8192
) -> list[list[int]]:
    """Group examples of like length, so that a batch is filled by tokens and little of it is padding.

    Within each window of consecutive examples they are sorted by length and taken in turn, as long as the longest
    times the count stays within the budget. A longer example makes a batch of its own.

    Args:
        lengths: [example], in tokens, at least 1.
        tokens_per_batch: The budget, in tokens, padding included.
        window: How many examples are sorted at once: what bounds how far a batch's members lie apart in the corpus.

    Returns:
        Indices of the examples of each batch; every index is in exactly one.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    assert (sizes > 0).all()
    batches = []
    for first in range(0, len(sizes), window):
        order = first + np.argsort(sizes[first : first + window], kind="stable")
        ordered = sizes[order]
        start = 0
        while start < len(ordered):
            # Sizes only grow from here on, so that the shortest one bounds the count.
            reach = ordered[start : start + max(1, tokens_per_batch // ordered[start])]
            fitting = np.searchsorted(reach * np.arange(1, len(reach) + 1), tokens_per_batch, side="right")
            stop = start + max(1, int(fitting))
            batches.append(order[start:stop].tolist())
            start = stop
    return batches
