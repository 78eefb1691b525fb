"""Which direction acts at which layer, and how strongly: the arithmetic on the settings, made once."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from llm_entropy.errors import ReportedError
from llm_entropy.settings import Condition, ControlSettings
from llm_entropy.steering.placebo import placebo_directions
from llm_entropy.steering.vectors import choose_vector, resolve_vector

logger = logging.getLogger("llm_entropy")


@dataclass(frozen=True, eq=False)
class SteeringPlan:
    """What acts where: a direction and a coefficient for each layer, and how it is spread over a sentence's tokens.

    Directions are kept as they were given, with their norms: dividing by a norm and multiplying by it again would
    change the last digits.
    """

    directions: Tensor
    """[L + 1, hidden], float32, by layer: row 0 for the embeddings, row k + 1 for block k."""
    coefficients: Tensor
    """[L + 1], float32: sign * strength * layer weight."""
    token_weights: Tensor | None
    """[n], float32, interpolated over each sentence's real tokens; None: 1 at every one."""
    operator: str = "add"
    """A key of `operators.OPERATORS`."""

    @property
    def addends(self) -> Tensor:
        """[L + 1, hidden], coefficient * direction."""
        return self.coefficients[:, None] * self.directions

    @property
    def added_norms(self) -> list[float]:
        """[L + 1], norm of what is added at each layer: |coefficient| * norm(v), times the mean token weight's size."""
        weight = 1.0 if self.token_weights is None else float(self.token_weights.abs().mean())
        norms: list[float] = (weight * self.addends.norm(dim=1)).tolist()
        return norms

    @cached_property
    def steered_layers(self) -> list[int]:
        """The layers, 0 .. L, at which something happens, in rising order."""
        if self.token_weights is not None and not self.token_weights.any():
            return []
        layers: list[int] = self.addends.any(dim=1).nonzero().flatten().tolist()
        return layers

    @property
    def first_layer(self) -> int | None:
        """The lowest layer that steering changes; None if it changes none. Layers below are those of the standard run.

        Where it is k + 1, the blocks 0 .. k give what they give in the standard run, before the operator acts.
        """
        return next(iter(self.steered_layers), None)

    def to(self, device: torch.device) -> SteeringPlan:
        """Return the plan on a device; itself, where it is there."""
        if self.directions.device == device:
            return self
        moved = replace(self, directions=self.directions.to(device), coefficients=self.coefficients.to(device))
        moved.__dict__["steered_layers"] = self.steered_layers  # asking the device for them would wait for it
        return moved

    def at_strength(self, strength: float, key: str) -> SteeringPlan:
        """Return the plan with every coefficient times a strength.

        Args:
            strength: The factor.
            key: Where the vector's settings are, for messages.

        Raises:
            ReportedError: A product goes beyond the range of float32.
        """
        stronger = replace(self, coefficients=strength * self.coefficients)
        if not stronger.addends.isfinite().all():
            raise ReportedError(
                f"{key}.strength: got {strength:g}, which times the layer weights and the vector "
                "goes beyond the range of float32; expected a smaller strength or smaller weights"
            )
        return stronger


def plan_conditions(
    conditions: Iterable[Condition], *, model: str, num_blocks: int, hidden_size: int, seed: int
) -> dict[str, SteeringPlan]:
    """Work out how each steered condition steers a model; a vector is read once for all of its conditions.

    Args:
        conditions: Of the run.
        model: The model's key.
        num_blocks: L.
        hidden_size: Width of the residual stream.
        seed: Of the run, for placebos.

    Returns:
        The plans, by the conditions' names.

    Raises:
        ReportedError: A vector cannot be read or does not fit the model.
    """
    plans: dict[str, SteeringPlan] = {}
    whole: dict[str, tuple[SteeringPlan, bool]] = {}
    for condition in conditions:
        steering = condition.steering
        if steering is None:
            continue
        if steering.source not in whole:
            chosen = choose_vector(steering.control, steering.key)
            vector = resolve_vector(
                chosen.value, key=chosen.key, model=model, num_blocks=num_blocks, hidden_size=hidden_size
            )
            plan = plan_steering(steering.control, vector, key=steering.key, num_blocks=num_blocks, sign=chosen.sign)
            whole[steering.source] = plan, vector.ndim == 1
        plan, is_one_direction = whole[steering.source]
        if (placebo := steering.placebo) is not None:
            directions = placebo_directions(
                plan.directions,
                placebo.kind,
                is_one_direction=is_one_direction,
                seed=(seed, steering.source, placebo.number),
            )
            plan = replace(plan, directions=directions)
        plans[condition.name] = plan.at_strength(steering.strength, steering.key)
    return plans


