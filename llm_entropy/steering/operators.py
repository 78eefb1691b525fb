"""What steering does to the residual stream: each operator is one function, and one row of `OPERATORS`.

A function takes the stream [batch, seq, hidden], the direction [hidden] of a block and its coefficient (strength times
layer weight, a tensor without dimensions), and the weights of the tokens [batch, seq, 1], 0 at padding. It returns the
new stream, in the type of the old one.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Operator = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def add(hidden: Tensor, direction: Tensor, coefficient: Tensor, token_weights: Tensor) -> Tensor:
    """Return h + s v, s = coefficient * token weight; what is added is made in float32."""
    return hidden + (token_weights * (coefficient * direction)).to(hidden)


OPERATORS: dict[str, Operator] = {"add": add}
"""Every operator, by its name."""
