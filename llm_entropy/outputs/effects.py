"""What each condition changes, how surely, and how it grows with the dose: collected in the one pass of the merge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Optional

import numpy as np
import numpy.typing as npt

from llm_entropy.outputs.comparison import Floats
from llm_entropy.outputs.inference.collecting import SentenceNumbers, SentenceSample
from llm_entropy.outputs.inference.doses import Dosed, DoseTable, dose_table, relative_dose, sentence_slopes
from llm_entropy.outputs.inference.positions import PositionNumbers
from llm_entropy.outputs.inference.summary import Compared, Summary, summarise
from llm_entropy.outputs.placebos import PlaceboTable
from llm_entropy.outputs.points import num_points
from llm_entropy.outputs.views import Pair
from llm_entropy.schema.shape import ModelShape
from llm_entropy.settings import (
    ALL_METRICS,
    COMPARISON_METRICS,
    KL_FROM_STANDARD,
    RESIDUAL_NORM,
    TEXT_METRICS,
    Comparison,
    Condition,
    compared,
)


@dataclass(frozen=True)
class SteeringFacts:
    """What the merge knows of how a condition steers a model, beside its settings."""

    first_layer: Optional[int]
    """The lowest layer that it changes; None: none."""
    added_norms: Optional[Sequence[float]] = None
    """[L + 1], norm of what is added at each layer, the mean over token weights; None: the operator adds nothing of a
    size of its own."""


class ComparisonEffects:
    """The differences that one condition makes, sentence by sentence."""

    def __init__(
        self, comparison: Comparison, metrics: Sequence[str], shape: ModelShape, sample: SentenceSample
    ) -> None:
        """Expect the sentences of a comparison."""
        self.comparison = comparison
        self.numbers = {
            metric: SentenceNumbers(num_points(metric, shape), 2, sample) for metric in (*metrics, *COMPARISON_METRICS)
        }
        self.last_kl = PositionNumbers()

    def add(self, pair: Pair) -> None:
        """Take the next sentences."""
        for metric, numbers in self.numbers.items():
            if metric in COMPARISON_METRICS:
                rows = pair.other.rows(metric)
                numbers.add(rows, [np.zeros_like(rows), rows])
            else:
                numbers.add(pair.rows(metric), [pair.baseline.rows(metric), pair.other.rows(metric)])
        self.last_kl.add(pair.other.numbers(KL_FROM_STANDARD)[:, -1])


class DoseEffects:
    """How a metric grows with the strength of one vector, sentence by sentence; the standard run is strength 0."""

    def __init__(
        self,
        comparisons: Sequence[Comparison],
        metrics: Sequence[str],
        shape: ModelShape,
        sample: SentenceSample,
    ) -> None:
        """Expect the sentences of the comparisons of a vector's strengths, none of which is 0."""
        self._shape, self._names = shape, [comparison.other.name for comparison in comparisons]
        steering = [comparison.other.steering for comparison in comparisons]
        self.doses = (0.0, *(one.strength for one in steering if one is not None))
        self.source = next(one.source for one in steering if one is not None)
        self.slopes = {
            metric: SentenceNumbers(num_points(metric, shape), len(self.doses), sample) for metric in metrics
        }
        self._levels: dict[str, list[Floats]] = {metric: [] for metric in metrics}

    def add(self, pair: Pair) -> None:
        """Take the next sentences under one of the strengths; they come in the order of the comparisons."""
        if pair.other.condition.name not in self._names:
            return
        for metric, levels in self._levels.items():
            if not levels:
                levels.append(pair.baseline.rows(metric))
            levels.append(pair.other.rows(metric))
            if len(levels) == len(self.doses):
                self.slopes[metric].add(sentence_slopes(self.doses, levels), levels)
                levels.clear()

    def dosed(self) -> Iterable[Dosed]:
        """Yield what was collected, metric by metric."""
        for metric, slopes in self.slopes.items():
            yield Dosed(self.source, metric, self.doses, slopes, _first_layer(metric, self._shape))


