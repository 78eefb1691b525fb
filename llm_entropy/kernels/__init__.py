"""Sufficient statistics of vocabulary rows, without ever keeping the rows: interchangeable backends, chosen by name."""

from __future__ import annotations

from collections.abc import Callable
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
        top_k: int,
        square: bool,
        final_cross: bool,
        standard_cross: bool,
    ) -> RowStatistics: ...


BACKENDS: dict[str, Callable[..., RowStatistics]] = {"reference": reference.lens_statistics}
"""Every backend by name."""


def lens_statistics(
    states: Tensor,
    unembedding: Unembedding,
    *,
    top_k: int = 1,
    square: bool = False,
    final_cross: bool = False,
    standard_cross: bool = False,
    backend: str = "reference",
) -> RowStatistics:
    """Return the statistics of the logits of each row, without a tensor that has both rows and vocabulary in full.

    Equals, in float32,

        z = softcap(scale * (states @ weight.T + bias)) / temperature        # [condition, layer, row, vocab]
        m = z.amax(-1); p = z.softmax(-1); mean = (p * (z - m)).sum(-1); ...

    Args:
        states: [condition, layer, row, width], what goes into the decoder, float32; the standard condition first.
        unembedding: The decoder and what follows it.
        top_k: How many of the largest logits of the last layer are named.
        square: Whether `square` is wanted.
        final_cross: Whether `final_cross` is wanted.
        standard_cross: Whether `standard_cross` is wanted.
        backend: A key of `BACKENDS`.

    Returns:
        The statistics, each [condition, layer, row], float32; `target` and `target_rank` are left open.
    """
    run: Backend = BACKENDS[backend]
    return run(
        states,
        unembedding,
        top_k=top_k,
        square=square,
        final_cross=final_cross,
        standard_cross=standard_cross,
    )
