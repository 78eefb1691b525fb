"""Interval and test of collected numbers: resampled up to 2,000 sentences, Student's t beyond."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llm_entropy.outputs.comparison import Floats
from llm_entropy.outputs.inference.collecting import SentenceNumbers, Totals
from llm_entropy.outputs.inference.resampling import LARGEST_EXACT, Interval, bootstrap_interval, sign_flip_test
from llm_entropy.outputs.inference.student import t_interval, t_test

EXACT, PERMUTATION, T_TEST, NO_TEST = "exact", "permutation", "t", ""


class Tests(NamedTuple):
    """A test for each column."""

    p_value: Floats
    """[column], NaN where nothing is tested."""
    name: npt.NDArray[np.str_]
    """[column], which test: `exact`, `permutation`, `t`, or empty."""


def joined(totals: Sequence[Totals]) -> Totals:
    """Return several totals as one, column beside column; they have the same number of levels."""
    return Totals(*(np.concatenate(parts, axis=-1) for parts in zip(*totals, strict=True)))


def resampled(collected: Sequence[SentenceNumbers]) -> Floats:
    """Return the numbers that are resampled, [row, column]; see `SentenceNumbers.resampled`."""
    return np.concatenate([one.resampled() for one in collected], axis=1)


def mean_intervals(totals: Totals, values: Floats, seed: int) -> Interval:
    """Return the 95 % interval of each mean: BCa where there are values, else that of the t distribution.

    Args:
        totals: Of all sentences.
        values: [row, column], what is resampled; all NaN in other columns.
        seed: Of the resamples.
    """
    by_t = t_interval(totals.n, totals.mean, totals.deviation)
    by_bootstrap = bootstrap_interval(values, seed)
    is_resampled = np.isfinite(values).any(axis=0)
    return Interval(*(np.where(is_resampled, *pair) for pair in zip(by_bootstrap, by_t, strict=True)))


def mean_tests(totals: Totals, values: Floats, wanted: npt.NDArray[np.bool_], seed: int) -> Tests:
    """Return the test that each mean is 0: sign flips where there are values, else the t test.

    Args:
        totals: Of all sentences.
        values: [row, column], what is resampled; all NaN in other columns.
        wanted: [column], what is tested.
        seed: Of the flips.
    """
    p_values = np.where(wanted, t_test(totals.n, totals.mean, totals.deviation), np.nan)
    is_resampled = np.isfinite(values).any(axis=0)
    flipped = wanted & is_resampled
    p_values[flipped] = sign_flip_test(values[:, flipped], seed)
    by_flips = np.where(totals.n <= LARGEST_EXACT, EXACT, PERMUTATION)
    names = np.where(is_resampled, by_flips, T_TEST)
    return Tests(p_values, np.where(np.isnan(p_values), NO_TEST, names))