class ModelEffects:
    """The effects of all conditions of one model."""

    def __init__(
        self,
        conditions: Sequence[Condition],
        metrics: Sequence[str],
        shape: ModelShape,
        facts: Mapping[str, SteeringFacts],
        *,
        num_sentences: int,
        seed: int,
    ) -> None:
        """Expect the sentences of a model.

        Args:
            conditions: Of the run.
            metrics: What was measured.
            shape: The model's sizes.
            facts: Of the conditions, by name; of others every layer is taken to be reached.
            num_sentences: How many will come.
            seed: Of the run.
        """
        self._shape, self._facts, self._seed = shape, facts, seed
        sample = SentenceSample(num_sentences, seed)
        self._all = [one for one in compared(conditions) if one.other.keeps_tokens]
        self._effects = {one.other.name: ComparisonEffects(one, metrics, shape, sample) for one in self._all}
        self._doses = [DoseEffects(own, metrics, shape, sample) for own in _by_vector(self._all)]
        self._residual = PositionMeans()

    def add(self, pair: Pair) -> None:
        """Take the next sentences of a comparison, the comparisons in order."""
        name = pair.other.condition.name
        if name == self._all[0].other.name:
            self._residual.add(pair.baseline.numbers(RESIDUAL_NORM))
        self._effects[name].add(pair)
        for dose in self._doses:
            dose.add(pair)

    def summary(self, placebos: PlaceboTable) -> Optional[Summary]:
        """Return a row for each condition, metric and layer; None where nothing is compared.

        Args:
            placebos: What the placebos changed.
        """
        rows = [
            Compared(
                name,
                metric,
                numbers,
                self._tested(name, metric),
                placebos.mean_differences(_source(effects.comparison.other), metric, numbers.num_columns),
                _first_layer(metric, self._shape),
            )
            for name, effects in self._effects.items()
            for metric, numbers in effects.numbers.items()
        ]
        return summarise(rows, self._seed) if rows else None

    def _tested(self, name: str, metric: str) -> npt.NDArray[np.bool_]:
        """Return where a test has sense: where steering reaches, of what may have either sign."""
        points = np.arange(num_points(metric, self._shape))
        if metric in COMPARISON_METRICS:
            return np.zeros(len(points), bool)
        facts = self._facts.get(name, SteeringFacts(0))
        if metric in TEXT_METRICS:  # a text changes as a whole
            return np.full(len(points), facts.first_layer is not None)
        return points >= (len(points) if facts.first_layer is None else facts.first_layer)

    def untouched(self) -> dict[str, int]:
        """Return, by condition, how many of the lowest layers steering leaves as they are, where that is known."""
        known = {name: self._facts[name].first_layer for name in self._effects if name in self._facts}
        return {name: self._shape.num_layers if first is None else first for name, first in known.items()}

    def doses(self) -> Optional[DoseTable]:
        """Return a row for each vector of several strengths, metric and layer; None where there is none."""
        dosed = [one for dose in self._doses for one in dose.dosed()]
        return dose_table(dosed, self._seed) if dosed else None

    def strengths(self) -> list[dict[str, Any]]:
        """Return how strong each steered condition is: by block, and by what it does to the last layer."""
        rows: list[dict[str, Any]] = []
        for name, effects in self._effects.items():
            steering = effects.comparison.other.steering
            assert steering is not None
            about = {"vector": steering.source, "condition": name, "strength": steering.strength}
            facts = self._facts.get(name)
            if facts is not None and facts.added_norms is not None:
                dose = relative_dose(facts.added_norms[1:], self._residual.mean[1:])
                rows += [
                    {**about, "metric": "relative_dose", "layer": block, "relative_dose": value}
                    for block, value in enumerate(dose.tolist())
                ]
            last = {"kl_mean": effects.last_kl.mean, "kl_p95": effects.last_kl.percentile(95)}
            rows.append({**about, "metric": KL_FROM_STANDARD, "layer": self._shape.num_blocks, **last})
        return rows


class PositionMeans:
    """Mean over all positions of a row of numbers."""

    def __init__(self) -> None:
        self._sum: Floats = np.zeros(1)
        self._count: npt.NDArray[np.int64] = np.zeros(1, np.int64)

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Take the numbers of the next positions, [position, layer]; what is not finite does not count."""
        finite = np.isfinite(values)
        self._sum = self._sum + values.astype(np.float64).sum(axis=0, where=finite)
        self._count = self._count + finite.sum(axis=0)

    @property
    def mean(self) -> Floats:
        """[layer], NaN where no number was finite."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self._sum / self._count)


def _by_vector(comparisons: Sequence[Comparison]) -> list[list[Comparison]]:
    """Return the comparisons of each vector that has several strengths; strength 0 is the standard run itself."""
    by_source: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        steering = comparison.other.steering
        assert steering is not None
        if steering.strength != 0:
            by_source.setdefault(steering.source, []).append(comparison)
    return [own for own in by_source.values() if _num_strengths(own[0].other) > 1]


def _first_layer(metric: str, shape: ModelShape) -> int:
    """Return the layer of a metric's first number; a whole text comes from the last layer."""
    return shape.num_blocks if ALL_METRICS[metric].axis == "text" else 0


def _num_strengths(condition: Condition) -> int:
    assert condition.steering is not None
    return len(condition.steering.control.all_strengths)


def _source(condition: Condition) -> str:
    assert condition.steering is not None
    return condition.steering.source


# --- files -------------------------------------------------------------------------------------------------------

DOSE_COLUMNS = (
    *("vector", "condition", "strength", "metric", "layer", "n", "slope", "slope_ci_low", "slope_ci_high"),
    *("share_negative", "spearman", "residual", "relative_dose", "kl_mean", "kl_p95"),
)
"""Columns of the table of doses: rows with slopes belong to a vector, the others to one of its conditions."""


def write_summary(path: Path, summary: Summary) -> None:
    """Write the summary as CSV: numbers with all their digits, an empty field where there is none."""
    import pandas as pd

    _write(path, pd.DataFrame({item.name: getattr(summary, item.name) for item in fields(summary)}))


def write_doses(path: Path, table: DoseTable, strengths: Sequence[dict[str, Any]]) -> None:
    """Write the table of doses as CSV: slopes by vector, metric and layer, then how strong each condition is.

    Args:
        path: The file.
        table: The slopes.
        strengths: As `ModelEffects.strengths` returns them; conditions of vectors without several strengths have none.
    """
    import pandas as pd

    slopes = pd.DataFrame({item.name: getattr(table, item.name) for item in fields(table)})
    dosed = set(table.vector.tolist())
    own = pd.DataFrame([row for row in strengths if row["vector"] in dosed])
    _write(path, pd.concat([slopes, own]).reindex(columns=list(DOSE_COLUMNS)).astype({"n": "Int64", "layer": "Int64"}))


def _write(path: Path, frame: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False, lineterminator="\n")
