"""What a model writes: as transformers' own `generate` with plain hooks, whatever the batch; sampled by given draws."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import CAUSAL, HIDDEN, make_model, readable_attention
from torch import Tensor
from torch.nn import functional

from llm_entropy.corpus.batching import collate
from llm_entropy.corpus.draws import sampling_uniforms
from llm_entropy.measuring.asked import Asked
from llm_entropy.measuring.generated import measuring_module
from llm_entropy.measuring.lens import Lens
from llm_entropy.measuring.module import EntropyModule
from llm_entropy.measuring.writing import sample_nucleus
from llm_entropy.models.families import ModelView, view_model
from llm_entropy.schema.batches import NO_TOKEN, PREDICTED, Batch, Example
from llm_entropy.schema.records import Records
from llm_entropy.schema.statistics import Unembedding
from llm_entropy.settings import STANDARD_SURPRISAL, AnalysisSettings
from llm_entropy.steering.conditions import plan_conditions
from llm_entropy.steering.plan import SteeringPlan

NUM_NEW = 12
LENGTHS = (7, 4, 6, 9, 3)
VECTOR = torch.linspace(-1.0, 1.5, HIDDEN)
CONTROL: dict[str, Any] = {"control_vector": VECTOR, "strengths": [-1.5, 0, 1.0], "token_weights": [0.5, 1.0, 2.0]}
SEED = 3


def examples(num_new: int = NUM_NEW) -> list[Example]:
    generator = torch.Generator().manual_seed(2)
    made = []
    for number, length in enumerate(LENGTHS):
        ids = torch.randint(3, 60, (length,), generator=generator).tolist()
        places = list(range(length - 1, length - 1 + num_new))
        unknown = [-1] * num_new
        made.append(Example(number, f"sentence {number}", ids, places, [PREDICTED] * num_new, unknown, unknown))
    return made


def make_module(family: str, **analysis: Any) -> EntropyModule:
    view = view_model(make_model(family, attention=readable_attention(family)))
    analysis = {"max_new_tokens": NUM_NEW, "metrics": ["entropy"], **analysis}
    settings = AnalysisSettings(positions="generated", **analysis)
    sizes = {"num_blocks": view.shape.num_blocks, "hidden_size": view.shape.hidden_size}
    return measuring_module(
        view, Lens(view), Asked(settings, plan_conditions(settings.run_conditions, model="m", seed=5, **sizes))
    )


def texts_of(records: Records, condition: str) -> dict[int, list[int]]:
    """Return the tokens that a condition wrote, by sentence id."""
    written = records.conditions[condition].written
    assert written is not None
    texts: dict[int, list[int]] = {}
    for number, token in zip(records.sentence_ids.tolist(), written.tolist(), strict=True):
        texts.setdefault(number, []).extend([] if token == NO_TOKEN else [token])
    return texts


def measure(
    module: EntropyModule, batch_size: int = len(LENGTHS), sentences: Sequence[int] = range(len(LENGTHS))
) -> list[Records]:
    chosen = [example for example in examples(module.analysis.num_new_tokens) if example.sentence_id in sentences]
    groups = [chosen[start : start + batch_size] for start in range(0, len(chosen), batch_size)]
    return [module.predict_step(collate(group, 0, SEED)) for group in groups]


def in_batches(module: EntropyModule, size: int, condition: str) -> dict[int, list[int]]:
    return {number: text for records in measure(module, size) for number, text in texts_of(records, condition).items()}


@contextmanager
def plain_hooks(view: ModelView, plan: SteeringPlan | None, lengths: Sequence[int]) -> Iterator[None]:
    """Add a plan's vectors as a user would, on sentences that are padded on the left."""
    weights = (
        [
            functional.interpolate(plan.token_weights[None, None], size=length, mode="linear", align_corners=False)[
                0, 0
            ]
            for length in lengths
        ]
        if plan is not None
        else []
    )
    prompt = torch.stack([functional.pad(own, (max(lengths) - len(own), 0)) for own in weights]) if weights else None

    def hook(addend: Tensor) -> Any:
        def add(_: Any, __: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            scale = prompt if hidden.shape[1] == max(lengths) else torch.full((len(lengths), 1), 2.0)
            new = hidden + scale[..., None] * addend
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return add

    handles = (
        []
        if plan is None
        else [
            block.register_forward_hook(hook(addend))
            for block, addend in zip(view.blocks, plan.addends[1:], strict=True)
        ]
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def generated(module: EntropyModule, condition: str) -> dict[int, list[int]]:
    """Return what transformers writes, all sentences in one batch that is padded on the left."""
    prompts = [example.input_ids for example in examples()]
    width = max(map(len, prompts))
    ids = torch.tensor([[1] * (width - len(own)) + own for own in prompts])
    mask = torch.tensor([[0] * (width - len(own)) + [1] * len(own) for own in prompts])
    plan = module.plans[[one.name for one in module.conditions].index(condition)]
    model = module.view.model
    with plain_hooks(module.view, plan, LENGTHS), torch.no_grad():
        found = model.generate(ids, attention_mask=mask, max_new_tokens=NUM_NEW, do_sample=False, pad_token_id=1)
    return {number: until_end(row[width:].tolist()) for number, row in enumerate(found)}


def until_end(ids: list[int], end: int = 0) -> list[int]:
    return ids[: ids.index(end) + 1] if end in ids else ids


@pytest.mark.parametrize("family", CAUSAL)
def test_greedy_text_is_that_of_generate_with_plain_hooks_in_every_condition_and_batch(family: str) -> None:
    module = make_module(family, compare_control=True, control=CONTROL)
    together, alone = measure(module)[0], measure(module, 1)
    for condition in together.conditions:
        expected = generated(module, condition)
        assert texts_of(together, condition) == expected
        assert {number: text for one in alone for number, text in texts_of(one, condition).items()} == expected
    assert texts_of(together, "control_-1.5") != texts_of(together, "control_+0") == texts_of(together, "standard")


def test_a_text_ends_behind_the_token_that_ends_it_and_all_steps_of_no_text_are_left_out() -> None:
    module = make_module("gpt2", compare_control=True, control=CONTROL)
    first = texts_of(measure(module)[0], "standard")
    ends = {first[0][2], first[1][0], first[2][5]}
    module.writing = replace(module.writing, end_tokens=torch.tensor(sorted(ends)))
    (records,) = measure(module)
    cut = {
        number: next((text[: i + 1] for i, token in enumerate(text) if token in ends), text)
        for number, text in first.items()
    }
    assert texts_of(records, "standard") == cut
    assert min(map(len, cut.values())) == 1
    longest = {
        number: max(len(texts_of(records, name)[number]) for name in records.conditions)
        for number in range(len(LENGTHS))
    }
    assert [records.sentence_ids.tolist().count(number) for number in longest] == list(longest.values())
    for own in records.conditions.values():
        missing = own.written == NO_TOKEN
        assert missing.any()
        assert torch.equal(own.metrics["entropy"].isnan().all(dim=1), missing)
        assert torch.equal(own.metrics["entropy"].isnan().any(dim=1), missing)


def text_module(module: EntropyModule, condition: str | None) -> EntropyModule:
    """Return a module that reads given texts at every position under the standard condition, or under another alone."""
    module.analysis.positions = "all"
    settings = AnalysisSettings(positions="all", metrics=module.analysis.metrics)
    plain = EntropyModule(module.view, module.lens, Asked(settings, {}))
    if condition is not None:
        plain.plans = [module.plans[[one.name for one in module.conditions].index(condition)]]
    return plain


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_records_are_what_the_written_text_gives_under_its_own_condition_and_under_the_standard_one(
    family: str,
) -> None:
    metrics = ["entropy", "surprisal", "attention_entropy"]
    control = {"control_vector": VECTOR, "strengths": [-1.5, 1.0], "placebo": {"random": 1}}
    (records,) = measure(module := make_module(family, compare_control=True, control=control, metrics=metrics))
    placebo = records.conditions["control_random_1"]
    assert placebo.tokens is None
    assert placebo.written is not None
    for name, own in records.conditions.items():
        for number, text in texts_of(records, name).items():
            prompt = examples()[number].input_ids
            ids, places = [*prompt, *text], list(range(len(prompt) - 1, len(prompt) + len(text) - 1))
            none = [-1] * len(text)
            batch = collate([Example(number, "x", ids[:-1], places, text, none, none)], 0, SEED)
            mine = (records.sentence_ids == number) & (own.written != NO_TOKEN)
            read = text_module(module, name).predict_step(batch).conditions["standard"]
            for metric, expected in read.metrics.items():
                expected = expected if own.tokens is not None or expected.ndim == 2 else expected.mean(dim=-1)
                torch.testing.assert_close(own.metrics[metric][mine], expected, rtol=1e-4, atol=2e-5)
            if own.tokens is not None:
                assert torch.equal(own.tokens.target_ids[mine], torch.tensor(text))
            standard = text_module(module, None).predict_step(batch).conditions["standard"]
            found = own.metrics[STANDARD_SURPRISAL][mine]
            torch.testing.assert_close(found, standard.metrics["surprisal"], rtol=1e-4, atol=2e-5)
        if name != "standard":
            kl = own.metrics["kl_from_standard"][own.written != NO_TOKEN]
            assert kl[:, 0].eq(0).all()
            assert kl[:, -1].gt(0).all()


@pytest.mark.parametrize("top_p", [None, 0.4])
def test_sampled_texts_are_the_same_in_any_batch_and_depend_on_the_draws(top_p: float | None) -> None:
    words = {"compare_control": True, "control": CONTROL, "use_sampling": True, "top_p": top_p, "temperature": 1.3}
    module = make_module("gpt2", **words)
    for name in ("standard", "control_-1.5"):
        together = in_batches(module, len(LENGTHS), name)
        assert together == in_batches(module, 1, name) == in_batches(module, 2, name)
    greedy = in_batches(make_module("gpt2", **{**words, "use_sampling": False, "top_p": None}), 5, "standard")
    assert greedy != in_batches(module, 5, "standard") == in_batches(module, 5, "control_+0")


def test_a_sampled_token_is_the_one_at_which_the_cumulative_probability_of_its_nucleus_exceeds_the_draw() -> None:
    module = make_module("gpt2", use_sampling=True, top_p=0.3)
    for number, text in in_batches(module, 5, "standard").items():
        ids = list(examples()[number].input_ids)
        for token in text:
            with torch.no_grad():
                logits = module.view.model(torch.tensor([ids])).logits[0, -1].double().numpy()
            p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
            ordered = np.argsort(-p, kind="stable")
            nucleus = np.sort(ordered[: np.searchsorted(np.cumsum(p[ordered]), 0.3) + 1])
            draw = sampling_uniforms(SEED, [number], [len(ids) - 1])[0]
            shares = np.cumsum(p[nucleus]) / p[nucleus].sum()
            assert token == nucleus[np.searchsorted(shares, draw, side="right")]
            ids.append(token)


def test_a_nucleus_of_everything_draws_as_sampling_does_and_a_small_one_takes_the_most_likely_token() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, weight = torch.randn(50, 8, generator=generator), torch.randn(40, 8, generator=generator)
    draws, unembedding = torch.rand(50, generator=generator, dtype=torch.float64), Unembedding(weight)
    logits = inputs @ weight.T
    everything = sample_nucleus(inputs, unembedding, draws, 1.0)
    cumulative = logits.double().softmax(-1).cumsum(-1)
    assert torch.equal(everything, (cumulative <= draws[:, None]).sum(-1))
    assert torch.equal(sample_nucleus(inputs, unembedding, draws, 1e-6), logits.argmax(-1))
    assert torch.equal(
        sample_nucleus(inputs, unembedding, torch.full_like(draws, 1 - 2.0**-53), 1e-6), logits.argmax(-1)
    )


@pytest.mark.parametrize("tokens", ["prompt", "last", "no_special", "2:", ":3"])
def test_new_tokens_are_steered_by_the_choice_of_tokens(tokens: str) -> None:
    module = make_module("gpt2", control={"control_vector": VECTOR, "strength": 2.0, "tokens": tokens})
    (plan,) = module.plans
    assert plan is not None
    for number, text in in_batches(module, 5, "control").items():
        prompt = list(examples()[number].input_ids)
        length, ids = len(prompt), list(prompt)
        own = {
            "prompt": range(length),
            "last": [length - 1],
            "no_special": range(length),
            "2:": range(2, length),
            ":3": range(3),
        }
        steers_new = tokens in ("last", "no_special", "2:")
        for token in text:
            steered = [place in own[tokens] if place < length else steers_new for place in range(len(ids))]
            assert token == next_token(module.view, plan, ids, steered)
            ids.append(token)


def next_token(view: ModelView, plan: SteeringPlan, ids: list[int], steered: list[bool]) -> int:
    """Return the most likely next token of a forward pass over all of a text, some of whose tokens are steered."""
    weights = torch.tensor(steered).float()[None, :, None]
    handles = [
        block.register_forward_hook(lambda _, __, output, addend=addend: output + weights * addend)
        for block, addend in zip(view.blocks, plan.addends[1:], strict=True)
    ]
    try:
        with torch.no_grad():
            return int(view.model(torch.tensor([ids])).logits[0, -1].argmax())
    finally:
        for handle in handles:
            handle.remove()


def test_out_of_memory_halves_the_sentences_and_changes_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    module = make_module("gpt2", compare_control=True, control=CONTROL)
    (whole,) = measure(module)
    measure_rows = module._measure

    def refuse_many(batch: Batch) -> Any:
        if len(batch.sentences) > 2:
            raise torch.OutOfMemoryError
        return measure_rows(batch)

    monkeypatch.setattr(module, "_measure", refuse_many)
    (parts,) = measure(module)
    for name in whole.conditions:
        assert texts_of(parts, name) == texts_of(whole, name)
    assert torch.equal(parts.positions, whole.positions)


def test_conditions_without_a_standard_one_write_and_read_their_texts_alone() -> None:
    compared = measure(make_module("gpt2", compare_control=True, control=CONTROL))[0].conditions
    (records,) = measure(make_module("gpt2", control=CONTROL))
    assert list(records.conditions) == [name for name in compared if name != "standard"]
    for name, own in records.conditions.items():
        assert set(own.metrics) == {"entropy"}
        expected = compared[name]
        places, same = ((one.written != NO_TOKEN).nonzero()[:, 0] for one in (own, expected))
        assert torch.equal(own.written[places], expected.written[same])
        found = own.metrics["entropy"][places]
        torch.testing.assert_close(found, expected.metrics["entropy"][same], rtol=1e-5, atol=1e-5)


def test_a_batch_without_sentences_has_no_records() -> None:
    records = make_module("gpt2").predict_step(collate([], 0, SEED))
    assert (len(records.positions), records.conditions, records.texts) == (0, {}, {})
