"""What each sentence's right and wrong answer come to at every layer."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from llm_entropy.outputs.chunk import Chunk
from llm_entropy.outputs.comparison import Floats
from llm_entropy.schema.batches import FOIL_ANSWER, TARGET_ANSWER
from llm_entropy.schema.shards import ANSWER_PROBABILITY, ANSWER_RANK, ANSWER_SURPRISAL, POSITION, SENTENCE_ID, column


class AnswerNumbers(NamedTuple):
    """The answers to the sentences of a chunk under one condition: [sentence, layer] each, NaN where there is none."""

    target_surprisal: Floats
    """-ln p of all tokens of the right answer, in nats."""
    foil_surprisal: Floats
    """The same of the wrong one."""
    target_rank: Floats
    """Number of tokens more likely than the right answer's first."""
    target_probability: Floats
    """Of the right answer's first token."""

    @property
    def preference(self) -> Floats:
        """Surprisal of the wrong answer minus that of the right one, in nats: above 0, the right one is preferred."""
        return self.foil_surprisal - self.target_surprisal

    @property
    def accuracy(self) -> Floats:
        """1 where the right answer is preferred, else 0; NaN where one of the two is missing."""
        return np.where(np.isnan(self.preference), np.nan, (self.preference > 0).astype(np.float64))


def answer_numbers(chunk: Chunk, condition: str) -> AnswerNumbers:
    """Return what the rows of answers say of a chunk's sentences under a condition."""
    rows = chunk.answer_rows
    assert rows is not None, "without answers nobody asks for them"
    ids, which = rows[SENTENCE_ID].to_numpy(), -rows[POSITION].to_numpy()

    def by_sentence(name: str, answer: int) -> Floats:
        values = rows[column(condition, name)].combine_chunks()
        numbers = values.flatten().to_numpy().reshape(len(rows), values.type.list_size)
        result = np.full((len(chunk.ids), numbers.shape[1]), np.nan)
        own = which == answer
        result[np.searchsorted(chunk.ids, ids[own])] = numbers[own]
        return result

    return AnswerNumbers(
        by_sentence(ANSWER_SURPRISAL, TARGET_ANSWER),
        by_sentence(ANSWER_SURPRISAL, FOIL_ANSWER),
        by_sentence(ANSWER_RANK, TARGET_ANSWER),
        by_sentence(ANSWER_PROBABILITY, TARGET_ANSWER),
    )


def preferred_from(preference: Floats) -> Floats:
    """Return the layer from which on the right answer is preferred for good.

    Args:
        preference: [sentence, layer], NaN where there is none.

    Returns:
        [sentence], the lowest layer from which on every preference is above 0; NaN where the last one is not.
    """
    preferred = preference > 0
    num_after = np.cumprod(preferred[:, ::-1], axis=1).sum(axis=1)
    return np.where(num_after > 0, preference.shape[1] - num_after, np.nan)
