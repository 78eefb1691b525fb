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
from typing import Literal, Optional, Protocol, Union

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, IterableDataset, Value

from llm_entropy.corpus.columns import BLANK, as_text, column_chunks, text_column
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
        return replace(self, column=MASKED if masked else SENTENCE)

    def windows(
        self, task: Task, complete: Collection[int] = (), worker: int = 0, num_workers: int = 1
    ) -> Iterator[Window]:
        """Read the windows in which a task may own batches, in order; see `Corpus.windows`."""
        wanted = [w for w in windows.windows_of_task(self.num_windows, task) if w not in complete]
        for number in wanted[worker::num_workers]:
            rows = slice(number * windows.WINDOW_ROWS, (number + 1) * windows.WINDOW_ROWS)
            ids = self.ids[rows]
            yield Window(
                number=number,
                first_id=int(ids[0]),
                end_id=int(ids[-1]) + 1,
                num_rows=len(ids),
                is_last=number == self.num_windows - 1,
                sentence_ids=ids.tolist(),
                sentences=self._texts((self.ids if self.places is None else self.places)[rows]),
            )

    def _texts(self, places: npt.NDArray[np.int64]) -> list[str]:
        rows = self.rows.select_columns([self.column]).with_format("arrow")
        first, end = int(places[0]), int(places[-1]) + 1
        table = rows[first:end] if end - first == len(places) else rows[places.tolist()]
        texts: list[str] = table.column(0).to_pylist()
        return texts


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
            for number, is_last, texts in self._tables(file):
                window = file * WINDOWS_PER_FILE + number
                if window in complete or not (share_files or number % task.count == task.index):
                    continue
                if turn % num_workers == worker:
                    yield _streamed_window(file, number, is_last, texts)
                turn += 1

    def _tables(self, file: int) -> Iterator[tuple[int, bool, pa.LargeStringArray]]:
        """Read the texts of a file by windows, each with its number and whether it is the last one."""
        checked = iter(()) if self.text is None else self.text.checked_file(file, self.column)
        with as_value_error(f"data.path: could not read file {file} of {self.source}", self.text):
            rows = self.rows.shard(num_shards=self.num_files, index=file, contiguous=True)
            texts = pa.array([], pa.large_string())  # a file without rows has one window, too
            number, num_rows = -1, 0
            for table in rows.with_format("arrow").iter(batch_size=windows.WINDOW_ROWS):
                if number >= 0:
                    yield number, False, texts
                texts = as_text(table.column(self.column)).combine_chunks()
                deque(islice(checked, len(texts)), maxlen=0)
                num_rows, number = num_rows + len(texts), number + 1
            if next(checked, None) is not None:
                raise fewer_rows(self.source, num_rows + 1, num_rows)
            yield max(number, 0), True, texts


def _streamed_window(file: int, number: int, is_last: bool, texts: pa.LargeStringArray) -> Window:
    first_id = file * ROWS_PER_FILE + number * windows.WINDOW_ROWS
    is_null, is_blank = texts.is_null().to_numpy(zero_copy_only=False), _is_blank(texts)
    return Window(
        number=file * WINDOWS_PER_FILE + number,
        first_id=first_id,
        end_id=first_id + len(texts),
        num_rows=len(texts),
        is_last=is_last,
        sentence_ids=(first_id + np.flatnonzero(~is_blank)).tolist(),
        sentences=texts.filter(pa.array(~is_blank)).to_pylist(),
        skipped=[(first_id + int(row), NULL if is_null[row] else BLANK) for row in np.flatnonzero(is_blank)],
    )


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
            return _picked_sentences(_builtin(), [SENTENCE, MASKED], "built-in sentences", num_sentences, seed)
        opened = open_rows(data, data.path)
        column = text_column(opened, data)
        if data.streaming and num_sentences is not None:
            return _first_sentences(opened, column, num_sentences)
        with as_value_error(f"data.path: could not read {opened.source}", opened.text):
            rows = opened.rows.select_columns([column])
            if isinstance(rows, Dataset):
                check_text(opened, column)
                rows = rows if column == SENTENCE else rows.rename_column(column, SENTENCE)
                return _picked_sentences(rows, [SENTENCE], opened.source, num_sentences, seed)
        fingerprint = hashlib.sha256(f"{opened.files} {data.split} {column}".encode()).hexdigest()[:32]
        return StreamedCorpus(rows, column, opened.source, fingerprint, opened.text)


