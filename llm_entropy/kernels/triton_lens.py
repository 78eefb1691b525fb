"""The kernel in Triton: logits are made, used and forgotten in registers; only sums over the vocabulary reach memory.

A program takes a block of rows and one split of the vocabulary, walks over the split block by block, and leaves its
sums; splits are joined afterwards in float64. Two slots of a pair go through one program, so that the cross term costs
no product of its own. Logits that are made tile by tile are the idea of Cut Cross-Entropy (Wijmans et al., 2025).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from llm_entropy.schema import RowStatistics, Unembedding

LOWEST = tl.constexpr(-1e30)
"""Stands for no logit: below each real one, yet finite, so that its product with a weight of 0 is 0 and not NaN."""


@triton.jit
def _tanh(x):
    # the exponent is never positive: nothing overflows
    e = tl.exp(-2.0 * tl.abs(x))
    t = (1.0 - e) / (1.0 + e)
    return tl.where(x < 0, -t, t)


INTERPRETED = not isinstance(_tanh, triton.JITFunction)
"""Whether kernels run on the CPU, by Triton's interpreter (TRITON_INTERPRET=1)."""
SPLIT_UNIT = 64 if INTERPRETED else 256
"""A split of the vocabulary is a multiple of this many tokens, which every block size divides."""
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
_VARYING = ["num_slots", "num_rows", "num_splits", "sums_per_slot", "field", "chunk_start"]
"""Arguments that change from batch to batch: no kernel is compiled anew for those that are 1 or a multiple of 16."""


