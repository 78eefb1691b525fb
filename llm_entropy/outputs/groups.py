"""Groups of sentences, such as the conditions of an experiment: their curves, and the differences between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from llm_entropy.errors import ReportedError
from llm_entropy.outputs.comparison import Floats, Moments
from llm_entropy.outputs.inference.corrections import holm
from llm_entropy.outputs.inference.groups import permutation_test, welch
from llm_entropy.outputs.inference.resampling import (
    LARGEST_EXACT,
    LARGEST_RESAMPLED,
    Interval,
    bootstrap_interval,
    sign_flip_test,
)
from llm_entropy.outputs.inference.student import t_interval, t_test
from llm_entropy.outputs.inference.verdicts import EXACT, PERMUTATION, T_TEST
from llm_entropy.outputs.kept_csv import value_words
from llm_entropy.outputs.points import num_points
from llm_entropy.outputs.views import View
from llm_entropy.schema.batches import MOST_GROUPS
from llm_entropy.schema.shape import ModelShape
from llm_entropy.settings import DataSettings

if TYPE_CHECKING:
    import pandas as pd

GROUP_COLUMNS = ("group", "metric", "layer", "n", "mean", "sd", "ci_low", "ci_high")
DIFFERENCE_COLUMNS = (
    *("group_a", "group_b", "metric", "layer", "paired", "n_a", "n_b", "mean_a", "mean_b", "mean_difference"),
    *("ci_low", "ci_high", "p_value", "test", "p_holm"),
)
"""`n_a` and `n_b` are pairs, where there are pairs; `mean_difference` is b - a."""


@dataclass(frozen=True)
class GroupCurve:
    """One metric of one group over depth: [layer] each."""

    n: npt.NDArray[np.int64]
    """Sentences that count."""
    mean: Floats
    deviation: Floats
    """ddof 1; NaN of fewer than two sentences."""
    interval: Interval
    """95 %, of the mean, by Student's t."""


class _Sample:
    """Rows of numbers, of which the first are kept for resampling and the rest as moments."""

    def __init__(self, width: int) -> None:
        self.moments = Moments.of(np.empty((0, width)))
        self._kept: list[Floats] = []

    def add(self, rows: Floats) -> None:
        """Take the next rows, [row, layer]."""
        if self.moments.rows <= LARGEST_RESAMPLED:
            self._kept.append(rows[: LARGEST_RESAMPLED + 1 - self.moments.rows])
        self.moments += Moments.of(rows)

    @property
    def rows(self) -> Floats:
        """[row, layer], all of them, where `is_small`."""
        return np.concatenate(self._kept)

    @property
    def is_small(self) -> bool:
        """Whether they are few enough to be resampled."""
        return self.moments.rows <= LARGEST_RESAMPLED


