"""From examples to a batch: padded, with a record for each position that is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch

from llm_entropy.corpus.draws import sampling_uniforms
from llm_entropy.schema.batches import NO_WORD, Batch, Example


def _flat(rows: Iterable[Iterable[int]]) -> npt.NDArray[np.int64]:
    return np.fromiter(chain.from_iterable(rows), np.int64)


def collate(examples: Sequence[Example], pad_token_id: int, seed: int) -> Batch:
    """Pad examples on the right and list their records, in the order of the examples and then of their positions.

    Args:
        examples: One row of the batch each; where there is none, the batch has no row.
        pad_token_id: Any token of the vocabulary: nothing is read there, and the attention mask hides it.
        seed: Of the random numbers with which tokens are sampled.
    """
    lengths = np.array([len(example.input_ids) for example in examples], dtype=np.int64)
    counts = [len(example.positions) for example in examples]
    attention_mask = (np.arange(lengths.max(initial=1)) < lengths[:, None]).astype(np.int64)
    input_ids = np.full(attention_mask.shape, pad_token_id, dtype=np.int64)
    input_ids[attention_mask.astype(bool)] = [token for example in examples for token in example.input_ids]

    positions = _flat([example.positions for example in examples])
    sentence_ids = np.repeat(np.array([example.sentence_id for example in examples], dtype=np.int64), counts)
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        attention_mask=torch.from_numpy(attention_mask),
        rows=torch.from_numpy(np.repeat(np.arange(len(examples), dtype=np.int64), counts)),
        positions=torch.from_numpy(positions),
        targets=torch.from_numpy(_flat([example.targets for example in examples])),
        uniforms=torch.from_numpy(sampling_uniforms(seed, sentence_ids, positions)),
        sentence_ids=torch.from_numpy(sentence_ids),
        starts=torch.from_numpy(_flat([example.starts for example in examples])),
        ends=torch.from_numpy(_flat([example.ends for example in examples])),
        sentences=[example.sentence for example in examples],
        word_starts=_places([example.word_starts for example in examples], counts),
        word_ends=_places([example.word_ends for example in examples], counts),
        answers=_answers(examples, counts),
    )


def _places(rows: Sequence[Sequence[int]], counts: Sequence[int]) -> torch.Tensor | None:
    """Return where the words of all records are, `NO_WORD` in rows that say nothing of it; None where no row does."""
    if not any(rows):
        return None
    return torch.from_numpy(_flat([row or [NO_WORD] * count for row, count in zip(rows, counts, strict=True)]))


def _answers(examples: Sequence[Example], counts: Sequence[int]) -> torch.Tensor | None:
    """Return which answer each record belongs to, [record]; None: none of them does."""
    answers = np.array([example.answer for example in examples], dtype=np.int64)
    return torch.from_numpy(np.repeat(answers, counts)) if answers.any() else None
