"""What steering does to the residual stream: each operator is one function, and one row of `OPERATORS`.

A function takes the stream h [batch, seq, hidden], what acts at its block, and the weights of the tokens
[batch, seq, 1], 0 where nothing is steered, as at padding. It returns the new stream, in the type of the old one; where
a token's weight is 0 the stream is what it was. s is strength * layer weight * token weight, u the vector's direction
at length 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Action(NamedTuple):
    """What acts at one layer."""

    direction: Tensor
    """[hidden], float32: v."""
    unit: Tensor
    """[hidden], float32: u = v / norm(v)."""
    coefficient: Tensor
    """Strength times layer weight, a float32 tensor without dimensions."""
    cap: float | None = None
    """Largest h . u that `cap` leaves."""


Operator = Callable[[Tensor, Action, Tensor], Tensor]


def add(hidden: Tensor, action: Action, token_weights: Tensor) -> Tensor:
    """Return h + s v; what is added is made in float32."""
    return hidden + (token_weights * (action.coefficient * action.direction)).to(hidden)


def add_keep_norm(hidden: Tensor, action: Action, token_weights: Tensor) -> Tensor:
    """Return h + s v at the norm of h, as repeng does with `normalize`."""
    wide = _wide(hidden)
    moved = wide + token_weights * (action.coefficient * action.direction)
    norm = moved.norm(dim=-1, keepdim=True)
    # Of a stream that is not moved the ratio is exactly 1.
    ratio = wide.norm(dim=-1, keepdim=True) / norm.where(norm > 0, 1.0)
    kept: Tensor = moved * ratio
    return kept.to(hidden)


def project_out(hidden: Tensor, action: Action, token_weights: Tensor) -> Tensor:
    """Return h - s (h . u) u: s = 1 leaves nothing along the vector."""
    wide = _wide(hidden)
    along = _along(wide, action)
    return (wide - action.coefficient * token_weights * along * action.unit).to(hidden)


def cap(hidden: Tensor, action: Action, token_weights: Tensor) -> Tensor:
    """Return h + s (min(h . u, c) - h . u) u: what exceeds c is taken off (capping, as of the assistant axis)."""
    assert action.cap is not None
    wide = _wide(hidden)
    along = _along(wide, action)
    excess = (along - action.cap).clamp(min=0.0)
    return (wide - action.coefficient * token_weights * excess * action.unit).to(hidden)


OPERATORS: dict[str, Operator] = {
    "add": add,
    "add_keep_norm": add_keep_norm,
    "project_out": project_out,
    "cap": cap,
}
"""Every operator, by its name."""
PROJECTING = frozenset({"project_out", "cap"})
"""Those for which a vector is a direction, whatever its length; turning it is not the same as a strength below 0."""


def _wide(hidden: Tensor) -> Tensor:
    """Return the stream in float32, or wider where it is."""
    return hidden.to(torch.promote_types(hidden.dtype, torch.float32))


def _along(wide: Tensor, action: Action) -> Tensor:
    """Return h . u, [batch, seq, 1]."""
    return (wide * action.unit).sum(dim=-1, keepdim=True)
