"""The programs in Triton: logits are made, used and forgotten in registers; only sums over the vocabulary reach memory.

A program of `statistics` takes a block of rows and one split of the vocabulary, walks over the split block by block,
and leaves its sums. Two slots of a pair go through one program, so that the cross term costs no product of its own.
Logits that are made tile by tile are the idea of Cut Cross-Entropy (Wijmans et al., 2025). What starts the programs and
joins their sums is `triton_lens`.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOWEST = tl.constexpr(-1e30)
"""Stands for no logit, and for a bias of minus infinity: below each real one, yet finite, so that its product with a
weight of 0 is 0 and not NaN."""
LARGEST_STEP = tl.constexpr(-1e4)
"""A maximum that rises by more than this leaves nothing of the sums before it, and the step's square must be finite."""


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
        bias = tl.load(bias_ptr + tokens, mask=exists, other=0.0).to(tl.float32)
        product += tl.where(bias < LOWEST, LOWEST, bias)[None, :]
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
    step = tl.where(step < LARGEST_STEP, LARGEST_STEP, step)
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
def _add_power(z, m, power, order):
    """Add a block of logits to sum exp(order (z - m)), of the maximum m before it; call it before `_add_block`.

    The step has no bound: times a small order, even a large one leaves something of the sum before.
    """
    larger = tl.maximum(m, tl.max(z, 1))
    return tl.exp(order * (m - larger)) * power + tl.sum(tl.exp(order * (z - larger[:, None])), 1)


@triton.jit
def _add_mass(z, members_ptr, tokens, num_tokens, m, s):
    """Add a block of logits to the members' own maximum m, and to their sum exp(z - m)."""
    member = (tl.load(members_ptr + tokens, mask=tokens < num_tokens, other=0) != 0)[None, :]
    larger = tl.maximum(m, tl.max(tl.where(member, z, LOWEST), 1))
    # what is no member has a logit that may be larger than all of theirs: its exponential is never made
    e = tl.exp(tl.where(member, z - larger[:, None], LOWEST))
    return larger, tl.exp(m - larger) * s + tl.sum(e, 1)


@triton.jit
def _store_mass(mass_ptr, offsets, field, m, s, mask):
    tl.store(mass_ptr + offsets, m, mask=mask)
    tl.store(mass_ptr + offsets + field, s, mask=mask)


@triton.jit
def _add_top1(z, tokens, num_tokens, m, top1):
    """Return the token with the largest logit so far, m being the largest before; call it before `_add_block`."""
    block_max = tl.max(z, 1)
    first = tl.min(tl.where(z == block_max[:, None], tokens[None, :], num_tokens - 1), 1)
    return tl.where(block_max > m, first, top1)


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
def statistics(
    states_ptr,  # [slot, row, width]
    slots_ptr,  # int64 [slot of the launch]; paired: all first slots, then all second ones
    weight_ptr,  # [token, width]
    bias_ptr,  # [token] or None
    sums_ptr,  # [statistic, first or second, split, slot and row]
    cross_ptr,  # [split, slot and row], or None
    top_ptr,  # [first or second, split, slot and row, candidate], or None
    top_ids_ptr,  # the same, int64
    top1_ptr,  # int64 [first or second, split, slot and row], or None
    power_ptr,  # [first or second, split, slot and row], or None
    mass_ptr,  # [maximum or sum, first or second, split, slot and row], or None
    members_ptr,  # bool [token], or None
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
    order,  # of the powers
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
    a_power, b_power = a_s, a_s
    a_largest, b_largest, a_mass, b_mass = a_m, a_m, a_s, a_s
    a_top1 = tl.zeros((BLOCK_ROWS,), dtype=tl.int32)
    b_top1 = a_top1
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
        if top1_ptr is not None:
            a_top1 = _add_top1(a_z, tokens, num_tokens, a_m, a_top1)
        if power_ptr is not None:
            a_power = _add_power(a_z, a_m, a_power, order)
        if mass_ptr is not None:
            a_largest, a_mass = _add_mass(a_z, members_ptr, tokens, num_tokens, a_largest, a_mass)
        a_m, a_second, a_s, a_t, a_q, a_e, _ = _add_block(a_z, a_m, a_second, a_s, a_t, a_q, SQUARE)
        if TOP_K > 0:
            a_top, a_top_ids = _add_candidates(a_z, tokens, a_top, a_top_ids, TOP_K)
        if PAIRED:
            b_z = _finish(b_z, tokens, bias_ptr, num_tokens, inner, outer, SOFTCAP)
            b_m_before = b_m
            if top1_ptr is not None:
                b_top1 = _add_top1(b_z, tokens, num_tokens, b_m, b_top1)
            if power_ptr is not None:
                b_power = _add_power(b_z, b_m, b_power, order)
            if mass_ptr is not None:
                b_largest, b_mass = _add_mass(b_z, members_ptr, tokens, num_tokens, b_largest, b_mass)
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
    if top1_ptr is not None:
        tl.store(top1_ptr + at, a_top1.to(tl.int64), mask=row_exists)
        if PAIRED:
            tl.store(top1_ptr + second_at, b_top1.to(tl.int64), mask=row_exists)
    if power_ptr is not None:
        tl.store(power_ptr + at, a_power, mask=row_exists)
        if PAIRED:
            tl.store(power_ptr + second_at, b_power, mask=row_exists)
    if mass_ptr is not None:
        _store_mass(mass_ptr, at, field, a_largest, a_mass, row_exists)
        if PAIRED:
            _store_mass(mass_ptr, second_at, field, b_largest, b_mass, row_exists)
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
single_statistics = triton.autotune(
    _configurations((128, 256, 8, 3), (128, 128, 8, 4), (64, 128, 4, 4)), key=_TUNED_BY
)(statistics)
paired_statistics = triton.autotune(_configurations((128, 128, 8, 3), (128, 64, 8, 4), (64, 128, 8, 4)), key=_TUNED_BY)(
    statistics
)


@triton.jit(do_not_specialize=_VARYING)
def probabilities(
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
def expected_rows(
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
