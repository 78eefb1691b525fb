"""Reading all conditions at once against each by itself, and metrics against the textbook formulas in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from llm_entropy.measure.metrics import FROM_STATISTICS
from llm_entropy.measure.readout import Slots, Wanted, decode
from llm_entropy.schema import PREDICTED, Unembedding

LAYERS, ROWS, WIDTH, VOCAB = 4, 5, 16, 103
EVERYTHING = Wanted(3, 2, False, True, True, True, True)


def make_inputs(num_shared: int) -> tuple[Tensor, Tensor]:
    """Return the inputs of both conditions by layer, [condition, layer, row, width], and by slot."""
    both = torch.randn(2, LAYERS, ROWS, WIDTH, generator=torch.Generator().manual_seed(0))
    both[1, :num_shared] = both[0, :num_shared]
    return both, torch.cat([both[0], both[1, num_shared:]])


def make_unembedding() -> Unembedding:
    return Unembedding(torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(1)), temperature=0.7)


@pytest.mark.parametrize("num_shared", [0, 1, 3, LAYERS])
def test_metrics_are_those_of_the_textbook_whatever_is_shared(num_shared: int) -> None:
    both, inputs = make_inputs(num_shared)
    unembedding = make_unembedding()
    targets = torch.randint(VOCAB, (ROWS,), generator=torch.Generator().manual_seed(3))
    targets[2] = PREDICTED
    slots = Slots(2, LAYERS, num_shared)
    assert [len(slots.layers), slots.layers[LAYERS:]] == [len(inputs), list(range(num_shared, LAYERS))]
    statistics, tokens = decode(inputs, slots, unembedding, targets, torch.zeros(ROWS), EVERYTHING)

    z = both.double() @ unembedding.weight.double().T / 0.7
    log_p = z.log_softmax(-1)
    p = log_p.exp()
    top = z.topk(3)
    chosen = torch.where(targets == PREDICTED, top.indices[:, -1, :, 0], targets)
    assert torch.equal(tokens.targets, chosen)
    assert torch.equal(tokens.listed, top.indices[:, -1])
    assert torch.equal(tokens.tracked, top.indices[:, -1, :, :2])
    tracked = p.gather(-1, tokens.tracked.unsqueeze(1).expand(-1, LAYERS, -1, -1)).permute(0, 2, 3, 1)
    torch.testing.assert_close(tokens.tracked_probabilities.double(), tracked, rtol=1e-4, atol=1e-6)
    listed = p[:, -1].gather(-1, tokens.listed)
    torch.testing.assert_close(tokens.listed_probabilities.double(), listed, rtol=1e-4, atol=1e-6)

    target_log_p = log_p.gather(-1, chosen[:, None, :, None].expand(-1, LAYERS, -1, -1)).squeeze(-1)
    entropy = -(p * log_p).sum(-1)
    truth = {
        "entropy": entropy,
        "perplexity": entropy.exp(),
        "margin": top.values[..., 0] - top.values[..., 1],
        "kl_divergence": math.log(VOCAB) - entropy,
        "surprisal": -target_log_p,
        "kl_to_final": (p[:, -1:] * (log_p[:, -1:] - log_p)).sum(-1),
        "kl_from_standard": (p[:1] * (log_p[:1] - log_p)).sum(-1),
        "target_rank": (log_p > target_log_p.unsqueeze(-1)).sum(-1).double(),
        "varentropy": (p * (-log_p - entropy.unsqueeze(-1)) ** 2).sum(-1),
    }
    assert set(truth) == set(FROM_STATISTICS)
    for name, expected in truth.items():
        got = FROM_STATISTICS[name](statistics, VOCAB).double()
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-5, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("num_shared", [0, 2])
def test_conditions_that_agree_differ_in_nothing(num_shared: int) -> None:
    _, inputs = make_inputs(LAYERS)
    slots = Slots(2, LAYERS, num_shared)
    inputs = torch.cat([inputs, inputs[num_shared:]])
    targets, uniforms = torch.full((ROWS,), PREDICTED), torch.rand(ROWS, dtype=torch.float64)
    for use_sampling in (False, True):
        wanted = EVERYTHING._replace(use_sampling=use_sampling)
        statistics, tokens = decode(inputs, slots, make_unembedding(), targets, uniforms, wanted)
        assert not FROM_STATISTICS["kl_from_standard"](statistics, VOCAB).any()
        assert not FROM_STATISTICS["kl_to_final"](statistics, VOCAB)[:, -1].any()
        for name in ("entropy", "surprisal", "kl_to_final", "target_rank"):
            standard, control = FROM_STATISTICS[name](statistics, VOCAB)
            assert torch.equal(standard, control)
        for values in tokens:
            assert torch.equal(values[0], values[1])


def test_metrics_of_a_masked_vocabulary_are_those_of_what_is_left() -> None:
    """As of a checkpoint whose vocabulary is padded, and whose bias is minus infinity there."""
    _, inputs = make_inputs(0)
    weight, num_left = make_unembedding().weight, VOCAB - 40
    bias = torch.zeros(VOCAB)
    bias[num_left:] = -torch.inf
    targets, uniforms = torch.full((ROWS,), PREDICTED), torch.full((ROWS,), 1.0 - 2.0**-53, dtype=torch.float64)
    targets[0], targets[1] = 7, VOCAB - 1
    slots, wanted = Slots(2, LAYERS, 0), EVERYTHING._replace(use_sampling=True)
    seen, tokens = decode(inputs, slots, Unembedding(weight, bias), targets, uniforms, wanted)
    few, few_tokens = decode(inputs, slots, Unembedding(weight[:num_left]), targets.clamp(max=7), uniforms, wanted)
    assert torch.equal(tokens.targets[:, 2:], few_tokens.targets[:, 2:])
    assert torch.equal(tokens.tracked, few_tokens.tracked)
    for name, metric in FROM_STATISTICS.items():
        got, expected = metric(seen, num_left), metric(few, num_left)
        if name in ("surprisal", "target_rank"):
            # a token that cannot be: infinitely surprising, behind all that can
            assert (got[..., 1] == (torch.inf if name == "surprisal" else num_left)).all()
            got, expected = (torch.cat([values[..., :1], values[..., 2:]], -1) for values in (got, expected))
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
