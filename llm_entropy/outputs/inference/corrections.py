"""What many p-values of one family mean together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from llm_entropy.outputs.comparison import Floats


def holm(p_values: npt.ArrayLike) -> Floats:
    """Return p-values that hold for the whole family: below 0.05 by chance in at most 5 % of families (Holm 1979).

    The i-th smallest of m is multiplied by m - i + 1, and is at least as large as those before it, and at most 1.
    scipy.stats has no such function.

    Args:
        p_values: [test], one family; NaN is no test, and does not count.

    Returns:
        [test], NaN where it was.
    """

    def corrected(tests: Floats) -> Floats:
        order = np.argsort(tests, kind="stable")
        rising = np.maximum.accumulate(tests[order] * np.arange(len(tests), 0, -1))
        result = np.empty_like(tests)
        result[order] = np.minimum(rising, 1.0)
        return result

    return _where_tested(p_values, corrected)


def benjamini_hochberg(p_values: npt.ArrayLike) -> Floats:
    """Return q-values: of what has q below 0.05, at most 5 % are expected to be chance (Benjamini, Hochberg 1995).

    Args:
        p_values: [test], one family; NaN is no test, and does not count.

    Returns:
        [test], NaN where it was.
    """
    # Here, for the import takes 0.7 s, and what only reads outputs does not need it.
    from scipy.stats import false_discovery_control

    return _where_tested(p_values, false_discovery_control)


def _where_tested(p_values: npt.ArrayLike, correct: Callable[[Floats], Floats]) -> Floats:
    result = np.array(p_values, np.float64)
    tested = ~np.isnan(result)
    result[tested] = correct(result[tested])
    return result
