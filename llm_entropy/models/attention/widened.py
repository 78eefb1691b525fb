"""A model in float32 for a moment, a module at a time: what is proved there no rounding of half precision can hide."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Let a model compute in float32 inside of the context; one that does so in any case is left as it is.

    A module's own weights are widened while it runs and narrow again behind it, so that of a large model one matrix is
    held twice. Embeddings are looked up as they are, and what was found is widened.

    Args:
        model: Its forward passes are changed, its weights are not.
    """
    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                hooks.callback(module.register_forward_hook(_widen_output).remove)
            elif any(_is_narrow(weight) for weight in module.parameters(recurse=False)):
                weights = _Weights()
                hooks.callback(module.register_forward_pre_hook(weights.widen).remove)
                hooks.callback(module.register_forward_hook(weights.restore, always_call=True).remove)
        yield


def _is_narrow(weight: Tensor) -> bool:
    return weight.dtype in (torch.float16, torch.bfloat16)


def _widen_output(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output.float()


class _Weights:
    """The weights of one module, while wider ones stand in their places."""

    def __init__(self) -> None:
        self._kept: dict[str, nn.Parameter] = {}

    def widen(self, module: nn.Module, args: Any) -> None:
        for name, weight in module.named_parameters(recurse=False):
            if _is_narrow(weight):
                self._kept[name] = weight
                module._parameters[name] = nn.Parameter(weight.float(), requires_grad=False)

    def restore(self, module: nn.Module, args: Any, output: Any) -> None:
        module._parameters.update(self._kept)
        self._kept = {}
