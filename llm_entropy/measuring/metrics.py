"""Metrics as arithmetic on statistics: of a vocabulary row, of the attention, or of the residual stream.

A metric is one function, and a row of `METRICS`. Shapes: statistics of vocabulary rows and what is made of them are
[condition, layer, row]. Units: nats, unless a line says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Optional

import torch
from torch import Tensor

from llm_entropy.schema.statistics import AttentionStatistics, LayerStatistics


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


def entropy_change(statistics: LayerStatistics, vocab_size: int) -> Tensor:
    """Return H(p_layer) - H(p_(layer - 1)), below 0 where a layer prunes; NaN at layer 0 (Entropy-Lens, 2502.16570)."""
    change = entropy(statistics, vocab_size).diff(dim=1)
    return torch.cat([torch.full_like(change[:, :1], torch.nan), change], dim=1)


def top1_agreement(statistics: LayerStatistics, vocab_size: int) -> Tensor:
    """Return 1 where the most likely token is the final layer's of the same condition, else 0; without a unit."""
    top1, log_sum = _given(statistics.top1), statistics.log_sum
    return _flag(top1 == top1[:, -1:], log_sum, log_sum[:, -1:])


def top1_changed(statistics: LayerStatistics, vocab_size: int) -> Tensor:
    """Return 1 where the most likely token is not the first condition's at the same layer, else 0; without a unit."""
    top1, log_sum = _given(statistics.top1), statistics.log_sum
    return _flag(top1 != top1[:1], log_sum, log_sum[:1])


def renyi_entropy(statistics: LayerStatistics, vocab_size: int) -> Tensor:
    """Return ln(sum p^a) / (1 - a) of the order a (Rényi 1961), in [0, ln V]."""
    a = statistics.order
    return ((_given(statistics.log_power) - a * statistics.log_sum) / (1.0 - a)).clamp(min=0.0)


def log_boundary(statistics: LayerStatistics, vocab_size: int) -> Tensor:
    """Return ln of the probability that the next token begins a word or ends the text, at most 0.

    NaN where the vocabulary does not tell (Pimentel and Meister 2024, "How to Compute the Probability of a Word").
    """
    if statistics.log_mass is None:
        return torch.full_like(statistics.log_sum, torch.nan)
    return (statistics.log_mass - statistics.log_sum).clamp(max=0.0)


def _flag(is_so: Tensor, log_sum: Tensor, other: Tensor) -> Tensor:
    """Return 1 where something is so of two rows, else 0; NaN where the logits of one of them are no numbers."""
    return torch.where((log_sum + other).isnan(), torch.nan, is_so.float())


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
        entropy_change,
        top1_agreement,
        top1_changed,
        renyi_entropy,
        log_boundary,
    )
}
"""Every metric that is made from the statistics of a vocabulary row, by its name in `settings.metrics`."""


def attention_entropy(statistics: AttentionStatistics) -> Tensor:
    """Return -sum_j a_j ln a_j of each attention row: what was read, [block, record, head]."""
    return statistics.entropy


def attended_entropy(statistics: AttentionStatistics) -> Tensor:
    """Return the entropy of each row / ln(number of tokens that it may see), [block, record, head], in [0, 1].

    NaN where a row sees one token alone, as the first of a causal model does.
    """
    attended = _given(statistics.attended)
    return torch.where(attended > 1, statistics.entropy / attended.log(), torch.nan)


def sink_mass(statistics: AttentionStatistics) -> Tensor:
    """Return 1 - sum_j a_j of each attention row, [block, record, head], in [0, 1]: what goes to no token."""
    return _given(statistics.sinks)


FROM_ATTENTION: dict[str, Callable[[AttentionStatistics], Tensor]] = {
    function.__name__: function for function in (attention_entropy, attended_entropy, sink_mass)
}
"""Every metric that is made from the attention, by its name."""


def over_heads(values: Tensor, heads: Optional[Sequence[int]]) -> Tensor:
    """Return the mean over the heads, [..., block], of values [..., block, head]; NaN of a block that has none.

    Args:
        values: Of any metric of the attention.
        heads: [block], how many there are; None: all of them.
    """
    if heads is None or set(heads) <= {0, values.shape[-1]}:
        return values.mean(dim=-1)
    means = [values[..., block, :num].mean(dim=-1) for block, num in enumerate(heads)]
    return torch.stack(means, dim=-1)


def residual_norm(states: Tensor) -> Tensor:
    """Return the Euclidean norm of the residual stream [..., hidden], [...], float32, in the stream's own unit."""
    norm: Tensor = torch.linalg.vector_norm(states, dim=-1, dtype=torch.float32)
    return norm


FROM_STREAM: dict[str, Callable[[Tensor], Tensor]] = {"residual_norm": residual_norm}
"""Every metric that is made from the residual stream [slot, record, hidden], by its name."""
