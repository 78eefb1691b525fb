"""Metrics as arithmetic on the statistics of a vocabulary row. A metric is one function, and a row of `METRICS`.

Shapes: the statistics and each result are [condition, layer, row]. Units: nats, unless a line says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Optional

from torch import Tensor

from llm_entropy.schema import LayerStatistics


def entropy(statistics: LayerStatistics, vocab_size: int) -> Tensor:
    """Return H(p) = -sum p ln p = ln sum e^(z - m) - sum p (z - m), in [0, ln V]."""
    return (statistics.log_sum - statistics.mean).clamp(min=0.0)


def perplexity(statistics: LayerStatistics, vocab_size: int) -> Tensor:
    """Return exp(H(p)), in [1, V], without a unit: the number of equally likely tokens of the same entropy."""
    return entropy(statistics, vocab_size).exp()


def margin(statistics: LayerStatistics, vocab_size: int) -> Tensor:
    """Return the largest logit minus the second largest, in logits, at least 0."""
    return -statistics.runner_up


def kl_divergence(statistics: LayerStatistics, vocab_size: int) -> Tensor:
    """Return KL(p, uniform) = ln V - H(p), in [0, ln V]."""
    return (math.log(vocab_size) - entropy(statistics, vocab_size)).clamp(min=0.0)


def surprisal(statistics: LayerStatistics, vocab_size: int) -> Tensor:
    """Return -ln p(y) of the target token y, at least 0."""
    return (statistics.log_sum - _given(statistics.target)).clamp(min=0.0)


def kl_to_final(statistics: LayerStatistics, vocab_size: int) -> Tensor:
    """Return KL(p_final, p_layer) = sum p_final (ln p_final - ln p_layer): what is left to decide, 0 at the end."""
    return _kl(statistics.mean[:, -1:], statistics.log_sum[:, -1:], statistics, _given(statistics.final_cross))


def kl_from_standard(statistics: LayerStatistics, vocab_size: int) -> Tensor:
    """Return KL(p_standard, p_condition) = sum p_standard (ln p_standard - ln p_condition), layer by layer."""
    return _kl(statistics.mean[:1], statistics.log_sum[:1], statistics, _given(statistics.standard_cross))


def target_rank(statistics: LayerStatistics, vocab_size: int) -> Tensor:
    """Return the number of tokens that are more likely than the target, in tokens, 0 .. V - 1."""
    return _given(statistics.target_rank).float()


def varentropy(statistics: LayerStatistics, vocab_size: int) -> Tensor:
    """Return the variance of -ln p under p, in nats squared: sum p (z - m)^2 - (sum p (z - m))^2."""
    return (_given(statistics.square) - statistics.mean.square()).clamp(min=0.0)


def _kl(mean: Tensor, log_sum: Tensor, statistics: LayerStatistics, cross: Tensor) -> Tensor:
    """Return KL(q, p) from the moments of q and the logits of p expected under q."""
    return ((mean - log_sum) - (cross - statistics.log_sum)).clamp(min=0.0)


def _given(field: Optional[Tensor]) -> Tensor:
    assert field is not None, "the kernel was not asked for this statistic"
    return field


FROM_STATISTICS: dict[str, Callable[[LayerStatistics, int], Tensor]] = {
    function.__name__: function
    for function in (
        entropy,
        perplexity,
        margin,
        kl_divergence,
        surprisal,
        kl_to_final,
        kl_from_standard,
        target_rank,
        varentropy,
    )
}
"""Every metric that is made from the statistics of a vocabulary row, by its name in `settings.metrics`."""


def attention_entropy(entropies: Tensor) -> Tensor:
    """Return -sum_j a_j ln a_j of each attention row: what was read, [record, block, head]."""
    return entropies


FROM_ATTENTION: dict[str, Callable[[Tensor], Tensor]] = {"attention_entropy": attention_entropy}
"""Every metric that is made from the entropies of the attention, [record, block, head], by its name."""
