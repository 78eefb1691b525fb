"""How a metric grows with the strength of one vector: a row per vector, metric and layer; and how strong is strong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llm_entropy.outputs.comparison import Floats, difference
from llm_entropy.outputs.inference.collecting import SentenceNumbers
from llm_entropy.outputs.inference.verdicts import joined, mean_intervals, resampled


class Dosed(NamedTuple):
    """One metric under several strengths of one vector."""

    vector: str
    """The name that the conditions of its strengths share."""
    metric: str
    """The metric's name."""
    doses: tuple[float, ...]
    """[level], strengths, all different; 0 for the standard run is the first."""
    slopes: SentenceNumbers
    """`sentence_slopes` of the metric, with a level for each dose: the metric."""
    first_layer: int = 0
    """The layer (or block) of the first number."""


@dataclass(frozen=True)
class DoseTable:
    """The columns of the table of doses, in order: [row] each, by vector, then metric, then layer, as they were given.

    NaN is what there is none of. A sentence counts where the metric is finite at every strength.
    """

    vector: npt.NDArray[np.str_]
    metric: npt.NDArray[np.str_]
    layer: npt.NDArray[np.int64]
    """Layer, or block."""
    n: npt.NDArray[np.int64]
    """Sentences that count."""
    slope: Floats
    """Mean over the sentences of the least-squares slope, in the metric's unit per unit of strength."""
    slope_ci_low: Floats
    slope_ci_high: Floats
    """95 % interval of the mean slope: BCa up to 2,000 sentences, above Student's t."""
    share_negative: Floats
    """Share of sentences whose slope is below 0, ties half; of a metric that is meant to rise, the anti-steerable share
    (Tan et al. 2024, arXiv 2407.12404)."""
    spearman: Floats
    """Spearman's rho of strength and mean of the metric; NaN where all means are the same."""
    residual: Floats
    """Root mean square, over the strengths, of what the straight line leaves of the means, in the metric's unit: how
    far the answer to the dose is bent."""


def sentence_slopes(doses: Sequence[float], levels: Sequence[Floats]) -> Floats:
    """Return the least-squares slope of a metric over strength, sentence by sentence.

    The slope of a line with an intercept is a weighted sum of the differences from the standard run: exactly 0 where
    steering changes nothing.

    Args:
        doses: [level], strengths, all different; the first is 0, the standard run.
        levels: [level] of [sentence, layer], the metric at each.

    Returns:
        [sentence, layer], NaN or infinite where the metric is so at any strength.
    """
    weights = _line_weights(doses)
    slopes = np.zeros(np.shape(levels[0]))
    with np.errstate(invalid="ignore"):
        for weight, level in zip(weights[1:], levels[1:], strict=True):
            slopes += weight * difference(levels[0], level)
    return slopes


def dose_table(dosed: Sequence[Dosed], seed: int) -> DoseTable:
    """Return the table of doses of one model.

    Args:
        dosed: At least one, in the order of the rows; all of one corpus.
        seed: Of the resamples, the run's.
    """
    slopes = [one.slopes for one in dosed]
    widths = [one.num_columns for one in slopes]
    lines = [one.totals() for one in slopes]
    totals = joined([line._replace(levels=line.levels[:0]) for line in lines])
    interval = mean_intervals(totals, resampled(slopes), seed)
    shapes = list(zip((one.doses for one in dosed), (line.levels for line in lines), strict=True))
    return DoseTable(
        vector=np.repeat([one.vector for one in dosed], widths),
        metric=np.repeat([one.metric for one in dosed], widths),
        layer=np.concatenate([one.first_layer + np.arange(one.slopes.num_columns) for one in dosed]),
        n=totals.n,
        slope=totals.mean,
        slope_ci_low=interval.low,
        slope_ci_high=interval.high,
        share_negative=1 - totals.share_positive,
        spearman=np.concatenate([spearman(*shape) for shape in shapes]),
        residual=np.concatenate([residual(*shape) for shape in shapes]),
    )


def spearman(doses: Sequence[float], means: npt.ArrayLike) -> Floats:
    """Return Spearman's rank correlation of strength and mean, column by column.

    scipy.stats.spearmanr gives the correlations of all pairs of columns, and warnings of those that do not change.

    Args:
        doses: [level], strengths.
        means: [level, column].

    Returns:
        [column], from -1 to 1; NaN where all means are the same, or one is not finite.
    """
    # Here, for the import takes 0.7 s, and what only reads outputs does not need it.
    from scipy.stats import rankdata

    numbers = np.asarray(means, np.float64)
    steps = rankdata(doses) - (len(doses) + 1) / 2
    ranks = rankdata(numbers, axis=0) - (len(doses) + 1) / 2
    spread = np.sqrt((steps**2).sum() * (ranks**2).sum(axis=0))
    usable = (spread > 0) & np.isfinite(numbers).all(axis=0)
    return np.where(usable, steps @ ranks / np.where(usable, spread, 1.0), np.nan)


def residual(doses: Sequence[float], means: npt.ArrayLike) -> Floats:
    """Return the root mean square of the residuals of the least-squares line through the means, column by column.

    Args:
        doses: [level], strengths.
        means: [level, column].

    Returns:
        [column], in the unit of the means.
    """
    numbers = np.asarray(means, np.float64)
    strengths = np.asarray(doses, np.float64)
    shifts = numbers - numbers[0]
    slopes = (_line_weights(doses)[:, None] * shifts).sum(axis=0)
    bent = shifts - shifts.mean(axis=0) - (strengths - strengths.mean())[:, None] * slopes
    return np.asarray(np.sqrt((bent**2).mean(axis=0)))


def relative_dose(added: npt.ArrayLike, residual_norm: npt.ArrayLike) -> Floats:
    """Return how large a push is beside the stream that it pushes.

    Args:
        added: [block], norm of what is added at the output of each block.
        residual_norm: [block], mean norm of the residual stream there, over the positions read.

    Returns:
        [block], pure numbers; 0 where nothing is added.
    """
    push, stream = np.asarray(added, np.float64), np.asarray(residual_norm, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(push == 0, 0.0, push / stream)


def _line_weights(doses: Sequence[float]) -> Floats:
    """Return the weights whose sum with numbers is the slope of their least-squares line, [level]."""
    strengths = np.asarray(doses, np.float64)
    assert strengths[0] == 0, "the standard run comes first"
    assert len(set(doses)) == len(doses) > 1, f"strengths are given once each, and one beside 0: {doses}"
    centred = strengths - strengths.mean()
    return np.asarray(centred / (centred**2).sum())
