"""Random numbers that depend on what they are drawn for alone: on no batch, no process, no order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def sampling_uniforms(
    seed: int, sentence_ids: Sequence[int] | npt.NDArray[np.int64], positions: Sequence[int] | npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Return a random number in [0, 1) for each record, from (seed, sentence id, position) alone.

    Counter-based: the finaliser of SplitMix64 (Steele, Lea, Flood 2014) absorbs one number after the other, so that
    no record's number depends on which others are drawn, or where.

    Args:
        seed: Any integer; its lowest 64 bits count.
        sentence_ids: [record].
        positions: [record].

    Returns:
        [record], multiples of 2^-53.
    """
    with np.errstate(over="ignore"):
        state = _mix(np.array([seed & 0xFFFF_FFFF_FFFF_FFFF], dtype=np.uint64))
        for numbers in (sentence_ids, positions):
            state = _mix(state ^ np.asarray(numbers, dtype=np.int64).astype(np.uint64))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64: every bit of the state changes each bit of the result with probability one half."""
    state = state + np.uint64(0x9E37_79B9_7F4A_7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB)
    return state ^ (state >> np.uint64(31))
