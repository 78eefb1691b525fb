"""The compiled loops behind a product: a chunk of logits in, running sums of its rows brought up to date.

A pass for the maximum, one for everything else, and where powers are asked for one for them, while the chunk is still
in the cache. Numba compiles the loops when this file is first imported, and keeps them on the disk (`code_cache`). They
let go of the interpreter's lock, so that each thread takes a part of the rows. Sums within a chunk are float32 in as
many lanes as the processor has, across chunks float64.

What the loop over rows calls is always made a part of it (`forceinline`). A function of its own is optimised once alone
and once more with its caller, and adds up in another order each time; the process that compiles would run the one, and
a process that reads the disk the other.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba.core import types
from numba.extending import intrinsic

from llm_entropy.kernels.code_cache import compiled

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Bits = npt.NDArray[np.int32]
Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]

_LOG2_E = np.float32(1.4426950408889634)
_LOWEST = np.float32(-87.33654)
"""ln 2^-126: what is further below the maximum, as a masked token is, counts as this far, or as nothing."""
# Minimax polynomial of 2^x on [-1/2, 1/2], relative error below 2e-7 in float32 (Moshier, Cephes: exp2f).
_C1, _C2, _C3 = np.float32(6.931472028550421e-1), np.float32(2.402264791363012e-1), np.float32(5.550332471162809e-2)
_C4, _C5, _C6 = np.float32(9.618437357674640e-3), np.float32(1.339887440266574e-3), np.float32(1.535336188319500e-4)
_ZERO, _HALF, _ONE = np.float32(0.0), np.float32(0.5), np.float32(1.0)


def _reinterpret(target: Any, source: Any) -> Any:
    """Return a function that gives the number of one type with the bit pattern of a number of the other."""

    def cast(context: Any, number: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], context.get_value_type(target))

        return target(source), generate

    return intrinsic(cast)


_float_of_bits = _reinterpret(types.float32, types.int32)
_bits_of_float = _reinterpret(types.int32, types.float32)


@numba.njit(inline="always")
def _exp(x: Any) -> Any:
    """Return exp(x) for `_LOWEST` <= x <= 0, float32, without a branch, so that a loop becomes vector instructions.

    2^n by its bit pattern, times a polynomial for the rest. Working in powers of two needs no subtraction of n ln 2,
    which must not be reordered; it costs a relative error of |x| 6e-8, where exp(x) is small.
    """
    power = x * _LOG2_E
    whole = np.int32(power - _HALF)  # cut towards zero: the nearest integer of a number that is not positive
    f = power - np.float32(whole)
    rest = _ONE + f * (_C1 + f * (_C2 + f * (_C3 + f * (_C4 + f * (_C5 + f * _C6)))))
    return rest * _float_of_bits(np.int32((whole + np.int32(127)) << np.int32(23)))


@numba.njit(inline="always")
def _bounded(x: Any) -> Any:
    """Return x, or `_LOWEST` if that is larger: exp(x) x is then nothing to speak of, where it was 0 times infinity."""
    return _LOWEST if x < _LOWEST else x  # NaN stays NaN


@numba.njit(inline="always")
def _key(bits: Any) -> Any:
    """Return the bits of a float32 as an int32 of the same order; the same again turns it back."""
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


_SMALLEST_KEY = np.int32(-(2**31))
_KEY_OF_MASKED = np.int32(-0x7F800001)
"""That of minus infinity."""
_REORDERED = {"nsz", "arcp", "contract", "reassoc"}
"""Sums may be reordered; NaN and infinity stay what they are."""


# Largest numbers are sought among integers of the same order: the compiler makes vector instructions of those.
@numba.njit(forceinline=True)
def _largest(bits: Bits) -> Any:
    """Return the largest of some numbers."""
    largest = _SMALLEST_KEY
    for j in range(len(bits)):
        key = _key(bits[j])
        largest = key if key > largest else largest
    return _float_of_bits(_key(largest))


@numba.njit(forceinline=True)
def _second_largest(bits: Bits, largest: Any) -> Any:
    """Return the second largest number; minus infinity where there is one number alone."""
    top, second, count = _key(_bits_of_float(largest)), _SMALLEST_KEY, np.int32(0)
    for j in range(len(bits)):
        key = _key(bits[j])
        below = key if key < top else _SMALLEST_KEY
        second = below if below > second else second
        count += np.int32(key == top)
    if len(bits) == 1:
        return np.float32(-np.inf)
    return _float_of_bits(_key(top if count > 1 else second))


@numba.njit(forceinline=True)
def _add_sums(
    z: Floats,
    largest: Any,
    square: bool,
    slot: int,
    maximum: Floats,
    sums: Doubles,
    moved: Doubles,
) -> None:
    """Bring the sums of a slot up to date; in `moved` [slot, 3] m before minus m, its exponential, and sum e before."""
    before = maximum[slot]
    if before == -np.inf and largest == -np.inf:
        # masked tokens alone so far, and nothing to be relative to; a number that is none sorts below them
        moved[slot] = 0.0, 1.0, 0.0
        sums[slot, 0] += _nan_if_any(z)
        return
    m = max(before, largest)
    s0, s1, s2 = _sums(z, m, square)
    maximum[slot] = m
    old0, old1, old2 = sums[slot]
    # at first there is nothing to shift, and minus infinity minus m would be no number
    step = np.float64(before) - np.float64(m) if old0 > 0.0 else 0.0
    factor = np.exp(step)
    moved[slot] = step, factor, old0
    sums[slot, 0] = factor * old0 + s0
    sums[slot, 1] = factor * (old1 + step * old0) + s1
    sums[slot, 2] = factor * (old2 + 2.0 * step * old1 + step * step * old0) + s2


@numba.njit(forceinline=True, fastmath=_REORDERED)
def _sums(z: Floats, m: Any, square: bool) -> Any:
    """Return sum e, sum e (z - m), and, if asked for, sum e (z - m)^2."""
    s0 = s1 = s2 = np.float32(0.0)
    if square:
        for j in range(len(z)):
            x = _bounded(z[j] - m)
            e = _exp(x)
            s0 += e
            s1 += e * x
            s2 += e * x * x
    else:
        for j in range(len(z)):
            x = _bounded(z[j] - m)
            e = _exp(x)
            s0 += e
            s1 += e * x
    return s0, s1, s2


@numba.njit(forceinline=True, fastmath=_REORDERED)
def _power(z: Floats, m: Any, order: Any) -> Any:
    """Return sum exp(order (z - m))."""
    total = _ZERO
    for j in range(len(z)):
        total += _exp(_bounded(order * (z[j] - m)))
    return total


@numba.njit(forceinline=True)
def _add_mass(z: Floats, members: Bytes, mass: Doubles) -> None:
    """Bring the sum of the members up to date; `mass` [2] is their own maximum, and sum exp(z - it).

    Their own, for they may all lie further below the row's than an exponential reaches.
    """
    largest = _largest_member(z.view(np.int32), members)
    if largest == -np.inf:  # no member here, or masked ones alone
        return
    before, old = mass[0], mass[1]
    m = np.float32(max(before, np.float64(largest)))
    factor = np.exp(before - np.float64(m)) if old > 0.0 else 0.0
    mass[0] = m
    mass[1] = factor * old + _member_sum(z, members, m)


@numba.njit(forceinline=True)
def _largest_member(bits: Bits, members: Bytes) -> Any:
    """Return the largest of the members; minus infinity where there is none."""
    largest = _KEY_OF_MASKED
    for j in range(len(bits)):
        key = _key(bits[j]) if members[j] else _KEY_OF_MASKED
        largest = key if key > largest else largest
    return _float_of_bits(_key(largest))


@numba.njit(forceinline=True, fastmath=_REORDERED)
def _member_sum(z: Floats, members: Bytes, m: Any) -> Any:
    """Return sum exp(z - m) over the members, m being at least as large as each."""
    total = _ZERO
    for j in range(len(z)):
        x = z[j] - m
        e = _exp(_bounded(x if members[j] else _LOWEST))
        total += e if members[j] else _ZERO
    return total


@numba.njit(forceinline=True)
def _place(z: Floats, largest: Any) -> int:
    """Return where the largest of some numbers is first found; 0 where they are none."""
    for j in range(len(z)):
        if z[j] == largest:
            return j
    return 0


@numba.njit(forceinline=True, fastmath=_REORDERED)
def _gap(za: Floats, zb: Floats, ma: Any, mb: Any) -> Any:
    """Return sum e_a ((z_a - m_a) - (z_b - m_b)); no finite number where a token is masked."""
    total = np.float32(0.0)
    for j in range(len(za)):
        x = za[j] - ma
        e = _exp(_bounded(x))
        e = e if x > _LOWEST else _ZERO
        total += e * (x - (zb[j] - mb))
    return total


@numba.njit(forceinline=True)
def _gap_of_masked(za: Floats, zb: Floats, ma: Any, mb: Any) -> Any:
    """Return what `_gap` does: a token that is masked in a adds nothing, one that is masked in b alone infinity."""
    total = _ZERO
    for j in range(len(za)):
        if za[j] == -np.inf:
            continue
        if zb[j] == -np.inf:
            total += np.float32(np.inf)
            continue
        x = za[j] - ma
        e = _exp(_bounded(x))
        e = e if x > _LOWEST else _ZERO
        total += e * (x - (zb[j] - mb))
    return total


@numba.njit(forceinline=True)
def _nan_if_any(z: Floats) -> Any:
    """Return NaN where one of some numbers is NaN, otherwise 0."""
    total = _ZERO
    for j in range(len(z)):
        total = total if z[j] == z[j] else z[j]
    return total


@numba.njit(forceinline=True)
def _keep_largest(z: Floats, first_token: int, kept: Floats, tokens: Integers) -> None:
    """Put logits that are larger than the least of those kept in their places."""
    last = len(kept) - 1
    for j in range(len(z)):
        if z[j] > kept[last]:
            place = last
            while place > 0 and kept[place - 1] < z[j]:
                kept[place], tokens[place] = kept[place - 1], tokens[place - 1]
                place -= 1
            kept[place], tokens[place] = z[j], first_token + j


# The last, for it is compiled here and now.
@compiled(
    "void(float32[:, :, ::1], int64, int64, int64, boolean, float64, int64[:, ::1], int64[::1], float32[:, ::1], "
    "float32[:, ::1], float64[:, :, ::1], float64[:, ::1], int64[:, ::1], uint8[::1], float64[:, :, ::1], "
    "float64[:, ::1], float32[:, :, ::1], int64[:, :, ::1])"
)
def add_chunk(
    logits: Floats,
    first: int,
    stop: int,
    first_token: int,
    square: bool,
    order: float,
    pairs: Integers,
    top_slots: Integers,
    maximum: Floats,
    second: Floats,
    sums: Doubles,
    powers: Doubles,
    top1: Integers,
    members: Bytes,
    masses: Doubles,
    gaps: Doubles,
    top: Floats,
    top_ids: Integers,
) -> None:
    """Bring what is known of rows `first` .. `stop - 1` up to date with a chunk of their logits.

    Args:
        logits: [row, slot, token].
        first: The first of the rows that are this thread's.
        stop: One past the last.
        first_token: The id of the chunk's first token.
        square: Whether sum e (z - m)^2 is wanted.
        order: The order a of the powers; 0: none are wanted.
        pairs: [pair, 2], slots a and b.
        top_slots: [top slot].
        maximum: [row, slot], m, minus infinity at first; changed, as are all below.
        second: [row, slot], the second largest logit, minus infinity at first.
        sums: [row, slot, 3], sum e, sum e (z - m), sum e (z - m)^2.
        powers: [row, slot], sum exp(a (z - m)); no slots where none are wanted.
        top1: [row, slot], the token with the largest logit, the lowest id of equal ones; no slots: it is not wanted.
        members: [token], 1 for the chunk's tokens that are members of a set, else 0.
        masses: [row, slot, 2], the members' maximum, and sum exp(z - it); no slots: they are not wanted.
        gaps: [row, pair], sum e_a ((z_a - m_a) - (z_b - m_b)): nothing where both are alike.
        top: [row, top slot, k], the largest logits, the largest first; minus infinity at first.
        top_ids: [row, top slot, k], their tokens; of equal logits the one with the lowest id goes first.
    """
    num_slots = logits.shape[1]
    moved = np.empty((num_slots, 3))
    largest = np.empty(num_slots, np.float32)
    for row in range(first, stop):
        for slot in range(num_slots):
            z = logits[row, slot]
            m = _largest(z.view(np.int32))
            # mostly not: each chunk has a largest logit, few have one of the two largest of all; NaN is not skipped
            if not m <= second[row, slot]:
                below = _second_largest(z.view(np.int32), m)
                second[row, slot] = max(second[row, slot], below, min(maximum[row, slot], m))
            if top1.shape[1] > 0 and not m <= maximum[row, slot]:  # seldom: few chunks have the largest so far
                top1[row, slot] = first_token + _place(z, m)
            _add_sums(z, m, square, slot, maximum[row], sums[row], moved)
            if order > 0.0 and maximum[row, slot] != -np.inf:
                before = np.exp(order * moved[slot, 0]) * powers[row, slot]
                powers[row, slot] = before + _power(z, maximum[row, slot], np.float32(order))
            if masses.shape[1] > 0:
                _add_mass(z, members, masses[row, slot])
            largest[slot] = m
        for pair in range(len(pairs)):
            a, b = pairs[pair]
            gap = _gap(logits[row, a], logits[row, b], maximum[row, a], maximum[row, b])
            if not abs(gap) < np.inf:
                gap = _gap_of_masked(logits[row, a], logits[row, b], maximum[row, a], maximum[row, b])
            before = gaps[row, pair]
            if before != np.inf:
                # what the chunks before gave, relative to the maxima of now
                before = moved[a, 1] * (before + (moved[a, 0] - moved[b, 0]) * moved[a, 2])
            gaps[row, pair] = before + gap
        for index in range(len(top_slots)):
            if not largest[top_slots[index]] <= top[row, index, -1]:
                _keep_largest(logits[row, top_slots[index]], first_token, top[row, index], top_ids[row, index])
