"""The records of a batch as rows of a shard."""

from __future__ import annotations

from typing import Any, Optional

import pyarrow as pa
from torch import Tensor

from llm_entropy.runs.carried import answer_rows, nothing, ordinary_records
from llm_entropy.runs.token_texts import TokenTexts
from llm_entropy.schema.batches import NO_TOKEN
from llm_entropy.schema.records import Records
from llm_entropy.schema.shards import (
    CONTINUATION,
    LENS_PROBABILITIES,
    LENS_TOKENS,
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
    WORD_END,
    WORD_START,
    column,
)


def records_table(records: Records, schema: pa.Schema, texts: TokenTexts) -> pa.Table:
    """Return the records of a batch as an Arrow table of the shards' schema, without the texts of the sentences.

    Args:
        records: Of one batch.
        schema: As `shards.shard_schema` makes it.
        texts: What the tokens say.
    """
    if not len(records.positions):
        return schema.empty_table()
    if records.answers is not None:
        ordinary = records_table(ordinary_records(records), schema, texts)
        return pa.concat_tables([ordinary, answer_rows(records, schema)])
    values: dict[str, Any] = {
        SENTENCE_ID: records.sentence_ids.numpy(),
        SENTENCE: pa.nulls(len(records.positions), pa.string()),
        POSITION: records.positions.numpy(),
        TOKEN_ID: _token_ids(records.token_ids),
        TOKEN: texts(records.token_ids),
        TOKEN_START: records.starts.numpy(),
        TOKEN_END: records.ends.numpy(),
    }
    if records.word_starts is not None and records.word_ends is not None:
        values |= {WORD_START: records.word_starts.numpy(), WORD_END: records.word_ends.numpy()}
    for condition, own in records.conditions.items():
        named: dict[str, Any] = dict(own.metrics)
        if (tokens := own.tokens) is not None:
            named |= {
                TARGET_ID: _token_ids(tokens.target_ids),
                TARGET: texts(tokens.target_ids),
                TOP_TOKENS: texts(tokens.top_ids),
                TOP_PROBABILITIES: tokens.top_probabilities,
                TRACKED_TOKENS: texts(tokens.tracked_ids),
                TRACKED_PROBABILITIES: tokens.tracked_probabilities,
                LENS_TOKENS: texts(tokens.lens_ids),
                LENS_PROBABILITIES: tokens.lens_probabilities,
            }
        if own.written is not None:
            named[TARGET_ID] = _token_ids(own.written)
            named[CONTINUATION] = _continuations(records.sentence_ids, own.written, texts)
        values |= {column(condition, name): value for name, value in named.items()}
    num_records = len(records.positions)
    columns = [
        _array(values[field.name], field.type) if field.name in values else nothing(num_records, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _token_ids(token_ids: Tensor) -> pa.Array:
    """Return the ids of tokens, null where there is none."""
    ids = token_ids.numpy()
    return pa.array(ids, pa.int32(), mask=ids == NO_TOKEN)


def _continuations(sentence_ids: Tensor, written: Tensor, texts: TokenTexts) -> list[Optional[str]]:
    """Return the text that was written behind each sentence, at the first of its records, which stand together."""
    found: list[Optional[str]] = [None] * len(written)
    _, counts = sentence_ids.unique_consecutive(return_counts=True)
    start = 0
    for own in written.split(counts.tolist()):
        found[start] = texts.whole([token_id for token_id in own.tolist() if token_id != NO_TOKEN])
        start += len(own)
    return found


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    """Return a column; what is [record, ...] becomes a list of fixed size per record."""
    if not pa.types.is_fixed_size_list(kind):
        return pa.array(values, type=kind)
    flat = values.flatten().float().numpy() if isinstance(values, Tensor) else values
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, type=kind.value_type), kind.list_size)
