"""What a condition changes, number by number, and the moments of many numbers seen a few at a time.

Pure functions on arrays; an axis `layer` is any axis over which a metric runs (layers, or blocks).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

DIFFERENCE, PERCENT_CHANGE = "difference", "percent_change"


def quantities(baseline: str, other: str) -> tuple[str, str, str, str]:
    """Return what the four rows of a sentence in a comparison are called, in order.

    Args:
        baseline: Name of the condition that is compared with.
        other: Name of the condition that is compared.
    """
    return baseline, other, DIFFERENCE, PERCENT_CHANGE


def difference(baseline: npt.ArrayLike, other: npt.ArrayLike) -> Floats:
    """Return other - baseline.

    Args:
        baseline: Numbers of the condition that is compared with, any shape.
        other: Numbers of the condition that is compared, the same shape.

    Returns:
        The same shape, in the same unit, float64; NaN where both are the same infinity.
    """
    before, after = _pair(baseline, other)
    with np.errstate(invalid="ignore"):
        return np.asarray(after - before)


def percent_change(baseline: npt.ArrayLike, other: npt.ArrayLike) -> Floats:
    """Return 100 * (other - baseline) / baseline, in percent of the signed baseline.

    Args:
        baseline: Numbers of the condition that is compared with, any shape.
        other: Numbers of the condition that is compared, the same shape.

    Returns:
        The same shape, float64; NaN where the baseline is 0, whatever the other is.
    """
    before, after = _pair(baseline, other)
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(100 * ((after - before) / np.where(before == 0, np.nan, before)))


def standardised_effect(mean: npt.ArrayLike, deviation: npt.ArrayLike) -> Floats:
    """Return the paired effect size: mean difference / standard deviation of the differences.

    Cohen's d_z (Lakens 2013, section "within-subjects designs"), where the deviation is that of a sample (ddof 1).
    0 / 0 is 0: nothing changed, in any sentence. A difference that is the same in each of several sentences has no
    spread to be measured by: plus or minus infinity.

    Args:
        mean: Mean difference, any shape.
        deviation: Standard deviation of the differences, the same shape and unit.

    Returns:
        A pure number for each, float64; NaN where either is NaN.
    """
    shift, spread = _pair(mean, deviation)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((shift == 0) & (spread == 0), 0.0, shift / spread)


def _pair(first: npt.ArrayLike, second: npt.ArrayLike) -> tuple[Floats, Floats]:
    one, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
    assert one.shape == other.shape, f"{one.shape} and {other.shape} are not compared number by number"
    return one, other


def share_of_log_vocabulary(nats: npt.ArrayLike, vocab_size: int) -> Floats:
    """Return nats / ln V: 1 is the entropy of the uniform distribution over the vocabulary.

    Args:
        nats: Numbers in nats, any shape.
        vocab_size: V.

    Returns:
        The same shape, pure numbers.
    """
    assert vocab_size > 1
    return np.asarray(nats, np.float64) / float(np.log(vocab_size))


def relative_depth(num_points: int) -> Floats:
    """Return where each of `num_points` layers (or blocks) lies between the first, 0, and the last, 1.

    Args:
        num_points: How many.

    Returns:
        [layer], rising evenly from 0 to 1; a single point lies at 0.
    """
    return np.linspace(0.0, 1.0, num_points)


def evenly_spaced(count: int, most: int) -> npt.NDArray[np.int64]:
    """Return at most `most` different indices into `count` items, first and last included, the same every time.

    Args:
        count: How many items there are.
        most: How many indices are wanted, at least 1.

    Returns:
        [min(count, most)], rising.
    """
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of the rows seen so far, column by column, in float64.

    Two of them add up to the moments of both sets of rows (Chan, Golub and LeVeque 1979), without the cancellation of
    sums of squares. A NaN or an infinity is left out of its column, and not counted there: one bad number among ten
    thousand sentences must not erase a curve, and `missing` tells that it was there.
    """

    rows: int
    """Rows seen."""
    count: npt.NDArray[np.int64]
    """[layer], finite numbers seen."""
    centre: Floats
    """[layer], their mean; 0 where there are none."""
    squares: Floats
    """[layer], sum of their squared deviations from the mean."""

    @classmethod
    def of(cls, values: npt.ArrayLike) -> Moments:
        """Return the moments of some rows.

        Args:
            values: [row, layer].

        Returns:
            Their moments.
        """
        numbers = np.asarray(values, np.float64)
        assert numbers.ndim == 2, f"rows of numbers are expected, not the shape {numbers.shape}"
        finite = np.isfinite(numbers)
        count = finite.sum(axis=0)
        kept = np.where(finite, numbers, 0.0)
        centre = kept.sum(axis=0) / np.maximum(count, 1)
        rest = np.where(finite, kept - centre, 0.0)  # sums to the rounding error of `centre`
        offset = rest.sum(axis=0) / np.maximum(count, 1)
        squares = np.maximum((rest**2).sum(axis=0) - count * offset**2, 0.0)
        return cls(len(numbers), count, centre + offset, squares)

    def __add__(self, other: Moments) -> Moments:
        """Return the moments of the rows of both."""
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        step = other.centre - self.centre
        centre = self.centre + step * share
        squares = self.squares + other.squares + step**2 * self.count * share
        return Moments(self.rows + other.rows, count, centre, squares)

    @property
    def mean(self) -> Floats:
        """[layer], NaN where no number was finite."""
        return np.where(self.count > 0, self.centre, np.nan)

    @property
    def deviation(self) -> Floats:
        """[layer], standard deviation (ddof 0), NaN where no number was finite."""
        return np.where(self.count > 0, np.sqrt(self.squares / np.maximum(self.count, 1)), np.nan)

    @property
    def sample_deviation(self) -> Floats:
        """[layer], standard deviation of a sample (ddof 1), NaN where fewer than two numbers were finite."""
        return np.where(self.count > 1, np.sqrt(self.squares / np.maximum(self.count - 1, 1)), np.nan)

    @property
    def missing(self) -> npt.NDArray[np.int64]:
        """[layer], how many numbers were not finite."""
        return self.rows - self.count