def interpolate(weights: Sequence[float] | Tensor, size: int) -> Tensor:
    """Stretch or shrink weights linearly to `size` numbers.

    Equals torch.nn.functional.interpolate(mode="linear", align_corners=False): number i is read at position
    (i + 1/2) * n / size - 1/2 of the n weights, and the ends are held.

    Args:
        weights: [n], n >= 1.
        size: How many numbers are wanted, at least 1.

    Returns:
        [size], float32.
    """
    values = torch.as_tensor(weights, dtype=torch.float32)
    return functional.interpolate(values[None, None], size=size, mode="linear", align_corners=False)[0, 0]


def plan_steering(control: ControlSettings, vector: Tensor, *, key: str, num_blocks: int, sign: int) -> SteeringPlan:
    """Work out which direction acts at which layer, at strength 1: the coefficients are sign * layer weight.

    The layers that a vector acts on, by its shape and the number of `layer_weights`:

    | vector          | no weights, or L, or others           | L + 1 weights                             |
    |-----------------|---------------------------------------|-------------------------------------------|
    | [hidden]        | every block                           | the embeddings and every block            |
    | [L, hidden]     | row k at block k                      | the same; the first weight must be 0      |
    | [L + 1, hidden] | row 0 at the embeddings with weight 1 | row 0 at the embeddings, the first weight |

    Any other number of layer weights than L or L + 1 is interpolated over the blocks, with a warning.

    Args:
        control: Layer weights and token weights.
        vector: [hidden], [L, hidden] or [L + 1, hidden], as `vectors.resolve_vector` returns it.
        key: Where these settings are, for messages.
        num_blocks: L.
        sign: 1, or -1 to turn the vector, as `vectors.choose_vector` says. Nothing else here reads `direction`.

    Returns:
        The plan, on the vector's device.

    Raises:
        ReportedError: L + 1 layer weights whose first is not 0, for a vector that has no row for the embeddings.
    """
    assert sign in (-1, 1), f"sign {sign}"
    has_embedding_row = vector.ndim == 2 and len(vector) == num_blocks + 1
    assert vector.ndim == 1 or has_embedding_row or len(vector) == num_blocks, f"vector {tuple(vector.shape)}"
    given = None if control.layer_weights is None else torch.as_tensor(control.layer_weights, dtype=torch.float32)
    weighs_embeddings = given is not None and len(given) == num_blocks + 1
    if given is not None and weighs_embeddings and vector.ndim == 2 and not has_embedding_row and given[0] != 0:
        raise ReportedError(
            f"{key}.layer_weights: got {num_blocks + 1} numbers, the first, {given[0]:g}, for the "
            f"embeddings, but a vector of {num_blocks} rows, none for the embeddings; "
            f"expected 0 there, or {num_blocks} weights, or {num_blocks + 1} rows"
        )
    acts_on_embeddings = has_embedding_row or (vector.ndim == 1 and weighs_embeddings)
    rows = torch.zeros(num_blocks + 1, vector.shape[-1], dtype=torch.float32, device=vector.device)
    rows[0 if acts_on_embeddings else 1 :] = vector
    coefficients = sign * _weights_by_layer(given, num_blocks, key).to(vector.device)
    tokens = control.token_weights
    return SteeringPlan(rows, coefficients, None if tokens is None else torch.as_tensor(tokens, dtype=torch.float32))


def _weights_by_layer(given: Tensor | None, num_blocks: int, key: str) -> Tensor:
    """Return a weight per layer, [L + 1], of which the first, for the embeddings, is 1 unless it was given."""
    if given is None:
        return torch.ones(num_blocks + 1)
    if len(given) == num_blocks + 1:
        return given
    if len(given) != num_blocks:
        logger.warning("%s.layer_weights: got %d, interpolated over the %d blocks", key, len(given), num_blocks)
        given = interpolate(given, num_blocks)
    return torch.cat([torch.ones(1, device=given.device), given])


def token_weights_for(plan: SteeringPlan, attention_mask: Tensor) -> Tensor:
    """Spread the token weights over the real tokens of each sentence, special tokens included; padding gets 0.

    A sentence gets the same numbers whatever it is batched with and on whichever side it is padded.

    Args:
        plan: Whose `token_weights` count; without any, every real token gets 1.
        attention_mask: [batch, seq], 0 at padding.

    Returns:
        [batch, seq], float32, on the mask's device.
    """
    is_real = attention_mask != 0
    if plan.token_weights is None:
        return is_real.float()
    lengths: list[int] = is_real.sum(dim=1).tolist()
    curves = {length: interpolate(plan.token_weights, length) for length in set(lengths) if length}
    if not curves:
        return is_real.float()
    # The sentences' curves end to end are the real positions in reading order, wherever the padding lies.
    in_order = torch.cat([curves[length] for length in lengths if length]).to(attention_mask.device)
    return torch.zeros(is_real.shape, device=attention_mask.device).masked_scatter(is_real, in_order)
