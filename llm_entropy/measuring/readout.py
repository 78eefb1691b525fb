"""What the layers of all conditions say: their statistics, the targets and the tokens that they rank highest.

A layer that steering does not reach is the same as the first condition's and is looked at once: it has one slot.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, Optional

import torch
from torch import Tensor

from llm_entropy import kernels
from llm_entropy.schema.batches import PREDICTED
from llm_entropy.schema.records import NamedTokens
from llm_entropy.schema.statistics import LayerStatistics, RowStatistics, Unembedding
from llm_entropy.settings.metrics import Need


@dataclass(frozen=True)
class Slots:
    """Which layers of which conditions are looked at: all of the first condition, of the others those that differ."""

    num_layers: int
    """L + 1."""
    shared: tuple[int, ...]
    """[condition], how many layers, from 0 on, are those of the first condition; of the first one it is not read."""

    @property
    def num_conditions(self) -> int:
        """How many conditions there are, at least one."""
        return len(self.shared)

    @property
    def starts(self) -> list[int]:
        """[condition], the first slot that is its own."""
        sizes = [self.num_layers, *(self.num_layers - count for count in self.shared[1:])]
        return [0, *accumulate(sizes)][:-1]

    @property
    def layers(self) -> list[int]:
        """The layer of each slot."""
        all_layers = list(range(self.num_layers))
        return all_layers + [layer for count in self.shared[1:] for layer in all_layers[count:]]

    def of(self, condition: int) -> list[int]:
        """Return the slots of a condition, a slot for each layer."""
        if condition == 0:
            return list(range(self.num_layers))
        count, start = self.shared[condition], self.starts[condition]
        return [*range(count), *range(start, start + self.num_layers - count)]

    def spread(self, values: Tensor) -> Tensor:
        """Return [condition, layer, ...] of values [slot, ...]."""
        spread = [values[: self.num_layers]]
        for count, start in zip(self.shared[1:], self.starts[1:], strict=True):
            spread.append(torch.cat([values[:count], values[start : start + self.num_layers - count]]))
        return torch.stack(spread)

    def final_pairs(self) -> Pairs:
        """Return for each condition and layer the slots of its last layer and of this one."""
        return [[(self.of(c)[-1], slot) for slot in self.of(c)] for c in range(self.num_conditions)]

    def first_pairs(self) -> Pairs:
        """Return for each condition and layer the slots of the first condition and of this one, at this layer."""
        return [list(zip(self.of(0), self.of(c), strict=True)) for c in range(self.num_conditions)]


class Wanted(NamedTuple):
    """What is asked for."""

    top_k: int
    """How many predictions are listed."""
    num_tracked: int
    """Number of the most likely tokens whose probability is tracked over the layers."""
    use_sampling: bool
    """Whether the predicted token is a sampled one."""
    needs: Collection[Need]
    """What the metrics are made from."""
    order: float = 2.0
    """The order of the powers."""
    members: Optional[Tensor] = None
    """[vocab], bool, the tokens that begin a word or end the text; None: the vocabulary does not tell."""
    lens_tokens: bool = False
    """Whether each layer's own most likely token is named; then `needs` has `top1`."""


