"""The interval and the test of a mean by resampling whole sentences, for many columns at once.

A column is one metric at one layer under one condition; its numbers are one per sentence. Numbers that are not finite
do not count: a column with gaps gives what its finite numbers alone give. Columns of the same count share their
resamples, which depend on the seed and on that count alone. The numbers are rounded to whole multiples of a unit, so
fine that sums of them in float64 are exact in any order: so the results depend to the last bit neither on the other
columns, nor on threads, nor on how many processes made the numbers.

scipy.stats has both, `bootstrap` and `permutation_test`, and the tests hold these functions against it. It gathers
every resample of every column, [column, resample, sentence]: for 78 columns of 2,000 sentences it took 6 and 15 s,
where the products of matrices here took 0.6 and 0.2 s (two cores); a run with five conditions has five times as many.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from llm_entropy.outputs.comparison import Floats

NUM_RESAMPLES = 10_000
"""Resamples of a bootstrap; flips of a permutation test that does not try all of them."""
LARGEST_EXACT = 12
"""Most sentences of which all sign flips are tried."""
LARGEST_RESAMPLED = 2_000
"""Most sentences that are resampled; above, the t distribution takes over."""
CONFIDENCE = 0.95
"""Share of intervals that cover what they estimate."""

_BOOTSTRAP, _FLIPS = 0, 1  # streams of random numbers of one seed
_TILE = 2**22  # numbers of one float64 tile: 32 MiB
_COLUMNS = 256  # whose resampled means are in memory at once: 20 MiB
_BITS = 42  # of the largest number of a column in units; 2,000 of them add up to less than 2^53


class Interval(NamedTuple):
    """An interval for each column."""

    low: Floats
    """[column], NaN where there is none."""
    high: Floats
    """[column], NaN where there is none."""


def bootstrap_interval(values: npt.ArrayLike, seed: int) -> Interval:
    """Return the BCa bootstrap interval of the mean of each column.

    Bias corrected and accelerated (Efron 1987), from `NUM_RESAMPLES` resamples of whole sentences. The jackknife of a
    mean has a closed form: acceleration = sum(c^3) / (6 sum(c^2)^1.5), c the deviations from the mean.

    Args:
        values: [sentence, column].
        seed: Of the resamples.

    Returns:
        [column] in the unit of the values. Numbers that are all the same give that number, twice; fewer than two give
        NaN.
    """
    numbers = np.asarray(values, np.float64)
    low, high = np.full((2, numbers.shape[1]), np.nan)
    for columns, sample in _by_count(numbers):
        if sample.shape[1] > 1:
            counts = _resample_counts(sample.shape[1], seed)
            for part in _parts(len(sample)):
                low[columns[part]], high[columns[part]] = _bca(sample[part], counts)
    return Interval(low, high)


def sign_flip_test(values: npt.ArrayLike, seed: int) -> Floats:
    """Return the two-sided p-value of mean 0 of each column, by flipping the signs of whole sentences.

    p = share of flips with abs(mean*) >= abs(mean). Up to `LARGEST_EXACT` sentences all 2^n flips are tried; beyond,
    `NUM_RESAMPLES` seeded ones, and p = (1 + count) / (1 + number), the observed signs being one more flip (Phipson and
    Smyth 2010). Flips that are as large on paper count, whatever rounding does to them.

    Args:
        values: [sentence, column].
        seed: Of the flips.

    Returns:
        [column]; 1 for a single number and where all are 0, NaN where there is none.
    """
    numbers = np.asarray(values, np.float64)
    p_values = np.full(numbers.shape[1], np.nan)
    for columns, sample in _by_count(numbers):
        signs, extra = _signs(sample.shape[1], seed)
        for part in _parts(len(sample)):
            whole, _ = _whole_numbers(sample[part])
            # Rounding moves each sum by half a unit for each number at most.
            least = np.abs(whole.sum(axis=1)) - whole.shape[1]
            sums = _products(whole, signs)
            hits = np.count_nonzero(np.abs(sums, out=sums) >= least[:, None], axis=1)
            p_values[columns[part]] = (hits + extra) / (len(signs) + extra)
    return p_values


def packed(values: npt.ArrayLike, num_rows: int) -> Floats:
    """Return the finite numbers of each column, in order, without the gaps between them.

    Args:
        values: [sentence, column].
        num_rows: At least the largest count of finite numbers of a column.

    Returns:
        [num_rows, column], NaN below the numbers.
    """
    numbers = np.asarray(values, np.float64)
    result = np.full((num_rows, numbers.shape[1]), np.nan)
    for index, column in enumerate(numbers.T):
        finite = column[np.isfinite(column)]
        result[: len(finite), index] = finite
    return result


def _by_count(numbers: Floats) -> Iterator[tuple[npt.NDArray[np.int64], Floats]]:
    """Give, for each count of finite numbers but 0, the columns that have it, and their numbers, [column, sentence]."""
    counts = np.isfinite(numbers).sum(axis=0)
    together = packed(numbers, int(counts.max(initial=0)))
    for count in np.unique(counts[counts > 0]).tolist():
        columns = np.flatnonzero(counts == count)
        yield columns, np.ascontiguousarray(together[:count, columns].T)


def _parts(num_columns: int) -> list[slice]:
    return [slice(first, first + _COLUMNS) for first in range(0, num_columns, _COLUMNS)]


def _resample_counts(num_sentences: int, seed: int) -> npt.NDArray[np.int16]:
    """Return how often each resample holds each sentence, [resample, sentence]."""
    generator = np.random.default_rng([seed, _BOOTSTRAP, num_sentences])
    counts = np.empty((NUM_RESAMPLES, num_sentences), np.int16)
    step = max(1, _TILE // num_sentences)
    for first in range(0, NUM_RESAMPLES, step):
        part = counts[first : first + step]
        drawn = generator.integers(0, num_sentences, part.shape)
        drawn += num_sentences * np.arange(len(part))[:, None]
        part[:] = np.bincount(drawn.ravel(), minlength=part.size).reshape(part.shape)
    return counts


def _signs(num_sentences: int, seed: int) -> tuple[npt.NDArray[np.int8], int]:
    """Return flips, [flip, sentence] of +1 and -1, and how many more the observed signs are: 0 if among them, or 1."""
    if num_sentences <= LARGEST_EXACT:
        bits = np.arange(2**num_sentences)[:, None] >> np.arange(num_sentences) & 1
        return (1 - 2 * bits).astype(np.int8), 0
    generator = np.random.default_rng([seed, _FLIPS, num_sentences])
    return 1 - 2 * generator.integers(0, 2, (NUM_RESAMPLES, num_sentences), np.int8), 1


def _whole_numbers(sample: Floats) -> tuple[Floats, Floats]:
    """Return numbers, [column, sentence], as whole multiples of a unit, and the unit of each column, a power of 2."""
    _, exponent = np.frexp(np.abs(sample).max(axis=1))
    return np.rint(np.ldexp(sample, _BITS - exponent[:, None])), np.ldexp(1.0, exponent - _BITS)


def _products(whole: Floats, weights: npt.NDArray[np.int8] | npt.NDArray[np.int16]) -> Floats:
    """Return weighted sums of whole numbers, [column, resample], exactly; the weights are [resample, sentence]."""
    sums = np.empty((len(whole), len(weights)))
    step = max(1, _TILE // weights.shape[1])
    for first in range(0, len(weights), step):
        sums[:, first : first + step] = whole @ weights[first : first + step].astype(np.float64).T
    return sums


def _bca(sample: Floats, counts: npt.NDArray[np.int16]) -> tuple[Floats, Floats]:
    """Return both ends of the interval of the mean of each row of `sample`, [column, sentence]."""
    num_sentences = sample.shape[1]
    mean = sample.mean(axis=1)
    # Deviations are resampled, not the numbers: a large mean takes no digits away.
    centred = sample - mean[:, None]
    whole, unit = _whole_numbers(centred)
    sums = _products(whole, counts)
    slack = num_sentences * (1 + np.spacing(np.abs(sample).max(axis=1)) / unit)[:, None]  # by which 0 may be missed
    below, above = (sums < -slack).mean(axis=1), (sums > slack).mean(axis=1)
    is_constant = sample.min(axis=1) == sample.max(axis=1)
    squares = np.where(is_constant, 1.0, (centred**2).sum(axis=1))
    acceleration = (centred**3).sum(axis=1) / (6 * squares**1.5)
    bias = np.where(is_constant, 0.0, ndtri((below + 1 - above) / 2))
    sums.sort(axis=1)
    tail = (1 - CONFIDENCE) / 2
    ends = []
    for level in (tail, 1 - tail):
        step = bias + ndtri(level)
        shift = _quantile(sums, ndtr(bias + step / (1 - acceleration * step))) * unit / num_sentences
        # No resample lies outside of the numbers; rounding may.
        end = np.clip(mean + shift, sample.min(axis=1), sample.max(axis=1))
        ends.append(np.where(is_constant, sample[:, 0], end))
    return ends[0], ends[1]


def _quantile(rising: Floats, levels: Floats) -> Floats:
    """Return a quantile of each row, each at its own level, which numpy.quantile does not do; linear as there."""
    places = levels * (rising.shape[1] - 1)
    lower = np.floor(places).astype(np.int64)
    upper = np.minimum(lower + 1, rising.shape[1] - 1)
    rows = np.arange(len(rising))
    return np.asarray(rising[rows, lower] + (places - lower) * (rising[rows, upper] - rising[rows, lower]))
