"""Metrics of logits that are in memory: pure functions, in nats, of tensors [..., vocab].

They are the arithmetic of a run (`measuring.metrics`) on statistics that plain torch makes, in float32 or wider. A
token whose logit is minus infinity has probability 0.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from llm_entropy.errors import ReportedError
from llm_entropy.kernels.reference import LOWEST
from llm_entropy.measuring import metrics
from llm_entropy.schema.statistics import LayerStatistics

__all__ = [
    "entropy",
    "kl",
    "kl_divergence",
    "margin",
    "perplexity",
    "renyi_entropy",
    "row_statistics",
    "surprisal",
    "target_rank",
    "varentropy",
]


def entropy(logits: Tensor) -> Tensor:
    """Return H(p) = -sum p ln p of p = softmax(logits), in [0, ln V].

    Args:
        logits: [..., vocab].

    Returns:
        [...], in nats.
    """
    return metrics.entropy(row_statistics(logits), logits.shape[-1])


def perplexity(logits: Tensor) -> Tensor:
    """Return exp(H(p)), in [1, V].

    Args:
        logits: [..., vocab].

    Returns:
        [...], a pure number.
    """
    return metrics.perplexity(row_statistics(logits), logits.shape[-1])


def margin(logits: Tensor) -> Tensor:
    """Return the largest logit minus the second largest, at least 0.

    Args:
        logits: [..., vocab].

    Returns:
        [...], in logits.
    """
    return metrics.margin(row_statistics(logits), logits.shape[-1])


def kl_divergence(logits: Tensor) -> Tensor:
    """Return KL(p, uniform) = ln V - H(p), in [0, ln V].

    Args:
        logits: [..., vocab].

    Returns:
        [...], in nats.
    """
    return metrics.kl_divergence(row_statistics(logits), logits.shape[-1])


def varentropy(logits: Tensor) -> Tensor:
    """Return the variance of -ln p under p.

    Args:
        logits: [..., vocab].

    Returns:
        [...], in nats squared.
    """
    return metrics.varentropy(row_statistics(logits), logits.shape[-1])


def renyi_entropy(logits: Tensor, order: float = 2.0) -> Tensor:
    """Return ln(sum p^a) / (1 - a) (Rényi 1961), in [0, ln V].

    Args:
        logits: [..., vocab].
        order: a, above 0 and not 1.

    Returns:
        [...], in nats.

    Raises:
        ReportedError: There is no such order.
    """
    if not order > 0 or order == 1:
        raise ReportedError(f"order: got {order}; expected a number above 0 that is not 1, where it is the entropy")
    return metrics.renyi_entropy(row_statistics(logits, order=order), logits.shape[-1])


def surprisal(logits: Tensor, targets: Tensor) -> Tensor:
    """Return -ln p(y), at least 0.

    Args:
        logits: [..., vocab].
        targets: [...], the tokens y.

    Returns:
        [...], in nats.
    """
    return metrics.surprisal(row_statistics(logits, targets), logits.shape[-1])


def target_rank(logits: Tensor, targets: Tensor) -> Tensor:
    """Return how many tokens are more likely than y, 0 .. V - 1.

    Args:
        logits: [..., vocab].
        targets: [...], the tokens y.

    Returns:
        [...], in tokens.
    """
    return metrics.target_rank(row_statistics(logits, targets), logits.shape[-1])


def kl(logits: Tensor, others: Tensor) -> Tensor:
    """Return KL(p, q) = sum p (ln p - ln q) of p = softmax(logits) and q = softmax(others), at least 0.

    `kl_to_final` is kl(final layer, layer), `kl_from_standard` kl(standard, condition).

    Args:
        logits: [..., vocab].
        others: As `logits`.

    Returns:
        [...], in nats; infinite where q is 0 and p is not.
    """
    if logits.shape != others.shape:
        raise ReportedError(f"kl: got logits {list(logits.shape)} and {list(others.shape)}; expected the same shape")
    p, q = row_statistics(logits), row_statistics(others)
    _, shifted_p = _shifted(logits)
    _, shifted_q = _shifted(others)
    cross = (shifted_p.softmax(dim=-1) * shifted_q).sum(dim=-1)
    is_impossible = ((others == -torch.inf) & (logits != -torch.inf)).any(dim=-1)
    value = (p.mean - p.log_sum) - (cross - q.log_sum)
    return torch.where(is_impossible, torch.inf, value.clamp(min=0.0))


def row_statistics(logits: Tensor, targets: Optional[Tensor] = None, *, order: float = 2.0) -> LayerStatistics:
    """Return the sufficient statistics of rows of logits, from which each metric is two lines of arithmetic.

    Args:
        logits: [..., vocab], at least two tokens.
        targets: [...], token ids; None: what needs them is None.
        order: a of `log_power`.

    Returns:
        Each [...], float32 or wider; `schema.LayerStatistics` says what they are. Those of several rows together
        (`final_cross`, `standard_cross`) are None.

    Raises:
        ReportedError: Logits or targets are something else.
    """
    if not logits.is_floating_point() or logits.ndim == 0 or logits.shape[-1] < 2:
        raise ReportedError(
            f"logits: got {logits.dtype} {list(logits.shape)}; expected floating-point numbers [..., vocab]"
        )
    maximum, shifted = _shifted(logits)
    exp = shifted.exp()
    weighted = exp * shifted  # first, so that the square of a masked token is no infinity times 0
    total = exp.sum(dim=-1)
    target, rank = None, None
    if targets is not None:
        ids = _checked_targets(logits, targets).unsqueeze(-1)
        target = shifted.gather(-1, ids).squeeze(-1)
        rank = (shifted > target.unsqueeze(-1)).sum(dim=-1)
    second = logits.topk(2, dim=-1).values[..., 1]
    return LayerStatistics(
        log_sum=total.log(),
        mean=weighted.sum(dim=-1) / total,
        runner_up=second.to(shifted) - maximum.squeeze(-1),
        square=(weighted * shifted).sum(dim=-1) / total,
        log_power=(order * shifted).exp().sum(dim=-1).log(),
        top1=logits.argmax(dim=-1),
        target=target,
        target_rank=rank,
        order=order,
    )


def _shifted(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maximum [..., 1] and the logits minus it, in float32 or wider, minus infinity as a large number."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    maximum = wide.amax(dim=-1, keepdim=True)
    return maximum, (wide - maximum).clamp(min=LOWEST)


def _checked_targets(logits: Tensor, targets: Tensor) -> Tensor:
    """Return token ids as int64 on the logits' device."""
    if targets.shape != logits.shape[:-1] or targets.is_floating_point():
        raise ReportedError(
            f"targets: got {targets.dtype} {list(targets.shape)}; expected a token id for each row of logits, "
            f"{list(logits.shape[:-1])}"
        )
    ids = targets.to(logits.device, torch.int64)
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= logits.shape[-1]):
        raise ReportedError(
            f"targets: got {int(ids.min())} to {int(ids.max())}; expected token ids from 0 to {logits.shape[-1] - 1}"
        )
    return ids
