"""Reading all conditions at once against each by itself, and metrics against the textbook formulas in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from llm_entropy.measuring.metrics import FROM_STATISTICS
from llm_entropy.measuring.readout import Slots, Wanted, decode
from llm_entropy.schema.batches import PREDICTED
from llm_entropy.schema.records import NamedTokens
from llm_entropy.schema.statistics import Unembedding
from llm_entropy.settings import COMPARISON_METRICS
from llm_entropy.settings.sections import LEAST_FROM_SHANNON

LAYERS, ROWS, WIDTH, VOCAB = 4, 5, 16, 103
NEEDS = ("moments", "square", "power", "top1", "final_cross", "standard_cross", "target", "target_rank", "mass")
MEMBERS = torch.arange(VOCAB) % 3 == 1
EVERYTHING = Wanted(3, 2, False, NEEDS, order=0.5, members=MEMBERS, lens_tokens=True)


def make_inputs(*shared: int) -> tuple[Tensor, Tensor]:
    """Return the inputs of all conditions by layer, [condition, layer, row, width], and by slot."""
    every = torch.randn(1 + len(shared), LAYERS, ROWS, WIDTH, generator=torch.Generator().manual_seed(0))
    for other, count in zip(every[1:], shared, strict=True):
        other[:count] = every[0, :count]
    return every, torch.cat([every[0], *(other[count:] for other, count in zip(every[1:], shared, strict=True))])


def stacked(tokens: list[NamedTokens | None]) -> NamedTokens:
    """Return what all conditions name, [condition, record, ...]."""
    assert all(own is not None for own in tokens)
    return NamedTokens(*map(torch.stack, zip(*tokens, strict=True)))


def make_unembedding() -> Unembedding:
    return Unembedding(torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(1)), temperature=0.7)


@pytest.mark.parametrize("shared", [(0,), (1,), (3,), (LAYERS,), (), (2, 0, LAYERS, 1)], ids=str)
def test_metrics_are_those_of_the_textbook_whatever_is_shared(shared: tuple[int, ...]) -> None:
    both, inputs = make_inputs(*shared)
    unembedding = make_unembedding()
    targets = torch.randint(VOCAB, (ROWS,), generator=torch.Generator().manual_seed(3))
    targets[2] = PREDICTED
    slots = Slots(LAYERS, (0, *shared))
    assert len(slots.layers) == len(inputs)
    assert slots.layers[LAYERS:] == [layer for count in shared for layer in range(count, LAYERS)]
    named = [True] * len(both)
    statistics, own = decode(inputs, slots, unembedding, targets, torch.zeros(ROWS), EVERYTHING, named)
    tokens = stacked(own)

    z = both.double() @ unembedding.weight.double().T / 0.7
    log_p = z.log_softmax(-1)
    p = log_p.exp()
    top = z.topk(3)
    chosen = torch.where(targets == PREDICTED, top.indices[:, -1, :, 0], targets)
    assert torch.equal(tokens.target_ids, chosen)
    assert torch.equal(tokens.top_ids, top.indices[:, -1])
    assert torch.equal(tokens.tracked_ids, top.indices[:, -1, :, :2])
    tracked = p.gather(-1, tokens.tracked_ids.unsqueeze(1).expand(-1, LAYERS, -1, -1)).permute(0, 2, 3, 1)
    torch.testing.assert_close(tokens.tracked_probabilities.double(), tracked, rtol=1e-4, atol=1e-6)
    listed = p[:, -1].gather(-1, tokens.top_ids)
    torch.testing.assert_close(tokens.top_probabilities.double(), listed, rtol=1e-4, atol=1e-6)
    assert torch.equal(tokens.lens_ids, z.argmax(-1).transpose(1, 2))
    torch.testing.assert_close(tokens.lens_probabilities.double(), p.amax(-1).transpose(1, 2), rtol=1e-4, atol=1e-6)

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
        "entropy_change": entropy.diff(dim=1, prepend=torch.full_like(entropy[:, :1], torch.nan)),
        "top1_agreement": (z.argmax(-1) == z[:, -1:].argmax(-1)).double(),
        "top1_changed": (z.argmax(-1) != z[:1].argmax(-1)).double(),
        "renyi_entropy": 2 * p.sqrt().sum(-1).log(),
        "log_boundary": p[..., MEMBERS].sum(-1).log(),
    }
    assert set(truth) == set(FROM_STATISTICS)
    for name, expected in truth.items():
        got = FROM_STATISTICS[name](statistics, VOCAB).double()
        torch.testing.assert_close(
            got, expected, rtol=1e-4, atol=2e-5, equal_nan=True, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("num_shared", [0, 2])
def test_conditions_that_agree_differ_in_nothing(num_shared: int) -> None:
    _, inputs = make_inputs(LAYERS)
    slots = Slots(LAYERS, (0, num_shared))
    inputs = torch.cat([inputs, inputs[num_shared:]])
    targets, uniforms = torch.full((ROWS,), PREDICTED), torch.rand(ROWS, dtype=torch.float64)
    for use_sampling in (False, True):
        wanted = EVERYTHING._replace(use_sampling=use_sampling)
        statistics, tokens = decode(inputs, slots, make_unembedding(), targets, uniforms, wanted, [True] * 2)
        for name in COMPARISON_METRICS:
            assert not FROM_STATISTICS[name](statistics, VOCAB).any()
        assert not FROM_STATISTICS["kl_to_final"](statistics, VOCAB)[:, -1].any()
        for name in ("entropy", "surprisal", "kl_to_final", "target_rank"):
            standard, control = FROM_STATISTICS[name](statistics, VOCAB)
            assert torch.equal(standard, control)
        for values in stacked(tokens):
            assert torch.equal(values[0], values[1])


def test_metrics_of_a_masked_vocabulary_are_those_of_what_is_left() -> None:
    """As of a checkpoint whose vocabulary is padded, and whose bias is minus infinity there."""
    _, inputs = make_inputs(0)
    weight, num_left = make_unembedding().weight, VOCAB - 40
    bias = torch.zeros(VOCAB)
    bias[num_left:] = -torch.inf
    targets, uniforms = torch.full((ROWS,), PREDICTED), torch.full((ROWS,), 1.0 - 2.0**-53, dtype=torch.float64)
    targets[0], targets[1] = 7, VOCAB - 1
    slots, wanted = Slots(LAYERS, (0, 0)), EVERYTHING._replace(use_sampling=True)
    named, left = [True] * 2, Unembedding(weight[:num_left])
    seen, own = decode(inputs, slots, Unembedding(weight, bias), targets, uniforms, wanted, named)
    few, few_own = decode(inputs, slots, left, targets.clamp(max=7), uniforms, wanted, named)
    tokens, few_tokens = stacked(own), stacked(few_own)
    assert torch.equal(tokens.target_ids[:, 2:], few_tokens.target_ids[:, 2:])
    assert torch.equal(tokens.tracked_ids, few_tokens.tracked_ids)
    for name, metric in FROM_STATISTICS.items():
        got, expected = metric(seen, num_left), metric(few, num_left)
        if name in ("surprisal", "target_rank"):
            # a token that cannot be: infinitely surprising, behind all that can
            assert (got[..., 1] == (torch.inf if name == "surprisal" else num_left)).all()
            got, expected = (torch.cat([values[..., :1], values[..., 2:]], -1) for values in (got, expected))
        torch.testing.assert_close(
            got, expected, rtol=1e-5, atol=1e-5, equal_nan=True, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_a_condition_whose_tokens_are_not_asked_for_has_the_same_statistics() -> None:
    _, inputs = make_inputs(1, 2)
    slots, targets = Slots(LAYERS, (0, 1, 2)), torch.full((ROWS,), PREDICTED)
    uniforms = torch.zeros(ROWS, dtype=torch.float64)
    every, _ = decode(inputs, slots, make_unembedding(), targets, uniforms, EVERYTHING, [True, True, True])
    some, tokens = decode(inputs, slots, make_unembedding(), targets, uniforms, EVERYTHING, [True, False, True])
    assert [own is None for own in tokens] == [False, True, False]
    assert some.order == every.order
    for values, expected in zip(some[:-1], every[:-1], strict=True):
        assert torch.equal(values, expected)


@pytest.mark.parametrize("order", [0.02, 1 - LEAST_FROM_SHANNON, 1 + LEAST_FROM_SHANNON, 2.0, 20.0])
def test_every_order_that_is_allowed_keeps_within_the_budget(order: float) -> None:
    _, inputs = make_inputs(0)
    inputs = inputs * torch.linspace(0.1, 3.0, len(inputs))[:, None, None]
    slots, targets = Slots(LAYERS, (0, 0)), torch.zeros(ROWS, dtype=torch.int64)
    wanted = EVERYTHING._replace(order=order)
    statistics, _ = decode(inputs, slots, make_unembedding(), targets, torch.zeros(ROWS), wanted, [True] * 2)
    z = slots.spread(inputs).double() @ make_unembedding().weight.double().T / 0.7
    expected = (order * z.log_softmax(-1)).logsumexp(-1) / (1 - order)
    found = FROM_STATISTICS["renyi_entropy"](statistics, VOCAB).double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


def test_of_logits_that_are_no_numbers_no_token_is_the_most_likely() -> None:
    _, inputs = make_inputs(0)
    inputs[1, 2] = torch.nan  # layer 1 of the first condition, record 2
    inputs[-1, 3] = torch.nan  # the last layer of the second one, record 3
    slots, targets = Slots(LAYERS, (0, 0)), torch.zeros(ROWS, dtype=torch.int64)
    statistics, _ = decode(inputs, slots, make_unembedding(), targets, torch.zeros(ROWS), EVERYTHING, [True] * 2)
    agreement, changed = (FROM_STATISTICS[name](statistics, VOCAB) for name in ("top1_agreement", "top1_changed"))
    assert agreement.isnan().nonzero().tolist() == [[0, 1, 2], *([1, layer, 3] for layer in range(LAYERS))]
    assert changed.isnan().nonzero().tolist() == [[0, 1, 2], [1, 1, 2], [1, LAYERS - 1, 3]]