def corpus_of_sentences(sentences: Collection[Optional[str]], num_sentences: NumSentences, seed: int) -> MappedCorpus:
    """Make a corpus of sentences that are in memory, as `load_corpus` does of a file's.

    Args:
        sentences: The texts; None is a row without any.
        num_sentences: How many; None or auto: all.
        seed: Of the pick.

    Raises:
        ReportedError: There are too few sentences.
    """
    number = None if num_sentences == "auto" else num_sentences
    return _picked_sentences(_in_memory(sentences), [SENTENCE], "given sentences", number, seed)


def _in_memory(sentences: Iterable[Optional[str]]) -> Dataset:
    return Dataset.from_dict({SENTENCE: list(sentences)}, features=Features({SENTENCE: Value("string")}))


def _builtin() -> Dataset:
    from llm_entropy.builtin import read_sentences

    return Dataset.from_list([{SENTENCE: row["prompt"], MASKED: row["masked"]} for row in read_sentences()])


def _picked_sentences(
    rows: Dataset, columns: list[str], source: str, num_sentences: int | None, seed: int
) -> MappedCorpus:
    missing, blank = [np.empty(0, bool)], [np.empty(0, bool)]
    for chunk in column_chunks(rows, columns[0]):
        missing.append(chunk.is_null().to_numpy())
        blank.append(_is_blank(chunk))
    is_null, is_blank = np.concatenate(missing), np.concatenate(blank)
    skipped = [(int(row), NULL if is_null[row] else BLANK) for row in np.flatnonzero(is_blank)]
    _check_enough(len(rows) - len(skipped), len(skipped), num_sentences, source)
    if num_sentences is None:
        ids = np.flatnonzero(~is_blank)
    else:
        order = np.random.default_rng(seed).permutation(len(rows))
        ids = np.sort(order[~is_blank[order]][:num_sentences])
    return MappedCorpus(rows, ids, source, len(rows), skipped, content_of(rows, ids, ids))


def _is_blank(texts: pa.LargeStringArray | pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """Whether there is no text, or white space alone, [row]."""
    lengths = pc.binary_length(pc.utf8_trim_whitespace(texts.fill_null("")))
    blank: npt.NDArray[np.bool_] = np.asarray(lengths) == 0
    return blank


def _first_sentences(opened: Rows, column: str, num_sentences: int) -> MappedCorpus:
    taken, ids, skipped = [], [], []
    source = opened.source
    with as_value_error(f"data.path: could not read {source}", opened.text):
        for row_number, text in enumerate(_checked_texts(opened, column)):
            if text is None or not text.strip():
                skipped.append((row_number, NULL if text is None else BLANK))
                continue
            ids.append(row_number)
            taken.append(text)
            if len(taken) == num_sentences:
                break
    _check_enough(len(taken), len(skipped), num_sentences, source)
    texts, numbers = _in_memory(taken), np.array(ids, np.int64)
    places = np.arange(len(taken))
    content = content_of(texts, numbers, places)
    return MappedCorpus(texts, numbers, source, len(taken) + len(skipped), skipped, content, places=places)


def _checked_texts(opened: Rows, column: str) -> Iterator[Optional[str]]:
    """Read the texts of a stream one by one, each with its place in the file looked at."""
    checked = iter(()) if opened.text is None else opened.text.checked(column)
    for row in opened.rows.select_columns([column]):
        next(checked, None)
        yield row[column]


def _check_enough(num_found: int, num_skipped: int, num_asked: int | None, source: str) -> None:
    without = f"; {num_skipped} rows hold no text" if num_skipped else ""
    if num_found == 0:
        raise ReportedError(f"data.path: {source} has no sentences{without or '; it has no rows'}")
    if num_asked is not None and num_asked > num_found:
        raise ReportedError(
            f"analysis.num_sentences: got {num_asked}, but {source} has only {num_found} sentences{without}; "
            "ask for fewer, or null for all"
        )


def content_of(texts: Dataset, ids: npt.NDArray[np.int64], places: npt.NDArray[np.int64]) -> str:
    """Return a hash of the ids and texts, the same wherever and in whatever pieces they are stored."""
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
    return digest.hexdigest()[:32]
