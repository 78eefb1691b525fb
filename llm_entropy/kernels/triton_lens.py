"""The kernel on CUDA: it starts the Triton programs, and makes statistics of what they leave.

The vocabulary is split, so that few rows fill a device too; splits are joined in float64. As many slots as can be go
through a program in pairs; cross terms of other pairs are linear in the states, and cost one product for all of them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple, Optional

import torch
import triton
from torch import Tensor

from llm_entropy.kernels.triton_launches import Launch, plan_launches
from llm_entropy.kernels.triton_programs import (
    INTERPRETED,
    LOWEST,
    SPLIT_UNIT,
    expected_rows,
    paired_statistics,
    probabilities,
    single_statistics,
)
from llm_entropy.kernels.triton_sums import Partial, Sums, join
from llm_entropy.kernels.wanted import Wanted
from llm_entropy.schema.statistics import RowStatistics, Unembedding

MIN_SPLITS = 16
"""At least so many splits where the vocabulary allows: programs that run together share rows as well as tokens."""
WAVES = 4
"""Where rows are few, the vocabulary is split until there are so many programs for each multiprocessor."""
ROWS_TOGETHER = 2**16
"""Rows of all slots that are looked at together, which bounds the sums of the splits."""
EXPECTED_NUMBERS = 2**21
"""Numbers of expected decoder rows that `_expected_cross` holds at a time."""
PROBABILITIES = 2**22
"""Probabilities that `_expected_cross` holds at a time."""


@lru_cache(maxsize=64)
def _index(slots: tuple[int, ...], device: torch.device) -> Tensor:
    """Return slots as a tensor, kept: to copy it anew for each batch would be a synchronisation."""
    return torch.tensor(slots, dtype=torch.int64, device=device)


@lru_cache(maxsize=8)
def _num_multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _tokens_per_split(num_flat: int, vocab_size: int, device: torch.device) -> int:
    """Return how many tokens a program walks over."""
    num_blocks = triton.cdiv(num_flat, 128)
    splits = max(MIN_SPLITS, triton.cdiv(WAVES * _num_multiprocessors(device), num_blocks))
    return int(triton.cdiv(triton.cdiv(vocab_size, splits), SPLIT_UNIT)) * SPLIT_UNIT


class _Decoder(NamedTuple):
    """What the kernels are told about the decoder."""

    weight: Tensor
    bias: Optional[Tensor]
    inner: float
    outer: float
    softcap: bool

    @classmethod
    def of(cls, unembedding: Unembedding) -> _Decoder:
        weight = unembedding.weight if unembedding.weight.stride(1) == 1 else unembedding.weight.contiguous()
        bias = None if unembedding.bias is None else unembedding.bias.contiguous()
        cap = unembedding.softcap
        if cap is None:
            return cls(weight, bias, 1.0, unembedding.scale / unembedding.temperature, False)
        return cls(weight, bias, unembedding.scale / cap, cap / unembedding.temperature, True)

    def options(self, states: Tensor) -> dict[str, Any]:
        """Return what the kernels that make logits have in common."""
        # The interpreter keeps bfloat16 as 16-bit integers and would multiply those; float16 it adds up as it likes.
        narrow = INTERPRETED and states.dtype != torch.float32
        widen = narrow or states.dtype != self.weight.dtype
        return {
            "token_stride": self.weight.stride(0),
            "inner": self.inner,
            "outer": self.outer,
            "WIDTH": self.weight.shape[1],
            "WIDEN": widen,
            # 128 bytes: a line of shared memory
            "BLOCK_WIDTH": 32 if widen or states.dtype == torch.float32 else 64,
        }


def _run(states: Tensor, decoder: _Decoder, launch: Launch, wanted: Wanted) -> Sums:
    """Return the sums of the slots of a launch: first slots, then second ones."""
    num_rows, vocab_size, device = states.shape[1], decoder.weight.shape[0], states.device
    per_split = _tokens_per_split(len(launch.first) * num_rows, vocab_size, device)
    splits = triton.cdiv(vocab_size, per_split)
    partial = Partial.empty(launch, splits, num_rows, wanted, device)
    _start(states, decoder, launch, per_split, partial, wanted)
    if partial.top_ids is not None:
        # a row that is no number leaves places empty: its tokens mean nothing, but they have to be some
        partial.top_ids.clamp_(max=vocab_size - 1)
    return join(partial, num_rows, wanted.order or 0.0)


def _start(states: Tensor, decoder: _Decoder, launch: Launch, per_split: int, partial: Partial, wanted: Wanted) -> None:
    """Start the programs of a launch, which fill `partial`."""
    splits, num_flat = partial.sums.shape[2:]
    top_k = 0 if partial.top is None else partial.top.shape[-1]

    def grid(chosen: dict[str, int]) -> tuple[int]:
        return (triton.cdiv(num_flat, chosen["BLOCK_ROWS"]) * splits,)

    kernel = paired_statistics if launch.second else single_statistics
    kernel[grid](
        states,
        _index(launch.slots, states.device),
        decoder.weight,
        decoder.bias,
        *partial,
        members_ptr=None if wanted.members is None else wanted.members.view(torch.uint8),
        num_slots=len(launch.first),
        num_rows=states.shape[1],
        num_tokens=decoder.weight.shape[0],
        tokens_per_split=per_split,
        num_splits=splits,
        sums_per_slot=partial.sums.stride(1),
        field=partial.sums.stride(0),
        slot_stride=states.stride(0),
        row_stride=states.stride(1),
        order=wanted.order or 0.0,
        SOFTCAP=decoder.softcap,
        SQUARE=len(partial.sums) == 5,
        PAIRED=bool(launch.second),
        TOP_K=top_k,
        CANDIDATES=triton.next_power_of_2(top_k) if top_k else 1,
        **decoder.options(states),
    )


def lens_statistics(states: Tensor, unembedding: Unembedding, wanted: Wanted) -> RowStatistics:
    """Return the statistics of each row; see `llm_entropy.kernels.lens_statistics`."""
    if states.stride(2) != 1:
        states = states.contiguous()
    decoder = _Decoder.of(unembedding)
    wanted = wanted._replace(top_k=min(wanted.top_k, decoder.weight.shape[0]))
    together = max(1, ROWS_TOGETHER // states.shape[0])
    with torch.cuda.device_of(states):
        parts = [_statistics(part, decoder, wanted) for part in states.split(together, dim=1)]
    if len(parts) == 1:
        return parts[0]
    joined = {
        name: torch.cat([getattr(part, name) for part in parts], dim=1)
        for name in RowStatistics._fields
        if getattr(parts[0], name) is not None
    }
    return RowStatistics(**joined)


def _statistics(states: Tensor, decoder: _Decoder, wanted: Wanted) -> RowStatistics:
    """Return the statistics of rows few enough to be looked at together."""
    top_slots, pairs = wanted.top_slots, wanted.pairs
    num_slots, num_rows, _ = states.shape
    maximum, log_sum, mean, runner_up, moment, log_power, log_mass = torch.empty(
        (7, num_slots, num_rows), dtype=torch.float32, device=states.device
    )
    top1 = torch.empty((num_slots, num_rows), dtype=torch.int64, device=states.device)
    top: dict[int, tuple[Tensor, Tensor]] = {}
    cross: dict[tuple[int, int], Tensor] = {}
    for launch in plan_launches(num_slots, top_slots, pairs):
        sums = _run(states, decoder, launch, wanted)
        index = _index(launch.slots, states.device)
        maximum[index] = sums.maximum
        log_sum[index] = sums.exp.log().float()
        mean[index] = (sums.first_moment / sums.exp).float()
        runner_up[index] = sums.second - sums.maximum
        if sums.second_moment is not None:
            moment[index] = (sums.second_moment / sums.exp).float()
        if sums.power is not None:
            log_power[index] = sums.power.log().float()
        if sums.top1 is not None:
            top1[index] = sums.top1
        if sums.log_mass is not None:
            log_mass[index] = (sums.log_mass - sums.maximum).float()
        top |= sums.top_of(launch)
        cross |= sums.cross_of(launch)
    cross |= {(slot, slot): mean[slot] for slot in range(num_slots)}
    others = tuple(dict.fromkeys(pair for pair in pairs if pair not in cross))
    cross |= _cross_of_others(states, decoder, maximum, log_sum, others)
    no_ids = torch.empty((0, num_rows, wanted.top_k), dtype=torch.int64, device=states.device)
    return RowStatistics(
        maximum=maximum,
        log_sum=log_sum,
        mean=mean,
        runner_up=runner_up,
        top_ids=torch.stack([top[slot][0] for slot in top_slots]) if top_slots else no_ids,
        top=torch.stack([top[slot][1] for slot in top_slots]) if top_slots else no_ids.float(),
        square=moment if wanted.square else None,
        log_power=None if wanted.order is None else log_power,
        top1=top1 if wanted.top1 else None,
        log_mass=None if wanted.members is None else log_mass,
        cross=torch.stack([cross[pair] for pair in pairs]) if pairs else None,
    )


def _cross_of_others(
    states: Tensor,
    decoder: _Decoder,
    maximum: Tensor,
    log_sum: Tensor,
    pairs: tuple[tuple[int, int], ...],
) -> dict[tuple[int, int], Tensor]:
    """Return sum p_a (z_b - m_b) [row] of pairs that went through no program together."""
    if not pairs:
        return {}
    if decoder.softcap:
        # tanh stands between: the same program once more, for its cross term alone
        launch = Launch.of_pairs(pairs, top=False)
        return _run(states, decoder, launch, Wanted()).cross_of(launch)
    return _expected_cross(states, decoder, maximum, log_sum, pairs)


def _expected_cross(
    states: Tensor,
    decoder: _Decoder,
    maximum: Tensor,
    log_sum: Tensor,
    pairs: tuple[tuple[int, int], ...],
) -> dict[tuple[int, int], Tensor]:
    """Return sum p_a (z_b - m_b) of each pair, without the logits of b: they are linear in the states.

    sum p_a z_b = outer * (h_b . (sum p_a w) + sum p_a bias): one product for all pairs of the same a.
    """
    num_rows, width = states.shape[1:]
    tile = max(1, EXPECTED_NUMBERS // width)
    cross = {pair: torch.empty_like(maximum[0]) for pair in pairs}
    for a in dict.fromkeys(a for a, _ in pairs):
        for start in range(0, num_rows, tile):
            rows = slice(start, start + tile)
            expected, expected_bias, total = _expected_rows(
                states[a, rows], decoder, maximum[a, rows] + log_sum[a, rows]
            )
            for b in (b for first, b in pairs if first == a):
                products = (states[b, rows].double() * expected).sum(-1)
                # The probabilities' sum is 1 but for the rounding of the normaliser, which all of them share: it would
                # be an error of the size of the logits, if the maximum were taken off just once.
                shifted = decoder.outer * (products + expected_bias) - total * maximum[b, rows]
                cross[a, b][rows] = (shifted / total).float()
    return cross


def _expected_rows(states: Tensor, decoder: _Decoder, log_normalizer: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return sum p w [row, width], sum p bias and sum p [row], float64 but for the first, of states [row, width]."""
    (num_rows, width), (vocab_size, device) = states.shape, (decoder.weight.shape[0], states.device)
    chunk = max(1, PROBABILITIES // num_rows // SPLIT_UNIT) * SPLIT_UNIT
    expected = torch.zeros((num_rows, width), dtype=torch.float32, device=device)
    expected_bias, total = torch.zeros((2, num_rows), dtype=torch.float64, device=device)
    block_rows, block_tokens, block_width = (16, 16, 16) if INTERPRETED else (64, 128, 128)
    for start in range(0, vocab_size, chunk):
        weight = decoder.weight[start : start + chunk]
        p = torch.empty((num_rows, len(weight)), dtype=torch.float32, device=device)
        probabilities[triton.cdiv(num_rows, block_rows), triton.cdiv(len(weight), block_tokens)](
            states,
            decoder.weight,
            decoder.bias,
            log_normalizer,
            p,
            num_rows=num_rows,
            num_tokens=vocab_size,
            chunk_start=start,
            chunk_size=len(weight),
            row_stride=states.stride(0),
            BLOCK_ROWS=block_rows,
            BLOCK_TOKENS=block_tokens,
            **decoder.options(states),
        )
        expected_rows[triton.cdiv(num_rows, block_rows), triton.cdiv(width, block_width)](
            p,
            weight,
            expected,
            num_rows=num_rows,
            num_tokens=len(weight),
            token_stride=weight.stride(0),
            WIDTH=width,
            BLOCK_ROWS=block_rows,
            BLOCK_TOKENS=16 if INTERPRETED else 32,
            BLOCK_WIDTH=block_width,
        )
        total += p.sum(-1, dtype=torch.float64)
        if decoder.bias is not None:
            bias = decoder.bias[start : start + chunk].float().clamp(min=LOWEST.value)
            expected_bias += (p * bias).sum(-1, dtype=torch.float64)
    return expected, expected_bias, total
