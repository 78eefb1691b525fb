"""Metrics of logits in memory: textbook formulas, and the numbers of a run's kernel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from scipy.stats import entropy as scipy_entropy

from llm_entropy import functional, kernels
from llm_entropy.errors import ReportedError
from llm_entropy.schema.statistics import Unembedding

LOGITS = 3 * torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(0))
OTHERS = 3 * torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(1))
TARGETS = torch.arange(10).reshape(2, 5)
P, LOG_P = softmax(LOGITS.double().numpy(), -1), log_softmax(LOGITS.double().numpy(), -1)
OF_TARGET = np.take_along_axis(LOG_P, TARGETS[..., None].numpy(), -1)[..., 0]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (functional.entropy(LOGITS), scipy_entropy(P, axis=-1)),
        (functional.perplexity(LOGITS), np.exp(scipy_entropy(P, axis=-1))),
        (functional.kl_divergence(LOGITS), np.log(40) - scipy_entropy(P, axis=-1)),
        (functional.margin(LOGITS), np.diff(np.sort(LOGITS.numpy(), -1)[..., -2:])[..., 0]),
        (functional.surprisal(LOGITS, TARGETS), -OF_TARGET),
        (functional.target_rank(LOGITS, TARGETS), (OF_TARGET[..., None] < LOG_P).sum(-1)),
        (functional.varentropy(LOGITS), (P * LOG_P**2).sum(-1) - (P * LOG_P).sum(-1) ** 2),
        (functional.renyi_entropy(LOGITS), -np.log((P**2).sum(-1))),
        (functional.renyi_entropy(LOGITS, 0.5), 2 * np.log((P**0.5).sum(-1))),
        (functional.kl(LOGITS, OTHERS), scipy_entropy(P, softmax(OTHERS.double().numpy(), -1), axis=-1)),
    ],
)
def test_metrics_of_logits_are_those_of_textbooks(found: torch.Tensor, expected: np.ndarray) -> None:
    assert found.shape == (2, 5)
    np.testing.assert_allclose(found.double().numpy(), expected, rtol=1e-5, atol=2e-6)


def test_the_statistics_are_those_of_the_kernel() -> None:
    rows = kernels.lens_statistics(
        LOGITS, Unembedding(torch.eye(40)), square=True, order=2.0, top1=True, backend="reference"
    )
    found = functional.row_statistics(LOGITS)
    for name in ("log_sum", "mean", "runner_up", "square", "log_power", "top1"):
        torch.testing.assert_close(getattr(found, name), getattr(rows, name), rtol=1e-5, atol=1e-5)


def test_masked_tokens_have_probability_zero() -> None:
    masked = torch.cat([LOGITS, torch.full((2, 5, 1), -torch.inf)], dim=-1)
    for metric in (functional.entropy, functional.margin, functional.varentropy, functional.renyi_entropy):
        torch.testing.assert_close(metric(masked), metric(LOGITS))
    torch.testing.assert_close(functional.kl(masked, masked), torch.zeros(2, 5), rtol=0, atol=1e-5)
    whole = torch.cat([LOGITS, torch.zeros(2, 5, 1)], dim=-1)
    assert functional.kl(whole, masked).isinf().all()
    assert functional.kl(masked, whole).isfinite().all()


def test_half_precision_is_widened_and_float64_is_kept() -> None:
    assert functional.entropy(LOGITS.bfloat16()).dtype == torch.float32
    assert functional.entropy(LOGITS.double()).dtype == torch.float64


def test_what_are_no_logits_is_refused() -> None:
    with pytest.raises(ReportedError, match=r"logits: got torch\.int64 \[2, 5\]; expected floating-point"):
        functional.entropy(TARGETS)
    with pytest.raises(ReportedError, match=r"targets: got torch\.int64 \[5\]; expected a token id .* \[2, 5\]"):
        functional.surprisal(LOGITS, TARGETS[0])
    with pytest.raises(ReportedError, match="targets: got -1 to 8; expected token ids from 0 to 39"):
        functional.surprisal(LOGITS, TARGETS - 1)
    with pytest.raises(ReportedError, match=r"order: got 1; expected"):
        functional.renyi_entropy(LOGITS, 1)
    with pytest.raises(ReportedError, match=r"kl: got logits \[2, 5, 40\] and \[5, 40\]"):
        functional.kl(LOGITS, OTHERS[0])
