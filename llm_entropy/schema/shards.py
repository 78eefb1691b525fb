"""What lies in the shards: their columns, units and shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from llm_entropy.schema.shape import ModelShape, measured_of
from llm_entropy.settings import (
    BASELINE_METRICS,
    COMPARISON_METRICS,
    METRICS,
    STANDARD_SURPRISAL,
    TEXT_METRICS,
    WORD_METRICS,
    AnalysisSettings,
    compared,
)

if TYPE_CHECKING:
    import pyarrow as pa

SENTENCE_ID, SENTENCE, POSITION = "sentence_id", "sentence", "position"
TOKEN_ID, TOKEN, TOKEN_START, TOKEN_END = "token_id", "token", "token_start", "token_end"
WORD_START, WORD_END = "word_start", "word_end"
TARGET_ID, TARGET = "target_id", "target"
CONTINUATION = "continuation"
TOP_TOKENS, TOP_PROBABILITIES = "top_tokens", "top_probabilities"
TRACKED_TOKENS, TRACKED_PROBABILITIES = "tracked_tokens", "tracked_probabilities"
LENS_TOKENS, LENS_PROBABILITIES = "lens_tokens", "lens_probabilities"
ANSWER_SURPRISAL, ANSWER_RANK, ANSWER_PROBABILITY = "answer_surprisal", "answer_rank", "answer_probability"
ANSWER_COLUMNS = {ANSWER_SURPRISAL: "nats", ANSWER_RANK: "tokens", ANSWER_PROBABILITY: ""}
"""What is read of an answer, and the units: the surprisal of all its tokens; rank and probability of the first."""


def column(condition: str, name: str) -> str:
    """Return the shard column that holds `name` under `condition`."""
    return f"{condition}/{name}"


def kept_column(name: str) -> str:
    """Return the shard column that holds a column of the corpus; no condition has an empty name."""
    return column("", name)


def shard_schema(
    analysis: AnalysisSettings,
    shape: ModelShape,
    metadata: dict[str, str],
    *,
    kept: Sequence[pa.Field] = (),
    answers: bool = False,
) -> pa.Schema:
    """Return the Arrow schema of a model's shards: one row per (sentence, position), columns for each condition.

    Metrics are fixed-size lists of float32, a number per layer; those of attention hold blocks x heads numbers, the
    heads of block 0 first, NaN for those that a block does not have, of a placebo their mean over the heads;
    `tracked_probabilities` tracked x layers, the layers of the first token first; `lens_tokens` and
    `lens_probabilities`, where asked for, one of each per layer. Unit, axis and shape are in each field's metadata, and
    the heads of each block where they differ. A text stands in the first record that a part has of its sentence, and is
    null in the others: copies would grow with the square of a document's length.

    Of generated texts a row is (sentence, step): behind one sentence every condition writes its next token at the same
    position. The targets of a condition are what it wrote, its other columns what it says there; they are null, or NaN,
    where its text has ended. The text itself, `continuation`, stands in the first record of its sentence. So do the
    values of columns of the corpus.

    Args:
        analysis: What is measured.
        shape: The model's sizes.
        metadata: Of the schema.
        kept: The columns of the corpus that go with each sentence, by their own names.
        answers: Whether answers are read. Each has a row of its own, whose position is minus the number of the answer
            (`TARGET_ANSWER`, `FOIL_ANSWER`), and whose numbers stand in the columns `ANSWER_COLUMNS` of each condition;
            its other columns are null, or zeros. In other rows those of the answers are zeros.
    """
    import pyarrow as pa

    def numbers(name: str, unit: str, axes: str, *sizes: int) -> pa.Field:
        about = {"unit": unit, "axes": axes, "shape": " ".join(map(str, sizes))}
        return pa.field(name, pa.list_(pa.float32(), math.prod(sizes)), metadata=about)

    fields = [
        pa.field(SENTENCE_ID, pa.int64(), metadata={"meaning": "row of the corpus"}),
        pa.field(SENTENCE, pa.string()),
        pa.field(POSITION, pa.int32(), metadata={"unit": "tokens"}),
        pa.field(TOKEN_ID, pa.int32()),
        pa.field(TOKEN, pa.string()),
        pa.field(TOKEN_START, pa.int32(), metadata={"unit": "characters"}),
        pa.field(TOKEN_END, pa.int32(), metadata={"unit": "characters"}),
    ]
    if analysis.words:
        fields += [pa.field(name, pa.int32(), metadata={"unit": "characters"}) for name in (WORD_START, WORD_END)]
    num_layers, num_tracked = shape.num_layers, min(analysis.tracked_tokens, shape.vocab_size)
    num_top = 1 if analysis.use_sampling and not analysis.is_generated else analysis.top_k
    metrics = measured_of(analysis, shape)
    conditions = analysis.run_conditions
    for condition in conditions:
        own = partial(column, condition.name)
        if condition.keeps_tokens:
            fields += [
                pa.field(own(TARGET_ID), pa.int32()),
                pa.field(own(TARGET), pa.string()),
                pa.field(own(TOP_TOKENS), pa.list_(pa.string(), num_top)),
                numbers(own(TOP_PROBABILITIES), "", "token", num_top),
                pa.field(own(TRACKED_TOKENS), pa.list_(pa.string(), num_tracked)),
                numbers(own(TRACKED_PROBABILITIES), "", "token layer", num_tracked, num_layers),
            ]
        if condition.keeps_tokens and analysis.lens_tokens:
            about = {"meaning": "most likely token of each layer", "axes": "layer", "shape": str(num_layers)}
            fields += [
                pa.field(own(LENS_TOKENS), pa.list_(pa.string(), num_layers), metadata=about),
                numbers(own(LENS_PROBABILITIES), "", "layer", num_layers),
            ]
        if analysis.is_generated:
            more = pa.field(own(CONTINUATION), pa.string()) if condition.keeps_tokens else None
            fields.append(more or pa.field(own(TARGET_ID), pa.int32()))
        for name in metrics:
            metric = METRICS[name]
            axes: str = metric.axis
            sizes = [num_layers if metric.axis == "layer" else shape.num_blocks]
            if metric.is_per_head and condition.keeps_tokens:
                axes, sizes = f"{axes} head", [*sizes, shape.num_heads]
            field = numbers(own(name), metric.unit, axes, *sizes)
            if metric.is_per_head and shape.heads is not None and set(shape.heads) - {0, shape.num_heads}:
                field = field.with_metadata({**field.metadata, "heads": " ".join(map(str, shape.heads))})
            fields.append(field)
        if analysis.words and condition.keeps_tokens:
            fields += [
                numbers(own(name), metric.unit, metric.axis, num_layers)
                for name, metric in WORD_METRICS.items()
                if name not in analysis.metrics
            ]
    for name, metric in COMPARISON_METRICS.items():
        fields += [
            numbers(column(comparison.other.name, name), metric.unit, metric.axis, num_layers)
            for comparison in compared(conditions)
        ]
    baselines = dict.fromkeys(comparison.baseline.name for comparison in compared(conditions))
    fields += [
        numbers(column(baseline, name), metric.unit, metric.axis, num_layers)
        for baseline in baselines
        for name, metric in BASELINE_METRICS.items()
        if name not in analysis.metrics
    ]
    if analysis.is_generated and baselines:
        metric = TEXT_METRICS[STANDARD_SURPRISAL]
        fields += [
            numbers(column(condition.name, STANDARD_SURPRISAL), metric.unit, metric.axis, num_layers)
            for condition in conditions
        ]
    if answers:
        fields += [
            numbers(column(condition.name, name), unit, "layer", num_layers)
            for condition in conditions
            for name, unit in ANSWER_COLUMNS.items()
        ]
    fields += [field.with_name(kept_column(field.name)) for field in kept]
    return pa.schema(fields, metadata={"llm_entropy": "records", **metadata})


STATES = "states"
"""Stands where a condition does, in the columns of an extraction's shards."""
STATE_NORMS = "norms"


def state_column(block: int) -> str:
    """Return the name of a block's states, below `STATES`."""
    return f"block_{block}"


def states_schema(shape: ModelShape, metadata: dict[str, str]) -> pa.Schema:
    """Return the Arrow schema of an extraction's shards: one row per text, its state at the output of each block."""
    import pyarrow as pa

    def numbers(name: str, size: int) -> pa.Field:
        return pa.field(column(STATES, name), pa.list_(pa.float32(), size))

    fields = [
        pa.field(SENTENCE_ID, pa.int64(), metadata={"meaning": "2 x pair, plus 1 for the negative text"}),
        pa.field(SENTENCE, pa.string()),
        pa.field(POSITION, pa.int32(), metadata={"unit": "tokens", "meaning": "the last that was read"}),
        numbers(STATE_NORMS, shape.num_blocks),
        *(numbers(state_column(block), shape.hidden_size) for block in range(shape.num_blocks)),
    ]
    return pa.schema(fields, metadata={"llm_entropy": STATES, **metadata})
