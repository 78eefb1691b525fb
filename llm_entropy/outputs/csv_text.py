"""CSV made a column at a time: ten thousand sentences take as long as a row-wise writer needs for a few hundred.

The lines are those of Python's `csv` with minimal quoting and newlines as line ends, except that a carriage return is
quoted too (before Python 3.13 `csv` leaves it bare, and pandas then reads a line end) and numbers always are.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

LARGE = pa.large_string()
"""The type of every text: lines that repeat a long sentence may exceed the 2 GiB of Arrow's small one."""

# `pyarrow.csv.write_csv` (tried: pyarrow 26) cannot write these lines: of its styles of quoting, "needed" and
# "all_valid" quote every text, and "none" refuses one that holds a comma, a quote or a line end.
METRIC_HEADER = b"sentence,values\n"
TOKEN_HEADER = b"sentence,token,values\n"
PREDICTION_HEADER = b"Sentence,Token,Probability,Analysis\n"
GENERATION_HEADER = b"Sentence,Continuation,Analysis,tokens\n"


def number_texts(values: npt.ArrayLike) -> pa.LargeStringArray:
    """Return numbers as JSON, each in the fewest digits that restore it as a float32.

    Args:
        values: [number]; rounded to float32.

    Returns:
        [number]; `null` for NaN, infinities, and what no float32 can hold: JSON has no word for them.
    """
    with np.errstate(over="ignore"):
        numbers = np.asarray(values).astype(np.float32)
    return pc.if_else(pa.array(np.isfinite(numbers)), pa.array(numbers).cast(LARGE), _text("null"))


def number_fields(values: npt.ArrayLike) -> pa.LargeStringArray:
    """Return numbers as CSV fields: as `number_texts`, and an empty one where it has `null`.

    Args:
        values: [number]; rounded to float32.

    Returns:
        [number].
    """
    texts = number_texts(values)
    return pc.if_else(pc.equal(texts, _text("null")), _text(""), texts)


def list_fields(values: npt.NDArray[np.floating]) -> pa.LargeStringArray:
    """Return rows of numbers as quoted CSV fields, each one a JSON list.

    Args:
        values: [row, layer].

    Returns:
        [row], as `"[1.5, null, 2]"` with its quotes.
    """
    num_rows, width = values.shape
    ends = pa.array(np.arange(num_rows + 1, dtype=np.int32) * width)
    rows = pa.ListArray.from_arrays(ends, number_texts(values.ravel()))
    return _joined(_text('"['), pc.binary_join(rows, _text(", ")), _text(']"'))


def text_fields(texts: pa.StringArray | pa.LargeStringArray, suffix: str = "") -> pa.LargeStringArray:
    """Return texts as CSV fields, quoted where they must be.

    Args:
        texts: [row].
        suffix: Put at the end of each.

    Returns:
        [row].
    """
    large = texts.cast(LARGE)
    whole = _joined(large, _text(suffix)) if suffix else large
    quoted = _joined(_text('"'), pc.replace_substring(whole, '"', '""'), _text('"'))
    return pc.if_else(pc.match_substring_regex(whole, '[",\r\n]'), quoted, whole)


def lines(*fields: pa.LargeStringArray | str) -> pa.LargeStringArray:
    """Return the lines of a table.

    Args:
        fields: Its columns, [row] or one text for all rows, as CSV fields.

    Returns:
        [row], with their line ends.
    """
    columns = [_text(field) if isinstance(field, str) else field for field in fields]
    return _joined(_joined(*columns, by=","), _text("\n"))


def interleave(columns: list[pa.LargeStringArray]) -> pa.LargeStringArray:
    """Return the first of each column, then the second of each, and so on, joined.

    Args:
        columns: Lines, [row] each.

    Returns:
        [row], with the lines of all columns in one text.
    """
    return _joined(*columns)


def as_bytes(texts: pa.LargeStringArray) -> bytes:
    """Return texts one after the other in UTF-8, without making Python strings of them."""
    ends = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    if not len(texts) or ends[0] == ends[-1]:
        return b""
    return memoryview(texts.buffers()[2])[ends[0] : ends[-1]].tobytes()


def _text(text: str) -> pa.LargeStringScalar:
    return pa.scalar(text, LARGE)


def _joined(*columns: pa.LargeStringArray | pa.LargeStringScalar, by: str = "") -> pa.LargeStringArray:
    return pc.binary_join_element_wise(*columns, _text(by))
