"""What is looked at of every operation of torch while something runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


def tensors_of(result: Any) -> Iterator[Tensor]:
    """Yield the tensors that an operation returns."""
    for value in result if isinstance(result, (tuple, list)) else [result]:
        if isinstance(value, Tensor):
            yield value


class NoFloat64(TorchDispatchMode):
    """Refuses what is float64, as Apple's GPUs do."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_of(result):
            assert tensor.dtype != torch.float64, f"{func} gives a float64"
        return result


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor that any operation returns in memory of its own."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {
            tensor.untyped_storage().data_ptr()
            for tensor in (*args, *(kwargs or {}).values())
            if isinstance(tensor, Tensor)
        }
        for tensor in tensors_of(result):
            if tensor.untyped_storage().data_ptr() not in given:
                self.numel = max(self.numel, tensor.numel())
        return result
