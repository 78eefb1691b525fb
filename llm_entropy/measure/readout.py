"""What the layers of all conditions say: their statistics, the targets and the tokens that they rank highest.

A layer that steering does not reach is the same in every condition and is looked at once: it has one slot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Optional

import torch
from torch import Tensor

from llm_entropy import kernels
from llm_entropy.schema import PREDICTED, LayerStatistics, RowStatistics, Unembedding


@dataclass(frozen=True)
class Slots:
    """Which layers of which conditions are looked at: all of the first condition, of others what steering reaches."""

    num_conditions: int
    """1 or 2, the standard one first."""
    num_layers: int
    """L + 1."""
    num_shared: int
    """How many layers, from 0 on, are the same in both conditions."""

    @property
    def layers(self) -> list[int]:
        """The layer of each slot."""
        first = list(range(self.num_layers))
        return first + first[self.num_shared :] * (self.num_conditions - 1)

    def of(self, condition: int) -> list[int]:
        """Return the slots of a condition, a slot for each layer."""
        first = list(range(self.num_layers))
        if condition == 0:
            return first
        return first[: self.num_shared] + [self.num_layers + k for k in range(self.num_layers - self.num_shared)]

    def spread(self, values: Tensor) -> Tensor:
        """Return [condition, layer, ...] of values [slot, ...]."""
        first = values[: self.num_layers]
        if self.num_conditions == 1:
            return first.unsqueeze(0)
        return torch.stack([first, torch.cat([values[: self.num_shared], values[self.num_layers :]])])

    def final_pairs(self) -> Pairs:
        """Return for each condition and layer the slots of its last layer and of this one."""
        return [[(self.of(c)[-1], slot) for slot in self.of(c)] for c in range(self.num_conditions)]

    def standard_pairs(self) -> Pairs:
        """Return for each condition and layer the slots of the standard condition and of this one, at this layer."""
        return [list(zip(self.of(0), self.of(c), strict=True)) for c in range(self.num_conditions)]


class Wanted(NamedTuple):
    """What is asked for."""

    top_k: int
    """How many predictions are listed."""
    num_tracked: int
    """Of how many of them the probability is followed over the layers."""
    use_sampling: bool
    """Whether the predicted token is a sampled one."""
    square: bool
    """Whether `square` is wanted."""
    final_cross: bool
    """Whether `final_cross` is wanted."""
    standard_cross: bool
    """Whether `standard_cross` is wanted."""
    target_rank: bool
    """Whether `target_rank` is wanted."""


class Tokens(NamedTuple):
    """The tokens that a batch names, and what the layers think of them."""

    targets: Tensor
    """[condition, record], the token whose probability is read."""
    listed: Tensor
    """[condition, record, top_k], the predictions of the last layer, or [condition, record, 1], the sampled token."""
    listed_probabilities: Tensor
    """As `listed`, at the last layer."""
    tracked: Tensor
    """[condition, record, tracked], the likeliest tokens of the last layer."""
    tracked_probabilities: Tensor
    """[condition, record, tracked, layer]."""

    @classmethod
    def join(cls, parts: Sequence[Tokens]) -> Tokens:
        """Return the tokens of several tiles of records, in order."""
        return cls(*(torch.cat(values, dim=1) for values in zip(*parts, strict=True)))


def decode(
    inputs: Tensor, slots: Slots, unembedding: Unembedding, targets: Tensor, uniforms: Tensor, wanted: Wanted
) -> tuple[LayerStatistics, Tokens]:
    """Read the layers of some records.

    Args:
        inputs: [slot, record, width], what the lens gives to the decoder.
        slots: What they are.
        unembedding: The decoder and what follows it.
        targets: [record], the true token, or `PREDICTED`.
        uniforms: [record], the random number with which a token is sampled.
        wanted: What is asked for.

    Returns:
        The statistics, [condition, layer, record], and the named tokens.
    """
    conditions = range(slots.num_conditions)
    finals = [slots.of(c)[-1] for c in conditions]
    final_pairs = slots.final_pairs() if wanted.final_cross else []
    standard_pairs = slots.standard_pairs() if wanted.standard_cross else []
    pairs = list(dict.fromkeys(pair for pairs in (*final_pairs, *standard_pairs) for pair in pairs))
    top_slots = sorted(set(finals))
    rows = kernels.lens_statistics(
        inputs,
        unembedding,
        top_slots=top_slots,
        top_k=max(wanted.top_k, wanted.num_tracked),
        square=wanted.square,
        pairs=[(a, b) for a, b in pairs if a != b],
    )
    statistics = LayerStatistics(
        log_sum=slots.spread(rows.log_sum),
        mean=slots.spread(rows.mean),
        runner_up=slots.spread(rows.runner_up),
        square=None if rows.square is None else slots.spread(rows.square),
        final_cross=_cross(rows, pairs, final_pairs),
        standard_cross=_cross(rows, pairs, standard_pairs),
    )
    maximum, log_sum = slots.spread(rows.maximum), statistics.log_sum.unsqueeze(-1)
    top_ids = torch.stack([rows.top_ids[top_slots.index(slot)] for slot in finals])
    top = torch.stack([rows.top[top_slots.index(slot)] for slot in finals])

    listed, tracked = top_ids[..., : wanted.top_k], top_ids[..., : wanted.num_tracked]
    listed_probabilities = (top[..., : wanted.top_k] - log_sum[:, -1]).exp()
    predicted, states = top_ids[..., 0], slots.spread(inputs)
    if wanted.use_sampling:
        log_normalizer = maximum[:, -1] + statistics.log_sum[:, -1]
        predicted = kernels.sample_tokens(states[:, -1], unembedding, log_normalizer, uniforms)
    chosen = torch.where(targets == PREDICTED, predicted, targets)
    named = torch.cat([chosen.unsqueeze(-1), predicted.unsqueeze(-1), tracked], dim=-1)
    logits = torch.stack([kernels.token_logits(states[c], unembedding, named[c]) for c in conditions])
    shifted = logits - maximum.unsqueeze(-1)
    statistics = statistics._replace(target=shifted[..., 0])
    if wanted.use_sampling:
        listed, listed_probabilities = predicted.unsqueeze(-1), (shifted[:, -1, :, 1:2] - log_sum[:, -1]).exp()
    if wanted.target_rank:
        ranks = [kernels.count_larger(states[c], unembedding, chosen[c], logits[c, ..., 0]) for c in conditions]
        statistics = statistics._replace(target_rank=torch.stack(ranks))
    tracked_probabilities = (shifted[..., 2:] - log_sum).exp().permute(0, 2, 3, 1)
    return statistics, Tokens(chosen, listed, listed_probabilities, tracked, tracked_probabilities)


Pairs = list[list[tuple[int, int]]]
"""[condition][layer], two slots."""


def _cross(rows: RowStatistics, measured: Sequence[tuple[int, int]], wanted: Pairs) -> Optional[Tensor]:
    """Return the cross terms of pairs as [condition, layer, record]; None where none are wanted.

    Args:
        rows: Statistics of slots.
        measured: Every pair; `rows.cross` has those of two different slots, in their order.
        wanted: The pairs of every condition and layer.
    """
    if not wanted:
        return None
    different: Iterator[Tensor] = iter([] if rows.cross is None else rows.cross.unbind())
    cross = {(a, b): rows.mean[a] if a == b else next(different) for a, b in measured}
    return torch.stack([torch.stack([cross[pair] for pair in pairs]) for pairs in wanted])
