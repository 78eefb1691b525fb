"""Which blocks, and which tokens of a sentence, are steered."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plans import added, plan_of
from test_hooks import BLOCKS_OF, LENGTHS, assert_close, logits_of, sentences, steered_by_replacement, tiny
from tiny_models import HIDDEN, make_tokenizer
from torch import Tensor

from llm_entropy.errors import ReportedError
from llm_entropy.settings import ControlSettings
from llm_entropy.steering.hooks import steer
from llm_entropy.steering.plan import SteeringPlan
from llm_entropy.steering.token_weights import new_token_weights, token_weights_for
from llm_entropy.steering.tokens import SpecialTokens, special_tokens_of, steered_tokens

VECTOR = torch.linspace(0.5, 1, HIDDEN)
SPECIAL = SpecialTokens(frozenset({0, 2}), close_sentences=True)
CAUSAL = SpecialTokens(frozenset({0, 2}))
IDS = torch.tensor([[0, 5, 6, 4, 2, 1], [0, 7, 2, 1, 1, 1], [9, 8, 7, 6, 5, 3]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]])


@pytest.mark.parametrize(
    ("tokens", "special", "expected"),
    [
        ("all", SPECIAL, ["111110", "111000", "111111"]),
        ("prompt", SPECIAL, ["111110", "111000", "111111"]),
        ("last", CAUSAL, ["000010", "001000", "000001"]),
        ("last", SPECIAL, ["000100", "010000", "000001"]),
        ("no_special", SPECIAL, ["011100", "010000", "111111"]),
        ("no_special", CAUSAL, ["011100", "010000", "111111"]),
        ("2:", SPECIAL, ["001110", "001000", "001111"]),
        (":-1", SPECIAL, ["111100", "110000", "111110"]),
        ("-2:", SPECIAL, ["000110", "011000", "000011"]),
        ("1:3", SPECIAL, ["011000", "011000", "011000"]),
        ("::2", SPECIAL, ["101010", "101000", "101010"]),
        ("::-2", SPECIAL, ["101010", "101000", "010101"]),
        ("4:", SPECIAL, ["000010", "000000", "000011"]),
    ],
)
def test_tokens_are_chosen_by_their_place_in_the_sentence(
    tokens: str, special: SpecialTokens, expected: list[str]
) -> None:
    chosen = steered_tokens(tokens, MASK, IDS, special)
    assert ["".join(map(str, row)) for row in chosen.int().tolist()] == expected
    # Padding on the left, and no other sentence.
    for row, length in enumerate(MASK.sum(1).tolist()):
        ids, mask = (torch.cat([tensor[row, length:], tensor[row, :length]])[None] for tensor in (IDS, MASK))
        moved = steered_tokens(tokens, mask, ids, special)[0].int().tolist()
        assert "".join(map(str, moved[IDS.shape[1] - length :])) == expected[row][:length]
        assert not any(moved[: IDS.shape[1] - length])


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_special_tokens_are_those_that_stand_for_no_word(kind: Any) -> None:
    tokenizer = make_tokenizer(kind)
    names = {"causal": ["<|endoftext|>"], "masked": ["[CLS]", "[PAD]", "[SEP]"]}[kind]
    found = special_tokens_of(tokenizer, kind)
    assert found.ids == set(tokenizer.convert_tokens_to_ids(names))
    assert found.close_sentences == (kind == "masked")


def choosing(tokens: str, weights: list[float] | None = None) -> SteeringPlan:
    control = ControlSettings(tokens=tokens, token_weights=weights)
    plan = plan_of(control, VECTOR, num_blocks=3)
    # The tokens of `sentences` are drawn: some of them stand for special ones here.
    return SteeringPlan(plan.directions, plan.coefficients, plan.token_weights, tokens=tokens, special=HALF)


HALF = SpecialTokens(frozenset(range(0, 140, 2)), close_sentences=True)


@pytest.mark.parametrize("weights", [None, [0.5, -1.0, 2.0]])
@pytest.mark.parametrize("tokens", ["last", "no_special", "1:", "-3:-1"])
def test_a_choice_keeps_the_weights_of_the_chosen_and_no_batch_changes_it(
    tokens: str, weights: list[float] | None
) -> None:
    plan, whole = choosing(tokens, weights), choosing("all", weights)
    for side in ("right", "left"):
        ids, mask = sentences(side)
        chosen = steered_tokens(tokens, mask, ids, HALF)
        assert 0 < chosen.sum() < mask.sum()
        spread = token_weights_for(plan, mask, ids)
        assert torch.equal(spread, token_weights_for(whole, mask).where(chosen, 0.0))
        for row in range(len(LENGTHS)):
            alone = ids[row][mask[row] == 1][None]
            own = token_weights_for(plan, torch.ones_like(alone), alone)
            assert torch.equal(own[0], spread[row][mask[row] == 1])


@pytest.mark.parametrize("tokens", ["last", "no_special", "1:3"])
def test_a_steered_batch_is_its_sentences_one_by_one(tokens: str) -> None:
    model, plan = tiny("llama"), choosing(tokens)
    plan = SteeringPlan(VECTOR.expand(5, -1), torch.ones(5), None, tokens=tokens, special=HALF)
    blocks = BLOCKS_OF["llama"](model)
    for side in ("right", "left"):
        ids, mask = sentences(side)
        with steer(blocks, plan, mask, ids):
            logits = logits_of(model, ids, mask)
        for row in range(len(LENGTHS)):
            alone = ids[row][mask[row] == 1][None]
            with steer(blocks, plan, torch.ones_like(alone), alone):
                assert_close(logits[row][mask[row] == 1], logits_of(model, alone, torch.ones_like(alone))[0])


@pytest.mark.parametrize("tokens", ["first", "", "5", "a:b", "1:2:0", "1:2:3:4"])
def test_tokens_that_are_neither_a_word_nor_a_slice_are_refused(tokens: str) -> None:
    with pytest.raises(
        ReportedError, match=r"analysis\.control\.tokens: got .*; expected one of all, last, prompt, no_s"
    ):
        ControlSettings(tokens=tokens)


# --- blocks ------------------------------------------------------------------------------------------------------

PER_LAYER = torch.arange(1.0, 6.0)[:, None] * VECTOR


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        (None, [1, 1, 1, 1, 1]),
        ([2], [0, 0, 0, 1, 0]),
        ([3, 0], [0, 1, 0, 0, 1]),
        ("1:3", [0, 0, 1, 1, 0]),
        (":2", [0, 1, 1, 0, 0]),
        ("-1:", [0, 0, 0, 0, 1]),
        ("::2", [0, 1, 0, 1, 0]),
        (":", [0, 1, 1, 1, 1]),
    ],
)
def test_blocks_that_are_not_chosen_and_the_embeddings_get_nothing(blocks: Any, expected: list[int]) -> None:
    for vector in (PER_LAYER, PER_LAYER[1:]):
        for weights in (None, [0.5, 2.0, -1.0, 3.0]):
            plan = plan_of(ControlSettings(blocks=blocks, layer_weights=weights), vector, num_blocks=4)
            whole = plan_of(ControlSettings(layer_weights=weights), vector, num_blocks=4)
            assert torch.equal(plan.coefficients, whole.coefficients * torch.tensor(expected))
            assert torch.equal(plan.directions, whole.directions)
    # One vector for all: the embeddings are steered by a weight of their own, and by blocks: null alone.
    plan = plan_of(ControlSettings(blocks=blocks, layer_weights=[2.0] * 5), VECTOR, num_blocks=4)
    assert plan.coefficients.tolist() == [2 * number for number in expected]


def test_a_file_of_all_layers_that_is_meant_for_one_acts_at_the_output_of_that_block() -> None:
    # Row k + 1 of [L + 1, hidden] is what block k hands on, as in transformers' hidden_states.
    model, (ids, _) = tiny("llama"), sentences()
    blocks = BLOCKS_OF["llama"](model)
    plan = plan_of(ControlSettings(blocks=[1]), PER_LAYER, num_blocks=4)
    assert plan.first_layer == 2
    rows = torch.zeros(5, HIDDEN)
    rows[2] = PER_LAYER[2]
    one = ids[:1, : LENGTHS[0]]
    expected = steered_by_replacement(model, blocks, added(rows), one[0])
    with steer(blocks, plan, torch.ones_like(one)):
        assert_close(logits_of(model, one, torch.ones_like(one))[0], expected)


def only(block: int) -> Tensor:
    rows = torch.zeros(4, HIDDEN)
    rows[block] = VECTOR
    return rows


@pytest.mark.parametrize(
    ("blocks", "vector", "message"),
    [
        ([4], VECTOR, r"blocks: got \[4\], block 4, but the model has 4 blocks; expected numbers from 0 to 3"),
        ([0, -1], VECTOR, r"blocks: got \[0, -1\], block -1, but the model has 4 blocks; expected numbers from 0 to 3"),
        ("2:12", VECTOR, r"blocks: got '2:12', up to 12, but the model has 4 blocks; expected some of 0:4"),
        ("3:1", VECTOR, r"blocks: got '3:1', no block, but the model has 4 blocks; expected some of 0:4"),
        (
            [2],
            only(3),
            r"blocks: got \[2\], where the vector is 0; it has numbers for block 3 alone; expected one of them",
        ),
    ],
)
def test_blocks_that_are_not_there_are_refused(blocks: Any, vector: Tensor, message: str) -> None:
    with pytest.raises(ReportedError, match=f"analysis.control.{message}"):
        plan_of(ControlSettings(blocks=blocks), vector, num_blocks=4)


@pytest.mark.parametrize("blocks", [[], "last", "1:2:0", "7"])
def test_blocks_that_are_no_numbers_and_no_slice_are_refused(blocks: Any) -> None:
    with pytest.raises(
        ReportedError,
        match=r"analysis\.control\.blocks: got .*; expected a list of block numbers, as \[8, 9\], or a sl",
    ):
        ControlSettings(blocks=blocks)


def test_a_zero_vector_stays_the_standard_run_whatever_blocks_are_chosen() -> None:
    assert plan_of(ControlSettings(blocks=[1]), 0 * VECTOR, num_blocks=4).first_layer is None


@pytest.mark.parametrize(
    ("tokens", "weights"),
    [
        ("all", [3, 3, 3, 3]),
        ("last", [3, 3, 3, 3]),
        ("prompt", [0, 0, 0, 0]),
        ("no_special", [3, 0, 3, 3]),
        ("2:", [3, 3, 3, 3]),
        ("6:", [0, 3, 3, 3]),
        ("::2", [0, 3, 0, 3]),
        ("-4::3", [0, 0, 3, 0]),
        (":7", [0, 0, 0, 0]),
        (":-1", [0, 0, 0, 0]),
        ("::-1", [0, 0, 0, 0]),
    ],
)
def test_tokens_that_a_model_wrote_have_the_last_weight_where_the_choice_goes_on_over_them(
    tokens: str, weights: list[int]
) -> None:
    plan = SteeringPlan(
        torch.ones(3, 4),
        torch.ones(3),
        torch.tensor([1.0, 2.0, 3.0]),
        tokens=tokens,
        special=SpecialTokens(frozenset({9})),
    )
    ids, mask, num_own = torch.tensor([[1, 2, 3, 4, 5, 6, 9, 7, 8, 0]]), torch.ones(1, 10).long(), torch.tensor([5])
    mask[0, 9] = 0
    found = token_weights_for(plan, mask, ids, num_own)
    assert found[0, 5:].tolist() == [*weights, 0]
    assert torch.equal(found[:, :5], token_weights_for(plan, mask[:, :5], ids[:, :5]))
    numbers = torch.arange(5, 9)[None]
    assert new_token_weights(plan, numbers, num_own, ids[:, 5:9])[0].tolist() == weights
