"""Contrastive pairs: from rows of any source to a corpus in which the two texts of a pair are two sentences.

Text 2 p is the positive one of pair p, text 2 p + 1 the negative one.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Optional

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from datasets import Dataset, Features, Value

from llm_entropy import builtin
from llm_entropy.corpus.columns import BLANK, ROWS_AT_ONCE, as_text
from llm_entropy.corpus.corpus import NULL, MappedCorpus
from llm_entropy.corpus.picking import hash_of_texts
from llm_entropy.corpus.quiet_datasets import as_value_error, progress_bars
from llm_entropy.corpus.sources import Rows, check_text, open_rows
from llm_entropy.errors import ReportedError
from llm_entropy.schema.shards import SENTENCE
from llm_entropy.settings import DataSettings

log = logging.getLogger("llm_entropy")

POSITIVE, NEGATIVE, PROMPT = "positive", "negative", "prompt"
"""Columns of pairs."""
TEXT, LABEL = "text", "label"
"""Columns of texts of two kinds, which are paired in their order."""
LEAST_PAIRS = 8
"""Fewer cannot be split into pairs to learn from, halves of these, and pairs to judge by."""
EXPECTED = f"expected {POSITIVE} and {NEGATIVE}, and {PROMPT} where both share one, or {TEXT} and {LABEL}"


class Pairs(NamedTuple):
    """The pairs of an extraction."""

    corpus: MappedCorpus
    """Their texts, two to a pair, each behind its prompt."""
    starts: npt.NDArray[np.int64]
    """[text], by the text's id: the first character behind the prompt."""


class _Pair(NamedTuple):
    number: int
    prompt: str
    positive: str
    negative: str


def load_pairs(data: DataSettings, positive_label: Optional[str], *, quiet: bool = False) -> Pairs:
    """Read the pairs of a source: every row of it, into memory.

    Args:
        data: What to read.
        positive_label: Of texts with labels: which is positive; None: the one that comes last in order.
        quiet: Whether progress bars are hidden.

    Raises:
        ReportedError: The source cannot be read, or holds no pairs.
    """
    if data.path is None:
        families = ", ".join(f"{builtin.PREFIX}{name}" for name in builtin.PAIR_FAMILIES)
        raise ReportedError(f"data.path: got null; {EXPECTED}, in a file or data set, or one of {families}")
    if data.text_column is not None:
        raise ReportedError(f"data.text_column: got {data.text_column!r}, which has no effect on pairs; leave it out")
    with progress_bars(shown=not quiet):
        return _pairs_of(open_rows(data, data.path), positive_label)


def pairs_in_memory(pairs: Sequence[Mapping[str, Any]], positive_label: Optional[str]) -> Pairs:
    """Return pairs that were given in memory, as `rows_of` returns them, as `load_pairs` returns those of a source."""
    return _pairs_of(Rows(Dataset.from_list([dict(row) for row in pairs]), "given pairs"), positive_label)


def rows_of(pairs: Any) -> list[dict[str, Any]]:
    """Return given pairs as rows, by column.

    Args:
        pairs: A data frame or data set, or a list of (positive, negative), or of mappings of columns to texts.

    Raises:
        ReportedError: They are something else.
    """
    if isinstance(pairs, Dataset):
        return list(pairs)
    if not isinstance(pairs, pd.DataFrame):
        rows = list(pairs) if isinstance(pairs, Iterable) and not isinstance(pairs, (str, bytes, Mapping)) else []
        if rows and all(isinstance(row, (tuple, list)) and len(row) == 2 for row in rows):
            return [{POSITIVE: row[0], NEGATIVE: row[1]} for row in rows]
        if not rows or not all(isinstance(row, Mapping) for row in rows):
            raise ReportedError(
                f"pairs: got {type(pairs).__name__}; expected a list of (positive, negative), a data frame, or a data "
                "set; give the path of a file as data"
            )
        return [dict(row) for row in rows]
    records = pairs.astype(object).where(pairs.notna(), None).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in records]


def _pairs_of(opened: Rows, positive_label: Optional[str]) -> Pairs:
    rows = opened.rows
    with as_value_error(f"data.path: could not read {opened.source}", opened.text):
        names = rows.column_names or list(next(iter(rows), {}))
        skipped: list[tuple[int, str]] = []
        if {POSITIVE, NEGATIVE} <= set(names):
            columns = [POSITIVE, NEGATIVE, *([PROMPT] if PROMPT in names else [])]
            found = list(_as_they_stand(_read(opened, columns, columns), skipped))
        elif {TEXT, LABEL} <= set(names):
            found = _of_labels(_read(opened, [TEXT, LABEL], [TEXT]), positive_label, opened.source, skipped)
        else:
            raise ReportedError(f"data.path: {opened.source} has the columns {', '.join(names) or 'none'}; {EXPECTED}")
    if len(found) < LEAST_PAIRS:
        blank = f"; {len(skipped)} rows hold no text" if skipped else ""
        raise ReportedError(
            f"data.path: {opened.source} has {len(found)} pairs{blank}; expected at least {LEAST_PAIRS}; "
            "hundreds are better"
        )
    return _corpus_of(found, opened.source, skipped)


