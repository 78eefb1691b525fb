"""A model in float32 for a moment, a module at a time: what is proved there no rounding of half precision can hide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Optional

import torch
from torch import Tensor, nn

ROWS = 2**8
"""Rows of a linear layer's matrix that are widened together: few enough to be used while they are in the cache."""


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Let a model compute in float32 inside of the context; one that does so in any case is left as it is.

    The matrix of a linear layer is widened a few rows at a time. Any other module's own weights are widened while it
    runs and narrow again behind it, so that of a large model one matrix is held twice, and in one place: memory that is
    fresh for each matrix takes longer to get than to fill. Embeddings are looked up as they are, and what was found is
    widened.

    Args:
        model: Its forward passes are changed, its weights are not.
    """
    room = _Room()
    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                hooks.callback(module.register_forward_hook(_widen_output).remove)
            elif type(module) is nn.Linear and _is_narrow(module.weight) and "forward" not in vars(module):
                module.forward = partial(_linear, module)  # type: ignore[method-assign]
                hooks.callback(delattr, module, "forward")
            elif any(_is_narrow(weight) for weight in module.parameters(recurse=False)):
                weights = _Weights(room)
                hooks.callback(module.register_forward_pre_hook(weights.widen).remove)
                hooks.callback(module.register_forward_hook(weights.restore, always_call=True).remove)
        yield


def _is_narrow(weight: Tensor) -> bool:
    return weight.dtype in (torch.float16, torch.bfloat16)


def _widen_output(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output.float()


def _linear(module: nn.Linear, input: Tensor) -> Tensor:
    """Return what a linear layer does, in float32; its argument has the name that it has there."""
    product = torch.cat([nn.functional.linear(input, rows.float()) for rows in module.weight.split(ROWS)], dim=-1)
    bias: Optional[Tensor] = module.bias
    return product if bias is None else product.add_(bias.float())


class _Room:
    """Memory for the wide weights of one module at a time; those of a module inside of it get memory of their own."""

    def __init__(self) -> None:
        self.is_taken = False
        self._numbers: Optional[Tensor] = None

    @torch.no_grad()
    def widen(self, weights: Sequence[Tensor]) -> tuple[bool, list[Tensor]]:
        """Return whether the room was taken for them, and the weights in float32."""
        if self.is_taken:
            return False, [weight.float() for weight in weights]
        self.is_taken = True
        size = sum(weight.numel() for weight in weights)
        if self._numbers is None or len(self._numbers) < size or self._numbers.device != weights[0].device:
            self._numbers = None  # what is too small goes before what is large enough comes
            self._numbers = torch.empty(size, dtype=torch.float32, device=weights[0].device)
        parts = self._numbers[:size].split([weight.numel() for weight in weights])
        return True, [part.view(weight.shape).copy_(weight) for part, weight in zip(parts, weights, strict=True)]


class _Weights:
    """The weights of one module, while wider ones stand in their places."""

    def __init__(self, room: _Room) -> None:
        self._room, self._kept = room, dict[str, nn.Parameter]()
        self._has_room = False

    def widen(self, module: nn.Module, args: Any) -> None:
        narrow = {name: weight for name, weight in module.named_parameters(recurse=False) if _is_narrow(weight)}
        self._has_room, wide = self._room.widen(list(narrow.values()))
        self._kept = narrow
        for name, weight in zip(narrow, wide, strict=True):
            module._parameters[name] = nn.Parameter(weight, requires_grad=False)

    def restore(self, module: nn.Module, args: Any, output: Any) -> None:
        module._parameters.update(self._kept)
        self._kept = {}
        if self._has_room:
            self._room.is_taken, self._has_room = False, False
