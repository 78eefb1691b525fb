"""What a run found, in a few rows for the terminal and `run.json`."""

from __future__ import annotations

from typing import NamedTuple

from llm_entropy.outputs.tables import ModelTables
from llm_entropy.settings import ALL_METRICS


class SummaryRow(NamedTuple):
    """One metric of one model, in a few numbers."""

    model: str
    """The model's key."""
    metric: str
    """The metric's name."""
    unit: str
    """Its unit."""
    condition: str
    """Whose the next two numbers are: the standard one, or where it was not run each of the others in turn."""
    first_layer: float
    """Mean over the sentences at the first layer (or block)."""
    last_layer: float
    """The same at the last."""
    mean_differences: dict[str, float]
    """By condition, without placebos: mean of it - `condition` over the sentences, at the last layer."""


def summary_rows(tables: ModelTables) -> list[SummaryRow]:
    """Return one row per metric for the table on the terminal; per metric and condition where nothing is compared.

    Args:
        tables: What the merge made.

    Returns:
        The rows, in the order of the conditions, then of the metrics.
    """
    rows = []
    for condition in tables.baselines:
        against = {
            name: one.metrics for name, one in tables.comparisons.items() if one.comparison.baseline is condition
        }
        for metric, curve in tables.curves[condition.name].items():
            ends = float(curve.mean[0]), float(curve.mean[-1])
            changes = {name: float(metrics[metric].difference.mean[-1]) for name, metrics in against.items()}
            rows.append(SummaryRow(tables.model, metric, ALL_METRICS[metric].unit, condition.name, *ends, changes))
    return rows