class GroupBuilder:
    """Collects the numbers of each group under one condition.

    Of unpaired groups the first 2,000 sentences of each are kept, of paired ones every sentence: its partner may come
    last.
    """

    def __init__(self, metrics: Sequence[str], shape: ModelShape, data: DataSettings, *, compares: bool) -> None:
        """Expect sentences in up to `MOST_GROUPS` groups.

        Args:
            metrics: What is collected.
            shape: The model's sizes.
            data: Names the columns of groups and of pairs.
            compares: Whether the differences between groups are asked for.
        """
        assert data.group_column is not None
        self._group, self._pair = data.group_column, data.pair_column
        self._widths = {metric: num_points(metric, shape) for metric in metrics}
        self._samples: dict[str, dict[str, _Sample]] = {}
        self._partners: dict[str, dict[str, dict[str, Floats]]] = {}
        self._compares = compares

    def add(self, view: View) -> None:
        """Take the next sentences; one without a group belongs to none."""
        labels = np.array(value_words(view.chunk.kept(self._group)), object)
        pairs = None if self._pair is None else value_words(view.chunk.kept(self._pair))
        for label in dict.fromkeys(labels.tolist()):
            if label is None:
                continue
            places = np.flatnonzero(labels == label)
            if label not in self._samples:
                self._samples[label] = {metric: _Sample(width) for metric, width in self._widths.items()}
                check_number(len(self._samples), self._group)
            for metric, sample in self._samples[label].items():
                sample.add(view.rows(metric)[places])
            if pairs is not None and self._compares:
                self._add_partners(view, label, [(place, pairs[place]) for place in places.tolist()])

    def _add_partners(self, view: View, label: str, members: Sequence[tuple[int, str | None]]) -> None:
        for place, pair in members:
            if pair is None:
                continue
            of_pair = self._partners.setdefault(pair, {})
            if label in of_pair:
                raise ReportedError(
                    f"data.pair_column: two sentences of the pair {pair!r} are in the group {label!r}; expected one of "
                    "each pair in a group"
                )
            of_pair[label] = {metric: view.rows(metric)[place] for metric in self._widths}

    def curves(self) -> dict[str, dict[str, GroupCurve]]:
        """Return the curves by group, in the order of the corpus, then by metric."""
        return {
            label: {metric: _curve(sample.moments) for metric, sample in samples.items()}
            for label, samples in self._samples.items()
        }

    def table(self) -> pd.DataFrame:
        """Return a row for each group, metric and layer."""
        import pandas as pd

        frames = [
            pd.DataFrame(
                {
                    "group": label,
                    "metric": metric,
                    "layer": np.arange(len(curve.mean)),
                    "n": curve.n,
                    "mean": curve.mean,
                    "sd": curve.deviation,
                    "ci_low": curve.interval.low,
                    "ci_high": curve.interval.high,
                }
            )
            for label, curves in self.curves().items()
            for metric, curve in curves.items()
        ]
        return pd.concat(frames) if frames else pd.DataFrame(columns=list(GROUP_COLUMNS))

    def differences(self, seed: int) -> pd.DataFrame:
        """Return a row for each two groups, metric and layer; p is corrected over those of a metric."""
        import pandas as pd

        compare = self._unpaired if self._pair is None else self._paired
        frames = [
            pd.DataFrame({"group_a": a, "group_b": b, "metric": metric, **compare(a, b, metric, seed)})
            for metric in self._widths
            for a, b in combinations(self._samples, 2)
        ]
        if not frames:
            return pd.DataFrame(columns=list(DIFFERENCE_COLUMNS))
        whole = pd.concat(frames, ignore_index=True)
        whole["p_holm"] = whole.groupby("metric", sort=False)["p_value"].transform(lambda own: holm(own.to_numpy()))
        return whole[list(DIFFERENCE_COLUMNS)]

    def _unpaired(self, a: str, b: str, metric: str, seed: int) -> dict[str, Any]:
        one, other = self._samples[a][metric], self._samples[b][metric]
        both = one.moments, other.moments
        counts, means, deviations = (
            [getattr(of, name) for of in both] for name in ("count", "mean", "sample_deviation")
        )
        interval, p_values = welch(tuple(counts), tuple(means), tuple(deviations))
        names = np.full(len(p_values), T_TEST)
        if one.is_small and other.is_small:
            p_values, is_exact = permutation_test(one.rows, other.rows, seed)
            names = np.where(is_exact, EXACT, PERMUTATION)
        return _columns(False, counts, means, means[1] - means[0], interval, p_values, names)

    def _paired(self, a: str, b: str, metric: str, seed: int) -> dict[str, Any]:
        pairs = [own for own in self._partners.values() if a in own and b in own]
        empty = np.empty((0, self._widths[metric]))
        one, other = (np.stack([own[label][metric] for own in pairs]) if pairs else empty for label in (a, b))
        counts_both = np.isfinite(one) & np.isfinite(other)
        one, other = np.where(counts_both, one, np.nan), np.where(counts_both, other, np.nan)
        change, levels = Moments.of(other - one), [Moments.of(one), Moments.of(other)]
        count, means = change.count, [level.mean for level in levels]
        interval = t_interval(count, change.mean, change.sample_deviation)
        p_values, names = t_test(count, change.mean, change.sample_deviation), np.full(len(count), T_TEST)
        if len(pairs) <= LARGEST_RESAMPLED:
            interval, p_values = bootstrap_interval(other - one, seed), sign_flip_test(other - one, seed)
            names = np.where(count <= LARGEST_EXACT, EXACT, PERMUTATION)
        return _columns(True, [count, count], means, change.mean, interval, p_values, names)


def _columns(
    paired: bool,
    counts: Sequence[Any],
    means: Sequence[Floats],
    change: Floats,
    interval: Interval,
    p: Floats,
    test: Any,
) -> dict[str, Any]:
    return {
        "layer": np.arange(len(change)),
        "paired": paired,
        "n_a": counts[0],
        "n_b": counts[1],
        "mean_a": means[0],
        "mean_b": means[1],
        "mean_difference": change,
        "ci_low": interval.low,
        "ci_high": interval.high,
        "p_value": p,
        "test": np.where(np.isnan(p), "", test),
    }


def _curve(moments: Moments) -> GroupCurve:
    deviation = moments.sample_deviation
    return GroupCurve(moments.count, moments.mean, deviation, t_interval(moments.count, moments.mean, deviation))


def check_number(count: int, column: str) -> None:
    """Refuse more groups than can be told apart.

    Raises:
        ReportedError: There are too many.
    """
    if count > MOST_GROUPS:
        raise ReportedError(
            f"data.group_column: {column!r} holds more than {MOST_GROUPS} groups; name a column with at most "
            f"{MOST_GROUPS}"
        )


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV: numbers with all their digits, an empty field where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, lineterminator="\n")
