"""Steering real tiny models, against references that use no hooks."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from plans import added, plan_of
from tiny_models import CAUSAL_VOCAB, HIDDEN, make_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from llm_entropy.settings import ControlSettings
from llm_entropy.steering.hooks import steer, steer_every_token
from llm_entropy.steering.plan import SteeringPlan, interpolate
from llm_entropy.steering.token_weights import token_weights_for

BLOCKS_OF = {
    "gpt2": lambda model: list(model.transformer.h),
    "llama": lambda model: list(model.model.layers),
    "bloom": lambda model: list(model.transformer.h),
    "bert": lambda model: list(model.bert.encoder.layer),
    "modernbert": lambda model: list(model.model.layers),
    "albert": lambda model: [model.albert.encoder.albert_layer_groups[0].albert_layers[0]] * 4,
    "albert_two_groups": lambda model: [
        model.albert.encoder.albert_layer_groups[group].albert_layers[0] for group in (0, 0, 1, 1)
    ],
}
FAMILIES = tuple(BLOCKS_OF)
tiny = lru_cache(maxsize=None)(make_model)
"""The families' models, each made once: a test that left one changed would spoil the others."""
LENGTHS = (9, 4, 1, 6)
SEQ = max(LENGTHS)


def sentences(side: str = "right") -> tuple[Tensor, Tensor]:
    """Return input_ids and attention_mask [4, 9] of random sentences, padded on one side."""
    generator = torch.Generator().manual_seed(7)
    ids, mask = torch.ones(len(LENGTHS), SEQ, dtype=torch.long), torch.zeros(len(LENGTHS), SEQ, dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        real = slice(0, length) if side == "right" else slice(SEQ - length, SEQ)
        ids[row, real] = torch.randint(5, 140, (length,), generator=generator)
        mask[row, real] = 1
    return ids, mask


def random_plan(num_blocks: int, *, embeddings: bool = True, tokens: bool = True, seed: int = 1) -> SteeringPlan:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(num_blocks + 1, HIDDEN, generator=generator)
    if not embeddings:
        vectors[0] = 0
    return added(vectors, torch.tensor([0.5, -1.0, 2.0]) if tokens else None)


def at_layer(layer: int, num_blocks: int) -> SteeringPlan:
    """A plan that steers one layer alone."""
    vectors = torch.zeros(num_blocks + 1, HIDDEN)
    vectors[layer] = torch.linspace(-1, 1, HIDDEN)
    return added(vectors, torch.tensor([1.0, 3.0]))


def logits_of(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).logits


@contextmanager
def inputs_read(blocks: list[nn.Module]) -> Iterator[list[Tensor]]:
    """Read what every application of a block gets, in the order in which they run."""
    read: list[Tensor] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        read.append(args[0].clone())

    with ExitStack() as handles:
        for block in set(blocks):
            handles.enter_context(block.register_forward_pre_hook(before, with_kwargs=True))
        yield read


def num_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


# --- references --------------------------------------------------------------------------------------------------


def weights_by_hand(plan: SteeringPlan, length: int) -> Tensor:
    """Token weights of one sentence without padding, from the formula of linear interpolation, in float64."""
    if plan.token_weights is None:
        return torch.ones(length, dtype=torch.float64)
    weights, n = plan.token_weights.double().tolist(), len(plan.token_weights)
    at = [min(max((t + 0.5) * n / length - 0.5, 0), n - 1) for t in range(length)]
    low = [math.floor(x) for x in at]
    return torch.tensor(
        [weights[i] + (x - i) * (weights[min(i + 1, n - 1)] - weights[i]) for x, i in zip(at, low, strict=True)],
        dtype=torch.float64,
    )


def steered_by_replacement(model: PreTrainedModel, blocks: list[nn.Module], plan: SteeringPlan, ids: Tensor) -> Tensor:
    """Logits [seq, vocab] of one sentence without padding; each block's `forward` is replaced by one that adds."""
    weights = weights_by_hand(plan, len(ids)).float()[None, :, None]
    calls = 0

    def replaced(original: Any) -> Any:
        def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            if calls == 0:
                hidden = hidden + weights * plan.addends[0]
            calls += 1
            output = original(hidden, *args, **kwargs)
            if isinstance(output, tuple):
                return (output[0] + weights * plan.addends[calls], *output[1:])
            return output + weights * plan.addends[calls]

        return forward

    for block in set(blocks):
        block.forward = replaced(block.forward)
    logits = logits_of(model, ids[None], torch.ones(1, len(ids), dtype=torch.long))[0]
    for block in set(blocks):
        del block.forward
    assert calls == len(blocks)
    return logits


def gpt2_by_hand(model: PreTrainedModel, plan: SteeringPlan, ids: Tensor) -> Tensor:
    """Logits [seq, vocab] of one sentence from the weights of GPT-2 alone, in float64."""
    state = {name: tensor.double() for name, tensor in model.state_dict().items()}
    seq, heads = len(ids), model.config.n_head
    spread = weights_by_hand(plan, seq)[:, None]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (x.var(-1, unbiased=False, keepdim=True) + model.config.layer_norm_epsilon).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    def project(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"] + state[f"{name}.bias"]

    h = state["transformer.wte.weight"][ids] + state["transformer.wpe.weight"][:seq]
    h = h + spread * plan.addends[0].double()
    future = torch.ones(seq, seq).triu(1).bool()
    for k in range(model.config.n_layer):
        name = f"transformer.h.{k}"
        q, key, value = project(norm(h, f"{name}.ln_1"), f"{name}.attn.c_attn").view(seq, 3, heads, -1).unbind(1)
        scores = torch.einsum("ihd,jhd->hij", q, key) / math.sqrt(q.shape[-1])
        attention = scores.masked_fill(future, -math.inf).softmax(-1)
        mixed = torch.einsum("hij,jhd->ihd", attention, value).reshape(seq, -1)
        h = h + project(mixed, f"{name}.attn.c_proj")
        inner = F.gelu(project(norm(h, f"{name}.ln_2"), f"{name}.mlp.c_fc"), approximate="tanh")
        h = h + project(inner, f"{name}.mlp.c_proj")
        h = h + spread * plan.addends[k + 1].double()
    return norm(h, "transformer.ln_f") @ state["lm_head.weight"].T


def assert_close(got: Tensor, expected: Tensor, budget: float = 1e-4) -> None:
    scale = expected.abs().max().item()
    assert (got.double() - expected.double()).abs().max().item() < budget * scale


# --- steering ----------------------------------------------------------------------------------------------------


def test_a_steered_gpt2_equals_its_formula() -> None:
    model, (ids, mask) = tiny("gpt2"), sentences()
    assert ids.max() < CAUSAL_VOCAB
    plan = random_plan(3)
    with steer(BLOCKS_OF["gpt2"](model), plan, mask):
        logits = logits_of(model, ids, mask)
    for row, length in enumerate(LENGTHS):
        assert_close(logits[row, :length], gpt2_by_hand(model, plan, ids[row, :length]))


@pytest.mark.parametrize("tokens", [True, False])
@pytest.mark.parametrize("embeddings", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_steered_batch_equals_its_sentences_one_by_one_without_hooks(
    family: str, embeddings: bool, tokens: bool
) -> None:
    model, (ids, mask) = tiny(family), sentences()
    blocks = BLOCKS_OF[family](model)
    plan = random_plan(len(blocks), embeddings=embeddings, tokens=tokens)
    standard = logits_of(model, ids, mask)
    with steer(blocks, plan, mask):
        logits = logits_of(model, ids, mask)
    for row, length in enumerate(LENGTHS):
        expected = steered_by_replacement(model, blocks, plan, ids[row, :length])
        assert_close(logits[row, :length], expected)
        assert (expected - standard[row, :length]).abs().max() > 0.1, "the plan is too weak to test anything"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_forward_gives_the_same_as_the_first(family: str) -> None:
    model, (ids, mask) = tiny(family), sentences()
    blocks = BLOCKS_OF[family](model)
    with steer(blocks, random_plan(len(blocks)), mask):
        first, second = logits_of(model, ids, mask), logits_of(model, ids, mask)
    assert torch.equal(first, second)
    with steer(blocks, random_plan(len(blocks)), mask):
        assert torch.equal(first, logits_of(model, ids, mask))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stream_below_the_steered_layer_is_untouched_bit_for_bit(family: str) -> None:
    model, (ids, mask) = tiny(family), sentences()
    blocks = BLOCKS_OF[family](model)
    with inputs_read(blocks) as standard:
        logits_of(model, ids, mask)
    for layer in range(len(blocks)):
        plan = at_layer(layer, len(blocks))
        # Whatever reads the stream sees the steered one, whether it was there before or came later.
        with inputs_read(blocks) as early, steer(blocks, plan, mask), inputs_read(blocks) as late:
            logits_of(model, ids, mask)
        for steered in (early, late):
            same = [torch.equal(a, b) for a, b in zip(standard, steered, strict=True)]
            assert same[:layer] == [True] * layer
            assert not any(same[layer:])
        added = token_weights_for(plan, mask)[..., None] * plan.addends[layer]
        assert torch.equal(early[layer], standard[layer] + added)
        assert torch.equal(early[layer][mask == 0], standard[layer][mask == 0]), "padding was steered"


def test_the_last_block_is_steered_without_touching_any_input() -> None:
    model, (ids, mask) = tiny("llama"), sentences()
    blocks = BLOCKS_OF["llama"](model)
    with inputs_read([*blocks, model.model.norm]) as standard:
        logits_of(model, ids, mask)
    plan = at_layer(4, 4)
    with inputs_read([*blocks, model.model.norm]) as steered, steer(blocks, plan, mask):
        logits_of(model, ids, mask)
    assert all(torch.equal(a, b) for a, b in zip(standard[:4], steered[:4], strict=True))
    assert torch.equal(steered[4], standard[4] + token_weights_for(plan, mask)[..., None] * plan.addends[4])


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "modernbert"])
def test_the_hidden_states_that_transformers_records_are_steered_every_time(family: str) -> None:
    model, (ids, mask) = tiny(family), sentences()
    blocks = BLOCKS_OF[family](model)
    plan = at_layer(2, len(blocks))
    with torch.no_grad():
        standard = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        for _ in range(2):
            with steer(blocks, plan, mask):
                steered = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
            assert torch.equal(steered[1], standard[1])
            assert torch.equal(steered[2], standard[2] + token_weights_for(plan, mask)[..., None] * plan.addends[2])


@pytest.mark.parametrize("family", ["gpt2", "albert"])
@pytest.mark.parametrize(
    "control",
    [
        ControlSettings(strength=0.0),
        ControlSettings(layer_weights=[0.0, 0.0]),
        ControlSettings(token_weights=[0.0, 0.0, 0.0]),
        "a zero vector",
    ],
)
def test_a_zero_vector_strength_or_weight_gives_the_standard_run(family: str, control: Any) -> None:
    model, (ids, mask) = tiny(family), sentences()
    blocks = BLOCKS_OF[family](model)
    vector, settings = torch.ones(HIDDEN), control
    if control == "a zero vector":
        vector, settings = torch.zeros(HIDDEN), ControlSettings()
    plan = plan_of(settings, vector, num_blocks=len(blocks), sign=1)
    assert plan.first_layer is None
    standard, before = logits_of(model, ids, mask), num_hooks(model)
    with steer(blocks, plan, mask):
        assert num_hooks(model) == before
        assert torch.equal(logits_of(model, ids, mask), standard)


def test_layers_to_which_nothing_is_added_get_no_hook() -> None:
    # A model of its own: others may carry the hooks with which transformers records hidden states.
    model, (_, mask) = make_model("gpt2"), sentences()
    blocks, before = BLOCKS_OF["gpt2"](model), num_hooks(model)
    for layer in range(4):
        with steer(blocks, at_layer(layer, 3), mask):
            assert num_hooks(model) == before + 1
            hooked = blocks[layer - 1]._forward_hooks if layer else blocks[0]._forward_pre_hooks
            assert len(hooked) == 1
    with steer(blocks, random_plan(3), mask):
        assert num_hooks(model) == before + 4


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_as_before_afterwards_even_after_an_exception(family: str) -> None:
    model, (ids, mask) = tiny(family), sentences()
    blocks = BLOCKS_OF[family](model)
    standard, before = logits_of(model, ids, mask), num_hooks(model)
    with pytest.raises(AssertionError, match="hidden state"), steer(blocks, random_plan(len(blocks)), mask):
        logits_of(model, ids[:, :-1], mask[:, :-1])
    assert num_hooks(model) == before
    with steer(blocks, random_plan(len(blocks)), mask):
        assert num_hooks(model) > before
    assert num_hooks(model) == before
    assert torch.equal(logits_of(model, ids, mask), standard)


@pytest.mark.parametrize("family", ["gpt2", "albert"])
def test_nested_steering_adds_up(family: str) -> None:
    model, (ids, mask) = tiny(family), sentences()
    blocks = BLOCKS_OF[family](model)
    one, two = random_plan(len(blocks), tokens=False), random_plan(len(blocks), tokens=False, seed=2)
    both = added(one.addends + two.addends, None)
    with steer(blocks, both, mask):
        expected = logits_of(model, ids, mask)
    with steer(blocks, one, mask), steer(blocks, two, mask):
        assert_close(logits_of(model, ids, mask), expected, 1e-5)


def test_tensors_read_before_the_steering_are_not_changed_in_place() -> None:
    block, kept = nn.Linear(HIDDEN, HIDDEN), []
    x, mask = torch.randn(2, 3, HIDDEN), torch.ones(2, 3)
    inner = nn.Sequential(block)
    block.register_forward_hook(lambda module, args, output: kept.append(output))
    copy = x.clone()
    with torch.no_grad(), steer([inner], added(torch.ones(2, HIDDEN), None), mask):
        output = inner(x)
        assert torch.equal(x, copy)
        assert torch.equal(kept[0], block(x + 1))
        assert torch.equal(output, kept[0] + 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["tensor", "tuple", "list"])
@pytest.mark.parametrize("named", [True, False])
def test_a_block_keeps_its_calling_form_and_its_dtype(named: bool, kind: str, dtype: torch.dtype) -> None:
    class Block(nn.Module):
        def forward(self, hidden_states: Tensor, other: str) -> Any:
            assert other == "kept"
            assert hidden_states.dtype == dtype
            results = {"tensor": hidden_states, "tuple": (hidden_states, other), "list": [hidden_states, other]}
            return results[kind]

    block, hidden = Block(), torch.randn(2, 3, HIDDEN, dtype=dtype)
    plan = random_plan(1, tokens=False)
    with steer([block], plan, torch.tensor([[1, 1, 1], [1, 1, 0]])):
        output = block(hidden_states=hidden, other="kept") if named else block(hidden, "kept")
    assert type(output) is {"tensor": Tensor, "tuple": tuple, "list": list}[kind]
    got = output if kind == "tensor" else output[0]
    assert kind == "tensor" or output[1] == "kept"
    assert got.dtype == dtype
    expected = (hidden + plan.addends[0].to(dtype)) + plan.addends[1].to(dtype)
    expected[1, 2] = hidden[1, 2]
    assert torch.equal(got, expected)


def test_a_mask_of_another_batch_is_named() -> None:
    model, (ids, mask) = tiny("gpt2"), sentences()
    message = r"hidden state \(4, 9, 32\), but the weights of the tokens are \(3, 9\)"
    with pytest.raises(AssertionError, match=message), steer(BLOCKS_OF["gpt2"](model), random_plan(3), mask[:3]):
        logits_of(model, ids, mask)


def test_a_shared_block_that_runs_too_rarely_is_noticed() -> None:
    block, mask = nn.Linear(HIDDEN, HIDDEN), torch.ones(1, 2)
    with pytest.raises(AssertionError, match=r"ran \[1, 0\] times"), steer([block, block], random_plan(2), mask):
        block(torch.zeros(1, 2, HIDDEN))


# --- token weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("count", [1, 2, 3, 50])
def test_token_weights_run_over_the_real_tokens_wherever_the_padding_is(side: str, count: int) -> None:
    _, mask = sentences(side)
    plan = added(torch.ones(4, HIDDEN), torch.randn(count, generator=torch.Generator().manual_seed(count)))
    weights = token_weights_for(plan, mask)
    assert weights.dtype == torch.float32
    for row, length in enumerate(LENGTHS):
        expected = F.interpolate(plan.token_weights[None, None], size=length, mode="linear", align_corners=False)
        assert torch.equal(weights[row][mask[row] == 1], expected[0, 0])
        assert_close(weights[row][mask[row] == 1], weights_by_hand(plan, length), 1e-5)
    assert not weights[mask == 0].any()


def test_without_token_weights_every_real_token_counts_once() -> None:
    for side in ("right", "left"):
        _, mask = sentences(side)
        weights = token_weights_for(random_plan(3, tokens=False), mask)
        assert weights.dtype == torch.float32
        assert torch.equal(weights, mask.float())


def test_a_row_of_padding_alone_is_not_steered() -> None:
    plan = random_plan(3)
    assert token_weights_for(plan, torch.tensor([[0, 0], [1, 1]])).tolist()[0] == [0, 0]
    assert token_weights_for(plan, torch.zeros(2, 3, dtype=torch.bool)).tolist() == [[0] * 3] * 2


def test_left_padding_steers_the_same_tokens() -> None:
    model, plan = tiny("llama"), random_plan(4)
    blocks = BLOCKS_OF["llama"](model)
    logits = {}
    for side in ("right", "left"):
        ids, mask = sentences(side)
        with steer(blocks, plan, mask):
            logits[side] = logits_of(model, ids, mask)[mask == 1]
    assert_close(logits["left"], logits["right"])


# --- plans -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 12, 13])
@pytest.mark.parametrize("count", [1, 2, 3, 12, 40])
def test_interpolation_is_that_of_torch(count: int, size: int) -> None:
    weights = torch.randn(count)
    expected = F.interpolate(weights[None, None], size=size, mode="linear", align_corners=False)[0, 0]
    assert torch.equal(interpolate(weights, size), expected)
    assert torch.equal(interpolate(weights.tolist(), size), expected)


def test_interpolation_by_hand() -> None:
    assert interpolate([1.0, 1.2, 1.5], 6).tolist() == pytest.approx([1, 1.05, 1.15, 1.275, 1.425, 1.5])


ONE = torch.linspace(0.5, 1, HIDDEN)
PER_BLOCK = torch.stack([ONE, 2 * ONE, 3 * ONE])
PER_LAYER = torch.stack([7 * ONE, *PER_BLOCK])


@pytest.mark.parametrize(
    ("vector", "layer_weights", "multiples"),
    [
        (ONE, None, [0, 1, 1, 1]),
        (ONE, [2.0, 0.0, -1.0], [0, 2, 0, -1]),
        (ONE, [4.0, 1.0, 2.0, 3.0], [4, 1, 2, 3]),
        (ONE, [1.0, 3.0], [0, 1, 2, 3]),
        (PER_BLOCK, None, [0, 1, 2, 3]),
        (PER_BLOCK, [2.0, 0.0, -1.0], [0, 2, 0, -3]),
        (PER_BLOCK, [0.0, 2.0, 0.0, -1.0], [0, 2, 0, -3]),
        (PER_LAYER, None, [7, 1, 2, 3]),
        (PER_LAYER, [2.0, 0.0, -1.0], [7, 2, 0, -3]),
        (PER_LAYER, [0.5, 2.0, 0.0, -1.0], [3.5, 2, 0, -3]),
        (PER_LAYER, [2.0], [7, 2, 4, 6]),
    ],
)
def test_layer_weights_meet_the_rows_of_the_vector(
    vector: Tensor, layer_weights: list[float] | None, multiples: list[float]
) -> None:
    for strength, sign in ((1.0, 1), (0.5, -1), (-2.0, -1)):
        control = ControlSettings(strength=strength, layer_weights=layer_weights)
        plan = plan_of(control, vector, num_blocks=3, sign=sign)
        expected = sign * strength * torch.tensor(multiples)[:, None] * ONE
        torch.testing.assert_close(plan.addends, expected, rtol=1e-6, atol=0)
        assert plan.addends.dtype == torch.float32
        assert plan.token_weights is None


def test_only_other_numbers_of_layer_weights_are_interpolated_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "llm_entropy"):
        plan_of(ControlSettings(layer_weights=[1.0] * 3), ONE, num_blocks=3, sign=1)
        plan_of(ControlSettings(layer_weights=[1.0] * 4), ONE, num_blocks=3, sign=1)
        assert not caplog.records
        plan = plan_of(ControlSettings(layer_weights=[1.0, 1.2, 1.5]), ONE, num_blocks=6, sign=1)
    assert caplog.messages == ["analysis.control.layer_weights: got 3 numbers, interpolated over the 6 blocks"]
    assert (plan.addends[1:, -1]).tolist() == pytest.approx([1, 1.05, 1.15, 1.275, 1.425, 1.5])
    assert not plan.addends[0].any()


