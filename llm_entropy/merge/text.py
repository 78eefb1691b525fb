"""CSV made a column at a time: ten thousand sentences take as long as a row-wise writer needs for a few hundred.

The lines are those of Python's `csv` with minimal quoting and newlines as line ends, except that a carriage return is
quoted too (before Python 3.13 `csv` leaves it bare, and pandas then reads a line end) and numbers always are.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

METRIC_HEADER = b"sentence,values\n"
TOKEN_HEADER = b"sentence,token,values\n"
PREDICTION_HEADER = b"Sentence,Token,Probability,Analysis\n"


def number_texts(values: npt.ArrayLike) -> pa.StringArray:
    """Return numbers as JSON, each in the fewest digits that restore it as a float32.

    Args:
        values: [number]; rounded to float32.

    Returns:
        [number]; `null` for NaN, infinities, and what no float32 can hold: JSON has no word for them.
    """
    with np.errstate(over="ignore"):
        numbers = np.asarray(values).astype(np.float32)
    return pc.if_else(pa.array(np.isfinite(numbers)), pa.array(numbers).cast(pa.string()), "null")


def list_fields(values: npt.NDArray[np.floating]) -> pa.StringArray:
    """Return rows of numbers as quoted CSV fields, each one a JSON list.

    Args:
        values: [row, layer].

    Returns:
        [row], as `"[1.5, null, 2]"` with its quotes.
    """
    num_rows, width = values.shape
    ends = pa.array(np.arange(num_rows + 1, dtype=np.int32) * width)
    rows = pa.ListArray.from_arrays(ends, number_texts(values.ravel()))
    return pc.binary_join_element_wise('"[', pc.binary_join(rows, ", "), ']"', "")


def text_fields(texts: pa.StringArray, suffix: str = "") -> pa.StringArray:
    """Return texts as CSV fields, quoted where they must be.

    Args:
        texts: [row].
        suffix: Put at the end of each.

    Returns:
        [row].
    """
    whole = pc.binary_join_element_wise(texts, suffix, "") if suffix else texts
    quoted = pc.binary_join_element_wise('"', pc.replace_substring(whole, '"', '""'), '"', "")
    return pc.if_else(pc.match_substring_regex(whole, '[",\r\n]'), quoted, whole)


def lines(*fields: pa.StringArray | str) -> pa.StringArray:
    """Return the lines of a table.

    Args:
        fields: Its columns, [row] or one text for all rows, as CSV fields.

    Returns:
        [row], with their line ends.
    """
    return pc.binary_join_element_wise(pc.binary_join_element_wise(*fields, ","), "\n", "")


def interleave(columns: list[pa.StringArray]) -> pa.StringArray:
    """Return the first of each column, then the second of each, and so on, joined.

    Args:
        columns: Lines, [row] each.

    Returns:
        [row], with the lines of all columns in one text.
    """
    return pc.binary_join_element_wise(*columns, "")


def as_bytes(texts: pa.StringArray) -> bytes:
    """Return texts one after the other in UTF-8, without making Python strings of them."""
    ends = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1]
    if not len(texts) or ends[0] == ends[-1]:
        return b""
    return memoryview(texts.buffers()[2])[ends[0] : ends[-1]].tobytes()
