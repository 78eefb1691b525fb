"""Steering plans, as tests want them."""

from __future__ import annotations

import torch
from torch import Tensor

from llm_entropy.settings import ControlSettings
from llm_entropy.steering.plan import SteeringPlan, plan_steering


def added(rows: Tensor, token_weights: Tensor | None = None) -> SteeringPlan:
    """A plan that adds these rows, [L + 1, hidden]."""
    return SteeringPlan(rows, torch.ones(len(rows)), token_weights)


def plan_of(control: ControlSettings, vector: Tensor, *, num_blocks: int, sign: int = 1) -> SteeringPlan:
    """The plan of a vector at the strength of its settings."""
    plan = plan_steering(control, vector, key=control.KEY, num_blocks=num_blocks, sign=sign)
    return plan.at_strength(control.strength, control.KEY)
