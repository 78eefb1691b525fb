"""The columns of the corpus that come back (`data.keep_columns`), as CSV files hold them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Optional

import pyarrow as pa

from llm_entropy.outputs import csv_text
from llm_entropy.outputs.chunk import Chunk


def kept_header(header: bytes, names: Sequence[str]) -> bytes:
    """Return the first line of a CSV file, with the names of the columns of the corpus behind its own."""
    own = csv_text.text_fields(pa.array(names, pa.string())).to_pylist()
    return ",".join([header.decode().removesuffix("\n"), *own]).encode() + b"\n"


def kept_fields(chunk: Chunk, names: Sequence[str]) -> list[pa.LargeStringArray]:
    """Return columns of the corpus as CSV fields, [sentence] each."""
    return [value_fields(chunk.kept(name)) for name in names]


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