def test_a_weight_for_the_embeddings_needs_a_row_for_them() -> None:
    control = ControlSettings(layer_weights=[0.5, 1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match=r"layer_weights: got 4 numbers, the first, 0\.5, .*but a vector of 3 rows"):
        plan_of(control, PER_BLOCK, num_blocks=3, sign=1)


def test_a_product_beyond_float32_is_refused() -> None:
    with pytest.raises(ValueError, match=r"analysis\.control\.strength: got 1e\+39, .* beyond the range of float32"):
        plan_of(ControlSettings(strength=1e39), ONE, num_blocks=3, sign=1)


def test_the_first_layer_is_the_lowest_that_changes() -> None:
    for layer in range(4):
        assert at_layer(layer, 3).first_layer == layer
    assert random_plan(3).first_layer == 0
    assert random_plan(3, embeddings=False).first_layer == 1
    assert added(torch.zeros(4, HIDDEN), None).first_layer is None
    assert added(torch.ones(4, HIDDEN), torch.zeros(3)).first_layer is None
    assert added(torch.ones(4, HIDDEN), torch.zeros(3)).steered_layers == []


def test_the_opposite_sign_moves_the_steered_layer_the_other_way() -> None:
    model, (ids, mask) = tiny("gpt2"), sentences()
    blocks = BLOCKS_OF["gpt2"](model)
    control = ControlSettings(layer_weights=[1.0, 0.0, 0.0], token_weights=[1.0, 1.2, 1.5])
    shifts = []
    with inputs_read(blocks) as standard:
        logits_of(model, ids, mask)
    for sign in (1, -1):
        plan = plan_of(control, ONE, num_blocks=3, sign=sign)
        assert plan.first_layer == 1
        with inputs_read(blocks) as steered, steer(blocks, plan, mask):
            logits_of(model, ids, mask)
        shifts.append(steered[1] - standard[1])
    assert_close(shifts[0], -shifts[1], 1e-5)
    assert shifts[0][mask == 1].abs().min() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_steering_every_token_needs_no_mask_and_takes_any_batch(family: str) -> None:
    model = tiny(family)
    blocks = BLOCKS_OF[family](model)
    plan = random_plan(len(blocks), tokens=False)
    ids, mask = sentences()
    batches = [(ids, mask), (ids[:2, :4], mask[:2, :4])]
    expected = []
    for batch in batches:
        with steer(blocks, plan, batch[1]):
            expected.append(logits_of(model, *batch))
    with steer_every_token(blocks, plan):
        found = [logits_of(model, *batch) for batch in batches]
    for (_, own_mask), logits, truth in zip(batches, found, expected, strict=True):
        real = own_mask.bool()
        torch.testing.assert_close(logits[real], truth[real], rtol=1e-5, atol=1e-5)
    assert not torch.equal(logits_of(model, *batches[0]), found[0])
