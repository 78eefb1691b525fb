"""The words of a report's sentences, as the page holds them: what the table of words has, of the sampled sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llm_entropy.outputs.chunk import Chunk
from llm_entropy.outputs.report.numbers import packed
from llm_entropy.outputs.report.pieces import pieces
from llm_entropy.outputs.views import View
from llm_entropy.outputs.words import word_table
from llm_entropy.settings import Condition

WORD_METRICS = ("surprisal", "corrected_surprisal", "entropy_before")
"""Columns of the table of words with a number for each layer; none is negative, but for rounding."""
LEAST = 1e-6
"""Nats; what is less is shown as this."""


def shown_words(chunk: Chunk, num_records: Sequence[int], conditions: Sequence[Condition]) -> dict[str, Any]:
    """Return the words of some sentences, with their numbers under each condition.

    Args:
        chunk: The sentences' records, the first of each.
        num_records: [sentence], how many it has in all; of one that has more the last word may be cut: it is left out.
        conditions: Whose numbers are shown.

    Returns:
        `sentences`: of each the number of its first word, and its text in pieces; `num_tokens`: of each word;
        `metrics`: [condition, word, layer], packed; one that is not defined for any word is left out.
    """
    tables = [word_table(View(chunk, one)) for one in conditions]
    one = tables[0]
    kept = np.ones(len(one.word), bool)
    sentences, first = [], 0
    for row, (number, text) in enumerate(zip(chunk.ids.tolist(), chunk.sentences.to_pylist(), strict=True)):
        places = np.flatnonzero(one.sentence_id == number)
        if num_records[row] > chunk.counts[row] and len(places):
            kept[places[-1]], places = False, places[:-1]
        spans = np.stack([one.start[places], one.end[places]], axis=1).tolist()
        words = [one.word[place] for place in places]
        sentences.append({"first": first, "pieces": list(pieces(text, spans, words))})
        first += len(places)
    metrics = {name: np.stack([getattr(table, name)[kept] for table in tables]) for name in WORD_METRICS}
    return {
        "sentences": sentences,
        "num_tokens": one.num_tokens[kept],
        "metrics": {
            name: {"conditions": [one.name for one in conditions], **packed(np.maximum(values, LEAST), "logarithmic")}
            for name, values in metrics.items()
            if np.isfinite(values).any()
        },
    }
