"""Sufficient statistics of vocabulary rows, without ever keeping the rows: interchangeable backends, chosen by name."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Optional, Protocol

import torch
from torch import Tensor

from llm_entropy.kernels.reference import count_larger, logits_of, sample_tokens, token_logits
from llm_entropy.kernels.wanted import Wanted
from llm_entropy.schema.statistics import RowStatistics, Unembedding

__all__ = [
    "BACKENDS",
    "choose_backend",
    "count_larger",
    "lens_statistics",
    "logits_of",
    "sample_tokens",
    "token_logits",
]


class Backend(Protocol):
    """A way to compute the statistics; see `lens_statistics` for the meaning of the arguments."""

    def __call__(self, states: Tensor, unembedding: Unembedding, wanted: Wanted) -> RowStatistics: ...


BACKENDS = {"reference": "reference", "compiled": "compiled", "triton": "triton_lens"}
"""Every backend, and the module that holds it: any device, the CPU, CUDA. What only one device needs is not imported
elsewhere."""


def choose_backend(device: torch.device) -> str:
    """Return the backend of a device: the fastest that it has."""
    if device.type == "cpu":
        return "compiled"
    if device.type == "cuda" and find_spec("triton") is not None:
        return "triton"
    return "reference"


@cache
def _backend(name: str) -> Backend:
    module = import_module(f"llm_entropy.kernels.{BACKENDS[name]}")
    run: Backend = module.lens_statistics
    return run


def lens_statistics(
    states: Tensor,
    unembedding: Unembedding,
    *,
    top_slots: Sequence[int] = (),
    top_k: int = 1,
    square: bool = False,
    order: Optional[float] = None,
    top1: bool = False,
    members: Optional[Tensor] = None,
    pairs: Sequence[tuple[int, int]] = (),
    backend: Optional[str] = None,
) -> RowStatistics:
    """Return the statistics of the logits of each row, without a tensor that has both rows and vocabulary in full.

    Equals, in float32,

        z = softcap(scale * (states @ weight.T + bias)) / temperature        # [slot, row, vocab]
        m = z.amax(-1); p = z.softmax(-1); mean = (p * (z - m)).sum(-1); ...

    Args:
        states: [slot, row, width], what goes into the decoder; a slot is a layer of a condition.
        unembedding: The decoder and what follows it.
        top_slots: The slots of which the largest logits are named.
        top_k: How many of them.
        square: Whether `square` is wanted.
        order: The order a of which `log_power` is wanted, above 0; None: it is not.
        top1: Whether `top1` is wanted.
        members: [vocab], bool, the tokens over which `log_mass` sums; None: it is not wanted.
        pairs: Slots a and b of which `cross` is wanted.
        backend: A key of `BACKENDS`; None: what `choose_backend` says.

    Returns:
        The statistics, each [slot, row], float32.
    """
    run = _backend(backend or choose_backend(states.device))
    rows = run(states, unembedding, Wanted(tuple(top_slots), top_k, square, order, top1, members, tuple(pairs)))
    return rows._replace(top_ids=_with_masked_tokens(rows.top, rows.top_ids))


def _with_masked_tokens(top: Tensor, top_ids: Tensor) -> Tensor:
    """Return the tokens of `top_ids` [top slot, row, k]; where fewer than k have a probability, masked ones follow.

    A kernel leaves their places open: these are the ones with the lowest ids.
    """
    k = top_ids.shape[-1]
    candidates = torch.arange(k, device=top_ids.device)
    named = (top > -torch.inf) | top.isnan()
    taken = ((candidates.unsqueeze(-1) == top_ids.unsqueeze(-2)) & named.unsqueeze(-2)).any(-1)
    free = taken.byte().argsort(dim=-1, stable=True)
    place = (candidates - named.sum(-1, keepdim=True)).clamp(min=0)
    return torch.where(named, top_ids, free.gather(-1, place))
