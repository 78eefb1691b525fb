"""What placebos change: one small table of all of them, for they have no files of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llm_entropy.outputs.comparison import Floats, Moments
from llm_entropy.outputs.views import Pair
from llm_entropy.settings import COMPARISON_METRICS, Condition

SCHEMA = pa.schema(
    [
        pa.field("condition", pa.string(), metadata={"meaning": "the placebo's name"}),
        pa.field("source", pa.string(), metadata={"meaning": "whose vector it stands for: control, or a condition"}),
        pa.field("kind", pa.string(), metadata={"meaning": "random, orthogonal, ..."}),
        pa.field("metric", pa.string()),
        pa.field("layer", pa.int64(), metadata={"meaning": "layer, or block of metrics that run over blocks"}),
        pa.field("mean_difference", pa.float64(), metadata={"meaning": "mean over the sentences, placebo - standard"}),
        pa.field("sd_difference", pa.float64(), metadata={"meaning": "their standard deviation, ddof 1"}),
        pa.field("n", pa.int64(), metadata={"meaning": "sentences whose difference is a finite number"}),
    ]
)


class PlaceboTable:
    """The differences of all placebos from the standard condition, sentence by sentence."""

    def __init__(self, metrics: list[str]) -> None:
        """Expect the sentences of any placebos."""
        self._metrics = metrics
        self._moments: dict[tuple[Condition, str], Moments] = {}

    def add(self, pair: Pair) -> None:
        """Take the next sentences of one placebo; a metric between the conditions is itself the difference."""
        rows = {metric: pair.rows(metric) for metric in self._metrics}
        rows |= {metric: pair.other.rows(metric) for metric in COMPARISON_METRICS}
        for metric, numbers in rows.items():
            key, new = (pair.other.condition, metric), Moments.of(numbers)
            self._moments[key] = self._moments[key] + new if key in self._moments else new

    def mean_differences(self, source: str, metric: str, width: int) -> Floats:
        """Return what the placebos of a vector changed.

        Args:
            source: Whose vector they stand for.
            metric: A metric of the run, or of a comparison.
            width: Its number of layers, or blocks.

        Returns:
            [placebo, layer], mean over the sentences of placebo - standard; no rows where it has none.
        """
        means = [
            moments.mean
            for (placebo, own), moments in self._moments.items()
            if own == metric and placebo.steering is not None and placebo.steering.source == source
        ]
        return np.stack(means) if means else np.empty((0, width))

    def by_vector(self) -> dict[str, dict[str, Floats]]:
        """Return `mean_differences` of every vector that has placebos, then by metric."""
        found: dict[str, dict[str, list[Floats]]] = {}
        for (placebo, metric), moments in self._moments.items():
            assert placebo.steering is not None
            found.setdefault(placebo.steering.source, {}).setdefault(metric, []).append(moments.mean)
        return {source: {metric: np.stack(means) for metric, means in own.items()} for source, own in found.items()}

    def write(self, path: Path, model: str) -> None:
        """Write what was collected, a row for each placebo, metric and layer; without placebos there is no file.

        Args:
            path: The Parquet file.
            model: The model's key.
        """
        if not self._moments:
            return
        rows = [
            row for (placebo, metric), moments in self._moments.items() for row in _rows_of(placebo, metric, moments)
        ]
        about = {"llm_entropy": "placebos", "model": model}
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA.with_metadata(about)), path, compression="zstd")


def _rows_of(condition: Condition, metric: str, moments: Moments) -> list[dict[str, Any]]:
    steering = condition.steering
    assert steering is not None
    assert steering.placebo is not None
    names = {"condition": condition.name, "source": steering.source, "kind": steering.placebo.kind, "metric": metric}
    numbers = zip(moments.mean.tolist(), moments.sample_deviation.tolist(), moments.count.tolist(), strict=True)
    return [
        {**names, "layer": layer, "mean_difference": mean, "sd_difference": deviation, "n": count}
        for layer, (mean, deviation, count) in enumerate(numbers)
    ]
