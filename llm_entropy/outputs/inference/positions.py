"""One number per position, seen some at a time: mean and percentiles, as of KL from the standard run."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from llm_entropy.outputs.comparison import Floats, Moments

LARGEST_KEPT = 1_000_000
"""Most numbers that are kept: 4 MB."""


class PositionNumbers:
    """One number per position, collected in corpus order.

    The mean is that of all finite numbers. Percentiles are those of the numbers that are kept: all, in float32, up to
    `LARGEST_KEPT`; whenever there are more, every other one is let go. So what is kept lies evenly over the corpus, is
    at least half a million, and depends neither on the chunks nor on chance: the share of positions below a 95th
    percentile of so many is right to 0.0003.
    """

    def __init__(self) -> None:
        """Expect any number of positions."""
        self._moments = Moments.of(np.empty((0, 1)))
        self._step = 1
        self._kept: npt.NDArray[np.float32] = np.empty(0, np.float32)

    def add(self, values: npt.ArrayLike) -> None:
        """Take the next positions.

        Args:
            values: [position]; what is not finite does not count.
        """
        numbers = np.asarray(values, np.float64)
        first = self._moments.rows
        self._moments += Moments.of(numbers[:, None])
        with np.errstate(over="ignore"):
            new = numbers[-first % self._step :: self._step].astype(np.float32)
        self._kept = np.concatenate([self._kept, new])
        while len(self._kept) > LARGEST_KEPT:
            self._kept = self._kept[::2].copy()
            self._step *= 2

    @property
    def mean(self) -> float:
        """Of all finite numbers; NaN where there are none."""
        return float(self._moments.mean[0])

    def percentile(self, percent: float) -> float:
        """Return a percentile of the finite numbers that are kept, NaN where there are none.

        Args:
            percent: From 0 to 100.
        """
        finite: Floats = self._kept[np.isfinite(self._kept)].astype(np.float64)
        return float(np.percentile(finite, percent)) if len(finite) else float("nan")
