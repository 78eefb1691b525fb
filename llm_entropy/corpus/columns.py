"""Which column of some rows holds the text, and what the others hold."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset, Value

from llm_entropy.corpus.chats import holds_messages, is_messages, messages_text
from llm_entropy.corpus.jsonrows import describe
from llm_entropy.corpus.quiet_datasets import as_value_error
from llm_entropy.corpus.sources import Rows
from llm_entropy.errors import ReportedError
from llm_entropy.settings import DataSettings

BLANK = "blank"
"""Without any text: empty, or white space alone."""
ROWS_AT_ONCE = 10_000
"""How many rows are looked at together."""

_NUMBER = r"^[+-]?(\d[\d.,_]*|[.,]\d+)([eE][+-]?\d+)?%?$"
_ROWS_TO_JUDGE = 100
_STRINGS = ("string", "large_string", "string_view")
_HELD = {"bool": "true or false", "null": "nothing", "binary": "bytes", "large_binary": "bytes"}
_HELD_BEGINNINGS = {
    ("int", "uint", "float", "decimal", "halffloat", "double"): "numbers",
    ("date", "time", "timestamp", "duration"): "dates and times",
}


class _Look(NamedTuple):
    """What a column holds."""

    kind: Literal["text", "chat", "blank", "mixed", "other"]
    """Text in every row, messages, nothing, text in some rows beside other things, or other things alone."""
    held: str
    """In words."""


def text_column(opened: Rows, data: DataSettings) -> str:
    """Return the column to read: the one asked for, or the only one that holds text.

    Raises:
        ReportedError: There is no such column, or it holds something else.
    """
    rows, source = opened.rows, opened.source
    with as_value_error(f"data.path: could not read {source}", opened.text):
        head = list(rows.take(_ROWS_TO_JUDGE)) if isinstance(rows, IterableDataset) else []
        names: list[str] = rows.column_names or (list(head[0]) if head else [])
        if not names:
            raise ReportedError(f"data.path: {source} has no rows")
        asked = data.text_column
        if asked is not None and asked not in names:
            near = get_close_matches(asked, names, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ReportedError(f"data.text_column: {source} has no column {asked!r}{hint}; it has {', '.join(names)}")
        looks = {
            name: _look_of(rows, name) if isinstance(rows, Dataset) else _look_of_values([row[name] for row in head])
            for name in ([asked] if asked else [name for name in names if name not in data.carried_columns] or names)
        }
    if asked is not None and looks[asked].kind == "other":
        raise ReportedError(f"data.text_column: {asked!r} of {source} holds {looks[asked].held}; expected text")
    return _chosen(looks, source)


def _chosen(looks: dict[str, _Look], source: str) -> str:
    # A corpus of blanks has no column to choose: which one it is does not matter for saying so.
    blank = [name for name, look in looks.items() if look.kind == "blank"]
    texts = [name for name, look in looks.items() if look.kind in ("text", "mixed")]
    candidates = texts or [name for name, look in looks.items() if look.kind == "chat"] or blank[:1]
    if not candidates:
        held = "; ".join(f"{name!r} holds {look.held}" for name, look in looks.items())
        raise ReportedError(
            f"data.text_column: {source} has no column of text: {held}; write the text of each row into a column of "
            "its own, as a string; a chat is a list of objects with role and content"
        )
    if len(candidates) > 1:
        raise ReportedError(
            f"data.text_column: {source} has several text columns, {', '.join(candidates)}; name the one to read, as "
            f"in --data.text_column {shlex.quote(candidates[0])}"
        )
    name = candidates[0]
    if looks[name].kind == "mixed":
        raise ReportedError(
            f"data.text_column: {name!r} of {source} is not text in every row: {looks[name].held}; "
            "write it as text, or leave the row out"
        )
    return name


def _look_of(rows: Dataset, name: str) -> _Look:
    """Return what a column holds."""
    feature = rows.features[name]
    if isinstance(feature, Value) and feature.dtype in _STRINGS:
        return _look_of_texts(column_chunks(rows, name))
    if isinstance(feature, Value) and feature.dtype == "null":
        return _Look("blank", "nothing")
    if type(feature).__name__ == "Json":  # of `datasets` 4.6 and later: values of several types
        return _look_of_values(row[name] for row in rows.select_columns([name]))
    if holds_messages(rows.features.arrow_schema.field(name).type):
        return _Look("chat", "messages")
    return _Look("other", _held(feature))


def holds_chats(opened: Rows, name: str) -> bool:
    """Return whether the column to read holds lists of messages."""
    rows = opened.rows
    if isinstance(rows, Dataset):
        return _look_of(rows, name).kind == "chat"
    return _look_of_values([row[name] for row in rows.take(_ROWS_TO_JUDGE)]).kind == "chat"


def _look_of_texts(columns: Iterable[pa.ChunkedArray]) -> _Look:
    look = _Look("blank", "no text")
    for column in columns:
        text = pc.utf8_trim_whitespace(column.drop_null())
        text = text.filter(pc.not_equal(pc.binary_length(text), 0))
        if not pc.all(pc.match_substring_regex(text, _NUMBER), min_count=0).as_py():
            return _Look("text", "text")
        look = _Look("other", "numbers alone") if len(text) else look
    return look


def _look_of_values(values: Iterable[Any]) -> _Look:
    """Return what a column holds of which there are only the values."""
    numbered = ((number, value) for number, value in enumerate(values) if value is not None)
    first = next(numbered, None)
    if first is None:
        return _Look("blank", "nothing")
    texts = [first[1]]
    for number, value in numbered:
        if isinstance(value, str) != isinstance(first[1], str):
            other = (number, value) if isinstance(first[1], str) else first
            return _Look("mixed", f"row {other[0]}, counted from 0, holds {describe(other[1])}")
        texts.append(value)
    if all(map(is_messages, texts)):
        return _Look("chat", "messages")
    if isinstance(first[1], str):
        return _look_of_texts([pa.chunked_array([pa.array(texts, pa.large_string())])])
    return _Look("other", describe(first[1]))


def _held(feature: Any) -> str:
    """Return what the values of a feature are, in words."""
    if isinstance(feature, dict):
        return f"objects with {', '.join(feature)}"
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    if inner is not None:
        return f"lists of {_held(inner)}"
    if not isinstance(feature, Value):
        return f"values of the type {type(feature).__name__}"
    if feature.dtype in _STRINGS:
        return "text"
    of_kind = (words for starts, words in _HELD_BEGINNINGS.items() if feature.dtype.startswith(starts))
    return _HELD.get(feature.dtype) or next(of_kind, feature.dtype)


def column_chunks(rows: Dataset, name: str) -> Iterator[pa.ChunkedArray]:
    """Yield a column of text, some rows at a time, so that a corpus need not fit into memory."""
    for table in rows.select_columns([name]).with_format("arrow").iter(batch_size=ROWS_AT_ONCE):
        yield as_text(table.column(name))


def as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column as the one type of text that everything can be done with; of messages their JSON.

    Raises:
        pyarrow.ArrowInvalid: It is not UTF-8, at which `datasets` does not look.
    """
    if isinstance(column.type, pa.BaseExtensionType):  # JSON, which `datasets` holds as text
        column = pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
    if holds_messages(column.type):
        column = pa.chunked_array([pa.array(map(messages_text, column.to_pylist()), pa.large_string())])
    text = column.cast(pa.large_string())
    for chunk in text.chunks:
        chunk.validate(full=True)
    return text


def are_blank(texts: pa.LargeStringArray | pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """Return whether there is no text, or white space alone, [row]."""
    lengths = pc.binary_length(pc.utf8_trim_whitespace(texts.fill_null("")))
    blank: npt.NDArray[np.bool_] = np.asarray(lengths) == 0
    return blank