@triton.jit
def _products(
    a_rows,  # pointers [row block], to the first number of each row
    b_rows,  # the same of the paired slot
    token_rows,  # pointers [token block], to the first number of each token's decoder row
    WIDTH: tl.constexpr,
    WIDEN: tl.constexpr,
    PAIRED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """Return states @ weight.T, [row block, token block], of both slots; zeros where no second one is paired."""
    a_product = tl.zeros((BLOCK_ROWS, BLOCK_TOKENS), dtype=tl.float32)
    b_product = a_product
    for start in range(0, WIDTH, BLOCK_WIDTH):
        columns = start + tl.arange(0, BLOCK_WIDTH)[None, :]
        if WIDTH % BLOCK_WIDTH == 0:
            w = tl.load(token_rows[:, None] + columns)
            a = tl.load(a_rows[:, None] + columns)
        else:
            w = tl.load(token_rows[:, None] + columns, mask=columns < WIDTH, other=0.0)
            a = tl.load(a_rows[:, None] + columns, mask=columns < WIDTH, other=0.0)
        if WIDEN:
            w = w.to(tl.float32)
            a = a.to(tl.float32)
        a_product = tl.dot(a, tl.trans(w), a_product, input_precision="tf32x3")
        if PAIRED:
            if WIDTH % BLOCK_WIDTH == 0:
                b = tl.load(b_rows[:, None] + columns)
            else:
                b = tl.load(b_rows[:, None] + columns, mask=columns < WIDTH, other=0.0)
            if WIDEN:
                b = b.to(tl.float32)
            b_product = tl.dot(b, tl.trans(w), b_product, input_precision="tf32x3")
    return a_product, b_product


@triton.jit
def _finish(product, tokens, bias_ptr, num_tokens, inner, outer, SOFTCAP: tl.constexpr):
    """Return the logits of a product; `LOWEST` where there is no such token."""
    exists = tokens < num_tokens
    if bias_ptr is not None:
        product += tl.load(bias_ptr + tokens, mask=exists, other=0.0).to(tl.float32)[None, :]
    if SOFTCAP:
        product = _tanh(product * inner)
    return product * outer + tl.where(exists, 0.0, LOWEST)[None, :]


@triton.jit
def _add_block(z, m, second, s, t, q, SQUARE: tl.constexpr):
    """Add a block of logits to the running sums of its rows; also return exp(z - m) and z - m of the new maximum m."""
    block_max = tl.max(z, 1)
    is_max = z == block_max[:, None]
    below_max = tl.max(tl.where(is_max, LOWEST, z), 1)
    block_second = tl.where(tl.sum(is_max.to(tl.int32), 1) > 1, block_max, below_max)
    second = tl.maximum(tl.minimum(m, block_max), tl.maximum(second, block_second))
    step = m - tl.maximum(m, block_max)
    factor = tl.exp(step)
    m = tl.maximum(m, block_max)
    shifted = z - m[:, None]
    e = tl.exp(shifted)
    if SQUARE:
        q = factor * (q + step * (2.0 * t + step * s)) + tl.sum(e * shifted * shifted, 1)
    t = factor * (t + step * s) + tl.sum(e * shifted, 1)
    s = factor * s + tl.sum(e, 1)
    return m, second, s, t, q, e, shifted


@triton.jit
def _add_candidates(z, tokens, top, top_ids, TOP_K: tl.constexpr):
    """Put the `TOP_K` largest logits of a block among the candidates, each in the place of the smallest one.

    Tokens come in order: of equal logits the one that is there already has the lower id and stays.
    """
    for _ in range(TOP_K):
        best, at = tl.max(z, 1, return_indices=True)
        is_best = tl.arange(0, z.shape[1])[None, :] == at[:, None]
        best_id = tl.sum(tl.where(is_best, tokens[None, :], 0), 1)
        smallest = tl.min(top, 1)
        last = tl.max(tl.where(top == smallest[:, None], top_ids, -1), 1)
        replaced = (top == smallest[:, None]) & (top_ids == last[:, None]) & (best > smallest)[:, None]
        top = tl.where(replaced, best[:, None], top)
        top_ids = tl.where(replaced, best_id[:, None], top_ids)
        z = tl.where(is_best, LOWEST, z)
    return top, top_ids


@triton.jit
def _store_sums(sums_ptr, offsets, field, m, second, s, t, q, mask, SQUARE: tl.constexpr):
    # added up step by step, for a multiple of `field` may be too large for its 32 bits
    tl.store(sums_ptr + offsets, m, mask=mask)
    offsets += field
    tl.store(sums_ptr + offsets, second, mask=mask)
    offsets += field
    tl.store(sums_ptr + offsets, s, mask=mask)
    offsets += field
    tl.store(sums_ptr + offsets, t, mask=mask)
    if SQUARE:
        tl.store(sums_ptr + offsets + field, q, mask=mask)


@triton.jit
def _row_pointers(states_ptr, slots_ptr, flat, num_rows, slot_stride, row_stride):
    """Return pointers to the first numbers of rows that are counted over all slots of a launch."""
    slot = tl.load(slots_ptr + flat // num_rows)
    return states_ptr + slot * slot_stride + (flat % num_rows).to(tl.int64) * row_stride


@triton.jit
def _token_pointers(weight_ptr, tokens, num_tokens, token_stride):
    """Return pointers to the first numbers of decoder rows; beyond the vocabulary the last one: `_finish` drops it."""
    return weight_ptr + tl.minimum(tokens, num_tokens - 1).to(tl.int64) * token_stride


@triton.jit(do_not_specialize=_VARYING)
def _statistics_kernel(
    states_ptr,  # [slot, row, width]
    slots_ptr,  # int64 [slot of the launch]; paired: all first slots, then all second ones
    weight_ptr,  # [token, width]
    bias_ptr,  # [token] or None
    sums_ptr,  # [statistic, first or second, split, slot and row]
    cross_ptr,  # [split, slot and row], or None
    top_ptr,  # [first or second, split, slot and row, candidate], or None
    top_ids_ptr,  # the same, int64
    num_slots,  # of the launch, a pair counted once
    num_rows,  # of a slot
    num_tokens,
    tokens_per_split,
    num_splits,
    sums_per_slot,  # numbers of `sums` from a first slot to its second one
    field,  # numbers of `sums` from one statistic to the next
    slot_stride,
    row_stride,
    token_stride,
    inner,  # logits are outer * (product + bias), or outer * tanh(inner * (product + bias))
    outer,
    WIDTH: tl.constexpr,
    WIDEN: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SQUARE: tl.constexpr,
    PAIRED: tl.constexpr,
    TOP_K: tl.constexpr,  # 0: no candidates
    CANDIDATES: tl.constexpr,  # TOP_K rounded up to a power of two
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Leave the sums of one block of rows over one split of the vocabulary."""
    # Programs that run together are a few blocks of rows by all splits: both stay in the second-level cache.
    num_flat = num_slots * num_rows
    num_blocks = tl.cdiv(num_flat, BLOCK_ROWS)
    program = tl.program_id(0)
    first_block = program // (GROUP * num_splits) * GROUP
    group = tl.minimum(num_blocks - first_block, GROUP)
    block = first_block + program % (GROUP * num_splits) % group
    split = program % (GROUP * num_splits) // group

    flat = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    row_exists = flat < num_flat
    # Beyond the last row the last one is read again: no load of the inner loop needs a mask.
    inside = tl.minimum(flat, num_flat - 1)
    a_rows = _row_pointers(states_ptr, slots_ptr, inside, num_rows, slot_stride, row_stride)
    b_rows = a_rows
    if PAIRED:
        b_rows = _row_pointers(states_ptr, slots_ptr + num_slots, inside, num_rows, slot_stride, row_stride)

    a_m = tl.full((BLOCK_ROWS,), LOWEST, dtype=tl.float32)
    a_second = a_m
    a_s = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    a_t = a_s
    a_q = a_s
    b_m, b_second, b_s, b_t, b_q, cross = a_m, a_m, a_s, a_s, a_s, a_s
    if TOP_K > 0:
        # Places beyond TOP_K are never the smallest; the ids of empty places are no tokens.
        place = tl.arange(0, CANDIDATES)[None, :] + tl.zeros((BLOCK_ROWS, 1), dtype=tl.int32)
        a_top = tl.where(place < TOP_K, LOWEST, float("inf"))
        a_top_ids = num_tokens + place
        b_top, b_top_ids = a_top, a_top_ids

    split_start = split * tokens_per_split
    for start in range(split_start, tl.minimum(split_start + tokens_per_split, num_tokens), BLOCK_TOKENS):
        tokens = start + tl.arange(0, BLOCK_TOKENS)
        token_rows = _token_pointers(weight_ptr, tokens, num_tokens, token_stride)
        a_z, b_z = _products(a_rows, b_rows, token_rows, WIDTH, WIDEN, PAIRED, BLOCK_ROWS, BLOCK_TOKENS, BLOCK_WIDTH)
        a_z = _finish(a_z, tokens, bias_ptr, num_tokens, inner, outer, SOFTCAP)
        a_m_before, a_s_before = a_m, a_s
        a_m, a_second, a_s, a_t, a_q, a_e, _ = _add_block(a_z, a_m, a_second, a_s, a_t, a_q, SQUARE)
        if TOP_K > 0:
            a_top, a_top_ids = _add_candidates(a_z, tokens, a_top, a_top_ids, TOP_K)
        if PAIRED:
            b_z = _finish(b_z, tokens, bias_ptr, num_tokens, inner, outer, SOFTCAP)
            b_m_before = b_m
            b_m, b_second, b_s, b_t, b_q, _, b_shifted = _add_block(b_z, b_m, b_second, b_s, b_t, b_q, SQUARE)
            # written as the first moment is: a slot that equals its partner has exactly its mean as cross term
            step = b_m_before - b_m
            factor = tl.exp(a_m_before - a_m)
            cross = factor * (cross + step * a_s_before) + tl.sum(a_e * b_shifted, 1)
            if TOP_K > 0:
                b_top, b_top_ids = _add_candidates(b_z, tokens, b_top, b_top_ids, TOP_K)

    at = split.to(tl.int64) * num_flat + flat
    second_at = at + sums_per_slot
    if PAIRED:
        _store_sums(sums_ptr, second_at, field, b_m, b_second, b_s, b_t, b_q, row_exists, SQUARE)
        tl.store(cross_ptr + at, cross, mask=row_exists)
    _store_sums(sums_ptr, at, field, a_m, a_second, a_s, a_t, a_q, row_exists, SQUARE)
    if TOP_K > 0:
        kept = row_exists[:, None] & (place < TOP_K)
        tl.store(top_ptr + at[:, None] * TOP_K + place, a_top, mask=kept)
        tl.store(top_ids_ptr + at[:, None] * TOP_K + place, a_top_ids.to(tl.int64), mask=kept)
        if PAIRED:
            tl.store(top_ptr + second_at[:, None] * TOP_K + place, b_top, mask=kept)
            tl.store(top_ids_ptr + second_at[:, None] * TOP_K + place, b_top_ids.to(tl.int64), mask=kept)


def _configurations(*blocks: tuple[int, int, int, int]) -> list[triton.Config]:
    """Return the block sizes to try, (rows, tokens, warps, stages); the interpreter takes small ones as they come."""
    if INTERPRETED:
        return [triton.Config({"BLOCK_ROWS": 16, "BLOCK_TOKENS": 32, "GROUP": 2})]
    return [
        triton.Config({"BLOCK_ROWS": rows, "BLOCK_TOKENS": tokens, "GROUP": 8}, num_warps=warps, num_stages=stages)
        for rows, tokens, warps, stages in blocks
    ]


# Not by the number of rows, which changes from batch to batch; the dtypes are part of the key in any case. Compiled for
# Hopper, halves spill no register without candidates; in float32 the smaller blocks do not.
_TUNED_BY = ["WIDTH", "TOP_K"]
_single = triton.autotune(_configurations((128, 256, 8, 3), (128, 128, 8, 4), (64, 128, 4, 4)), key=_TUNED_BY)(
    _statistics_kernel
)
_paired = triton.autotune(_configurations((128, 128, 8, 3), (128, 64, 8, 4), (64, 128, 8, 4)), key=_TUNED_BY)(
    _statistics_kernel
)


@triton.jit(do_not_specialize=_VARYING)
def _probabilities_kernel(
    states_ptr,  # [row, width]
    weight_ptr,  # [token, width], of all tokens
    bias_ptr,  # [token] or None
    log_normalizer_ptr,  # [row]
    probabilities_ptr,  # [row, token of the chunk]
    num_rows,
    num_tokens,
    chunk_start,
    chunk_size,
    row_stride,
    token_stride,
    inner,
    outer,
    WIDTH: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
):
    """Write the probabilities of a chunk of the vocabulary."""
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = tl.minimum(rows, num_rows - 1)
    state_rows = states_ptr + inside.to(tl.int64) * row_stride
    places = tl.program_id(1) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    tokens = chunk_start + places
    token_rows = _token_pointers(weight_ptr, tokens, num_tokens, token_stride)
    z, _ = _products(state_rows, state_rows, token_rows, WIDTH, WIDEN, False, BLOCK_ROWS, BLOCK_TOKENS, BLOCK_WIDTH)
    z = _finish(z, tokens, bias_ptr, num_tokens, inner, outer, False)
    p = tl.exp(z - tl.load(log_normalizer_ptr + inside)[:, None])
    at = rows.to(tl.int64)[:, None] * chunk_size + places[None, :]
    tl.store(probabilities_ptr + at, p, mask=(rows < num_rows)[:, None] & (places < chunk_size)[None, :])


@triton.jit(do_not_specialize=_VARYING)
def _expected_rows_kernel(
    probabilities_ptr,  # [row, token]
    weight_ptr,  # [token, width], the same tokens
    expected_ptr,  # [row, width]
    num_rows,
    num_tokens,
    token_stride,
    WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """Add probabilities @ weight to the expected decoder rows."""
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.program_id(1) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
    inside = tl.minimum(rows, num_rows - 1).to(tl.int64)
    total = tl.zeros((BLOCK_ROWS, BLOCK_WIDTH), dtype=tl.float32)
    for start in range(0, num_tokens, BLOCK_TOKENS):
        tokens = start + tl.arange(0, BLOCK_TOKENS)
        exists = tokens < num_tokens
        p = tl.load(probabilities_ptr + inside[:, None] * num_tokens + tokens[None, :], mask=exists[None, :], other=0.0)
        w_at = tokens.to(tl.int64)[:, None] * token_stride + columns[None, :]
        w = tl.load(weight_ptr + w_at, mask=exists[:, None] & (columns < WIDTH)[None, :], other=0.0)
        # in float32 whatever the model's dtype: a rounded probability is an error of each logit
        total = tl.dot(p, w.to(tl.float32), total, input_precision="tf32x3")
    at = expected_ptr + rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    kept = (rows < num_rows)[:, None] & (columns < WIDTH)[None, :]
    tl.store(at, tl.load(at, mask=kept, other=0.0) + total, mask=kept)


class _Launch(NamedTuple):
    """Slots that go through the same program."""

    first: tuple[int, ...]
    """The slots; of pairs, the one whose probabilities are taken."""
    second: tuple[int, ...]
    """Of pairs, the other one; empty where no slot is paired."""
    top: bool
    """Whether the largest logits are wanted of one of them."""


def _launches(num_slots: int, top_slots: Sequence[int], pairs: Sequence[tuple[int, int]]) -> list[_Launch]:
    """Return launches that cover each slot once, with as many of the pairs as can be had that way."""
    # The pair whose first slot has no other pair goes first: (final, k) must not take k from (standard k, steered k).
    num_pairs = Counter(a for a, _ in pairs)
    free = set(range(num_slots))
    matched = []
    for a, b in sorted(pairs, key=lambda pair: num_pairs[pair[0]]):
        if a != b and a in free and b in free:
            free -= {a, b}
            matched.append((a, b))
    top = set(top_slots)
    launches = []
    for wanted in (False, True):
        of_pairs = [pair for pair in matched if bool(top & set(pair)) is wanted]
        alone = [slot for slot in sorted(free) if (slot in top) is wanted]
        if of_pairs:
            launches.append(_Launch(tuple(a for a, _ in of_pairs), tuple(b for _, b in of_pairs), wanted))
        if alone:
            launches.append(_Launch(tuple(alone), (), wanted))
    return launches


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
        # The interpreter keeps bfloat16 as 16-bit integers and would multiply those.
        rounded = INTERPRETED and states.dtype == torch.bfloat16
        widen = rounded or states.dtype != self.weight.dtype
        return {
            "token_stride": self.weight.stride(0),
            "inner": self.inner,
            "outer": self.outer,
            "WIDTH": self.weight.shape[1],
            "WIDEN": widen,
            # 128 bytes: a line of shared memory
            "BLOCK_WIDTH": 32 if widen or states.dtype == torch.float32 else 64,
        }


class _Sums(NamedTuple):
    """Sums over the whole vocabulary, each [slot of a launch, row]; float64, the logits float32."""

    maximum: Tensor
    second: Tensor
    exp: Tensor
    first_moment: Tensor
    second_moment: Optional[Tensor]
    cross: Optional[Tensor]
    """Of pairs, [pair, row]: sum exp(z_a - m_a) (z_b - m_b)."""
    top: Optional[Tensor]
    """[slot, row, k], the largest logits, the largest first."""
    top_ids: Optional[Tensor]


def _run(states: Tensor, decoder: _Decoder, launch: _Launch, top_k: int, square: bool) -> _Sums:
    """Return the sums of the slots of a launch: first slots, then second ones."""
    num_rows, vocab_size, device = states.shape[1], decoder.weight.shape[0], states.device
    units, slots = 2 if launch.second else 1, len(launch.first)
    num_flat = slots * num_rows
    per_split = _tokens_per_split(num_flat, vocab_size, device)
    splits = triton.cdiv(vocab_size, per_split)
    sums = torch.empty((5 if square else 4, units, splits, num_flat), dtype=torch.float32, device=device)
    cross = torch.empty((splits, num_flat), dtype=torch.float32, device=device) if launch.second else None
    top = top_ids = None
    if launch.top:
        top = torch.empty((units, splits, num_flat, top_k), dtype=torch.float32, device=device)
        top_ids = torch.empty_like(top, dtype=torch.int64)

    def grid(chosen: dict[str, int]) -> tuple[int]:
        return (triton.cdiv(num_flat, chosen["BLOCK_ROWS"]) * splits,)

    kernel = _paired if launch.second else _single
    kernel[grid](
        states,
        _index(launch.first + launch.second, device),
        decoder.weight,
        decoder.bias,
        sums,
        cross,
        top,
        top_ids,
        num_slots=slots,
        num_rows=num_rows,
        num_tokens=vocab_size,
        tokens_per_split=per_split,
        num_splits=splits,
        sums_per_slot=splits * num_flat,
        field=units * splits * num_flat,
        slot_stride=states.stride(0),
        row_stride=states.stride(1),
        SOFTCAP=decoder.softcap,
        SQUARE=square,
        PAIRED=bool(launch.second),
        TOP_K=top_k if launch.top else 0,
        CANDIDATES=triton.next_power_of_2(top_k) if launch.top else 1,
        **decoder.options(states),
    )
    if top_ids is not None:
        # a row that is no number leaves places empty: its tokens mean nothing, but they have to be some
        top_ids.clamp_(max=vocab_size - 1)
    return _join(sums, cross, top, top_ids, num_rows)


def _join(
    sums: Tensor, cross: Optional[Tensor], top: Optional[Tensor], top_ids: Optional[Tensor], num_rows: int
) -> _Sums:
    """Join the splits of the vocabulary, sums [statistic, first or second, split, slot and row]."""
    m, second, s, t = sums[:4]
    maximum = m.amax(1)
    step = (m - maximum.unsqueeze(1)).double()
    factor = step.exp()
    seconds = second.amax(1)
    if m.shape[1] > 1:
        seconds = torch.maximum(seconds, m.topk(2, dim=1).values[:, 1])

    def per_slot(joined: Tensor) -> Tensor:
        return joined.reshape(-1, num_rows, *joined.shape[2:])

    best = best_ids = None
    if top is not None and top_ids is not None:
        # [first or second, slot and row, candidate]: by token first, an order in which the stable sort leaves ties
        ids, order = top_ids.transpose(1, 2).flatten(2).sort(dim=-1)
        best, order = top.transpose(1, 2).flatten(2).gather(-1, order).sort(dim=-1, descending=True, stable=True)
        best, best_ids = best[..., : top.shape[-1]], ids.gather(-1, order)[..., : top.shape[-1]]
    return _Sums(
        maximum=per_slot(maximum),
        second=per_slot(seconds),
        exp=per_slot((factor * s).sum(1)),
        first_moment=per_slot((factor * (t + step * s)).sum(1)),
        second_moment=per_slot((factor * (sums[4] + step * (2 * t + step * s))).sum(1)) if len(sums) == 5 else None,
        # the weights' maximum moves as well as that of the logits
        cross=None if cross is None else per_slot((factor[:1] * (cross + step[1:] * s[:1])).sum(1)),
        top=None if best is None else per_slot(best),
        top_ids=None if best_ids is None else per_slot(best_ids),
    )


def lens_statistics(
    states: Tensor,
    unembedding: Unembedding,
    *,
    top_slots: Sequence[int] = (),
    top_k: int = 1,
    square: bool = False,
    pairs: Sequence[tuple[int, int]] = (),
) -> RowStatistics:
    """Return the statistics of each row; see `llm_entropy.kernels.lens_statistics`."""
    if states.stride(2) != 1:
        states = states.contiguous()
    decoder = _Decoder.of(unembedding)
    top_k = min(top_k, decoder.weight.shape[0])
    together = max(1, ROWS_TOGETHER // states.shape[0])
    with torch.cuda.device_of(states):
        parts = [
            _statistics(part, decoder, tuple(top_slots), top_k, square, tuple(pairs))
            for part in states.split(together, dim=1)
        ]
    if len(parts) == 1:
        return parts[0]
    joined = {
        name: torch.cat([getattr(part, name) for part in parts], dim=1)
        for name in RowStatistics._fields
        if getattr(parts[0], name) is not None
    }
    return RowStatistics(**joined)


def _statistics(
    states: Tensor,
    decoder: _Decoder,
    top_slots: tuple[int, ...],
    top_k: int,
    square: bool,
    pairs: tuple[tuple[int, int], ...],
) -> RowStatistics:
    """Return the statistics of rows few enough to be looked at together."""
    num_slots, num_rows, _ = states.shape
    maximum, log_sum, mean, runner_up, moment = torch.empty(
        (5, num_slots, num_rows), dtype=torch.float32, device=states.device
    )
    top: dict[int, tuple[Tensor, Tensor]] = {}
    cross: dict[tuple[int, int], Tensor] = {}
    for launch in _launches(num_slots, top_slots, pairs):
        sums = _run(states, decoder, launch, top_k, square)
        slots = launch.first + launch.second
        index = _index(slots, states.device)
        maximum[index] = sums.maximum
        log_sum[index] = sums.exp.log().float()
        mean[index] = (sums.first_moment / sums.exp).float()
        runner_up[index] = sums.second - sums.maximum
        if sums.second_moment is not None:
            moment[index] = (sums.second_moment / sums.exp).float()
        if sums.top is not None and sums.top_ids is not None:
            top |= zip(slots, zip(sums.top_ids, sums.top - sums.maximum.unsqueeze(-1), strict=True), strict=True)
        if sums.cross is not None:
            cross |= zip(
                zip(launch.first, launch.second, strict=True),
                (sums.cross / sums.exp[: len(launch.first)]).float(),
                strict=True,
            )
    cross |= {(slot, slot): mean[slot] for slot in range(num_slots)}
    others = tuple(dict.fromkeys(pair for pair in pairs if pair not in cross))
    if others and decoder.softcap:
        # tanh stands between: the same program once more, for its cross term alone
        launch = _Launch(tuple(a for a, _ in others), tuple(b for _, b in others), top=False)
        sums = _run(states, decoder, launch, top_k, square=False)
        assert sums.cross is not None
        cross |= zip(others, (sums.cross / sums.exp[: len(others)]).float(), strict=True)
    elif others:
        cross |= _expected_cross(states, decoder, maximum, log_sum, others)
    no_ids = torch.empty((0, num_rows, top_k), dtype=torch.int64, device=states.device)
    return RowStatistics(
        maximum=maximum,
        log_sum=log_sum,
        mean=mean,
        runner_up=runner_up,
        top_ids=torch.stack([top[slot][0] for slot in top_slots]) if top_slots else no_ids,
        top=torch.stack([top[slot][1] for slot in top_slots]) if top_slots else no_ids.float(),
        square=moment if square else None,
        cross=torch.stack([cross[pair] for pair in pairs]) if pairs else None,
    )


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
        _probabilities_kernel[triton.cdiv(num_rows, block_rows), triton.cdiv(len(weight), block_tokens)](
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
        _expected_rows_kernel[triton.cdiv(num_rows, block_rows), triton.cdiv(width, block_width)](
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
            expected_bias += (p * decoder.bias[start : start + chunk].float()).sum(-1, dtype=torch.float64)
    return expected, expected_bias, total
