"""Rows of JSON files: whether the text is text in each of them.

`datasets` guesses the type of a column from the first rows. A number further down becomes text, and from there on, ten
megabytes at a time, every text gets quotes around it: so each row is looked at.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_entropy.corpus.chats import is_messages
from llm_entropy.corpus.textfiles import open_text
from llm_entropy.errors import ReportedError

_NAMES = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object", str: "text"}


def check_rows(path: Path, column: str | None, encoding: str) -> Iterator[int]:
    """Read a file of JSON row by row, and yield for each the lines that it takes: one.

    Args:
        path: Of the file; where it is not a row to a line, nothing is yielded.
        column: Which has to hold text, or null, in every row. None: the file could not be read, why is asked; then
            no column may hold text in some rows and other things in others, and every line has to be JSON.
        encoding: Of the file.

    Raises:
        ReportedError: It holds something else.
    """
    is_text: dict[str, bool] = {} if column is None else {column: True}
    with open_text(path, encoding) as text:
        for number, line in enumerate(text, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.removeprefix("\ufeff"))
            except json.JSONDecodeError as error:
                if column is None and number > 1:
                    raise ReportedError(f"data.path: line {number} of {path.name} is not JSON: {error.msg}") from error
                return
            if not isinstance(row, dict):
                return
            for name in row if column is None else (column,):
                value = row.get(name)
                if value is None:
                    continue
                holds_text = isinstance(value, str) or is_messages(value)
                if holds_text != is_text.setdefault(name, holds_text):
                    raise ReportedError(
                        f"data.text_column: {name!r} is not text in every row: line {number} of {path.name} holds "
                        f"{describe(value)}; write all rows as text, or leave out those that are none"
                    )
            yield 1


def describe(value: Any) -> str:
    """Return what a value is, in words."""
    if isinstance(value, (list, tuple)):
        return f"a list, {_short(value)}"
    if isinstance(value, dict):
        return f"an object with {', '.join(map(str, value))}"
    name = _NAMES.get(type(value))
    return f"{name}, {_short(value)}" if name else type(value).__name__


def _short(value: Any) -> str:
    words = repr(value)
    return words if len(words) <= 40 else f"{words[:40]}..."
