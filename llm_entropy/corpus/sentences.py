"""Sentences that are given in memory: lists, columns, data frames and data sets; and what is none of them."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sized
from dataclasses import fields
from itertools import islice
from typing import Any, NamedTuple, Optional

import pandas as pd
from datasets import Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict, Value

from llm_entropy.corpus.chats import ChatText, is_messages, messages_text
from llm_entropy.corpus.columns import text_column
from llm_entropy.corpus.kept import dataset_of
from llm_entropy.corpus.sources import Rows
from llm_entropy.errors import ReportedError
from llm_entropy.settings import DataSettings

_REFUSED: tuple[tuple[Any, str], ...] = (
    ((str, bytes), "expected several texts; give a single one as a list, [text]"),
    (os.PathLike, "expected texts; give the path of a file as data"),
    (io.IOBase, "expected texts; give the path of the file as data"),
    ((DatasetDict, IterableDatasetDict), "expected one of its splits, as sentences['train']"),
    ((set, frozenset), "expected texts in an order; give a list, as sorted(sentences)"),
)
"""What is taken for sentences by mistake, and what to do."""
_TO_LIST = ("to_pylist", "to_list", "tolist")
"""Methods that turn a column into a list: of pyarrow, polars and pandas, numpy."""
_BESIDE = (
    *("text_column", "max_length", "tokens_per_batch", "num_workers", "num_shards", "shard_index"),
    *("keep_columns", "target_column", "foil_column", "answer_delimiter", "group_column", "pair_column"),
)
"""Settings of the data that count where sentences are given."""
_SHOWN = 40


class _Table(NamedTuple):
    """Named columns."""

    kind: str
    """Name of the type that was given."""
    names: list[str]
    read: Callable[[str], Any]
    """Returns a column."""


def texts_of(sentences: Any, data: DataSettings, num_sentences: Optional[int]) -> list[Optional[str]]:
    """Return given sentences as a list of texts; None is a row without any.

    Args:
        sentences: A list, a tuple, an iterator; a column of numpy, pandas, polars, pyarrow or `datasets`, in which rows
            may be missing; a data frame, a data set, a mapping of names to columns, of which the text column is read.
        data: May name the text column.
        num_sentences: How many will be picked; None: all. Of a stream no more rows are read.

    Raises:
        ReportedError: It is something else, or something in it is no text.
    """
    if getattr(sentences, "ndim", None) == 0:
        sentences = sentences.item()
    for types, what in _REFUSED:
        if isinstance(sentences, types):
            raise ReportedError(f"sentences: got {type(sentences).__name__}; {what}")
    if isinstance(sentences, IterableDataset):
        texts = _texts_of_stream(sentences, data, num_sentences)
    elif isinstance(sentences, Dataset):
        texts = _texts_of_column(sentences.with_format(None)[_text_column(sentences, data)])
    elif (table := _table(sentences)) is not None:
        texts = _texts_of_table(table, data)
    elif data.text_column is not None:
        raise ReportedError(
            f"data.text_column: got {data.text_column!r}, but sentences of type {type(sentences).__name__} "
            "have no columns; leave it out"
        )
    else:
        texts = _texts_of_column(sentences)
    if data.target_column is None and not any(text is not None and text.strip() for text in texts):
        raise ReportedError(f"sentences: got no text in {len(texts)} rows; expected at least one")
    return texts


def columns_of(sentences: Any, data: DataSettings, num_rows: int) -> Optional[Dataset]:
    """Return the columns of given sentences that go with them, as JSON can hold them; None: none are asked for.

    Args:
        sentences: As `texts_of` takes them.
        data: Names the columns.
        num_rows: How many texts `texts_of` returned.

    Raises:
        ReportedError: The sentences have no columns, or not these.
    """
    if not data.carried_columns:
        return None
    values: dict[str, list[Any]]
    if isinstance(sentences, IterableDataset):
        values = _by_column(list(islice(sentences, num_rows)))
    elif isinstance(sentences, Dataset):
        values = {name: sentences.with_format(None)[name] for name in sentences.column_names}
    elif (table := _table(sentences)) is not None:
        values = {name: _listed(table.read(name)) for name in table.names}
    else:
        key = next(iter(data.carried))
        raise ReportedError(
            f"data.{key}: sentences of type {type(sentences).__name__} have no columns; give a data frame, or a "
            "mapping of names to columns"
        )
    wanted = {name: [_plain(value) for value in own] for name, own in values.items() if name in data.carried_columns}
    missing = next((name for name in data.carried_columns if name not in wanted), None)
    if missing is not None:
        key = next(key for key, names in data.carried.items() if missing in names)
        raise ReportedError(f"data.{key}: the sentences have no column {missing!r}; they have {', '.join(values)}")
    return dataset_of(wanted)


def _by_column(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}


def _plain(value: Any) -> Any:
    """Return a value as JSON holds it, so that a run that is resumed reads what it was begun with."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(name): _plain(own) for name, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(own) for own in value]
    if _is_missing(value):
        return None
    return value if isinstance(value, (str, bool, int, float)) else str(value)


