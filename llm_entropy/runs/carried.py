"""What goes with the sentences into the shards: columns of the corpus, and the rows that answers have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from llm_entropy.schema.batches import NO_ANSWER
from llm_entropy.schema.records import Records
from llm_entropy.schema.shards import ANSWER_PROBABILITY, ANSWER_RANK, ANSWER_SURPRISAL, POSITION, SENTENCE_ID, column


def nothing(num_rows: int, kind: pa.DataType) -> pa.Array:
    """Return a column of rows to which it does not belong: nulls; lists of fixed size hold zeros, or empty texts."""
    if not pa.types.is_fixed_size_list(kind):
        return pa.nulls(num_rows, kind)
    empty: Any = "" if pa.types.is_string(kind.value_type) else 0
    return pa.FixedSizeListArray.from_arrays(
        pa.repeat(pa.scalar(empty, kind.value_type), num_rows * kind.list_size), kind.list_size
    )


def with_kept(
    whole: pa.Table, kept: Sequence[pa.Table], ids: npt.NDArray[np.int64], is_first: npt.NDArray[np.bool_]
) -> pa.Table:
    """Return the records of some sentences with the columns of the corpus that go with them.

    Args:
        whole: One row per record.
        kept: Tables of sentence ids and values; a sentence may be in several.
        ids: [record], the sentences.
        is_first: [record], whether it holds the values of its sentence; in others they are null.
    """
    rows = pa.concat_tables(kept).combine_chunks()
    known, places = np.unique(rows[SENTENCE_ID].to_numpy(), return_index=True)
    found = pa.array(places[np.minimum(np.searchsorted(known, ids), len(known) - 1)], mask=~is_first)
    for name in rows.column_names[1:]:
        place = whole.schema.get_field_index(name)
        values = rows[name].combine_chunks().take(found)
        whole = whole.set_column(place, whole.schema.field(place), values)
    return whole


def ordinary_records(records: Records) -> Records:
    """Return those records of a batch that belong to no answer."""
    assert records.answers is not None
    own = records.answers == NO_ANSWER
    of_words = () if records.word_starts is None else ("word_starts", "word_ends")
    names = ("sentence_ids", "positions", "token_ids", "starts", "ends", *of_words)
    return replace(
        records,
        **{name: getattr(records, name)[own] for name in names},
        conditions={name: one.changed(lambda values: values[own]) for name, one in records.conditions.items()},
        answers=None,
        wait=None,
    )


def answer_rows(records: Records, schema: pa.Schema) -> pa.Table:
    """Return the rows of the answers of a batch: one for each answer, whose records lie one behind the other.

    Args:
        records: Of one batch.
        schema: As `shards.shard_schema` makes it, with answers.
    """
    assert records.answers is not None
    own = torch.nonzero(records.answers != NO_ANSWER).flatten()
    ids, which = records.sentence_ids[own].numpy(), records.answers[own].numpy()
    # An answer is in one example, and no sentence has two of a kind.
    starts = np.flatnonzero((np.diff(ids, prepend=-1) != 0) | (np.diff(which, prepend=NO_ANSWER) != 0))
    values: dict[str, pa.Array] = {SENTENCE_ID: pa.array(ids[starts]), POSITION: pa.array(-which[starts], pa.int32())}
    for condition, one in records.conditions.items():
        surprisal = one.metrics["surprisal"][own].numpy().astype(np.float64)
        numbers = {
            ANSWER_SURPRISAL: np.add.reduceat(surprisal, starts, axis=0) if len(starts) else surprisal,
            ANSWER_RANK: one.metrics["target_rank"][own].numpy()[starts],
            ANSWER_PROBABILITY: np.exp(-surprisal[starts]),
        }
        for name, rows in numbers.items():
            flat = pa.array(np.ascontiguousarray(rows, np.float32).ravel())
            values[column(condition, name)] = pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])
    return pa.table(
        [values[field.name] if field.name in values else nothing(len(starts), field.type) for field in schema],
        schema=schema,
    )
