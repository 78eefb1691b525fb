"""The sentences of a run, picked from rows, and given out a window at a time.

A corpus lies in files that are mapped into memory, so that any window can be read by itself, or it is a stream, of
which nothing is kept. What the encoder makes of a sentence is not this file's business.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal, NamedTuple, Optional, Protocol, Union

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, IterableDataset, Value

from llm_entropy.corpus.chats import ChatText, messages_text
from llm_entropy.corpus.columns import BLANK, as_text, column_chunks, holds_chats, text_column
from llm_entropy.corpus.kept import (
    answers_of,
    as_kept,
    check_answers,
    check_groups,
    chunks_of,
    content_of,
    dataset_of,
    has_answer,
    kept_schema,
)
from llm_entropy.corpus.sources import Rows, as_value_error, check_text, fewer_rows, open_rows, progress_bars
from llm_entropy.corpus.textfiles import TextFiles
from llm_entropy.errors import ReportedError
from llm_entropy.schema import SENTENCE
from llm_entropy.settings import DataSettings, Kind
from llm_entropy.store import windows
from llm_entropy.store.windows import ROWS_PER_FILE, WINDOWS_PER_FILE, Task

MASKED = "masked"
"""Column of the built-in corpus that holds the form for masked models."""
NULL = "null"
"""Reason why a row is skipped, as `BLANK` is: it has no value."""
BUILTIN_SENTENCES = 10
"""How many of the built-in sentences `auto` is; of any other corpus it is all."""
NumSentences = Optional[Union[int, Literal["auto"]]]
NOTHING_KEPT = pa.schema([])
"""Of a corpus whose sentences stand alone."""


@dataclass(frozen=True)
class Window:
    """Some consecutive rows of a corpus, and their sentences."""

    number: int
    """Of the window."""
    first_id: int
    """Lowest sentence id that it may hold."""
    end_id: int
    """One past the highest."""
    num_rows: int
    """Rows it was made of, skipped ones included."""
    is_last: bool
    """Whether the corpus, or the file of a stream, ends here."""
    sentence_ids: list[int]
    """[sentence]."""
    sentences: list[str]
    """[sentence], the texts."""
    skipped: list[tuple[int, str]] = field(default_factory=list)
    """Row and reason of those without text, where they are not known in advance."""
    kept: Optional[pa.Table] = None
    """[sentence], the columns of the corpus that go with each sentence; None: there are none."""
    answers: Optional[list[tuple[Optional[str], Optional[str]]]] = None
    """[sentence], its right and its wrong answer; None: no answers are read."""


class Corpus(Protocol):
    """The sentences of a run."""

    @property
    def source(self) -> str:
        """What it was, for people."""
        ...

    @property
    def fingerprint(self) -> str:
        """Names the content."""
        ...

    @property
    def num_rows(self) -> Optional[int]:
        """Rows of the source, or as many as were read; None: not known yet."""
        ...

    @property
    def num_sentences(self) -> Optional[int]:
        """How many sentences there are; None: not known yet."""
        ...

    @property
    def num_windows(self) -> Optional[int]:
        """How many windows there are; None: not known yet."""
        ...

    @property
    def num_files(self) -> int:
        """Files that are counted each by itself."""
        ...

    @property
    def skipped(self) -> list[tuple[int, str]]:
        """Row and reason of every row without text, as far as known."""
        ...

    @property
    def kept_schema(self) -> pa.Schema:
        """The columns that go with each sentence."""
        ...

    @property
    def is_chat(self) -> bool:
        """Whether the sentences are chats: messages, as JSON."""
        ...

    def for_kind(self, kind: Kind) -> Corpus:
        """Return the corpus as a model of this kind reads it."""
        ...

    def windows(
        self, task: Task, complete: Collection[int] = (), worker: int = 0, num_workers: int = 1
    ) -> Iterator[Window]:
        """Read the windows in which a task may own batches, in order.

        Args:
            task: Which share of the corpus.
            complete: Windows that are not wanted.
            worker: Which of several that take turns.
            num_workers: How many these are.
        """
        ...


@dataclass(frozen=True)
class MappedCorpus:
    """Sentences in files that are mapped into memory."""

    rows: Dataset
    """Rows of the source: a column `sentence`; in the built-in corpus also `masked`."""
    ids: npt.NDArray[np.int64]
    """[sentence], the rows that were picked, ascending."""
    source: str
    num_rows: int
    skipped: list[tuple[int, str]]
    fingerprint: str
    column: str = SENTENCE
    """Which column is read."""
    places: Optional[npt.NDArray[np.int64]] = None
    """[sentence], where they are in `rows`; None: at their ids."""
    kept: Optional[Dataset] = None
    """[row], the columns that go with the sentences; None: there are none."""
    kept_schema: pa.Schema = NOTHING_KEPT
    """Their names and types."""
    data: DataSettings = field(default_factory=DataSettings)
    """Says which of them are answers."""
    is_chat: bool = False
    """Whether the sentences are messages, as JSON."""

    num_files = 1

    @property
    def num_sentences(self) -> int:
        """How many sentences were picked."""
        return len(self.ids)

    @property
    def num_windows(self) -> int:
        """How many windows they make."""
        return windows.count_windows(len(self.ids))

    def for_kind(self, kind: Kind) -> MappedCorpus:
        """Return the corpus as a model of this kind reads it."""
        masked = kind == "masked" and MASKED in self.rows.column_names
        if not masked or self.kept is None:
            return replace(self, column=MASKED if masked else SENTENCE)
        # What the built-in corpus has for masked models stands in columns whose names say so.
        own = {name: f"{MASKED}_{name}" for name in self.kept_schema.names}
        own = {name: other if other in self.kept.column_names else name for name, other in own.items()}
        kept = self.kept.select_columns(list(own.values()))
        return replace(self, column=MASKED, kept=kept.rename_columns({other: name for name, other in own.items()}))

    def windows(
        self, task: Task, complete: Collection[int] = (), worker: int = 0, num_workers: int = 1
    ) -> Iterator[Window]:
        """Read the windows in which a task may own batches, in order; see `Corpus.windows`."""
        wanted = [w for w in windows.windows_of_task(self.num_windows, task) if w not in complete]
        for number in wanted[worker::num_workers]:
            rows = slice(number * windows.WINDOW_ROWS, (number + 1) * windows.WINDOW_ROWS)
            ids, places = self.ids[rows], (self.ids if self.places is None else self.places)[rows]
            kept = None
            if self.kept is not None:
                kept = as_kept(_taken(self.kept.select_columns(self.kept_schema.names), places), *self._about_kept)
            yield Window(
                number=number,
                first_id=int(ids[0]),
                end_id=int(ids[-1]) + 1,
                num_rows=len(ids),
                is_last=number == self.num_windows - 1,
                sentence_ids=ids.tolist(),
                sentences=self._texts(places),
                kept=kept,
                answers=answers_of(kept, self.data),
            )

    @property
    def _about_kept(self) -> tuple[pa.Schema, str]:
        return self.kept_schema, self.source

    def _texts(self, places: npt.NDArray[np.int64]) -> list[str]:
        texts = as_text(_taken(self.rows.select_columns([self.column]), places).column(0)).to_pylist()
        return [text or "" for text in texts]  # a sentence that has an answer may be empty


def _taken(rows: Dataset, places: npt.NDArray[np.int64]) -> pa.Table:
    """Return some rows, at ascending places."""
    arrow = rows.with_format("arrow")
    first, end = int(places[0]), int(places[-1]) + 1
    return arrow[first:end] if end - first == len(places) else arrow[places.tolist()]


@dataclass(frozen=True)
class StreamedCorpus:
    """Sentences that are read as they come; each file counts its rows by itself."""

    rows: IterableDataset
    column: str
    """The column that holds the text."""
    source: str
    fingerprint: str
    text: Optional[TextFiles] = None
    """The files, where they are text."""
    kept_schema: pa.Schema = NOTHING_KEPT
    """The columns that go with each sentence."""
    data: DataSettings = field(default_factory=DataSettings)
    """Says which of them are answers."""
    is_chat: bool = False
    """Whether the sentences are messages, as JSON."""

    num_rows = None
    num_sentences = None
    num_windows = None

    @property
    def num_files(self) -> int:
        """How many files the stream has."""
        return int(self.rows.num_shards)

    @property
    def skipped(self) -> list[tuple[int, str]]:
        """Nothing: each window tells of its own."""
        return []

    def for_kind(self, kind: Kind) -> StreamedCorpus:
        """Return the corpus itself: every kind reads the same text."""
        return self

    def windows(
        self, task: Task, complete: Collection[int] = (), worker: int = 0, num_workers: int = 1
    ) -> Iterator[Window]:
        """Read the windows of a task, in order; see `Corpus.windows`.

        Tasks share the files where there are enough of them; otherwise each reads all and takes windows in turn. What
        is not wanted is read past, and no Python object is made of it.
        """
        share_files = self.num_files >= task.count
        turn = 0
        for file in range(self.num_files):
            if share_files and file % task.count != task.index:
                continue
            for number, is_last, texts, kept in self._tables(file):
                window = file * WINDOWS_PER_FILE + number
                if window in complete or not (share_files or number % task.count == task.index):
                    continue
                if turn % num_workers == worker:
                    yield self._window(file, number, is_last, texts, kept)
                turn += 1

    def _window(
        self, file: int, number: int, is_last: bool, texts: pa.LargeStringArray, kept: Optional[pa.Table]
    ) -> Window:
        """Return a window of a file."""
        first_id = file * ROWS_PER_FILE + number * windows.WINDOW_ROWS
        is_null, is_unread = texts.is_null().to_numpy(zero_copy_only=False), _is_blank(texts)
        if kept is not None:
            check_answers(kept, self.data, range(len(texts)))
            is_unread &= ~has_answer(kept, self.data)
            kept = kept.filter(pa.array(~is_unread))
        return Window(
            number=file * WINDOWS_PER_FILE + number,
            first_id=first_id,
            end_id=first_id + len(texts),
            num_rows=len(texts),
            is_last=is_last,
            sentence_ids=(first_id + np.flatnonzero(~is_unread)).tolist(),
            sentences=texts.fill_null("").filter(pa.array(~is_unread)).to_pylist(),
            skipped=[(first_id + int(row), NULL if is_null[row] else BLANK) for row in np.flatnonzero(is_unread)],
            kept=kept,
            answers=answers_of(kept, self.data),
        )

    def _tables(self, file: int) -> Iterator[tuple[int, bool, pa.LargeStringArray, Optional[pa.Table]]]:
        """Read a file by windows: number, whether it is the last one, texts, and what goes with them."""
        checked = iter(()) if self.text is None else self.text.checked_file(file, self.column)
        with as_value_error(f"data.path: could not read file {file} of {self.source}", self.text):
            rows = self.rows.shard(num_shards=self.num_files, index=file, contiguous=True)
            texts = pa.array([], pa.large_string())  # a file without rows has one window, too
            kept = self.kept_schema.empty_table() if self.kept_schema.names else None
            number, num_rows = -1, 0
            for table in rows.with_format("arrow").iter(batch_size=windows.WINDOW_ROWS):
                if number >= 0:
                    yield number, False, texts, kept
                kept = as_kept(table, self.kept_schema, self.source) if self.kept_schema.names else None
                texts = as_text(table.column(self.column)).combine_chunks()
                deque(islice(checked, len(texts)), maxlen=0)
                num_rows, number = num_rows + len(texts), number + 1
            if next(checked, None) is not None:
                raise fewer_rows(self.source, num_rows + 1, num_rows)
            yield max(number, 0), True, texts, kept


# --- picking sentences -------------------------------------------------------------------------------------------


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
        blank.append(_is_blank(chunk))
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


def _is_blank(texts: pa.LargeStringArray | pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """Whether there is no text, or white space alone, [row]."""
    lengths = pc.binary_length(pc.utf8_trim_whitespace(texts.fill_null("")))
    blank: npt.NDArray[np.bool_] = np.asarray(lengths) == 0
    return blank


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
