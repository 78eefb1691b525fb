"""What must hold whatever the model is: each a property of the records, without a reference."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from devices import DEVICE, predict
from plans import plan_of
from tiny_models import FAMILIES, HIDDEN, SENTENCES, make_model, make_tokenizer, readable_attention
from torch.nn.functional import cross_entropy

from llm_entropy.corpus.batching import collate
from llm_entropy.corpus.draws import sampling_uniforms
from llm_entropy.corpus.encoding import Encoder
from llm_entropy.kernels import compiled
from llm_entropy.kernels import reference as reference_kernel
from llm_entropy.measuring.asked import Asked
from llm_entropy.measuring.lens import Lens
from llm_entropy.measuring.module import EntropyModule
from llm_entropy.models.families import ModelView, view_model
from llm_entropy.schema.batches import Batch, Example
from llm_entropy.schema.records import ConditionRecords, Records
from llm_entropy.settings import (
    ALL_METRICS,
    COMPARISON_METRICS,
    CONTROL,
    KL_FROM_STANDARD,
    METRICS,
    STANDARD,
    TOP1_CHANGED,
    AnalysisSettings,
    ControlSettings,
)

CAUSAL, MASKED = ("gpt2", "gemma2"), ("bert", "albert")
MODELS = CAUSAL + MASKED
"""A plain causal and a plain masked model; one with softcaps and windows, and one whose blocks are one module."""
SEED = 3
PADDING = 9
"""A token that means something, so that reading it would show."""


@cache
def view_of(family: str) -> ModelView:
    return view_model(make_model(family, attention=readable_attention(family)))


@cache
def measured_view_of(family: str) -> ModelView:
    """Return the same model on the device; that of `view_of` stays on the CPU."""
    if DEVICE.type == "cpu":
        return view_of(family)
    return view_model(make_model(family, attention=readable_attention(family)).to(DEVICE))


@cache
def examples_of(family: str) -> tuple[Example, ...]:
    """Return every token of every sentence: all positions, or a masked copy for each token."""
    kind = FAMILIES[family].kind
    encode = Encoder(make_tokenizer(kind), kind, positions="all", mask_strategy="each", seed=SEED)
    return tuple(example for example, _ in encode(range(len(SENTENCES)), SENTENCES))


def batch_of(family: str, examples: Any = None, seed: int = SEED) -> Batch:
    return collate(examples_of(family) if examples is None else examples, PADDING, seed)


def measure(
    family: str,
    batch: Batch,
    vector: torch.Tensor | None = None,
    *,
    control: dict[str, Any] | None = None,
    view: ModelView | None = None,
    **analysis: Any,
) -> Records:
    """Return the records of a batch with every metric; with a vector, of both conditions."""
    view = view or measured_view_of(family)
    steering = ControlSettings(control_vector=[1.0], **(control or {}))
    steered = {} if vector is None else {"compare_control": True, "control": steering}
    plans = {}
    if vector is not None:
        plans[CONTROL] = plan_of(steering, vector, num_blocks=view.shape.num_blocks)
    settings = AnalysisSettings(metrics=list(METRICS), lens_tokens=True, **steered, **analysis)
    return predict(EntropyModule(view, Lens(view), Asked(settings, plans)), batch)


def vector_for(family: str, rows: int | None = None) -> torch.Tensor:
    shape = (HIDDEN,) if rows is None else (rows, HIDDEN)
    return torch.randn(shape, generator=torch.Generator().manual_seed(8))


def assert_identical(a: ConditionRecords, b: ConditionRecords) -> None:
    """Fail unless all that both report is the same, bit for bit."""
    assert a.tokens is not None
    assert b.tokens is not None
    for name, values in a.tokens._asdict().items():
        assert torch.equal(values, getattr(b.tokens, name)), name
    for name in METRICS:
        assert_equal(a.metrics[name], b.metrics[name], name)


def assert_equal(a: torch.Tensor, b: torch.Tensor, what: str) -> None:
    """Fail unless both are the same, bit for bit; empty numbers are equal."""
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=lambda text: f"{what}: {text}")


# --- steering ------------------------------------------------------------------------------------------------------

NOTHING = {
    "a zero vector": (0.0, {}),
    "a zero strength": (1.0, {"strength": 0.0}),
    "zero layer weights": (1.0, {"layer_weights": [0.0, 0.0]}),
    "zero token weights": (1.0, {"token_weights": [0.0, 0.0, 0.0]}),
}


@pytest.mark.gpu
@pytest.mark.parametrize("what", NOTHING)
@pytest.mark.parametrize("family", MODELS)
def test_steering_by_nothing_gives_the_standard_run(family: str, what: str) -> None:
    factor, control = NOTHING[what]
    records = measure(family, batch_of(family), factor * vector_for(family), control=control)
    assert_identical(records.conditions[STANDARD], records.conditions[CONTROL])
    assert records.conditions[CONTROL].metrics[KL_FROM_STANDARD].abs().max() <= 1e-6
    assert not records.conditions[CONTROL].metrics[TOP1_CHANGED].any()


@pytest.mark.gpu
@pytest.mark.parametrize("family", MODELS)
def test_the_standard_condition_does_not_notice_that_there_is_another(family: str) -> None:
    alone = measure(family, batch_of(family))
    compared = measure(family, batch_of(family), vector_for(family))
    assert_identical(alone.conditions[STANDARD], compared.conditions[STANDARD])


@pytest.mark.gpu
@pytest.mark.parametrize("family", MODELS)
def test_steering_a_block_leaves_what_lies_below_untouched_bit_for_bit(family: str) -> None:
    num_blocks = FAMILIES[family].num_blocks
    for layer in range(num_blocks + 1):  # block k first shows at layer k + 1; row 0 acts on the embeddings
        vector = torch.zeros(num_blocks + 1, HIDDEN)
        vector[layer] = vector_for(family)
        records = measure(family, batch_of(family), vector)
        standard, control = (records.conditions[condition].metrics for condition in (STANDARD, CONTROL))
        # These depend on their own layer alone; the targets and `kl_to_final` depend on the last one.
        for name in ("entropy", "margin", "varentropy", "residual_norm", "renyi_entropy"):
            changed = standard[name] != control[name]
            assert not changed[:, :layer].any(), f"{name} below layer {layer}"
            assert changed[:, layer].any(), f"{name} at layer {layer}"
        changed = standard["attention_entropy"] != control["attention_entropy"]
        assert not changed[:, :layer].any(), f"attention below layer {layer}"
        assert layer == num_blocks or changed[:, layer].any(), f"attention above layer {layer}"
        for name in COMPARISON_METRICS:
            assert not control[name][:, :layer].any()
            assert control[name][:, layer:].any()


@pytest.mark.parametrize("family", MODELS)
def test_listeners_hear_of_every_block_and_every_tile_and_may_break_a_batch_off(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    view, batch = view_of(family), batch_of(family)
    monkeypatch.setattr("llm_entropy.measuring.module.TILE_STATES", 1)  # a tile for each record
    module = EntropyModule(view, Lens(view), Asked(AnalysisSettings(metrics=list(METRICS)), {}))
    heard: list[int] = []
    module.listeners.append(heard.append)
    expected = module.predict_step(batch)
    blocks, tiles = heard[: view.shape.num_blocks], heard[view.shape.num_blocks :]
    num_tokens = int(batch.attention_mask.sum())
    assert blocks[0] == 0
    assert blocks[-1] > 0, "a long document is seen to move while its blocks run"
    assert len(tiles) == len(batch.positions)
    assert heard == sorted(heard)
    assert tiles[-2] < tiles[-1] == num_tokens

    def break_off(num_tokens: int) -> None:
        if num_tokens:
            raise KeyboardInterrupt

    module.listeners = [break_off]
    with pytest.raises(KeyboardInterrupt):
        module.predict_step(batch)
    module.listeners = []
    assert_identical(module.predict_step(batch).conditions[STANDARD], expected.conditions[STANDARD])


@pytest.mark.parametrize("family", MODELS)
def test_blocks_that_conditions_share_are_not_counted_twice(family: str) -> None:
    view, batch = view_of(family), batch_of(family)
    heard: list[int] = []
    steering = ControlSettings(control_vector=[1.0])
    plans = {CONTROL: plan_of(steering, vector_for(family), num_blocks=view.shape.num_blocks)}
    module = EntropyModule(view, Lens(view), Asked(AnalysisSettings(compare_control=True, control=steering), plans))
    module.listeners.append(heard.append)
    module.predict_step(batch)
    assert heard == sorted(heard)
    assert heard[-1] == int(batch.attention_mask.sum())


@pytest.mark.parametrize("family", MODELS)
def test_the_model_is_left_as_it_was(family: str) -> None:
    batch, model = batch_of(family), view_of(family).model

    def logits() -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits

    def hooks() -> list[int]:
        return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]

    before, hooks_before = logits(), hooks()
    measure(family, batch, vector_for(family))
    assert torch.equal(logits(), before)
    assert hooks() == hooks_before


# --- the model's own numbers ---------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("family", MODELS)
def test_the_last_layers_entropy_is_that_of_the_models_logits(family: str) -> None:
    batch = batch_of(family)
    with torch.no_grad():
        logits = view_of(family).model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    own = torch.distributions.Categorical(logits=logits[batch.rows, batch.positions].double()).entropy()
    found = measure(family, batch).conditions[STANDARD].metrics["entropy"][:, -1]
    torch.testing.assert_close(found.double(), own, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("family", MODELS)
def test_nothing_is_left_to_be_decided_at_the_last_layer(family: str) -> None:
    records = measure(family, batch_of(family), vector_for(family))
    for condition in records.conditions.values():
        assert condition.metrics["kl_to_final"][:, -1].abs().max() <= 1e-6
        assert condition.metrics["kl_to_final"][:, 0].min() > 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("family", MODELS)
def test_metrics_keep_within_their_bounds_and_are_empty_where_they_say(family: str) -> None:
    records = measure(family, batch_of(family), vector_for(family))
    for condition in records.conditions.values():
        for name, values in condition.metrics.items():
            about = ALL_METRICS[name]
            least, most = about.bounds
            present = values[~values.isnan()]
            assert ((present >= least) & (present <= most * (1 + 1e-5))).all(), name
            assert values[:, : about.first].isnan().all(), name
            gaps = values[:, about.first :].isnan()
            assert gaps.any() == (about.has_gaps and family in CAUSAL), name
        if family in CAUSAL:
            gaps = condition.metrics["attended_entropy"].isnan()
            assert torch.equal(gaps.all(-1).all(-1), records.positions == 0)
            assert torch.equal(gaps.any(-1).any(-1), records.positions == 0)
        final = condition.metrics["top1_agreement"]
        assert final[:, -1].all()
        assert 0 < final.mean() < 1
        assert (condition.metrics["entropy_change"][:, 1:] < 0).any()


@pytest.mark.gpu
@pytest.mark.parametrize("family", CAUSAL)
def test_mean_surprisal_at_all_positions_is_the_models_own_loss(family: str) -> None:
    records = measure(family, batch_of(family))
    surprisal = records.conditions[STANDARD].metrics["surprisal"][:, -1]
    for example in examples_of(family)[1:]:  # the first sentence has one token: nothing to predict
        ids = torch.tensor([example.input_ids])
        with torch.no_grad():
            loss = view_of(family).model(input_ids=ids, labels=ids).loss
        # The last position predicts a token that the sentence does not hold; the model's loss leaves it out, too.
        own = surprisal[records.sentence_ids == example.sentence_id][:-1].mean()
        torch.testing.assert_close(own, loss, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("family", MASKED)
def test_mean_surprisal_at_the_masks_is_the_models_own_loss(family: str) -> None:
    batch = batch_of(family)
    labels = torch.full_like(batch.input_ids, -100)
    labels[batch.rows, batch.positions] = batch.targets
    with torch.no_grad():
        loss = view_of(family).model(batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss
    surprisal = measure(family, batch).conditions[STANDARD].metrics["surprisal"][:, -1]
    torch.testing.assert_close(surprisal.mean(), loss, rtol=1e-5, atol=1e-5)


# --- batches -------------------------------------------------------------------------------------------------------


def by_record(records: Records) -> dict[tuple[int, int], dict[str, torch.Tensor]]:
    """Return every number of every record, by sentence and position."""
    found = {}
    for index, key in enumerate(zip(records.sentence_ids.tolist(), records.positions.tolist(), strict=True)):
        numbers = {}
        for condition, part in records.conditions.items():
            numbers |= {f"{condition} {name}": values[index] for name, values in part.metrics.items()}
            numbers |= {f"{condition} {name}": values[index] for name, values in part.tokens._asdict().items()}
        assert key not in found, f"record {key} came twice"
        found[key] = numbers
    return found


def assert_same_records(a: dict[tuple[int, int], Any], b: dict[tuple[int, int], Any]) -> None:
    assert a.keys() == b.keys()
    for name in next(iter(a.values())):
        # all records at once: one by one, thousands of numbers take most of the time of these tests
        first, second = (torch.stack([numbers[key][name] for key in a]) for numbers in (a, b))
        torch.testing.assert_close(
            second,
            first,
            rtol=1e-5,
            atol=1e-5,
            equal_nan=True,
            msg=lambda text, name=name: f"{name}, by record: {text}",
        )


@pytest.mark.gpu
@pytest.mark.parametrize("use_sampling", [False, True])
@pytest.mark.parametrize("family", MODELS)
def test_neither_padding_nor_order_nor_size_of_a_batch_changes_a_record(family: str, use_sampling: bool) -> None:
    examples = examples_of(family)
    options = {"control": {"token_weights": [1.0, 0.2, 1.7]}, "use_sampling": use_sampling}

    def run(*batches: Any) -> dict[tuple[int, int], Any]:
        parts = [measure(family, batch, vector_for(family), **options) for batch in batches]
        return {key: numbers for part in parts for key, numbers in by_record(part).items()}

    together = run(batch_of(family, examples))
    assert len(together) == sum(len(example.positions) for example in examples)
    assert_same_records(together, run(batch_of(family, examples[::-1])))
    assert_same_records(together, run(*(batch_of(family, examples[i : i + 3]) for i in range(0, len(examples), 3))))
    some = examples[:2] + examples[-2:]
    one_by_one = run(*(batch_of(family, [example]) for example in some))
    assert_same_records({key: together[key] for key in one_by_one}, one_by_one)
    padded = batch_of(family, some)
    padded.input_ids = torch.cat([padded.input_ids, torch.full((len(some), 6), PADDING)], dim=1)
    padded.attention_mask = torch.cat([padded.attention_mask, torch.zeros(len(some), 6, dtype=torch.int64)], dim=1)
    assert_same_records(one_by_one, run(padded))


@pytest.mark.gpu
@pytest.mark.parametrize("family", MODELS)
def test_what_stands_in_the_padding_changes_nothing(family: str) -> None:
    batch = batch_of(family)
    other = dataclasses.replace(batch, input_ids=torch.where(batch.attention_mask == 1, batch.input_ids, 17))
    assert not torch.equal(batch.input_ids, other.input_ids)
    first, second = (measure(family, each, vector_for(family)) for each in (batch, other))
    assert_same_records(by_record(first), by_record(second))


@pytest.mark.gpu
@pytest.mark.parametrize("family", MODELS)
def test_chunks_of_the_vocabulary_and_of_the_rows_change_nothing(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measure(family, batch_of(family), vector_for(family), use_sampling=True)
    vocab_size = view_of(family).shape.vocab_size
    assert vocab_size <= compiled.VOCAB_CHUNK, "the tiny model no longer fits in one chunk"
    for kernel in (compiled, reference_kernel):
        monkeypatch.setattr(kernel, "VOCAB_CHUNK", 37)  # divides neither vocabulary
    monkeypatch.setattr(compiled, "TILE_ROWS", 12)
    monkeypatch.setattr(reference_kernel, "TILE_LOGITS", 2**12)
    monkeypatch.setattr(reference_kernel, "GATHER_NUMBERS", 2**12)
    monkeypatch.setattr("llm_entropy.measuring.module.TILE_STATES", 1)  # one record at a time
    chunked = measure(family, batch_of(family), vector_for(family), use_sampling=True)
    assert_same_records(by_record(whole), by_record(chunked))


# --- types of the weights ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", MODELS)
def test_half_precision_weights_give_float32_statistics(family: str, dtype: torch.dtype) -> None:
    model = make_model(family, attention=readable_attention(family)).to(dtype)
    # One sentence at a time, so that the model's own rounding is the same here and there.
    example = examples_of(family)[-1]
    batch = batch_of(family, [example])
    inputs = []
    decoder = model.get_output_embeddings()
    handle = decoder.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    with torch.no_grad():
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    handle.remove()
    records = measure(family, batch, vector_for(family), view=view_model(model))
    for condition in records.conditions.values():
        for name, values in condition.metrics.items():
            assert values.dtype == torch.float32, name
            about = ALL_METRICS[name]
            present = values[records.positions > 0] if about.has_gaps else values[:, about.first :]
            assert present.isfinite().all(), name
        assert condition.tokens.top_probabilities.dtype == condition.tokens.tracked_probabilities.dtype == torch.float32
    with torch.no_grad():
        bias = None if decoder.bias is None else decoder.bias.double()
        logits = torch.nn.functional.linear(inputs[0][0].double(), decoder.weight.double(), bias)[example.positions]
    cap = getattr(model.config, "final_logit_softcapping", None)
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    metrics = records.conditions[STANDARD].metrics
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(metrics["entropy"][:, -1].double(), entropy, rtol=1e-4, atol=2e-5)
    known = batch.targets >= 0
    surprisal = cross_entropy(logits[known], batch.targets[known], reduction="none")
    torch.testing.assert_close(metrics["surprisal"][known, -1].double(), surprisal, rtol=1e-4, atol=2e-5)


# --- sampling ------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("family", MODELS)
def test_a_sampled_token_depends_on_the_seed(family: str) -> None:
    def tokens(seed: int, condition: str = STANDARD, factor: float = 0.0) -> torch.Tensor:
        batch = dataclasses.replace(batch_of(family, seed=seed))
        batch.targets = torch.full_like(batch.targets, -1)
        records = measure(family, batch, factor * vector_for(family), use_sampling=True, temperature=1.3)
        found = records.conditions[condition].tokens
        assert torch.equal(found.top_ids[:, 0], found.target_ids)
        return found.target_ids

    assert torch.equal(tokens(1), tokens(1))
    assert not torch.equal(tokens(1), tokens(2))
    # Both conditions draw with the same random numbers.
    assert torch.equal(tokens(1), tokens(1, CONTROL))
    assert not torch.equal(tokens(1), tokens(1, CONTROL, factor=1.0))


def chi_square(counts: Any, probabilities: Any) -> float:
    """Return the p-value of counts under probabilities; rare tokens count together."""
    expected = counts.sum() * probabilities / probabilities.sum()
    common = expected >= 5
    pooled = [np.append(numbers[common], numbers[~common].sum()) for numbers in (counts, expected)]
    return float(scipy.stats.chisquare(*pooled).pvalue)


@pytest.mark.gpu
@pytest.mark.parametrize("family", MODELS)
def test_sampled_frequencies_are_the_probabilities(family: str) -> None:
    """A coarse test, that tells temperature 1.3 from 1."""
    num_draws, batch = 6000, batch_of(family, examples_of(family)[-1:])
    position = int(batch.positions[-1])
    of_draws = {
        name: torch.full((num_draws,), number)
        for name, number in {"rows": 0, "positions": position, "targets": -1, "starts": -1, "ends": -1}.items()
    }
    draws = dataclasses.replace(
        batch,
        **of_draws,
        sentence_ids=torch.arange(num_draws),
        uniforms=torch.from_numpy(sampling_uniforms(SEED, np.arange(num_draws), np.full(num_draws, position))),
    )
    found = measure(family, draws, use_sampling=True, temperature=1.3).conditions[STANDARD].tokens
    with torch.no_grad():
        logits = view_of(family).model(input_ids=batch.input_ids).logits[0, position].double()
    counts = np.bincount(found.target_ids.numpy(), minlength=len(logits))
    assert chi_square(counts, (logits / 1.3).softmax(-1).numpy()) > 1e-3
    assert chi_square(counts, logits.softmax(-1).numpy()) < 1e-6
    torch.testing.assert_close(
        found.top_probabilities[:, 0].double(), (logits / 1.3).softmax(-1)[found.target_ids], rtol=1e-4, atol=1e-6
    )
