"""A condition among its placebos: would any vector of that size have done it?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llm_entropy.outputs.comparison import Floats, Moments, standardised_effect


class PlaceboRanks(NamedTuple):
    """Where a condition stands among its placebos."""

    p_value: Floats
    """[column], (1 + number of placebos whose mean difference is at least as large in size) / (1 + their number)."""
    z: Floats
    """[column], (mean difference - mean over the placebos) / deviation over the placebos (ddof 1)."""


def placebo_ranks(mean_difference: npt.ArrayLike, placebos: npt.ArrayLike) -> PlaceboRanks:
    """Rank the mean difference of a condition among those of its placebos.

    Args:
        mean_difference: [column], of the condition from the standard run.
        placebos: [placebo, column], of each placebo from it, in the same unit; one that is not finite does not count.

    Returns:
        [column], pure numbers. Both are NaN without placebos and where the mean difference is NaN; z also with a single
        placebo. Where neither the condition nor a placebo changes anything, p is 1 and z is 0.
    """
    own, others = np.asarray(mean_difference, np.float64), np.asarray(placebos, np.float64)
    assert others.ndim == 2, f"a row for each placebo is expected, not the shape {others.shape}"
    assert others.shape[1:] == own.shape, f"{others.shape} does not hold a column for each of {own.shape}"
    over = Moments.of(others)
    with np.errstate(invalid="ignore"):
        larger = (np.isfinite(others) & (np.abs(others) >= np.abs(own))).sum(axis=0)
    is_ranked = np.isfinite(own) & (over.count > 0)
    p_value = np.where(is_ranked, (1 + larger) / (1 + over.count), np.nan)
    return PlaceboRanks(p_value, standardised_effect(own - over.mean, over.sample_deviation))
