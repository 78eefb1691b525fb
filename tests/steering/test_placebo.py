"""Placebos: the vector's size at every block, another direction, the same one for the same seed."""

from __future__ import annotations

import pytest
import torch
from tiny_models import HIDDEN

from llm_entropy.settings import AnalysisSettings
from llm_entropy.steering.conditions import plan_conditions
from llm_entropy.steering.placebo import KINDS, placebo_directions
from llm_entropy.steering.plan import SteeringPlan

BLOCKS = 5
ROWS = (
    torch.randn(BLOCKS + 1, 256, generator=torch.Generator().manual_seed(0)) * torch.linspace(0, 3, BLOCKS + 1)[:, None]
)
SAME = torch.cat([torch.zeros(1, 256), ROWS[3:4].expand(BLOCKS, -1)])


def cosines(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=-1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_one_direction", [True, False])
def test_norms_are_the_vectors_at_every_block(kind: str, is_one_direction: bool) -> None:
    rows = SAME if is_one_direction else ROWS
    made = placebo_directions(rows, kind, is_one_direction=is_one_direction, seed=(1, "control", 1))
    assert made.dtype == torch.float32
    torch.testing.assert_close(made.double().norm(dim=1), rows.double().norm(dim=1), rtol=1e-6, atol=0)
    assert not made[0].any(), "a row of zeros stays one"
    between = cosines(made[1:-1], made[2:])
    assert bool((between > 1 - 1e-6).all()) == is_one_direction
    if kind == "orthogonal":
        assert cosines(made[1:], rows[1:]).abs().max() < 1e-6
    else:
        assert cosines(made[1:], rows[1:]).abs().min() > 1e-6


def test_the_same_seed_gives_the_same_and_anything_else_another() -> None:
    def made(kind: str = "random", seed: int = 1, source: str = "control", number: int = 1) -> torch.Tensor:
        return placebo_directions(ROWS, kind, is_one_direction=False, seed=(seed, source, number))

    assert torch.equal(made(), made())
    others = [made(seed=2), made(source="bible"), made(number=2), made(kind="orthogonal")]
    for other in others:
        assert cosines(made()[1:], other[1:]).abs().max() < 0.5 or other is others[3]
        assert not torch.equal(made(), other)


def plans_of(vector: object, **control: object) -> dict[str, SteeringPlan]:
    settings = AnalysisSettings(compare_control=True, control={"control_vector": vector, **control})
    sizes = {"num_blocks": BLOCKS, "hidden_size": HIDDEN}
    return plan_conditions(settings.run_conditions, model="m", seed=3, **sizes)


def test_placebos_act_with_the_vectors_weights_at_its_largest_strength() -> None:
    weights = [0.0, 1.0, 0.5, 2.0, 1.0]
    vector = torch.randn(BLOCKS, HIDDEN, generator=torch.Generator().manual_seed(4))
    plans = plans_of(
        vector,
        strengths=[-3.0, 1.0, 2.0],
        layer_weights=weights,
        token_weights=[1.0, 2.0],
        placebo={"random": 1, "orthogonal": 2},
    )
    placebos = ["control_random_1", "control_orthogonal_1", "control_orthogonal_2"]
    assert list(plans) == ["control_-3", "control_+1", "control_+2", *placebos]
    real = plans["control_-3"]
    for name in placebos:
        assert torch.equal(plans[name].coefficients, real.coefficients)
        assert torch.equal(plans[name].token_weights, real.token_weights)
        norms = plans[name].addends.double().norm(dim=1)
        torch.testing.assert_close(norms, real.addends.double().norm(dim=1), rtol=1e-6, atol=0)
        assert plans[name].first_layer == real.first_layer == 2


def test_a_single_vector_has_placebos_of_one_direction_and_rows_have_one_each() -> None:
    vector = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(5))
    single = plans_of(vector, placebo={"random": 1})["control_random_1"].directions[1:]
    assert torch.equal(single, single[:1].expand_as(single))
    rows = plans_of(vector.expand(BLOCKS, -1), placebo={"random": 1})["control_random_1"].directions[1:]
    assert cosines(rows[:-1], rows[1:]).max() < 0.99


def test_adding_a_placebo_changes_none_of_the_others() -> None:
    vector = torch.ones(HIDDEN)
    few, many = (plans_of(vector, placebo={"random": count, "orthogonal": 1}) for count in (2, 5))
    for name, plan in few.items():
        assert torch.equal(plan.directions, many[name].directions)
