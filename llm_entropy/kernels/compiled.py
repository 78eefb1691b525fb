"""The kernel on a CPU: products of a tile of rows with a chunk of the vocabulary, and a compiled loop over each.

The chunk is the outer loop: its weights are read, and turned to float32, once for all rows. A tile of logits is looked
at while it is still in the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llm_entropy.kernels.epilogue import Bytes, Doubles, Floats, Integers, add_chunk
from llm_entropy.kernels.wanted import Wanted
from llm_entropy.schema.statistics import RowStatistics, Unembedding

VOCAB_CHUNK = 1024
"""Tokens of the vocabulary whose logits are looked at together."""
TILE_ROWS = 3328
"""Rows whose logits of a chunk are held together, 13 MiB: many, as a product begins by packing the weights anew."""
MIN_LOGITS_OF_THREAD = 2**14
"""Fewer logits are not worth a thread of their own."""


def lens_statistics(states: Tensor, unembedding: Unembedding, wanted: Wanted) -> RowStatistics:
    """Return the statistics of each row; see `llm_entropy.kernels.lens_statistics`."""
    num_slots, num_rows, width = states.shape
    vocab_size = len(unembedding.weight)
    # The slots of a row lie together: a tile holds both slots of each pair.
    inputs = _scaled(states.transpose(0, 1).float(), unembedding).reshape(-1, width)
    running = _Running.start(num_slots, num_rows, wanted._replace(top_k=min(wanted.top_k, vocab_size)))
    tile = max(1, TILE_ROWS // num_slots)
    space = torch.empty(min(num_rows, tile) * num_slots * min(VOCAB_CHUNK, vocab_size))
    for first_token in range(0, vocab_size, VOCAB_CHUNK):
        tokens = slice(first_token, min(first_token + VOCAB_CHUNK, vocab_size))
        weight = unembedding.weight[tokens].float()
        bias = None if unembedding.bias is None else _scaled(unembedding.bias[tokens].float(), unembedding)
        for first_row in range(0, num_rows, tile):
            rows = slice(first_row, min(first_row + tile, num_rows))
            part = inputs[rows.start * num_slots : rows.stop * num_slots]
            logits = space[: len(part) * len(weight)].view(len(part), len(weight))
            if bias is None:
                torch.mm(part, weight.T, out=logits)
            else:
                torch.addmm(bias, part, weight.T, out=logits)
            if unembedding.softcap is not None:
                logits.div_(unembedding.softcap).tanh_().mul_(unembedding.softcap / unembedding.temperature)
            running.add(logits.view(-1, num_slots, len(weight)).numpy(), rows, first_token)
    return running.statistics()


def _scaled(values: Tensor, unembedding: Unembedding) -> Tensor:
    """Return states or biases times what the logits are multiplied with, up to a softcap."""
    factor = unembedding.scale / (unembedding.temperature if unembedding.softcap is None else 1.0)
    return values if factor == 1.0 else values * factor


class _Running(NamedTuple):
    """What is known of every row after some chunks of the vocabulary; `epilogue.add_chunk` says what each array is."""

    square: bool
    order: float
    pairs: Integers
    top_slots: Integers
    maximum: Floats
    second: Floats
    sums: Doubles
    powers: Doubles
    top1: Integers
    members: Bytes
    masses: Doubles
    gaps: Doubles
    top: Floats
    top_ids: Integers

    @classmethod
    def start(cls, num_slots: int, num_rows: int, wanted: Wanted) -> _Running:
        """Return what is known at first; what is not asked for has no slots."""
        num_top = len(wanted.top_slots)
        return cls(
            square=wanted.square,
            order=wanted.order or 0.0,
            pairs=np.array(wanted.pairs, np.int64).reshape(-1, 2),
            top_slots=np.array(wanted.top_slots, np.int64),
            maximum=np.full((num_rows, num_slots), -np.inf, np.float32),
            second=np.full((num_rows, num_slots), -np.inf, np.float32),
            sums=np.zeros((num_rows, num_slots, 3)),
            powers=np.zeros((num_rows, 0 if wanted.order is None else num_slots)),
            top1=np.zeros((num_rows, num_slots if wanted.top1 else 0), np.int64),
            members=np.zeros(0, np.uint8) if wanted.members is None else wanted.members.numpy().astype(np.uint8),
            masses=np.tile([-np.inf, 0.0], (num_rows, 0 if wanted.members is None else num_slots, 1)),
            gaps=np.zeros((num_rows, len(wanted.pairs))),
            top=np.full((num_rows, num_top, wanted.top_k), -np.inf, np.float32),
            top_ids=np.zeros((num_rows, num_top, wanted.top_k), np.int64),
        )

    def add(self, logits: Floats, rows: slice, first_token: int) -> None:
        """Take a chunk of the logits [row, slot, token] of some rows."""
        maximum, second, sums = self.maximum[rows], self.second[rows], self.sums[rows]
        powers, top1, gaps = self.powers[rows], self.top1[rows], self.gaps[rows]
        masses, members = self.masses[rows], self.members[first_token : first_token + logits.shape[-1]]
        top, top_ids = self.top[rows], self.top_ids[rows]

        def work(first: int, stop: int) -> None:
            add_chunk(
                logits,
                first,
                stop,
                first_token,
                self.square,
                self.order,
                self.pairs,
                self.top_slots,
                maximum,
                second,
                sums,
                powers,
                top1,
                members,
                masses,
                gaps,
                top,
                top_ids,
            )

        _share(work, len(logits), logits[0].size)

    def statistics(self) -> RowStatistics:
        """Return the statistics, by slot."""
        maximum, second = _by_slot(self.maximum), _by_slot(self.second)
        exp, first_moment, second_moment = _by_slot(self.sums).unbind(-1)
        top, top_slots = _by_slot(self.top), torch.from_numpy(self.top_slots)
        weights = torch.from_numpy(self.pairs[:, 0])
        mean = first_moment / exp
        largest_member, member_sum = _by_slot(self.masses).unbind(-1)
        return RowStatistics(
            maximum=maximum,
            log_sum=exp.log().float(),
            mean=mean.float(),
            runner_up=second - maximum,
            top_ids=_by_slot(self.top_ids),
            top=top - maximum[top_slots].unsqueeze(-1),
            square=(second_moment / exp).float() if self.square else None,
            log_power=_by_slot(self.powers).log().float() if self.order else None,
            top1=_by_slot(self.top1) if self.top1.shape[1] else None,
            log_mass=(largest_member - maximum + member_sum.log()).float() if len(self.members) else None,
            cross=(mean[weights] - _by_slot(self.gaps) / exp[weights]).float() if len(weights) else None,
        )


def _by_slot(values: npt.NDArray[Any]) -> Tensor:
    """Return [slot, row, ...] of [row, slot, ...]."""
    return torch.from_numpy(values).transpose(0, 1).contiguous()


def _share(work: Callable[[int, int], None], num_rows: int, num_logits: int) -> None:
    """Let as many threads as torch uses do the rows `first` .. `stop - 1` of some rows each.

    Args:
        work: Does the rows between two numbers.
        num_rows: How many there are.
        num_logits: Of a row.
    """
    num_threads = max(1, min(torch.get_num_threads(), num_rows, num_rows * num_logits // MIN_LOGITS_OF_THREAD))
    ends = [num_rows * index // num_threads for index in range(num_threads + 1)]
    others = [_threads().submit(work, first, stop) for first, stop in pairwise(ends[1:])]
    work(0, ends[1])
    for other in others:
        other.result()


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, torch.get_num_threads() - 1), thread_name_prefix="llm_entropy-lens")
