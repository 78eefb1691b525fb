"""What must be the same to resume a run: how its vectors act."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from llm_entropy.runs.identity import _steering_hash, run_identity
from llm_entropy.settings import AnalysisSettings, Settings
from llm_entropy.steering.plan import SteeringPlan
from llm_entropy.steering.tokens import SpecialTokens

PLAN = SteeringPlan(torch.ones(3, 4), torch.arange(3.0), torch.tensor([1.0, 2.0]))


def identity_of(**control: Any) -> dict[str, Any]:
    settings = Settings(analysis=AnalysisSettings(control={"control_vector": [0.1], **control}))
    return run_identity(settings, [], "corpus")


@pytest.mark.parametrize(
    ("control", "named"),
    [
        ({"operator": "project_out"}, {"operator": "project_out"}),
        ({"operator": "cap", "cap": 2.0}, {"operator": "cap", "cap": 2.0}),
        ({"blocks": "1:3"}, {"blocks": "1:3"}),
        ({"blocks": [2]}, {"blocks": [2]}),
        ({"tokens": "last"}, {"tokens": "last"}),
        ({"target_kl": 1.0}, {"target_kl": 1.0}),
        ({"target_kl": 1.0, "found_strengths": {"gpt2": 2.0}}, {"target_kl": 1.0}),
    ],
)
def test_an_identity_names_how_a_vector_acts_where_it_is_not_as_usual(
    control: dict[str, Any], named: dict[str, Any]
) -> None:
    usual = identity_of()
    assert not {"conditions.control.operator", "conditions.control.tokens"} & set(usual)
    assert identity_of(**control) == usual | {f"conditions.control.{name}": value for name, value in named.items()}


def test_an_identity_names_words_where_they_are_asked_for_alone() -> None:
    with_words = run_identity(Settings(analysis=AnalysisSettings(words=True)), [], "corpus")
    assert with_words == run_identity(Settings(), [], "corpus") | {"analysis.words": True}


def test_an_identity_names_the_tokens_of_layers_where_they_are_asked_for_alone() -> None:
    with_tokens = run_identity(Settings(analysis=AnalysisSettings(lens_tokens=True)), [], "corpus")
    assert with_tokens == run_identity(Settings(), [], "corpus") | {"analysis.lens_tokens": True}


def test_a_plan_has_another_name_for_each_way_to_act_and_the_old_one_for_the_usual() -> None:
    special = SpecialTokens(frozenset({7}), close_sentences=True)
    plans = [
        PLAN,
        replace(PLAN, operator="cap", cap=1.0),
        replace(PLAN, operator="cap", cap=2.0),
        replace(PLAN, operator="project_out"),
        replace(PLAN, tokens="last"),
        replace(PLAN, tokens="last", special=special),
        replace(PLAN, tokens="no_special", special=special),
    ]
    assert len({_steering_hash(plan) for plan in plans}) == len(plans)
    assert _steering_hash(replace(PLAN, special=special)) == _steering_hash(PLAN) == "5b038276b3f22757"
