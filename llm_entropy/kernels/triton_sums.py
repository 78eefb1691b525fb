"""What the programs leave of each split of the vocabulary, joined in float64."""

from __future__ import annotations

from typing import NamedTuple, Optional

import torch
from torch import Tensor

from llm_entropy.kernels.triton_launches import Launch
from llm_entropy.kernels.wanted import Wanted

MASKED = -1e25
"""What is below is no logit but a masked token, whatever the temperature has made of its bias."""


class Partial(NamedTuple):
    """What the programs of a launch leave of each split of the vocabulary, in the order of their arguments."""

    sums: Tensor
    """[statistic, first or second, split, slot and row], float32: m, second, s, t and, if asked for, q."""
    cross: Optional[Tensor]
    """Of pairs, [split, slot and row]."""
    top: Optional[Tensor]
    """[first or second, split, slot and row, k], the largest logits, if they are wanted."""
    top_ids: Optional[Tensor]
    top1: Optional[Tensor]
    """[first or second, split, slot and row], the token with the largest logit, if it is wanted."""
    power: Optional[Tensor]
    """[first or second, split, slot and row], float32: sum exp(a (z - m)), if it is wanted."""
    mass: Optional[Tensor]
    """[2, first or second, split, slot and row], float32: of the members their own maximum, and sum exp(z - it)."""

    @classmethod
    def empty(cls, launch: Launch, splits: int, num_rows: int, wanted: Wanted, device: torch.device) -> Partial:
        """Return room for what the programs of a launch will leave."""
        units, num_flat = 2 if launch.second else 1, len(launch.first) * num_rows
        sums = torch.empty((5 if wanted.square else 4, units, splits, num_flat), dtype=torch.float32, device=device)
        cross = torch.empty((splits, num_flat), dtype=torch.float32, device=device) if launch.second else None
        top = top_ids = None
        if launch.top:
            top = torch.empty((units, splits, num_flat, wanted.top_k), dtype=torch.float32, device=device)
            top_ids = torch.empty_like(top, dtype=torch.int64)
        top1 = torch.empty_like(sums[0], dtype=torch.int64) if wanted.top1 else None
        power = None if wanted.order is None else torch.empty_like(sums[0])
        mass = None if wanted.members is None else torch.empty_like(sums[:2])
        return cls(sums, cross, top, top_ids, top1, power, mass)


class Sums(NamedTuple):
    """Sums over the whole vocabulary, each [slot of a launch, row]; float64, the logits float32."""

    maximum: Tensor
    second: Tensor
    exp: Tensor
    first_moment: Tensor
    second_moment: Optional[Tensor]
    power: Optional[Tensor]
    top1: Optional[Tensor]
    """int64."""
    log_mass: Optional[Tensor]
    """ln sum exp(z) over the members, relative to nothing."""
    cross: Optional[Tensor]
    """Of pairs, [pair, row]: sum exp(z_a - m_a) (z_b - m_b)."""
    top: Optional[Tensor]
    """[slot, row, k], the largest logits, the largest first."""
    top_ids: Optional[Tensor]

    def cross_of(self, launch: Launch) -> dict[tuple[int, int], Tensor]:
        """Return sum p_a (z_b - m_b) [row] of each pair of the launch."""
        if self.cross is None:
            return {}
        return dict(zip(launch.pairs, (self.cross / self.exp[: len(launch.first)]).float(), strict=True))

    def top_of(self, launch: Launch) -> dict[int, tuple[Tensor, Tensor]]:
        """Return the tokens of the largest logits and z - m, both [row, k], of each slot of the launch."""
        if self.top is None or self.top_ids is None:
            return {}
        return dict(
            zip(launch.slots, zip(self.top_ids, self.top - self.maximum.unsqueeze(-1), strict=True), strict=True)
        )


def join(partial: Partial, num_rows: int, order: float) -> Sums:
    """Join the splits of the vocabulary."""
    sums, cross, power, top1 = partial.sums, partial.cross, partial.power, partial.top1
    m, second, s, t = sums[:4]
    maximum = m.amax(1)
    maximum = torch.where(maximum < MASKED, torch.nan, maximum)  # a row whose tokens are all masked
    step = (m - maximum.unsqueeze(1)).double()
    factor = step.exp()
    seconds = second.amax(1)
    if m.shape[1] > 1:
        seconds = torch.maximum(seconds, m.topk(2, dim=1).values[:, 1])
    seconds = torch.where(seconds < MASKED, -torch.inf, seconds)
    top, top_ids = _join_top(partial.top, partial.top_ids)
    if top1 is not None:
        top1 = top1.gather(1, m.argmax(1, keepdim=True)).squeeze(1)  # of equal splits the first, with the lower ids

    def per_slot(joined: Tensor) -> Tensor:
        return joined.reshape(-1, num_rows, *joined.shape[2:])

    return Sums(
        maximum=per_slot(maximum),
        second=per_slot(seconds),
        exp=per_slot((factor * s).sum(1)),
        first_moment=per_slot((factor * (t + step * s)).sum(1)),
        second_moment=per_slot((factor * (sums[4] + step * (2 * t + step * s))).sum(1)) if len(sums) == 5 else None,
        power=None if power is None else per_slot(((order * step).exp() * power).sum(1)),
        top1=None if top1 is None else per_slot(top1),
        log_mass=None if partial.mass is None else per_slot(_join_mass(*partial.mass)),
        # the weights' maximum moves as well as that of the logits
        cross=None if cross is None else per_slot((factor[:1] * (cross + step[1:] * s[:1])).sum(1)),
        top=None if top is None else per_slot(top),
        top_ids=None if top_ids is None else per_slot(top_ids),
    )


def _join_mass(m: Tensor, s: Tensor) -> Tensor:
    """Return ln sum exp(z) over the members [first or second, slot and row], float64."""
    maximum = m.amax(1)
    total = ((m - maximum.unsqueeze(1)).double().exp() * s).sum(1).log() + maximum
    return torch.where(maximum < MASKED, -torch.inf, total)


def _join_top(top: Optional[Tensor], top_ids: Optional[Tensor]) -> tuple[Optional[Tensor], Optional[Tensor]]:
    """Return the largest logits of all splits, and their tokens, both [first or second, slot and row, k]."""
    if top is None or top_ids is None:
        return None, None
    # [first or second, slot and row, candidate]: by token first, an order in which the stable sort leaves ties
    ids, order = top_ids.transpose(1, 2).flatten(2).sort(dim=-1)
    best, order = top.transpose(1, 2).flatten(2).gather(-1, order).sort(dim=-1, descending=True, stable=True)
    best = torch.where(best < MASKED, -torch.inf, best)
    return best[..., : top.shape[-1]], ids.gather(-1, order)[..., : top.shape[-1]]
