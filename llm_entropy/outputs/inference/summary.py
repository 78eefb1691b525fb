"""What each condition changes, how surely, and more than its placebos: a row per condition, metric and layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llm_entropy.outputs.comparison import Floats, standardised_effect
from llm_entropy.outputs.inference.collecting import SentenceNumbers
from llm_entropy.outputs.inference.corrections import benjamini_hochberg, holm
from llm_entropy.outputs.inference.placebo_ranks import PlaceboRanks, placebo_ranks
from llm_entropy.outputs.inference.verdicts import joined, mean_intervals, mean_tests, resampled

Texts = npt.NDArray[np.str_]
Integers = npt.NDArray[np.int64]


class Compared(NamedTuple):
    """One metric of one condition beside the standard one."""

    condition: str
    """The condition's name."""
    metric: str
    """The metric's name."""
    differences: SentenceNumbers
    """condition - standard, with two levels: standard, condition. The standard of what compares two conditions by
    itself, as `kl_from_standard` and `top1_changed` do, is 0."""
    tested: npt.NDArray[np.bool_]
    """[layer], where a test has sense: where steering reaches, and the difference may have either sign."""
    placebos: Floats
    """[placebo, layer], mean differences of the condition's placebos; no rows without them."""
    first_layer: int = 0
    """The layer (or block) of the first number."""


@dataclass(frozen=True)
class Summary:
    """The columns of the summary, in order: [row] each, by condition, then metric, then layer, as they were given.

    NaN, or an empty `test`, is what there is none of. A number that is not finite leaves its sentence out of its row.
    Without sentences all but `n` is empty; a single one has no deviation, effect size or interval, and p = 1. Where
    all differences are the same, the interval is that difference, and the effect size infinite, or 0 for 0.
    """

    condition: Texts
    metric: Texts
    layer: Integers
    """Layer, or block."""
    n: Integers
    """Sentences that count: both conditions are finite."""
    mean_standard: Floats
    mean_condition: Floats
    mean_difference: Floats
    median_difference: Floats
    """Of a seeded sample of 25,000 sentences where there are more."""
    sd_difference: Floats
    """ddof 1."""
    effect_size: Floats
    """Cohen's d_z = mean / deviation of the differences (Lakens 2013); 0 / 0 = 0."""
    ci_low: Floats
    ci_high: Floats
    """95 % interval of the mean difference: BCa up to 2,000 sentences, above Student's t."""
    p_value: Floats
    """Two-sided, of mean difference 0: sign flips up to 2,000 sentences, above the paired t test."""
    test: Texts
    """`exact`, `permutation` or `t`."""
    p_holm: Floats
    """Holm's, over all layers and conditions of the metric."""
    q_bh: Floats
    """Benjamini and Hochberg's, over the same."""
    share_increased: Floats
    """Share of sentences with a difference above 0, ties half."""
    placebo_p: Floats
    """(1 + placebos whose mean difference is at least as large in size) / (1 + placebos)."""
    placebo_z: Floats
    """(mean difference - mean over placebos) / deviation over placebos (ddof 1)."""


def summarise(compared: Sequence[Compared], seed: int) -> Summary:
    """Return the summary of one model.

    Of more than 25,000 sentences the numbers themselves are not kept: a column in which at most 2,000 of them count
    then has the t interval and test, and `test` says so.

    Args:
        compared: At least one, in the order of the rows; all of one corpus.
        seed: Of resamples and flips, the run's.
    """
    collected = [one.differences for one in compared]
    totals, values = joined([one.totals() for one in collected]), resampled(collected)
    widths = [one.num_columns for one in collected]
    metric = np.repeat([one.metric for one in compared], widths)
    wanted = np.concatenate([one.tested for one in compared])
    interval = mean_intervals(totals, values, seed)
    tests = mean_tests(totals, values, wanted, seed)
    placebos = _ranks(compared, totals.mean)
    return Summary(
        condition=np.repeat([one.condition for one in compared], widths),
        metric=metric,
        layer=np.concatenate([one.first_layer + np.arange(one.differences.num_columns) for one in compared]),
        n=totals.n,
        mean_standard=totals.levels[0],
        mean_condition=totals.levels[1],
        mean_difference=totals.mean,
        median_difference=totals.median,
        sd_difference=totals.deviation,
        effect_size=standardised_effect(totals.mean, totals.deviation),
        ci_low=interval.low,
        ci_high=interval.high,
        p_value=tests.p_value,
        test=tests.name,
        p_holm=_by_family(holm, tests.p_value, metric),
        q_bh=_by_family(benjamini_hochberg, tests.p_value, metric),
        share_increased=totals.share_positive,
        placebo_p=placebos.p_value,
        placebo_z=placebos.z,
    )


def _ranks(compared: Sequence[Compared], means: Floats) -> PlaceboRanks:
    ends = np.cumsum([one.differences.num_columns for one in compared])
    own = np.split(means, ends[:-1])
    ranks = [placebo_ranks(mean, one.placebos) for mean, one in zip(own, compared, strict=True)]
    return PlaceboRanks(*(np.concatenate(parts) for parts in zip(*ranks, strict=True)))


def _by_family(correct: Callable[[Floats], Floats], p_values: Floats, families: Texts) -> Floats:
    result = np.full(len(p_values), np.nan)
    for family in np.unique(families):
        result[families == family] = correct(p_values[families == family])
    return result
