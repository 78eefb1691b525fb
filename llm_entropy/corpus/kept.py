"""The columns of a corpus that go with its sentences: which there are, of what types, and their values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Optional

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features

from llm_entropy.corpus.sources import Rows
from llm_entropy.errors import ReportedError
from llm_entropy.schema.batches import MOST_GROUPS
from llm_entropy.schema.shards import (
    POSITION,
    SENTENCE,
    SENTENCE_ID,
    TARGET,
    TARGET_ID,
    TOKEN,
    TOKEN_END,
    TOKEN_ID,
    TOKEN_START,
    TOP_PROBABILITIES,
    TOP_TOKENS,
    TRACKED_PROBABILITIES,
    TRACKED_TOKENS,
)
from llm_entropy.settings import ALL_METRICS, DataSettings

OF_OUTPUTS = frozenset(
    {SENTENCE_ID, POSITION, TOKEN_ID, TOKEN, TOKEN_START, TOKEN_END, TARGET_ID, TOP_TOKENS, TOP_PROBABILITIES}
    | {SENTENCE, TARGET, TRACKED_TOKENS, TRACKED_PROBABILITIES, *ALL_METRICS}
    | {f"{metric}_difference" for metric in ALL_METRICS}
)
"""Columns of Parquet and CSV files, whose names no kept column may have."""
ROWS_TO_LOOK_AT = 100
"""Of a stream that does not say the types of its columns."""
ROWS_AT_ONCE = 10_000
JSON = {"format": "json"}
"""Metadata of a column of text that stands for values of several types."""


def kept_schema(opened: Rows, data: DataSettings) -> pa.Schema:
    """Return the columns that go with the sentences of some rows, and their types.

    Args:
        opened: The rows.
        data: Names the columns.

    Raises:
        ReportedError: There is no such column, it has the name of one that the outputs have, or answers are no text.
    """
    names = data.carried_columns
    if not names:
        return pa.schema([])
    rows = opened.rows
    known = rows.features
    if known is None:
        head = pa.Table.from_pylist(list(rows.take(ROWS_TO_LOOK_AT)))
        types = {field.name: field.type for field in head.schema}
    else:
        types = {field.name: field.type for field in known.arrow_schema}
    for key, columns in data.carried.items():
        for name in columns:
            _check_column(key, name, types, opened.source)
    return pa.schema([_field(name, types[name]) for name in names])


def _field(name: str, held: pa.DataType) -> pa.Field:
    """Return a column as it is kept; values of several types are kept as JSON."""
    about = JSON if isinstance(held, pa.BaseExtensionType) and _is_text(held.storage_type) else None
    return pa.field(name, plain_type(held), metadata=about)


def _check_column(key: str, name: str, types: dict[str, pa.DataType], source: str) -> None:
    if name not in types:
        near = get_close_matches(name, types, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ReportedError(f"data.{key}: {source} has no column {name!r}{hint}; it has {', '.join(types)}")
    if key == "keep_columns" and name in OF_OUTPUTS:
        raise ReportedError(
            f"data.keep_columns: the outputs already have a column {name!r}; rename the column of {source}"
        )
    if key in ("target_column", "foil_column"):
        held = types[name]
        if isinstance(held, pa.BaseExtensionType) or not _is_text(plain_type(held)):
            what = "values of several types" if isinstance(held, pa.BaseExtensionType) else f"values of type {held}"
            raise ReportedError(f"data.{key}: {name!r} of {source} holds {what}; expected text, or null for no answer")


def plain_type(held: pa.DataType) -> pa.DataType:
    """Return the type in which values of a column are kept: that of what stores them, and text where there is none."""
    if isinstance(held, pa.BaseExtensionType):
        held = held.storage_type
    if pa.types.is_dictionary(held):
        held = held.value_type
    return pa.string() if pa.types.is_null(held) or _is_text(held) else held


def _is_text(held: pa.DataType) -> bool:
    return bool(pa.types.is_string(held) or pa.types.is_large_string(held) or pa.types.is_null(held))


def as_kept(rows: pa.Table, schema: pa.Schema, source: str) -> pa.Table:
    """Return the columns of some rows as they are kept.

    Args:
        rows: As they were read.
        schema: As `kept_schema` returns it.
        source: What they are of, for people.

    Raises:
        ReportedError: A value is of another type than those of the first rows.
    """
    columns = []
    for field in schema:
        column = rows.column(field.name)
        if isinstance(column.type, pa.BaseExtensionType):
            stored = [chunk.storage for chunk in column.chunks]
            column = pa.chunked_array(stored, column.type.storage_type)
        try:
            columns.append(column.cast(field.type).combine_chunks())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ReportedError(
                f"data: column {field.name!r} of {source} is not of one type: {column.type}, where the first rows hold "
                f"{field.type} ({str(error).splitlines()[0]}); write it in one type, such as text"
            ) from error
    return pa.Table.from_arrays(columns, schema=schema)


def dataset_of(values: Mapping[str, Sequence[Any]], schema: Optional[pa.Schema] = None) -> Dataset:
    """Return columns that are in memory as a data set.

    Args:
        values: By column.
        schema: Their types; None: they are found.

    Raises:
        ReportedError: A column holds values of several types.
    """
    columns = []
    for name, given in values.items():
        is_json = schema is not None and schema.field(name).metadata is not None
        own = [None if value is None else json.dumps(value) for value in given] if is_json else given
        try:
            columns.append(pa.array(own, None if schema is None else schema.field(name).type))
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
            raise ReportedError(
                f"data: column {name!r} is not of one type ({str(error).splitlines()[0]}); write it in one type, such "
                "as text"
            ) from error
    table = pa.Table.from_arrays(columns, names=list(values))
    return Dataset.from_dict(table.to_pydict(), features=Features.from_arrow_schema(table.schema))


def chunks_of(kept: Dataset, schema: pa.Schema, source: str) -> Iterator[pa.Table]:
    """Yield the kept columns of a corpus, some rows at a time."""
    for table in kept.with_format("arrow").iter(batch_size=ROWS_AT_ONCE):
        yield as_kept(table, schema, source)


def content_of(tables: Iterable[pa.Table]) -> Iterator[bytes]:
    """Yield bytes that tell what kept columns hold, in whatever pieces they are stored."""
    for table in tables:
        for row in table.to_pylist():
            yield json.dumps(row, default=str).encode() + b"\n"


# --- answers -----------------------------------------------------------------------------------------------------


def has_answer(kept: pa.Table, data: DataSettings) -> npt.NDArray[np.bool_]:
    """Return which rows have a right answer, [row]."""
    if data.target_column is None:
        return np.zeros(len(kept), bool)
    return np.asarray(kept[data.target_column].is_valid().to_numpy())


def check_answers(kept: pa.Table, data: DataSettings, rows: Sequence[int] | npt.NDArray[np.int64]) -> None:
    """Refuse answers that are no text.

    Args:
        kept: The kept columns of some rows.
        data: Says which are answers.
        rows: [row], their numbers in the corpus, for the message.

    Raises:
        ReportedError: One is empty, or there is a wrong answer without a right one.
    """
    if data.target_column is None:
        return
    for key in ("target_column", "foil_column"):
        name = getattr(data, key)
        if name is None:
            continue
        lengths = pc.binary_length(pc.utf8_trim_whitespace(kept[name].cast(pa.large_string()))).fill_null(1)
        blank = np.flatnonzero(np.asarray(lengths) == 0)
        if len(blank):
            raise ReportedError(
                f"data.{key}: the answer in column {name!r} of row {int(rows[blank[0]])}, counted from 0, is empty; "
                "give it one, or leave the row out; in json, jsonl and parquet null stands for no answer"
            )
    if data.foil_column is not None:
        alone = np.asarray(kept[data.foil_column].is_valid().to_numpy()) & ~has_answer(kept, data)
        if alone.any():
            raise ReportedError(
                f"data.foil_column: row {int(rows[int(np.argmax(alone))])}, counted from 0, has a wrong answer in "
                f"{data.foil_column!r} and no right one in {data.target_column!r}; give it both, or neither"
            )


def answers_of(kept: Optional[pa.Table], data: DataSettings) -> Optional[list[tuple[Optional[str], Optional[str]]]]:
    """Return the right and the wrong answer of each row; None: none are asked for."""
    if kept is None or data.target_column is None:
        return None
    right = kept[data.target_column].to_pylist()
    wrong = [None] * len(right) if data.foil_column is None else kept[data.foil_column].to_pylist()
    return list(zip(right, wrong, strict=True))


# --- groups ------------------------------------------------------------------------------------------------------


def check_groups(tables: Iterable[pa.Table], data: DataSettings, source: str) -> None:
    """Refuse groups that cannot be told apart, or compared.

    Args:
        tables: The kept columns of the sentences that were picked, some at a time.
        data: Names the columns of groups and of pairs.
        source: What they are of, for people.

    Raises:
        ReportedError: There are none or too many groups, or two sentences of one pair in a group.
    """
    if data.group_column is None:
        return
    groups: set[str] = set()
    members: set[tuple[str, str]] = set()
    for table in tables:
        labels = list(map(str, _filled(table[data.group_column])))
        groups.update(label for label in labels if label != _NONE)
        if data.pair_column is None:
            continue
        for member in zip(labels, map(str, _filled(table[data.pair_column])), strict=True):
            if member in members and _NONE not in member:
                raise ReportedError(
                    f"data.pair_column: two sentences of the pair {member[1]!r} are in the group {member[0]!r} of "
                    f"{source}; expected one of each pair in a group"
                )
            members.add(member)
    if not groups or len(groups) > MOST_GROUPS:
        raise ReportedError(
            f"data.group_column: {data.group_column!r} of {source} holds {len(groups)} groups; expected from 1 to "
            f"{MOST_GROUPS}"
        )


_NONE = "\0"


def _filled(column: pa.ChunkedArray) -> list[Any]:
    return [_NONE if value is None else value for value in column.to_pylist()]
