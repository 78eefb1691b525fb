"""One number per sentence and column, seen a few sentences at a time: what statistics need of them is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llm_entropy.outputs.comparison import Floats, Moments
from llm_entropy.outputs.inference.resampling import LARGEST_RESAMPLED, packed

LARGEST_KEPT = 25_000
"""Most sentences whose own numbers are kept, for the median: 0.1 MB a column."""

_SAMPLE = 2  # stream of random numbers of a seed, beside those of `resampling`


class SentenceSample:
    """Which of the sentences of a corpus are kept: all, or a seeded sample of `LARGEST_KEPT`."""

    def __init__(self, num_sentences: int, seed: int) -> None:
        """Choose among `num_sentences` sentences."""
        self.num_sentences = num_sentences
        self.is_all = num_sentences <= LARGEST_KEPT
        self.chosen: npt.NDArray[np.int64] = np.arange(num_sentences)
        """[kept], rising: the sentences that are kept."""
        if not self.is_all:
            generator = np.random.default_rng([seed, _SAMPLE, num_sentences])
            self.chosen = np.sort(generator.choice(num_sentences, LARGEST_KEPT, replace=False))


class Totals(NamedTuple):
    """What the sentences give together, [column] each; NaN where no sentence counts."""

    n: npt.NDArray[np.int64]
    """Sentences that count: those whose number is finite."""
    mean: Floats
    """Of their numbers."""
    deviation: Floats
    """Of their numbers (ddof 1); NaN where fewer than two count."""
    median: Floats
    """Of their numbers; of the sentences that are kept."""
    share_positive: Floats
    """Share of those above 0, and half of those that are 0."""
    levels: Floats
    """[level, column], mean of each level over the sentences that count."""


class SentenceNumbers:
    """One number per sentence and column, such as differences of a metric by layer, collected in corpus order.

    Counts, means, deviations and shares are exact and additive: they are the same to the last bit if the same chunks
    come in the same order. The numbers themselves are kept, for resampling and the median: up to `LARGEST_RESAMPLED`
    sentences in float64; up to `LARGEST_KEPT` in float32, which the median is then rounded to; of more sentences a
    sample, so that memory does not grow with the corpus. The standard error of a median of 25,000 is 0.008 deviations
    (normal numbers): a median of all would take 4 GB a thousand columns for a digit that nobody reads.
    """

    def __init__(self, num_columns: int, num_levels: int, sample: SentenceSample) -> None:
        """Expect rows of `num_columns` numbers, each made from `num_levels` others, for every sentence of `sample`."""
        self.sample = sample
        self._moments = Moments.of(np.empty((0, num_columns)))
        self._positive = np.zeros(num_columns)
        self._levels = np.zeros((num_levels, num_columns))
        self._lowest, self._highest = np.full(num_columns, np.inf), np.full(num_columns, -np.inf)
        kind = np.float64 if sample.num_sentences <= LARGEST_RESAMPLED else np.float32
        self._kept = np.full((len(sample.chosen), num_columns), np.nan, kind)

    @property
    def num_columns(self) -> int:
        """Numbers of a sentence."""
        return self._kept.shape[1]

    def add(self, rows: Floats, levels: Sequence[Floats]) -> None:
        """Take the next sentences.

        Args:
            rows: [sentence, column]; what is not finite does not count.
            levels: What the rows were made from, such as the metric under both conditions: [sentence, column] each.
        """
        assert len(levels) == len(self._levels), f"{len(levels)} levels instead of {len(self._levels)}"
        first = self._moments.rows
        self._moments += Moments.of(rows)
        finite = np.isfinite(rows)
        counts = True if finite.all() else finite
        self._positive += (rows > 0).sum(axis=0, where=counts) + (rows == 0).sum(axis=0) / 2
        self._lowest = np.minimum(self._lowest, rows.min(axis=0, where=counts, initial=np.inf))
        self._highest = np.maximum(self._highest, rows.max(axis=0, where=counts, initial=-np.inf))
        for total, level in zip(self._levels, levels, strict=True):
            assert level.shape == rows.shape, f"levels of shape {level.shape} for rows of shape {rows.shape}"
            total += level.sum(axis=0, where=counts)
        low, high = np.searchsorted(self.sample.chosen, [first, first + len(rows)])
        with np.errstate(over="ignore"):
            self._kept[low:high] = rows[self.sample.chosen[low:high] - first]

    def totals(self) -> Totals:
        """Return what all sentences give together."""
        moments = self._moments
        assert moments.rows == self.sample.num_sentences, f"{moments.rows} of {self.sample.num_sentences} sentences"
        count = np.maximum(moments.count, 1)
        no_sentence = np.where(moments.count > 0, 0.0, np.nan)
        # Numbers that are all the same have that mean and no deviation: sums would leave a rounding error of both.
        is_constant = self._lowest == self._highest
        mean = np.where(is_constant, self._lowest, moments.mean)
        deviation = np.where(is_constant & (moments.count > 1), 0.0, moments.sample_deviation)
        share, levels = self._positive / count + no_sentence, self._levels / count + no_sentence
        return Totals(moments.count, mean, deviation, self._median(), share, levels)

    def resampled(self) -> Floats:
        """Return the numbers of the columns that are resampled: those in which few enough sentences count.

        Returns:
            [row, column], the numbers of each column in order, then NaN; a column that is not resampled is all NaN.
        """
        chosen = self._moments.count <= LARGEST_RESAMPLED if self.sample.is_all else np.zeros(self.num_columns, bool)
        num_rows = min(LARGEST_RESAMPLED, self.sample.num_sentences)
        result = np.full((num_rows, self.num_columns), np.nan)
        result[:, chosen] = packed(self._kept[:, chosen], num_rows)
        return result

    def _median(self) -> Floats:
        medians = np.full(self.num_columns, np.nan)
        for index, column in enumerate(self._kept.T):
            finite = column[np.isfinite(column)].astype(np.float64)
            if len(finite):
                medians[index] = np.median(finite)
        return medians
