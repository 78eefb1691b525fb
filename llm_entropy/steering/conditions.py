"""How each condition of a run steers a model: its vector at its strength, or a placebo in its place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import Tensor

from llm_entropy.settings import Condition
from llm_entropy.settings.conditions import Steering
from llm_entropy.steering.placebo import SHUFFLED, placebo_directions, shuffled_directions
from llm_entropy.steering.plan import SteeringPlan, plan_steering
from llm_entropy.steering.tokens import NO_SPECIAL, SpecialTokens
from llm_entropy.steering.vectors import choose_vector, read_shuffled, resolve_vector


def plan_conditions(
    conditions: Iterable[Condition],
    *,
    model: str,
    num_blocks: int,
    hidden_size: int,
    seed: int,
    special: SpecialTokens = NO_SPECIAL,
    model_type: str = "",
) -> dict[str, SteeringPlan]:
    """Work out how each steered condition steers a model; a vector is read once for all of its conditions.

    Args:
        conditions: Of the run.
        model: The model's key.
        num_blocks: L.
        hidden_size: Width of the residual stream.
        seed: Of the run, for placebos.
        special: The model's special tokens.
        model_type: Of the model, for a warning about vectors of another one; empty: it is not known.

    Returns:
        The plans, by the conditions' names.

    Raises:
        ReportedError: A vector cannot be read or does not fit the model.
    """
    plans: dict[str, SteeringPlan] = {}
    whole: dict[str, tuple[SteeringPlan, bool]] = {}
    extracted: dict[str, Tensor] = {}
    for condition in conditions:
        steering = condition.steering
        if steering is None:
            continue
        if steering.source not in whole:
            whole[steering.source] = _whole_plan(steering, model, num_blocks, hidden_size, special, model_type)
        plan, is_one_direction = whole[steering.source]
        if (placebo := steering.placebo) is not None:
            if placebo.kind == SHUFFLED:
                if steering.source not in extracted:
                    chosen, count = choose_vector(steering.control, steering.key), steering.control.placebo.shuffled
                    key = f"{steering.key}.placebo.shuffled"
                    extracted[steering.source] = read_shuffled(chosen, count, key=key, model=model)
                directions = shuffled_directions(plan.directions, extracted[steering.source][placebo.number - 1])
            else:
                directions = placebo_directions(
                    plan.directions,
                    placebo.kind,
                    is_one_direction=is_one_direction,
                    seed=(seed, steering.source, placebo.number),
                )
            plan = replace(plan, directions=directions)
        plans[condition.name] = plan.at_strength(steering.strength, steering.key)
    return plans


def _whole_plan(
    steering: Steering, model: str, num_blocks: int, hidden_size: int, special: SpecialTokens, model_type: str
) -> tuple[SteeringPlan, bool]:
    """Return the plan of a vector at strength 1, and whether it is one direction, the same at every layer."""
    chosen = choose_vector(steering.control, steering.key)
    vector = resolve_vector(
        chosen.value,
        key=chosen.key,
        model=model,
        num_blocks=num_blocks,
        hidden_size=hidden_size,
        operator=steering.control.operator,
        model_type=model_type,
    )
    plan = plan_steering(steering.control, vector, key=steering.key, num_blocks=num_blocks, sign=chosen.sign)
    return replace(plan, special=special), vector.ndim == 1
