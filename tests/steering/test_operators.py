"""Operators: each against its formula in numpy, and in real tiny models by hooks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from plans import plan_of
from test_hooks import BLOCKS_OF, inputs_read, logits_of, num_hooks, sentences, tiny
from tiny_models import HIDDEN
from torch import Tensor

from llm_entropy.errors import ReportedError
from llm_entropy.settings import AnalysisSettings, ControlSettings
from llm_entropy.steering.conditions import plan_conditions
from llm_entropy.steering.hooks import steer
from llm_entropy.steering.operators import OPERATORS, Action
from llm_entropy.steering.plan import SteeringPlan

VECTOR = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(1))
SETTINGS: dict[str, dict[str, Any]] = {name: {"operator": name} for name in OPERATORS}
SETTINGS["cap"]["cap"] = 0.3


def numpy_add(h: Any, v: Any, s: Any) -> Any:
    return h + s * v


def numpy_add_keep_norm(h: Any, v: Any, s: Any) -> Any:
    return (h + s * v) * np.linalg.norm(h, axis=-1, keepdims=True) / np.linalg.norm(h + s * v, axis=-1, keepdims=True)


def numpy_project_out(h: Any, v: Any, s: Any) -> Any:
    u = v / np.linalg.norm(v)
    return h - s * (h @ u)[..., None] * u


def numpy_cap(h: Any, v: Any, s: Any) -> Any:
    u = v / np.linalg.norm(v)
    return h + s * (np.minimum(h @ u, 0.3) - h @ u)[..., None] * u


EXPECTED = {
    "add": numpy_add,
    "add_keep_norm": numpy_add_keep_norm,
    "project_out": numpy_project_out,
    "cap": numpy_cap,
}


def make_plan(operator: str, vector: Tensor = VECTOR, num_blocks: int = 1, sign: int = 1, **more: Any) -> SteeringPlan:
    return plan_of(ControlSettings(**SETTINGS[operator], **more), vector, num_blocks=num_blocks, sign=sign)


def apply(plan: SteeringPlan, hidden: Tensor, weights: Tensor) -> Tensor:
    return OPERATORS[plan.operator](hidden, plan.action(1), weights[..., None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("operator", OPERATORS)
def test_an_operator_is_its_formula(operator: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(3, 5, HIDDEN, generator=generator, dtype=torch.float64).to(dtype)
    weights = torch.randn(3, 5, generator=generator)
    weights[0] = 0
    copy = hidden.clone()
    got = apply(make_plan(operator, strength=0.7), hidden, weights)
    expected = EXPECTED[operator](
        hidden.double().numpy(), VECTOR.double().numpy(), 0.7 * weights.double().numpy()[..., None]
    )
    assert got.dtype == dtype
    budget = 1e-2 if dtype == torch.bfloat16 else 1e-5
    np.testing.assert_allclose(got.double().numpy(), expected, rtol=budget, atol=budget)
    assert torch.equal(got[0], hidden[0]), "a token of weight 0 was changed"
    assert (got[1:] != hidden[1:]).any()
    assert torch.equal(hidden, copy), "the stream was changed in place"


def test_projecting_out_at_strength_one_leaves_nothing_along_the_vector() -> None:
    hidden = 100 * torch.randn(3, 5, HIDDEN, generator=torch.Generator().manual_seed(3))
    left = apply(make_plan("project_out"), hidden, torch.ones(3, 5))
    along = left @ (VECTOR / VECTOR.norm())
    assert along.abs().max() < 1e-5 * hidden.norm(dim=-1).max()


def test_adding_at_the_same_norm_keeps_norms() -> None:
    hidden = torch.randn(3, 5, HIDDEN, generator=torch.Generator().manual_seed(4))
    hidden[0, 0] = 0
    moved = apply(make_plan("add_keep_norm", strength=5.0), hidden, torch.ones(3, 5))
    torch.testing.assert_close(moved.norm(dim=-1), hidden.norm(dim=-1), rtol=1e-6, atol=0)
    opposite = apply(make_plan("add_keep_norm", strength=-1.0), VECTOR.expand(1, 1, -1), torch.ones(1, 1))
    assert not opposite.any(), "nothing has no direction in which it could be stretched"


def test_a_cap_changes_what_exceeds_it_alone() -> None:
    unit = VECTOR / VECTOR.norm()
    hidden = torch.stack([2 * unit, 0.2 * unit, -5 * unit])[None]
    capped = apply(make_plan("cap"), hidden, torch.ones(1, 3))
    assert torch.equal(capped[0, 1:], hidden[0, 1:])
    torch.testing.assert_close(capped[0, 0], 0.3 * unit)
    # The negative direction caps at the other end.
    floored = apply(make_plan("cap", sign=-1), hidden, torch.ones(1, 3))
    assert torch.equal(floored[0, :2], hidden[0, :2])
    torch.testing.assert_close(floored[0, 2], -0.3 * unit)


def test_turning_a_vector_does_not_change_what_is_projected_out() -> None:
    hidden = torch.randn(1, 3, HIDDEN, generator=torch.Generator().manual_seed(5))
    turned, straight = (apply(make_plan("project_out", sign=sign), hidden, torch.ones(1, 3)) for sign in (-1, 1))
    torch.testing.assert_close(turned, straight)


@pytest.mark.parametrize("family", ["gpt2", "llama", "albert"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_an_operator_acts_at_every_block_of_a_model_and_the_hooks_are_undone(operator: str, family: str) -> None:
    model, (ids, mask) = tiny(family), sentences()
    blocks = BLOCKS_OF[family](model)
    weights = torch.linspace(0.5, 1.5, len(blocks))
    plan = make_plan(operator, num_blocks=len(blocks), layer_weights=weights.tolist())
    standard, before = logits_of(model, ids, mask), num_hooks(model)
    plain: list[Tensor] = []

    def seen(module: Any, args: Any, output: Any) -> None:
        plain.append((output[0] if isinstance(output, tuple) else output).clone())

    with inputs_read(blocks) as steered, steer(blocks, plan, mask):
        # Prepended last, so that it stands before the one that steers.
        handles = [block.register_forward_hook(seen, prepend=True) for block in dict.fromkeys(blocks)]
        logits = logits_of(model, ids, mask)
        for handle in handles:
            handle.remove()
    assert num_hooks(model) == before
    assert len(plain) == len(blocks)
    for block in range(len(blocks) - 1):
        s = (weights[block] * mask).double().numpy()[..., None]
        expected = EXPECTED[operator](plain[block].double().numpy(), VECTOR.double().numpy(), s)
        np.testing.assert_allclose(steered[block + 1].numpy(), expected, rtol=1e-4, atol=1e-4)
    assert (logits - standard)[mask == 1].abs().max() > 1e-3
    assert torch.equal(logits_of(model, ids, mask), standard)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("nothing", [{"strength": 0.0}, {"layer_weights": [0.0]}, {"token_weights": [0.0]}, "vector"])
def test_no_operator_acts_without_a_vector_a_strength_or_a_weight(operator: str, nothing: Any) -> None:
    more, vector = ({}, 0 * VECTOR) if nothing == "vector" else (nothing, VECTOR)
    plan = make_plan(operator, vector, num_blocks=3, **more)
    assert plan.steered_layers == []
    assert plan.first_layer is None
    assert plan.units.isfinite().all()


def test_a_short_vector_has_a_direction_too() -> None:
    plan = make_plan("project_out", 1e-30 * VECTOR, strength=1e-20)
    assert plan.steered_layers == [1]
    torch.testing.assert_close(plan.units[1], VECTOR / VECTOR.norm())


def test_a_placebo_has_the_operator_and_the_cap_of_its_vector() -> None:
    control = {"control_vector": VECTOR, **SETTINGS["cap"], "placebo": {"random": 1}, "tokens": "last"}
    settings = AnalysisSettings(compare_control=True, control=control)
    plans = plan_conditions(settings.run_conditions, model="m", num_blocks=2, hidden_size=HIDDEN, seed=1)
    for name in ("control", "control_random_1"):
        assert (plans[name].operator, plans[name].cap, plans[name].tokens) == ("cap", 0.3, "last")
    assert not torch.equal(plans["control"].units, plans["control_random_1"].units)
    assert plans["control"].to(torch.device("meta")).cap == 0.3


@pytest.mark.parametrize(
    ("control", "message"),
    [
        ({"operator": "cap"}, r"control\.cap: got null, but analysis\.control\.operator is cap; give a number"),
        ({"cap": 2.0}, r"control\.cap: got 2, but analysis\.control\.operator is add; set the operator to cap"),
        ({"operator": "cap", "cap": float("nan")}, r"control\.cap: got \[nan\]; expected finite numbers"),
        ({"operator": "ablate"}, r"control\.operator: got 'ablate' \(str\); expected one of 'add', 'add_keep_norm'"),
    ],
)
def test_a_cap_and_its_operator_go_together(control: dict[str, Any], message: str) -> None:
    with pytest.raises(ReportedError, match=message):
        ControlSettings(**control)


def test_the_settings_know_every_operator() -> None:
    for name in OPERATORS:
        assert make_plan(name).operator == name
    assert Action(VECTOR, VECTOR, torch.tensor(1.0)).cap is None
