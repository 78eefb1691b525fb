"""The sentences of a run, given out a window at a time.

A corpus lies in files that are mapped into memory, so that any window can be read by itself, or it is a stream, of
which nothing is kept. What the encoder makes of a sentence is not this file's business.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Optional, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import Dataset, IterableDataset

from llm_entropy.corpus.columns import BLANK, are_blank, as_text
from llm_entropy.corpus.kept import answers_of, as_kept, check_answers, has_answer
from llm_entropy.corpus.quiet_datasets import as_value_error
from llm_entropy.corpus.sources import fewer_rows
from llm_entropy.corpus.textfiles import TextFiles
from llm_entropy.schema.shards import SENTENCE
from llm_entropy.settings import DataSettings, Kind
from llm_entropy.store import windows
from llm_entropy.store.windows import ROWS_PER_FILE, WINDOWS_PER_FILE, Task

MASKED = "masked"
"""Column of the built-in corpus that holds the form for masked models."""
NULL = "null"
"""Reason why a row is skipped, as `BLANK` is: it has no value."""
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
        is_null, is_unread = texts.is_null().to_numpy(zero_copy_only=False), are_blank(texts)
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