def _read(opened: Rows, columns: Sequence[str], texts: Sequence[str]) -> Iterator[list[Any]]:
    """Read the values of some columns, row by row; those of text are texts or None."""
    for name in texts:
        if isinstance(opened.rows, Dataset):
            check_text(opened, name)
        elif opened.text is not None:
            deque(opened.text.checked(name), maxlen=0)
    for table in opened.rows.select_columns(list(columns)).with_format("arrow").iter(batch_size=ROWS_AT_ONCE):
        for name in texts:
            kind = table.schema.field(name).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
                raise ReportedError(f"data.path: {name!r} of {opened.source} holds {kind}; expected text")
        values = [as_text(table[name]) if name in texts else table[name] for name in columns]
        yield from map(list, zip(*(column.to_pylist() for column in values), strict=True))


def _as_they_stand(rows: Iterator[list[Any]], skipped: list[tuple[int, str]]) -> Iterator[_Pair]:
    for number, (positive, negative, *prompt) in enumerate(rows):
        reasons = [reason for text in (positive, negative) if (reason := _reason(text))]
        if reasons:
            skipped.append((number, reasons[0]))
        else:
            yield _Pair(number, (prompt[0] if prompt else None) or "", positive, negative)


def _of_labels(
    rows: Iterator[list[Any]], positive_label: Optional[str], source: str, skipped: list[tuple[int, str]]
) -> list[_Pair]:
    """Pair the texts of two labels in their order."""
    by_label: dict[str, list[str]] = {}
    for number, (text, label) in enumerate(rows):
        reason = _reason(text) or (NULL if label is None else None)
        if reason is None:
            by_label.setdefault(str(label), []).append(text)
        else:
            skipped.append((number, reason))
    labels = sorted(by_label, key=_order)
    if len(labels) != 2:
        shown = ", ".join(map(repr, labels[:5])) + (", ..." if len(labels) > 5 else "")
        raise ReportedError(f"data.path: {LABEL!r} of {source} holds {len(labels)} values ({shown}); expected two")
    if positive_label is not None and positive_label not in labels:
        raise ReportedError(
            f"extract.positive_label: got {positive_label!r}; {LABEL!r} of {source} holds {' and '.join(labels)}"
        )
    positive = labels[1] if positive_label is None else positive_label
    negative = next(label for label in labels if label != positive)
    log.info("%s: label %s is positive, %s negative; see extract.positive_label", source, positive, negative)
    counts = {label: len(texts) for label, texts in by_label.items()}
    if counts[positive] != counts[negative]:
        log.warning(
            "%s: %d texts of label %s and %d of label %s; the last %d have no partner and are left out",
            *(source, counts[positive], positive, counts[negative], negative),
            abs(counts[positive] - counts[negative]),
        )
    both = zip(by_label[positive], by_label[negative], strict=False)
    return [_Pair(number, "", *texts) for number, texts in enumerate(both)]


def _order(label: str) -> tuple[bool, float, str]:
    """Numbers by their size, then words by the alphabet."""
    try:
        return False, float(label), label
    except ValueError:
        return True, 0.0, label.casefold()


def _reason(text: Optional[str]) -> Optional[str]:
    """Return why a text cannot be read; None: it can."""
    if text is None:
        return NULL
    return None if text.strip() else BLANK


def _behind(prompt: str, text: str) -> str:
    """Return a text behind its prompt, with a space between them where neither has any."""
    return prompt + ("" if not prompt or prompt[-1].isspace() or text[0].isspace() else " ") + text


def _corpus_of(pairs: Sequence[_Pair], source: str, skipped: list[tuple[int, str]]) -> Pairs:
    texts = [_behind(pair.prompt, text) for pair in pairs for text in (pair.positive, pair.negative)]
    ids = np.array([2 * pair.number + side for pair in pairs for side in (0, 1)], np.int64)
    starts = np.zeros(int(ids[-1]) + 1, np.int64)
    starts[ids] = np.repeat([len(pair.prompt) for pair in pairs], 2)
    rows = Dataset.from_dict({SENTENCE: texts}, Features({SENTENCE: Value("large_string")}))
    places = np.arange(len(texts))
    content = hashlib.sha256((hash_of_texts(rows, ids, places) + starts.tobytes().hex()).encode()).hexdigest()[:32]
    num_rows = pairs[-1].number + 1 if not skipped else max(pairs[-1].number, skipped[-1][0]) + 1
    return Pairs(MappedCorpus(rows, ids, source, num_rows, skipped, content, places=places), starts)
