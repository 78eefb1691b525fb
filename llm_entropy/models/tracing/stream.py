"""The residual stream among what modules are given and return."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import copy
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

ROUNDINGS = 16
"""What is done once more by other operations may differ by so many roundings, as a share of the largest number."""


def states_in(values: Any) -> Iterator[Tensor]:
    """Iterate over the floating-point tensors [batch, seq, ...] among what a module got or returned."""
    if isinstance(values, Tensor):
        if values.is_floating_point() and values.ndim >= 3:
            yield values
    else:
        for value in parts_of(values):
            yield from states_in(value)


def parts_of(values: Any) -> Iterable[Any]:
    """Return what a tuple, list, dictionary or dataclass holds."""
    if isinstance(values, dict):
        return list(values.values())
    if is_dataclass(values) and not isinstance(values, type):
        return [getattr(values, own.name) for own in fields(values)]
    return values if isinstance(values, (tuple, list)) else ()


def stream_in(output: Any) -> Tensor:
    """Return the residual stream [batch, seq, hidden] in what a block returned: the first states in it."""
    return next(states_in(output))


def exchanged(values: Any, old: Tensor, new: Tensor) -> Any:
    """Return what a module was given or has returned with `new` in the place of `old`; nothing is changed in place."""
    if values is old:
        return new
    if isinstance(values, dict):
        changed = copy(values)
        for name, value in values.items():
            changed[name] = new if value is old else value
        return changed
    if is_dataclass(values) and not isinstance(values, type):
        return replace(values, **{own.name: new for own in fields(values) if getattr(values, own.name) is old})
    items = [new if item is old else item for item in values]
    return type(values)(*items) if hasattr(values, "_fields") else tuple(items) if isinstance(values, tuple) else items


def is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers, bit by bit."""
    return one is other or (one.shape == other.shape and torch.equal(one, other))


def tolerance_of(of: Tensor) -> float:
    """Return by how much a tensor may differ from what other operations make of the same numbers."""
    return ROUNDINGS * torch.finfo(of.dtype).eps * max(1e-30, float(of.abs().max()))


def is_close(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal but for rounding."""
    return one.shape == other.shape and float((one - other).abs().max()) <= tolerance_of(other)
