"""What a batch leaves: the records of each condition, in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Optional

from llm_entropy.schema.batches import ONLY_BATCH, BatchKey, WindowNotes

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor


class NamedTokens(NamedTuple):
    """The tokens that one condition names for the records of a batch."""

    target_ids: Tensor
    """[record], the target token."""
    top_ids: Tensor
    """[record, top_k], the final layer's most likely tokens; with sampling [record, 1], the sampled one."""
    top_probabilities: Tensor
    """As `top_ids`."""
    tracked_ids: Tensor
    """[record, tracked], the tokens that the final layer ranks highest."""
    tracked_probabilities: Tensor
    """[record, tracked, layer], their probability at every layer."""
    lens_ids: Tensor
    """[record, layer], each layer's own most likely token, of equal ones that with the lowest id; [record, 0] where
    nobody asks."""
    lens_probabilities: Tensor
    """As `lens_ids`: the probability of that token at that layer."""


class ConditionRecords(NamedTuple):
    """What one condition gives for the records of a batch."""

    metrics: dict[str, Tensor]
    """Per metric [record, layer] or [record, block]; [record, block, head] of one that has a number for each head."""
    tokens: Optional[NamedTokens]
    """None for a condition whose records are metrics alone."""
    written: Optional[Tensor] = None
    """[record], on the CPU: the token that the model wrote there, or `NO_TOKEN`; None: it wrote none."""

    @classmethod
    def join(cls, parts: Sequence[ConditionRecords]) -> ConditionRecords:
        """Return the records of several batches, in order."""
        import torch

        metrics = {name: torch.cat([part.metrics[name] for part in parts]) for name in parts[0].metrics}
        tokens = [part.tokens for part in parts if part.tokens is not None]
        written = [part.written for part in parts if part.written is not None]
        return cls(
            metrics,
            NamedTokens(*map(torch.cat, zip(*tokens, strict=True))) if tokens else None,
            torch.cat(written) if written else None,
        )

    def changed(self, change: Callable[[Tensor], Tensor]) -> ConditionRecords:
        """Return the records with every tensor changed."""
        tokens = None if self.tokens is None else NamedTokens(*map(change, self.tokens))
        written = None if self.written is None else change(self.written)
        return ConditionRecords({name: change(value) for name, value in self.metrics.items()}, tokens, written)


@dataclass
class Records:
    """What `predict_step` returns: the records of one batch, on the CPU."""

    sentence_ids: Tensor
    """[record]."""
    texts: dict[int, str]
    """By sentence id, the sentences of the batch: a text is kept once, however many records it has."""
    positions: Tensor
    """[record]."""
    token_ids: Tensor
    """[record], the token at the position, as the model read it; `NO_TOKEN` where each condition read another."""
    starts: Tensor
    """[record], in characters, or -1."""
    ends: Tensor
    """[record], in characters, or -1."""
    conditions: dict[str, ConditionRecords]
    """By condition, the standard one first."""
    word_starts: Optional[Tensor] = None
    """[record], as the batch has them."""
    word_ends: Optional[Tensor] = None
    """[record], as the batch has them."""
    num_tokens: int = 0
    """Real tokens of the batch."""
    num_sentences: int = 0
    """Rows of the batch."""
    key: BatchKey = ONLY_BATCH
    """Which batch of the corpus it is."""
    notes: Optional[WindowNotes] = None
    """Of its window, where it is the window's first batch."""
    kept: Optional[pa.Table] = None
    """As `Batch.kept`."""
    answers: Optional[Tensor] = None
    """As `Batch.answers`."""
    wait: Optional[Callable[[], None]] = None
    """Waits until the numbers have come from the device; to be called before they are read. None: they are there."""
