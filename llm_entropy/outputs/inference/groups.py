"""The difference between two groups of sentences: its interval, and its test by permutation."""

from __future__ import annotations

from math import comb

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr, stdtrit

from llm_entropy.outputs.comparison import Floats
from llm_entropy.outputs.inference.resampling import CONFIDENCE, NUM_RESAMPLES, Interval

_PERMUTATIONS = 3  # stream of random numbers of a seed, beside those of `resampling` and `collecting`
_TILE = 2**22
_ROUNDING = 1e-9  # share of the largest difference there can be, within which two are as large


def permutation_test(first: npt.ArrayLike, second: npt.ArrayLike, seed: int) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Return the two-sided p-value of equal means of two groups, by dealing the sentences to the groups anew.

    p = share of the deals whose difference of means is at least as large in size. Where there are at most
    `NUM_RESAMPLES` different deals all are tried; otherwise so many seeded ones, and p = (1 + count) / (1 + number),
    the observed deal being one more (Phipson and Smyth 2010).

    Args:
        first: [sentence, column]; what is not finite does not count.
        second: [sentence, column].
        seed: Of the deals.

    Returns:
        [column], NaN where a group has no number; and where all deals were tried.
    """
    one, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
    p_values, is_exact = np.full(one.shape[1], np.nan), np.zeros(one.shape[1], bool)
    both = np.concatenate([np.isfinite(one), np.isfinite(other)])
    for mask in np.unique(both, axis=1).T:
        columns = np.flatnonzero((both == mask[:, None]).all(axis=0))
        left, right = one[mask[: len(one)]][:, columns], other[mask[len(one) :]][:, columns]
        if len(left) and len(right):
            p_values[columns], is_exact[columns] = _permuted(left, right, seed)
    return p_values, is_exact


def _permuted(left: Floats, right: Floats, seed: int) -> tuple[Floats, bool]:
    pooled, size = np.concatenate([left, right]), len(left)
    # From their mean: large numbers would take the digits of small differences.
    pooled = pooled - pooled.mean(axis=0)
    deals, extra = _deals(len(pooled), size, seed)
    observed = np.abs(pooled[:size].mean(axis=0) - pooled[size:].mean(axis=0))
    least = observed - _ROUNDING * np.maximum(np.ptp(pooled, axis=0), np.finfo(np.float64).tiny)
    # The numbers add up to 0: the mean of the second group follows from the sum of the first.
    scale = 1 / size + 1 / (len(pooled) - size)
    count = np.zeros(pooled.shape[1], np.int64)
    step = max(1, _TILE // len(pooled))
    for start in range(0, len(deals), step):
        sums = deals[start : start + step].astype(np.float64) @ pooled
        count += (np.abs(sums * scale) >= least).sum(axis=0)
    return (count + extra) / (len(deals) + extra), not extra


def _deals(num_sentences: int, size: int, seed: int) -> tuple[npt.NDArray[np.bool_], int]:
    """Return which sentences come to the first group, [deal, sentence], and how many more the observed deal is."""
    if comb(num_sentences, size) <= NUM_RESAMPLES:
        from itertools import combinations

        chosen = np.array(list(combinations(range(num_sentences), size)))
        deals = np.zeros((len(chosen), num_sentences), bool)
        deals[np.arange(len(chosen))[:, None], chosen] = True
        return deals, 0
    generator = np.random.default_rng([seed, _PERMUTATIONS, num_sentences, size])
    deals = np.zeros((NUM_RESAMPLES, num_sentences), bool)
    deals[:, :size] = True
    return generator.permuted(deals, axis=1), 1


def welch(
    counts: tuple[npt.ArrayLike, npt.ArrayLike],
    means: tuple[npt.ArrayLike, npt.ArrayLike],
    deviations: tuple[npt.ArrayLike, npt.ArrayLike],
) -> tuple[Interval, Floats]:
    """Return the interval of the second mean minus the first, and the p-value of none (Welch 1947).

    Args:
        counts: [column] of each group.
        means: [column] of each group.
        deviations: [column] of each group (ddof 1).

    Returns:
        [column]; NaN where a group has fewer than two numbers. Where neither group varies the interval is the
        difference itself, and p is 1 for none and 0 for any.
    """
    n_a, n_b = (np.asarray(count, np.float64) for count in counts)
    shift = np.asarray(means[1], np.float64) - np.asarray(means[0], np.float64)
    enough = (n_a > 1) & (n_b > 1)
    a, b = (
        np.where(enough, np.asarray(deviation, np.float64) ** 2 / np.maximum(n, 2), np.nan)
        for deviation, n in zip(deviations, (n_a, n_b), strict=True)
    )
    error, varies = np.sqrt(a + b), a + b > 0
    rest = np.where(varies, a**2 / np.maximum(n_a - 1, 1) + b**2 / np.maximum(n_b - 1, 1), 1.0)
    degrees = np.where(varies, (a + b) ** 2 / rest, 1.0)
    reach = np.where(varies, stdtrit(degrees, (1 + CONFIDENCE) / 2) * error, error)
    by_t = 2 * stdtr(degrees, -np.abs(shift / np.where(varies, error, 1.0)))
    p_values = np.where(varies, by_t, np.where(enough, (shift == 0).astype(np.float64), np.nan))
    return Interval(shift - reach, shift + reach), p_values
