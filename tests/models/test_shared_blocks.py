"""A second condition that starts behind the blocks it shares, against one that runs them all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plans import added
from tiny_models import FAMILIES, HIDDEN, make_model

from llm_entropy.corpus.batching import collate
from llm_entropy.measuring.asked import Asked
from llm_entropy.measuring.lens import Lens
from llm_entropy.measuring.module import EntropyModule
from llm_entropy.models.families import run_base, view_model
from llm_entropy.models.layers import read_layers
from llm_entropy.models.shared_blocks import keep_outputs, start_behind
from llm_entropy.schema.batches import PREDICTED, Batch, Example
from llm_entropy.schema.records import Records
from llm_entropy.settings import METRICS, AnalysisSettings, ControlSettings

LENGTHS = (7, 4, 6)


def make_batch() -> Batch:
    generator = torch.Generator().manual_seed(2)
    examples = []
    for number, length in enumerate(LENGTHS):
        ids = torch.randint(3, 60, (length,), generator=generator).tolist()
        examples.append(Example(number, f"sentence {number}", ids, [length - 2], [PREDICTED], [-1], [-1]))
    return collate(examples, 0, 0)


def records_of(family: str, first_layer: int | None, **analysis: Any) -> Records:
    view = view_model(make_model(family))
    vectors = torch.zeros(view.shape.num_layers, HIDDEN)
    if first_layer is not None:
        rows = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(3))
        vectors[first_layer:] = rows[first_layer:]
    control = ControlSettings(control_vector=[1.0])
    settings = AnalysisSettings(control=control, metrics=list(METRICS), **analysis)
    return EntropyModule(view, Lens(view), Asked(settings, {"control": added(vectors)})).predict_step(make_batch())


@pytest.mark.parametrize("family", FAMILIES)
def test_steering_gives_the_same_bits_wherever_the_second_pass_starts(family: str):
    num_layers = FAMILIES[family].num_blocks + 1
    for first_layer in (*range(num_layers), None):
        alone = records_of(family, first_layer).conditions["control"]
        compared = records_of(family, first_layer, compare_control=True).conditions
        for name, values in alone.metrics.items():
            exact = {"rtol": 0.0, "atol": 0.0} if "attention" in METRICS[name].needs else {"rtol": 1e-4, "atol": 2e-5}
            torch.testing.assert_close(compared["control"].metrics[name], values, **exact, equal_nan=True)
        shared = num_layers if first_layer is None else first_layer
        for name in ("entropy", "margin", "residual_norm"):
            standard, control = (own.metrics[name] for own in compared.values())
            assert torch.equal(standard[:, :shared], control[:, :shared])
            if first_layer is not None:
                assert not torch.equal(standard[:, first_layer], control[:, first_layer])


@pytest.mark.parametrize("family", ["gpt2", "albert", "bloom"])
def test_blocks_that_are_shared_run_once(family: str):
    view = view_model(make_model(family))
    batch = make_batch()
    forwards = [module.forward for module in view.blocks]
    runs: list[int] = []
    for number, attention in enumerate(dict.fromkeys(view.attentions)):
        attention.register_forward_hook(lambda *_, number=number: runs.append(number))
    with keep_outputs(view, {1}) as kept, read_layers(view, batch.rows, batch.positions) as whole:
        run_base(view, batch.input_ids, batch.attention_mask)
    num_blocks = len(runs)
    with start_behind(view, 1, kept[1]), read_layers(view, batch.rows, batch.positions) as rest:
        run_base(view, batch.input_ids, batch.attention_mask)
    assert len(runs) == num_blocks + num_blocks - 2
    assert torch.equal(rest.stack()[2:], whole.stack()[2:])
    assert [module.forward for module in view.blocks] == forwards
    assert not any("forward" in vars(module) for module in view.blocks)


def test_a_model_is_left_as_it_was_after_an_error():
    view = view_model(make_model("gpt2"))
    batch = make_batch()
    with keep_outputs(view, {1}) as kept:
        run_base(view, batch.input_ids, batch.attention_mask)
    with pytest.raises(KeyError), start_behind(view, 1, kept[1]):
        raise KeyError
    assert not any("forward" in vars(module) for module in view.blocks)
