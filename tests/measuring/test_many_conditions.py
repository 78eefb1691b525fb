"""Any number of conditions on one batch: each has the bits that it has alone, whatever runs beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, HIDDEN, make_model

from llm_entropy.corpus.batching import collate
from llm_entropy.measuring import module as module_file
from llm_entropy.measuring.asked import Asked
from llm_entropy.measuring.budget import conditions_together, rows_together
from llm_entropy.measuring.lens import Lens
from llm_entropy.measuring.module import EntropyModule
from llm_entropy.models.families import view_model
from llm_entropy.schema.batches import PREDICTED, Batch, Example
from llm_entropy.schema.records import ConditionRecords, Records
from llm_entropy.settings import COMPARISON_METRICS, METRICS, AnalysisSettings, ControlSettings
from llm_entropy.steering.conditions import plan_conditions

MODELS = ("gpt2", "bert", "albert", "llama")
LENGTHS = (7, 4, 6, 9, 3)
VECTOR = torch.linspace(-1.0, 1.5, HIDDEN)


def make_batch() -> Batch:
    generator = torch.Generator().manual_seed(2)
    examples = []
    for number, length in enumerate(LENGTHS):
        ids = torch.randint(3, 60, (length,), generator=generator).tolist()
        places = list(range(length))
        targets = [*ids[1:], PREDICTED]
        examples.append(Example(number, f"sentence {number}", ids, places, targets, [-1] * length, [-1] * length))
    return collate(examples, 0, 0)


def make_module(family: str, **analysis: Any) -> EntropyModule:
    view = view_model(make_model(family))
    settings = AnalysisSettings(metrics=list(METRICS), **analysis)
    sizes = {"num_blocks": view.shape.num_blocks, "hidden_size": view.shape.hidden_size}
    plans = plan_conditions(settings.run_conditions, model=family, seed=5, **sizes)
    return EntropyModule(view, Lens(view), Asked(settings, plans))


def measure(family: str, **analysis: Any) -> Records:
    return make_module(family, **analysis).predict_step(make_batch())


def behind(first_block: int, family: str) -> list[float]:
    """Layer weights that leave the blocks before one as they are."""
    return [float(block >= first_block) for block in range(FAMILIES[family].num_blocks)]


def assert_identical(a: ConditionRecords, b: ConditionRecords, names: Sequence[str] = tuple(METRICS)) -> None:
    assert a.tokens is not None
    assert b.tokens is not None
    for values, expected in zip(a.tokens, b.tokens, strict=True):
        assert torch.equal(values, expected)
    for name in names:
        torch.testing.assert_close(a.metrics[name], b.metrics[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("use_sampling", [False, True])
@pytest.mark.parametrize("family", MODELS)
def test_strength_zero_is_the_standard_run_bit_for_bit(family: str, use_sampling: bool) -> None:
    control = ControlSettings(control_vector=VECTOR, strengths=[-1, 0, 2])
    found = measure(family, compare_control=True, use_sampling=use_sampling, control=control).conditions
    assert list(found) == ["standard", "control_-1", "control_+0", "control_+2"]
    assert_identical(found["control_+0"], found["standard"])
    for name in COMPARISON_METRICS:
        assert not found["control_+0"].metrics[name].any()
    assert found["control_+2"].metrics["kl_from_standard"][:, -1].all()


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("compares", [True, False])
def test_several_conditions_have_the_bits_of_runs_with_one_each(family: str, compares: bool) -> None:
    weights = {"early": behind(0, family), "late": behind(2, family), "both": behind(1, family)}
    vectors = {name: {"control_vector": VECTOR, "layer_weights": own} for name, own in weights.items()}
    strengths = {"early": [-1.0, 1.0], "late": [0.5], "both": [3.0]}
    together = measure(
        family,
        compare_control=compares,
        conditions={name: {**own, "strengths": strengths[name]} for name, own in vectors.items()},
    ).conditions
    names = [*METRICS, *COMPARISON_METRICS] if compares else list(METRICS)
    for source, own in vectors.items():
        for strength in strengths[source]:
            alone = measure(family, compare_control=compares, conditions={source: {**own, "strength": strength}})
            name = source if len(strengths[source]) == 1 else f"{source}_{strength:+g}"
            assert_identical(together[name], alone.conditions[source], names)
            if compares:
                assert_identical(together["standard"], alone.conditions["standard"])


@pytest.mark.parametrize("family", MODELS)
def test_one_of_several_strengths_alone_is_the_strength(family: str) -> None:
    vector = {"control_vector": VECTOR}
    one = measure(family, compare_control=True, control={**vector, "strengths": [1.5]}).conditions
    other = measure(family, compare_control=True, control={**vector, "strength": 1.5}).conditions
    assert list(one) == list(other) == ["standard", "control"]
    assert_identical(one["control"], other["control"], [*METRICS, *COMPARISON_METRICS])


FIVE = {
    "compare_control": True,
    "control": {"control_vector": VECTOR, "strengths": [-2, 1, 3], "placebo": {"random": 2}},
}


@pytest.mark.parametrize("family", MODELS)
def test_groups_of_rows_and_of_conditions_give_the_same_numbers(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measure(family, **FIVE)
    monkeypatch.setattr("llm_entropy.measuring.budget.STATES_BYTES", 1)
    module, seen = make_module(family, **FIVE), []
    measure_part, read = module._measure, module._read
    monkeypatch.setattr(module, "_measure", lambda batch: seen.append(len(batch.sentences)) or measure_part(batch))
    grouped = module.predict_step(make_batch())
    assert len(seen) > 1
    assert sum(seen) == len(LENGTHS)

    together: list[int] = []
    monkeypatch.setattr(module_file, "rows_together", lambda num_rows, *_: num_rows)
    monkeypatch.setattr(module, "_read", lambda *given: together.append(len(given[1])) or read(*given))
    split = module.predict_step(make_batch())
    assert len(together) > 1
    assert sum(count - 1 for count in together) == len(whole.conditions) - 1

    for other in (grouped, split):
        assert list(other.conditions) == list(whole.conditions)
        for name, own in whole.conditions.items():
            for metric, values in own.metrics.items():
                found = other.conditions[name].metrics[metric]
                torch.testing.assert_close(found, values, rtol=1e-4, atol=2e-5, equal_nan=True)
            if own.tokens is not None:
                assert torch.equal(other.conditions[name].tokens.target_ids, own.tokens.target_ids)


def test_the_records_of_a_placebo_are_metrics_alone() -> None:
    found = measure("gpt2", **FIVE).conditions
    shape = view_model(make_model("gpt2")).shape
    for name, own in found.items():
        is_placebo = "random" in name
        assert (own.tokens is None) == is_placebo
        heads = [] if is_placebo else [shape.num_heads]
        for metric in ("attention_entropy", "attended_entropy"):
            assert list(own.metrics[metric].shape) == [sum(LENGTHS), shape.num_blocks, *heads]
    assert not torch.equal(*(found[f"control_random_{number}"].metrics["entropy"] for number in (1, 2)))


def test_the_states_of_many_conditions_take_what_those_of_three_take() -> None:
    big = 2**24  # bytes of a layer's states
    assert rows_together(64, 13 * 3, 13, big) == 64
    assert rows_together(64, 13 * 31, 13, big) == 64 * 3 // 31
    assert rows_together(64, 13 * 31, 13, 2**12) == 64, "small states go together"
    assert rows_together(1, 13 * 31, 13, big) == 1
    assert conditions_together([], 13, big) == [0]
    assert conditions_together([12], 13, big) == [1]
    assert conditions_together([13] * 30, 13, big) == [2] * 15
    assert conditions_together([1] * 30, 13, big) == [26, 4]
    assert conditions_together([12] * 30, 13, 2**12) == [30]
