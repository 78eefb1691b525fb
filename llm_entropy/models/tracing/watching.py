"""Noting what modules are given and return while a model runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from llm_entropy.models.tracing.probe import PROBE_SHAPE
from llm_entropy.models.tracing.stream import states_in

LOOKUPS = {F.embedding, torch.index_select, Tensor.index_select, Tensor.__getitem__}
"""Ways of taking rows of a table."""
Containers = (nn.ModuleList, nn.ModuleDict)
Lists = (*Containers, nn.Sequential)


@dataclass
class Call:
    """One call of a module."""

    name: str
    module: nn.Module
    order: int
    """Number of the call, by when it began."""
    inputs: list[Tensor]
    is_direct: bool
    """Whether the first of these is itself an argument, and not inside of one."""
    outputs: list[Tensor] = field(default_factory=list)
    end: int = -1
    """How many calls had begun when it ended."""


@contextmanager
def watching(model: nn.Module, also: set[nn.Module]) -> Iterator[list[Call]]:
    """Note the calls of the modules that are in no list, or items of one, with their tensors [batch, seq, ...].

    What is inside of the items is not looked at: of a large model it would take much memory.
    """
    calls: list[Call] = []
    running: dict[nn.Module, list[Call]] = {}

    def begin(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        inputs = list(states_in((args, kwargs)))
        is_direct = any(value is given for given in inputs[:1] for value in (*args, *kwargs.values()))
        call = Call(name, module, len(calls), inputs, is_direct)
        calls.append(call)
        running.setdefault(module, []).append(call)

    def end(module: nn.Module, args: Any, output: Any) -> None:
        call = running[module].pop()
        # Whatever is done to the output in place is not to be taken for the module's work; to the model's, nothing is.
        call.outputs = [states if module is model else states.clone() for states in states_in(output)]
        call.end = len(calls)

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if module in also or _is_watched(model, name):
                before = partial(begin, name)
                hooks.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
                hooks.callback(module.register_forward_hook(end).remove)
        yield calls


class Lookups(TorchFunctionMode):
    """Notes for how many tokens there are rows, wherever rows are taken one behind the other, a row for each token.

    That is how positions are looked up, learned ones and fixed ones. The first row may be another than row 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.limits: list[int] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in LOOKUPS:
            given = (*args, *(kwargs or {}).values())
            flat = [item for value in given for item in (value if isinstance(value, tuple) else (value,))]
            tensors = [value for value in flat if isinstance(value, Tensor)]
            table = next((value for value in tensors if value.is_floating_point() and value.ndim == 2), None)
            rows = next((value for value in tensors if not value.is_floating_point()), None)
            if table is not None and rows is not None and (first := _first_of_sequence(rows)) is not None:
                self.limits.append(table.shape[0] - first)
        return function(*args, **(kwargs or {}))


def _first_of_sequence(rows: Tensor) -> Optional[int]:
    """Return where rows begin that are taken one behind the other, the same of every sentence of the probe."""
    length = PROBE_SHAPE[1]
    if rows.dtype == torch.bool or rows.numel() % length or not rows.numel():
        return None
    sequences = rows.reshape(-1, length)
    first = int(sequences[0, 0])
    return first if bool((sequences == torch.arange(first, first + length, device=rows.device)).all()) else None


def _is_watched(model: nn.Module, name: str) -> bool:
    """Whether a module is neither a list, nor within an item of one."""
    module, is_item = model, False
    for part in name.split(".") if name else ():
        if is_item and not isinstance(module, Containers):
            return False
        is_item = is_item or isinstance(module, Containers)
        module = getattr(module, part) if not isinstance(module, nn.ModuleDict) else module[part]
    return not isinstance(module, Containers)


def is_list(own: nn.Module) -> bool:
    """Whether a module holds modules of one kind, as a list of blocks does, and not those of a model by their names."""
    kinds = {type(item) for item in own.children()}
    return isinstance(own, nn.ModuleList) or (isinstance(own, Lists) and len(kinds) == 1)
