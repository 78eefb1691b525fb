"""The interval and the test of a mean by Student's t distribution, from counts, means and deviations alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr, stdtrit

from llm_entropy.outputs.comparison import Floats, standardised_effect
from llm_entropy.outputs.inference.resampling import CONFIDENCE, Interval


def t_interval(count: npt.ArrayLike, mean: npt.ArrayLike, deviation: npt.ArrayLike) -> Interval:
    """Return mean - and + t * deviation / sqrt(n), t the quantile of n - 1 degrees of freedom.

    Args:
        count: [column], n.
        mean: [column], of n numbers.
        deviation: [column], their standard deviation (ddof 1).

    Returns:
        [column] in the unit of the mean; NaN where n is less than 2.
    """
    n, centre, spread = (np.asarray(item, np.float64) for item in (count, mean, deviation))
    enough = np.maximum(n, 2)
    reach = np.where(n > 1, stdtrit(enough - 1, (1 + CONFIDENCE) / 2) * spread / np.sqrt(enough), np.nan)
    return Interval(centre - reach, centre + reach)


def t_test(count: npt.ArrayLike, mean: npt.ArrayLike, deviation: npt.ArrayLike) -> Floats:
    """Return the two-sided p-value of mean 0; of differences, this is the paired t test.

    Args:
        count: [column], n.
        mean: [column], of n numbers.
        deviation: [column], their standard deviation (ddof 1).

    Returns:
        [column]; 1 where all numbers are 0, 0 where they are all the same other number, NaN where n is less than 2.
    """
    n = np.asarray(count, np.float64)
    enough = np.maximum(n, 2)
    statistic = standardised_effect(mean, deviation) * np.sqrt(enough)
    return np.where(n > 1, 2 * stdtr(enough - 1, -np.abs(statistic)), np.nan)
