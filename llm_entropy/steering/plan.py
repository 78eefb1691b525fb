"""Which direction acts at which layer, and how strongly: the arithmetic on the settings, made once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from llm_entropy.errors import ReportedError
from llm_entropy.settings import ControlSettings
from llm_entropy.steering.blocks import chosen_blocks
from llm_entropy.steering.operators import PROJECTING, Action
from llm_entropy.steering.tokens import NO_SPECIAL, SpecialTokens

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
    cap: float | None = None
    """Of the operator `cap`."""
    tokens: str = "all"
    """Which tokens are steered, as `tokens.steered_tokens` has it."""
    special: SpecialTokens = NO_SPECIAL
    """The model's special tokens, for those choices of tokens that leave them out."""

    @property
    def addends(self) -> Tensor:
        """[L + 1, hidden], coefficient * direction."""
        return self.coefficients[:, None] * self.directions

    @property
    def added_norms(self) -> list[float] | None:
        """[L + 1], norm of what is added at each layer: |coefficient| * norm(v), times the mean token weight's size.

        None for an operator that takes off what there is, of whatever size.
        """
        if self.operator in PROJECTING:
            return None
        weight = 1.0 if self.token_weights is None else float(self.token_weights.abs().mean())
        norms: list[float] = (weight * self.addends.norm(dim=1)).tolist()
        return norms

    @cached_property
    def steered_layers(self) -> list[int]:
        """The layers, 0 .. L, at which something happens, in rising order."""
        if self.token_weights is not None and not self.token_weights.any():
            return []
        if self.operator in PROJECTING:  # however small the product is
            acts = (self.coefficients != 0) & self.directions.any(dim=1)
        else:
            acts = self.addends.any(dim=1)
        layers: list[int] = acts.nonzero().flatten().tolist()
        return layers

    @cached_property
    def units(self) -> Tensor:
        """[L + 1, hidden], float32: the directions at length 1; a row of zeros stays one."""
        largest = self.directions.abs().amax(dim=1, keepdim=True)
        rows = self.directions / largest.where(largest > 0, 1.0)  # squares of very large or small numbers are none
        norms = rows.norm(dim=1, keepdim=True)
        units: Tensor = rows / norms.where(norms > 0, 1.0)
        return units

    def action(self, layer: int) -> Action:
        """Return what acts at a layer, for its operator."""
        return Action(self.directions[layer], self.units[layer], self.coefficients[layer], self.cap)

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
        moved.__dict__["units"] = self.units.to(device)
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

    Any other number of layer weights than L or L + 1 is interpolated over the blocks, with a warning. Where the
    settings choose `blocks`, the others and the embeddings get coefficient 0.

    Args:
        control: Operator, blocks, tokens, layer weights and token weights.
        vector: [hidden], [L, hidden] or [L + 1, hidden], as `vectors.resolve_vector` returns it.
        key: Where these settings are, for messages.
        num_blocks: L.
        sign: 1, or -1 to turn the vector, as `vectors.choose_vector` says. Nothing else here reads `direction`.

    Returns:
        The plan, on the vector's device.

    Raises:
        ReportedError: L + 1 layer weights whose first is not 0, for a vector that has no row for the embeddings; blocks
            that the model, or the vector, does not have.
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
    coefficients = _weights_by_layer(given, num_blocks, key).to(vector.device)
    if control.operator in PROJECTING:
        rows = sign * rows  # what is turned is the direction: taking it out of the stream twice is another thing
    else:
        coefficients = sign * coefficients
    if control.blocks is not None:
        coefficients = coefficients * _chosen_layers(control.blocks, rows, key).to(vector.device)
    weights = control.token_weights
    return SteeringPlan(
        rows,
        coefficients,
        None if weights is None else torch.as_tensor(weights, dtype=torch.float32),
        operator=control.operator,
        cap=control.cap,
        tokens=control.tokens,
    )


def _chosen_layers(blocks: str | list[int], rows: Tensor, key: str) -> Tensor:
    """Return 1 for the layers of the chosen blocks, 0 for the others and the embeddings, [L + 1].

    Args:
        blocks: As `ControlSettings.blocks`.
        rows: [L + 1, hidden], the vector by layer.
        key: Where the settings are, for messages.

    Raises:
        ReportedError: The model has no such block, or the vector is 0 at all of them.
    """
    chosen = chosen_blocks(blocks, len(rows) - 1, f"{key}.blocks")
    has_numbers: list[int] = rows[1:].any(dim=1).nonzero().flatten().tolist()
    if has_numbers and not set(chosen) & set(has_numbers):
        words = ", ".join(map(str, has_numbers[:8])) + (", ..." if len(has_numbers) > 8 else "")
        raise ReportedError(
            f"{key}.blocks: got {blocks!r}, where the vector is 0; it has numbers for block {words} alone; expected "
            "one of them"
        )
    layers = torch.zeros(len(rows))
    layers[[block + 1 for block in chosen]] = 1.0
    return layers


def _weights_by_layer(given: Tensor | None, num_blocks: int, key: str) -> Tensor:
    """Return a weight per layer, [L + 1], of which the first, for the embeddings, is 1 unless it was given."""
    if given is None:
        return torch.ones(num_blocks + 1)
    if len(given) == num_blocks + 1:
        return given
    if len(given) != num_blocks:
        logger.warning("%s.layer_weights: got %d numbers, interpolated over the %d blocks", key, len(given), num_blocks)
        given = interpolate(given, num_blocks)
    return torch.cat([torch.ones(1, device=given.device), given])
