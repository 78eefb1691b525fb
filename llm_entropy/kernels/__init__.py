"""Sufficient statistics of vocabulary rows, without ever keeping the rows: interchangeable backends, chosen by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from llm_entropy.kernels import reference
from llm_entropy.kernels.reference import count_larger, logits_of, sample_tokens, token_logits
from llm_entropy.schema import RowStatistics, Unembedding

__all__ = ["BACKENDS", "count_larger", "lens_statistics", "logits_of", "sample_tokens", "token_logits"]


class Backend(Protocol):
    """A way to compute the statistics; see `lens_statistics` for the meaning of the arguments."""

    def __call__(
        self,
        states: Tensor,
        unembedding: Unembedding,
        *,
        top_slots: Sequence[int],
        top_k: int,
        square: bool,
        pairs: Sequence[tuple[int, int]],
    ) -> RowStatistics: ...


BACKENDS: dict[str, Backend] = {"reference": reference.lens_statistics}
"""Every backend by name."""


def lens_statistics(
    states: Tensor,
    unembedding: Unembedding,
    *,
    top_slots: Sequence[int] = (),
    top_k: int = 1,
    square: bool = False,
    pairs: Sequence[tuple[int, int]] = (),
    backend: str = "reference",
) -> RowStatistics:
    """Return the statistics of the logits of each row, without a tensor that has both rows and vocabulary in full.

    Equals, in float32,

        z = softcap(scale * (states @ weight.T + bias)) / temperature        # [slot, row, vocab]
        m = z.amax(-1); p = z.softmax(-1); mean = (p * (z - m)).sum(-1); ...

    Args:
        states: [slot, row, width], what goes into the decoder; a slot is a layer of a condition.
        unembedding: The decoder and what follows it.
        top_slots: The slots of which the largest logits are named.
        top_k: How many of them.
        square: Whether `square` is wanted.
        pairs: Slots a and b of which `cross` is wanted.
        backend: A key of `BACKENDS`.

    Returns:
        The statistics, each [slot, row], float32.
    """
    run = BACKENDS[backend]
    return run(states, unembedding, top_slots=top_slots, top_k=top_k, square=square, pairs=pairs)