def refuse_data_beside(data: DataSettings) -> None:
    """Refuse settings that say where sentences come from, where they are given.

    Raises:
        ReportedError: There are any.
    """
    for item in fields(DataSettings):
        value = getattr(data, item.name)
        if item.name not in _BESIDE and value != item.default:
            raise ReportedError(
                f"data.{item.name}: got {value!r} beside sentences that are given; expected one of them: leave out "
                "data, or sentences"
            )


def _texts_of_stream(rows: IterableDataset, data: DataSettings, num_sentences: Optional[int]) -> list[Optional[str]]:
    column = _text_column(rows, data)
    texts: list[Optional[str]] = []
    num_left = num_sentences
    for text in _texts((row[column] for row in rows), f" of {column!r}"):
        texts.append(text)
        if num_left is not None and text is not None and text.strip():
            num_left -= 1
            if not num_left:
                break
    return texts


def _text_column(rows: Dataset | IterableDataset, data: DataSettings, kind: str = "data set") -> str:
    return text_column(Rows(rows, f"the {kind} of sentences"), data)


def _table(sentences: Any) -> Optional[_Table]:
    """Return what has named columns as a table; None for what has none."""
    kind = type(sentences).__name__
    names: Optional[Collection[Any]]
    if isinstance(sentences, Mapping):
        if not all(
            isinstance(column, Iterable) and not isinstance(column, (str, bytes)) for column in sentences.values()
        ):
            raise ReportedError(
                f"sentences: got {kind} whose values are no columns; expected texts; give list(sentences) or "
                "list(sentences.values())"
            )
        names = list(sentences)
    elif hasattr(sentences, "collect") and hasattr(sentences, "columns"):
        raise ReportedError(f"sentences: got {kind}, whose rows are not there yet; give what its collect() returns")
    else:
        names = getattr(sentences, "column_names", None) or getattr(sentences, "columns", None)
    if names is None:
        return None
    by_name = {str(name): name for name in names}
    if len(by_name) < len(names):
        raise ReportedError(f"sentences: got {kind} with two columns of one name; rename one of them")
    return _Table(kind, list(by_name), lambda name: sentences[by_name[name]])


def _texts_of_table(table: _Table, data: DataSettings) -> list[Optional[str]]:
    """Return the text column, which is found as that of a file is."""
    values = {name: _listed(table.read(name)) for name in table.names}
    lengths = sorted({len(column) for column in values.values()})
    if len(lengths) > 1:
        raise ReportedError(f"sentences: got {table.kind} with columns of {lengths} rows; expected one length")
    of_text = {name: column for name, column in values.items() if _is_text(column)}
    asked = data.text_column if data.text_column in values else None
    if asked is None and not of_text:
        if len(values) != 1:
            raise ReportedError(
                f"sentences: got {table.kind} without a column of text; its columns are {', '.join(values) or 'none'}"
            )
        (asked,) = values
    if asked is not None and asked not in of_text:
        return list(_texts(values[asked], f" of {asked!r}"))
    texts = {name: list(_texts(column, f" of {name!r}")) for name, column in of_text.items()}
    rows = Dataset.from_dict(texts, Features({name: Value("string") for name in texts}))
    return texts[_text_column(rows, data, table.kind)]


def _is_text(column: Collection[Any]) -> bool:
    """Whether there is text in a column, and nothing else."""
    return any(isinstance(value, str) for value in column) and all(
        isinstance(value, str) or _is_missing(value) for value in column
    )


def _texts_of_column(sentences: Any) -> list[Optional[str]]:
    if not isinstance(sentences, Iterable):
        raise ReportedError(f"sentences: got {type(sentences).__name__}; expected a list of texts")
    # What a list holds was put there; in a column of data a row may be missing.
    is_column = isinstance(sentences, Sized) and not isinstance(sentences, (list, tuple))
    return list(_texts(_listed(sentences), "", may_miss=is_column))


def _listed(column: Any) -> list[Any]:
    """Return the values of a column."""
    method = next((name for name in _TO_LIST if hasattr(column, name)), None)
    return list(column) if method is None else list(getattr(column, method)())


def _texts(values: Iterable[Any], where: str, *, may_miss: bool = True) -> Iterator[Optional[str]]:
    """Yield texts, and None for missing values.

    Raises:
        ReportedError: A value is something else, or text that cannot be written.
    """
    for index, value in enumerate(values):
        if isinstance(value, str):
            if not _is_writable(value):
                raise ReportedError(
                    f"sentences: got half a character (a lone surrogate) in the text at index {index}{where}; "
                    "expected text that UTF-8 can hold, as text.encode('utf-8', 'replace').decode()"
                )
            yield value
        elif is_messages(_plain(value)):
            yield ChatText(messages_text(_plain(value)))
        elif may_miss and _is_missing(value):
            yield None
        else:
            shown = "" if value is None else f" ({type(value).__name__})"
            raise ReportedError(f"sentences: got {str(value)[:_SHOWN]}{shown} at index {index}{where}; expected text")


def _is_writable(text: str) -> bool:
    """Whether UTF-8 can hold a text, which is what files and `datasets` hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_missing(value: Any) -> bool:
    return value is None or bool(pd.api.types.is_scalar(value) and pd.isna(value))
