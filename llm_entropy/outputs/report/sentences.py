"""The sentences of a report, as the page holds them: their texts in pieces, and numbers for each token and layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from llm_entropy.outputs.chunk import Chunk
from llm_entropy.outputs.points import mean_over_heads, num_points
from llm_entropy.outputs.report.numbers import LEAST_PROBABILITY, packed, packed_places
from llm_entropy.outputs.report.pieces import pieces, shortened
from llm_entropy.outputs.report.words import shown_words
from llm_entropy.outputs.tables import ModelTables, SentenceSample
from llm_entropy.outputs.views import View
from llm_entropy.schema.shards import (
    CONTINUATION,
    LENS_PROBABILITIES,
    LENS_TOKENS,
    POSITION,
    SENTENCE_ID,
    TARGET,
    TOKEN,
    TOKEN_END,
    TOKEN_START,
    TRACKED_PROBABILITIES,
    TRACKED_TOKENS,
    WORD_START,
    column,
)
from llm_entropy.settings import ALL_METRICS, COMPARISON_METRICS, Condition, Kind

SAME_AS_ENTROPY = ("perplexity", "kl_divergence")
"""Metrics that are entropy on another scale: of single tokens it alone is shown."""


class Names:
    """Texts that occur often: each is written once, and counted through."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        """Return the number of a text."""
        return self._places.setdefault(text, len(self._places))

    @property
    def all(self) -> list[str]:
        """The texts, by number."""
        return list(self._places)


def shown_sentences(
    tables: ModelTables, sample: SentenceSample, metrics: Sequence[str], kind: Kind = "causal"
) -> dict[str, Any]:
    """Return the sampled sentences as the page holds them.

    Args:
        tables: What the merge made of the model.
        sample: What the merge collected.
        metrics: Of the run.
        kind: Of the model.
    """
    chunk, names = Chunk(sample.records, kind, tables.shape), Names()
    table = sample.records
    spans = np.stack([table[TOKEN_START].to_numpy(), table[TOKEN_END].to_numpy()], axis=1).tolist()
    tokens = table[TOKEN].fill_null("").to_pylist()  # what is written is each condition's own: targets have it
    sentences = [
        {
            "number": int(number),
            "first": int(first),
            "pieces": list(pieces(text, spans[first : first + count], tokens[first : first + count])),
            "left": total - count,
        }
        for number, text, first, count, total in zip(
            table[SENTENCE_ID].to_numpy()[chunk.starts].tolist(),
            chunk.sentences.to_pylist(),
            chunk.starts.tolist(),
            chunk.counts.tolist(),
            sample.num_records,
            strict=True,
        )
    ]
    shown = [name for name in metrics if name not in SAME_AS_ENTROPY or "entropy" not in metrics]
    return {
        "sentences": sentences,
        "tokens": [names(token) for token in tokens],
        "positions": table[POSITION].to_pylist(),
        "metrics": _metrics(chunk, tables, shown),
        "conditions": {one.name: _named(chunk, one, names) for one in tables.conditions},
        "words": shown_words(chunk, sample.num_records, tables.conditions)
        if WORD_START in table.schema.names
        else None,
        "written": {one.name: own for one in tables.conditions if (own := _written(chunk, one)) is not None},
        "least_probability": LEAST_PROBABILITY,
        "names": names.all,
    }


def _written(chunk: Chunk, condition: Condition) -> list[str] | None:
    """Return what a condition has written behind each sentence; None where no text is written."""
    name = column(condition.name, CONTINUATION)
    if name not in chunk.table.schema.names:
        return None
    texts = chunk.table[name].combine_chunks().take(pa.array(chunk.starts)).to_pylist()
    return [shortened(text or "", keeps_end=False) for text in texts]


def _metrics(chunk: Chunk, tables: ModelTables, metrics: Sequence[str]) -> dict[str, Any]:
    """Return each metric, [condition, record, layer], by two bytes a number; conditions without it are left out."""
    found = {}
    for metric in (*metrics, *(COMPARISON_METRICS if tables.comparisons else ())):
        own = [one for one in tables.conditions if metric not in COMPARISON_METRICS or one.name in tables.comparisons]
        values = np.stack([_numbers(View(chunk, one), metric) for one in own])
        found[metric] = {"conditions": [one.name for one in own], **packed(values, ALL_METRICS[metric].scale)}
    return found


def _numbers(view: View, metric: str) -> Any:
    """Return a metric, [record, layer]; the mean over heads."""
    numbers, shape = view.numbers(metric), view.chunk.shape
    width = num_points(metric, shape)
    return numbers if numbers.shape[1] == width else mean_over_heads(numbers, width, shape.heads)


def _named(chunk: Chunk, condition: Condition, names: Names) -> dict[str, Any]:
    """Return the tokens that a condition names, by number, with their probabilities [record, tracked, layer]."""
    tracked = chunk.table[column(condition.name, TRACKED_TOKENS)].to_pylist()
    probabilities = np.maximum(chunk.numbers(column(condition.name, TRACKED_PROBABILITIES)), LEAST_PROBABILITY)
    return {
        "targets": [names(target or "") for target in chunk.table[column(condition.name, TARGET)].to_pylist()],
        "tracked": [[names(token or "") for token in own] for own in tracked],
        "probabilities": packed(probabilities, "logarithmic"),
        **_of_layers(chunk, condition, names),
    }


def _of_layers(chunk: Chunk, condition: Condition, names: Names) -> dict[str, Any]:
    """Return the most likely token of each layer, by number, with its probability, [record, layer]; if recorded."""
    own = column(condition.name, LENS_TOKENS)
    if own not in chunk.table.schema.names:
        return {}
    tokens = chunk.table[own].combine_chunks().flatten().to_pylist()
    probabilities = np.maximum(chunk.numbers(column(condition.name, LENS_PROBABILITIES)), LEAST_PROBABILITY)
    return {
        "lens_tokens": packed_places([names(token or "") for token in tokens]),
        "lens_probabilities": packed(probabilities, "logarithmic"),
    }
