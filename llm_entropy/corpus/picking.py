"""The sentences of a run, picked from the rows of a source or of what is in memory, and named by their content."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from typing import Any, Literal, NamedTuple, Optional, Union

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import Dataset, Features, Value

from llm_entropy.corpus.chats import ChatText, messages_text
from llm_entropy.corpus.columns import BLANK, are_blank, column_chunks, holds_chats, text_column
from llm_entropy.corpus.corpus import MASKED, NOTHING_KEPT, NULL, Corpus, MappedCorpus, StreamedCorpus
from llm_entropy.corpus.kept import (
    check_answers,
    check_groups,
    chunks_of,
    content_of,
    dataset_of,
    has_answer,
    kept_schema,
)
from llm_entropy.corpus.quiet_datasets import as_value_error, progress_bars
from llm_entropy.corpus.sources import Rows, check_text, open_rows
from llm_entropy.errors import ReportedError
from llm_entropy.schema.shards import SENTENCE
from llm_entropy.settings import DataSettings

BUILTIN_SENTENCES = 10
"""How many of the built-in sentences `auto` is; of any other corpus it is all."""
NumSentences = Optional[Union[int, Literal["auto"]]]


def load_corpus(data: DataSettings, num_sentences: NumSentences, seed: int, *, quiet: bool = False) -> Corpus:
    """Open the corpus, find its text, leave out rows without any, and pick sentences.

    The pick depends on the seed and the number of rows alone, and keeps corpus order. Of a stream it is the first
    `num_sentences` rows that hold text; where all are wanted, nothing is read here but what tells the text column.

    Args:
        data: What to read.
        num_sentences: How many; None: all; auto: all, or `BUILTIN_SENTENCES` of the built-in ones.
        seed: Of the pick.
        quiet: Whether progress bars are hidden.

    Raises:
        ReportedError: The corpus cannot be read, its text column cannot be told, or it holds too few sentences.
    """
    if num_sentences == "auto":
        num_sentences = BUILTIN_SENTENCES if data.path is None else None
    with progress_bars(shown=not quiet):
        if data.path is None:
            builtin = Rows(_builtin(), "built-in sentences")
            texts = builtin.rows.select_columns([SENTENCE, MASKED])
            return _picked_sentences(texts, builtin.source, num_sentences, seed, _kept(builtin, data))
        opened = open_rows(data, data.path)
        column, kept = text_column(opened, data), _kept(opened, data)
        with as_value_error(f"data.path: could not read {opened.source}", opened.text):
            is_chat = holds_chats(opened, column)
        if data.streaming and num_sentences is not None:
            return replace(_first_sentences(opened, column, num_sentences, kept), is_chat=is_chat)
        with as_value_error(f"data.path: could not read {opened.source}", opened.text):
            rows = opened.rows.select_columns(list(dict.fromkeys([column, *kept.schema.names])))
            if isinstance(rows, Dataset):
                check_text(opened, column)
                rows = rows.select_columns([column])
                rows = rows if column == SENTENCE else rows.rename_column(column, SENTENCE)
                picked = _picked_sentences(rows, opened.source, num_sentences, seed, kept)
                return replace(picked, is_chat=is_chat)
        with_columns = f" {kept.schema.names}" if kept.schema.names else ""
        fingerprint = hashlib.sha256(f"{opened.files} {data.split} {column}{with_columns}".encode()).hexdigest()[:32]
        return StreamedCorpus(rows, column, opened.source, fingerprint, opened.text, kept.schema, data, is_chat)


class _Kept(NamedTuple):
    """What goes with the sentences of some rows."""

    rows: Optional[Dataset]
    """[row], the columns, and what the built-in corpus has for masked models; None: none, or of a stream."""
    schema: pa.Schema
    data: DataSettings


NOTHING = _Kept(None, NOTHING_KEPT, DataSettings())


def _kept(opened: Rows, data: DataSettings) -> _Kept:
    schema, rows = kept_schema(opened, data), None
    if schema.names and isinstance(opened.rows, Dataset):
        masked = [f"{MASKED}_{name}" for name in schema.names] if data.path is None else []
        rows = opened.rows.select_columns(
            [name for name in opened.rows.column_names if name in {*schema.names, *masked}]
        )
    return _Kept(rows, schema, data)


def corpus_of_sentences(
    sentences: Collection[Optional[str]],
    num_sentences: NumSentences,
    seed: int,
    columns: Optional[Dataset] = None,
    data: Optional[DataSettings] = None,
) -> MappedCorpus:
    """Make a corpus of sentences that are in memory, as `load_corpus` does of a file's.

    Args:
        sentences: The texts; None is a row without any.
        num_sentences: How many; None or auto: all.
        seed: Of the pick.
        columns: [sentence], what goes with them.
        data: Says which of these columns are wanted, and for what.

    Raises:
        ReportedError: There are too few sentences.
    """
    number = None if num_sentences == "auto" else num_sentences
    kept = NOTHING if columns is None or data is None else _kept(Rows(columns, "given sentences"), data)
    kinds = {isinstance(sentence, ChatText) for sentence in sentences if sentence is not None}
    if len(kinds) > 1:
        raise ReportedError("sentences: got chats beside texts; expected one of them")
    picked = _picked_sentences(_in_memory(sentences), "given sentences", number, seed, kept)
    return replace(picked, is_chat=kinds == {True})


def _in_memory(sentences: Iterable[Optional[str]]) -> Dataset:
    return Dataset.from_dict({SENTENCE: list(sentences)}, features=Features({SENTENCE: Value("string")}))


def _builtin() -> Dataset:
    from llm_entropy.builtin import read_sentences

    rows = read_sentences()
    names = dict.fromkeys(name for row in rows for name in row if name not in ("prompt", "masked"))
    texts = {SENTENCE: [row["prompt"] for row in rows], MASKED: [row["masked"] for row in rows]}
    return Dataset.from_dict(texts | {name: [row.get(name) for row in rows] for name in names})


def _picked_sentences(
    rows: Dataset, source: str, num_sentences: int | None, seed: int, kept: _Kept = NOTHING
) -> MappedCorpus:
    missing, blank = [np.empty(0, bool)], [np.empty(0, bool)]
    for chunk in column_chunks(rows, SENTENCE):
        missing.append(chunk.is_null().to_numpy())
        blank.append(are_blank(chunk))
    is_null, is_blank = np.concatenate(missing), np.concatenate(blank)
    is_blank &= ~_answered(kept, source)
    skipped = [(int(row), NULL if is_null[row] else BLANK) for row in np.flatnonzero(is_blank)]
    _check_enough(len(rows) - len(skipped), len(skipped), num_sentences, source)
    if num_sentences is None:
        ids = np.flatnonzero(~is_blank)
    else:
        order = np.random.default_rng(seed).permutation(len(rows))
        ids = np.sort(order[~is_blank[order]][:num_sentences])
    content = _content_of(rows, ids, ids, kept, source)
    about = {"kept": kept.rows, "kept_schema": kept.schema, "data": kept.data}
    return MappedCorpus(rows, ids, source, len(rows), skipped, content, **about)


def _answered(kept: _Kept, source: str) -> npt.NDArray[np.bool_]:
    """Return which rows have an answer, [row], after a look at all of them; of rows without answers one False."""
    if kept.rows is None or kept.data.target_column is None:
        return np.zeros(1, bool)
    found, num_rows = [], 0
    for table in chunks_of(kept.rows, kept.schema, source):
        check_answers(table, kept.data, range(num_rows, num_rows + len(table)))
        found.append(has_answer(table, kept.data))
        num_rows += len(table)
    answered = np.concatenate(found)
    if not answered.any():
        raise ReportedError(f"data.target_column: {kept.data.target_column!r} of {source} holds no answer at all")
    return answered


def _first_sentences(opened: Rows, column: str, num_sentences: int, kept: _Kept) -> MappedCorpus:
    taken, ids, skipped = [], [], []
    values: dict[str, list[Any]] = {name: [] for name in kept.schema.names}
    source, target = opened.source, kept.data.target_column
    with as_value_error(f"data.path: could not read {source}", opened.text):
        for row_number, row in enumerate(_checked_rows(opened, [column, *values])):
            text = messages_text(row[column]) if isinstance(row[column], list) else row[column]
            if (text is None or not text.strip()) and (target is None or row[target] is None):
                skipped.append((row_number, NULL if text is None else BLANK))
                continue
            ids.append(row_number)
            taken.append(text)
            for name, own in values.items():
                own.append(row[name])
            if len(taken) == num_sentences:
                break
    _check_enough(len(taken), len(skipped), num_sentences, source)
    texts, numbers = _in_memory(taken), np.array(ids, np.int64)
    places = np.arange(len(taken))
    if values:
        kept = kept._replace(rows=dataset_of(values, kept.schema))
        _answered(kept, source)
    content = _content_of(texts, numbers, places, kept, source)
    about = {"kept": kept.rows, "kept_schema": kept.schema, "data": kept.data}
    return MappedCorpus(texts, numbers, source, len(taken) + len(skipped), skipped, content, places=places, **about)


def _checked_rows(opened: Rows, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Read the rows of a stream one by one, each with its place in the file looked at; the first column is the text."""
    checked = iter(()) if opened.text is None else opened.text.checked(columns[0])
    for row in opened.rows.select_columns(list(dict.fromkeys(columns))):
        next(checked, None)
        yield row