def decode(
    inputs: Tensor,
    slots: Slots,
    unembedding: Unembedding,
    targets: Tensor,
    uniforms: Tensor,
    wanted: Wanted,
    names_tokens: Sequence[bool],
) -> tuple[LayerStatistics, list[Optional[NamedTokens]]]:
    """Read the layers of some records.

    Args:
        inputs: [slot, record, width], what the lens gives to the decoder.
        slots: What they are.
        unembedding: The decoder and what follows it.
        targets: [record], the true token, or `PREDICTED`.
        uniforms: [record], the random number with which a token is sampled.
        wanted: What is asked for.
        names_tokens: [condition], whether its tokens are asked for.

    Returns:
        The statistics, [condition, layer, record], and the named tokens of each condition.
    """
    finals = [slots.of(c)[-1] for c in range(slots.num_conditions)]
    top_slots = sorted(set(finals))
    rows, statistics = _statistics(inputs, slots, unembedding, wanted, top_slots)
    places = [top_slots.index(slot) for slot in finals]
    top_ids, top = rows.top_ids[places], rows.top[places]
    states, maximum = slots.spread(inputs), slots.spread(rows.maximum)
    predicted = top_ids[..., 0]
    if wanted.use_sampling:
        log_normalizer = maximum[:, -1] + statistics.log_sum[:, -1]
        predicted = kernels.sample_tokens(states[:, -1], unembedding, log_normalizer, uniforms)
    chosen = torch.where(targets == PREDICTED, predicted, targets)
    at_target, ranks = [], []
    tokens: list[Optional[NamedTokens]] = []
    for c, is_named in enumerate(names_tokens):
        tracked = top_ids[c, :, : wanted.num_tracked if is_named else 0]
        named = torch.cat([chosen[c].unsqueeze(-1), predicted[c].unsqueeze(-1), tracked], dim=-1)
        logits = kernels.token_logits(states[c], unembedding, named)
        shifted, log_sum = logits - maximum[c].unsqueeze(-1), statistics.log_sum[c].unsqueeze(-1)
        at_target.append(shifted[..., 0])
        if "target_rank" in wanted.needs:
            ranks.append(kernels.count_larger(states[c], unembedding, chosen[c], logits[..., 0]))
        if not is_named:
            tokens.append(None)
            continue
        listed, listed_logits = top_ids[c, :, : wanted.top_k], top[c, :, : wanted.top_k]
        if wanted.use_sampling:
            listed, listed_logits = predicted[c].unsqueeze(-1), shifted[-1, :, 1:2]
        of_tracked = (shifted[..., 2:] - log_sum).exp().permute(1, 2, 0)
        listed_probabilities = (listed_logits - log_sum[-1]).exp()
        of_layers = _most_likely(statistics, c, is_asked=wanted.lens_tokens)
        tokens.append(NamedTokens(chosen[c], listed, listed_probabilities, tracked, of_tracked, *of_layers))
    return statistics._replace(target=torch.stack(at_target), target_rank=torch.stack(ranks) if ranks else None), tokens


def _most_likely(statistics: LayerStatistics, condition: int, *, is_asked: bool) -> tuple[Tensor, Tensor]:
    """Return each layer's most likely token under a condition and its probability, [record, layer]; or of no layer.

    At the largest logit z = m, so that its probability is exp(0) / sum exp(z - m).
    """
    log_sum = statistics.log_sum[condition]
    if not is_asked:
        nothing = log_sum.new_empty(log_sum.shape[1], 0)
        return nothing.long(), nothing
    assert statistics.top1 is not None, "the kernel was not asked for the most likely tokens"
    return statistics.top1[condition].T, log_sum.clamp(min=0.0).neg().exp().T


def _statistics(
    inputs: Tensor, slots: Slots, unembedding: Unembedding, wanted: Wanted, top_slots: list[int]
) -> tuple[RowStatistics, LayerStatistics]:
    """Return the statistics of the slots, and those of conditions and layers that need no target."""
    final_pairs = slots.final_pairs() if "final_cross" in wanted.needs else []
    first_pairs = slots.first_pairs() if "standard_cross" in wanted.needs else []
    pairs = list(dict.fromkeys(pair for pairs in (*final_pairs, *first_pairs) for pair in pairs))
    rows = kernels.lens_statistics(
        inputs,
        unembedding,
        top_slots=top_slots,
        top_k=max(wanted.top_k, wanted.num_tracked),
        square="square" in wanted.needs,
        order=wanted.order if "power" in wanted.needs else None,
        top1="top1" in wanted.needs,
        members=wanted.members if "mass" in wanted.needs else None,
        pairs=[(a, b) for a, b in pairs if a != b],
    )

    def spread(values: Optional[Tensor]) -> Optional[Tensor]:
        return None if values is None else slots.spread(values)

    return rows, LayerStatistics(
        log_sum=slots.spread(rows.log_sum),
        mean=slots.spread(rows.mean),
        runner_up=slots.spread(rows.runner_up),
        square=spread(rows.square),
        log_power=spread(rows.log_power),
        top1=spread(rows.top1),
        log_mass=spread(rows.log_mass),
        final_cross=_cross(rows, pairs, final_pairs),
        standard_cross=_cross(rows, pairs, first_pairs),
        order=wanted.order,
    )


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