def _check_enough(num_found: int, num_skipped: int, num_asked: int | None, source: str) -> None:
    without = f"; {num_skipped} rows hold no text" if num_skipped else ""
    if num_found == 0:
        raise ReportedError(f"data.path: {source} has no sentences{without or '; it has no rows'}")
    if num_asked is not None and num_asked > num_found:
        raise ReportedError(
            f"analysis.num_sentences: got {num_asked}, but {source} has only {num_found} sentences{without}; "
            "ask for fewer, or null for all"
        )


def hash_of_texts(texts: Dataset, ids: npt.NDArray[np.int64], places: npt.NDArray[np.int64]) -> str:
    """Return a hash of ids and texts, the same wherever and in whatever pieces they are stored."""
    return _content_of(texts, ids, places, NOTHING, "")


def _content_of(
    texts: Dataset, ids: npt.NDArray[np.int64], places: npt.NDArray[np.int64], kept: _Kept, source: str
) -> str:
    """Return a hash of ids, texts and what goes with them, the same wherever and in whatever pieces they are stored."""
    digest = hashlib.sha256(np.asarray(ids, np.int64).tobytes())
    picked = texts if len(places) == len(texts) else texts.select(places)
    for name in sorted(texts.column_names):
        lengths = hashlib.sha256()
        for column in column_chunks(picked, name):
            for chunk in column.fill_null("").cast(pa.large_string()).chunks:
                ends = np.frombuffer(chunk.buffers()[1], np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
                lengths.update(np.diff(ends).tobytes())
                if len(chunk) and ends[-1] > ends[0]:
                    digest.update(memoryview(chunk.buffers()[2])[ends[0] : ends[-1]])
        digest.update(lengths.digest())
    if kept.rows is not None:
        chosen = kept.rows.select_columns(kept.schema.names)
        chosen = chosen if len(places) == len(chosen) else chosen.select(places)
        check_groups(chunks_of(chosen, kept.schema, source), kept.data, source)
        own = kept.rows if len(places) == len(kept.rows) else kept.rows.select(places)
        schema = pa.schema(
            [kept.schema.field(name.removeprefix(f"{MASKED}_")).with_name(name) for name in own.column_names]
        )
        for row in content_of(chunks_of(own, schema, source)):
            digest.update(row)
    return digest.hexdigest()[:32]
