"""What a run's tables say: read back for Python, and in a few rows for the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Optional

import numpy as np

from llm_entropy.comparison import QUANTITIES
from llm_entropy.merge.tables import metric_path
from llm_entropy.schema import ModelTables
from llm_entropy.settings import COMPARATIVE, COMPARISON_METRICS, METRICS, STANDARD

if TYPE_CHECKING:
    import pandas as pd


class SummaryRow(NamedTuple):
    """One metric of one model, in three numbers."""

    model: str
    """The model's key."""
    metric: str
    """The metric's name."""
    unit: str
    """Its unit."""
    first_layer: float
    """Mean over the sentences at the first layer (or block); of the standard condition where it was run."""
    last_layer: float
    """The same at the last."""
    mean_difference: Optional[float]
    """Mean of control - standard at the last layer; None unless the run compares."""


def summary_rows(tables: ModelTables) -> list[SummaryRow]:
    """Return one row per metric for the table on the terminal.

    Args:
        tables: What the merge made.

    Returns:
        The rows, in the order of the metrics.
    """
    curves = tables.curves.get(STANDARD) or next(iter(tables.curves.values()))
    rows = []
    for metric, curve in curves.items():
        comparison = tables.comparisons.get(metric)
        change = None if comparison is None else float(comparison.difference.mean[-1])
        ends = float(curve.mean[0]), float(curve.mean[-1])
        rows.append(SummaryRow(tables.model, metric, METRICS[metric].unit, *ends, change))
    return rows


def read_metric(run_dir: Path, condition: str, model: str, metric: str) -> pd.DataFrame:
    """Return a metric as it was written, a row per sentence in corpus order.

    Args:
        run_dir: The run's folder.
        condition: `standard`, `control`, or `comparative`.
        model: The model's key.
        metric: The metric's name; in `comparative` also `kl_from_standard`.

    Returns:
        Index `sentence`, in `comparative` also `quantity` (standard, control, difference, percent_change); a column per
        layer (or block), named by its number; float64, NaN where the file says null.

    Raises:
        FileNotFoundError: If the run has no such table.
    """
    import pandas as pd

    path = metric_path(run_dir, condition, model, metric)
    rows = pd.read_csv(path, keep_default_na=False, dtype=str, encoding="utf-8")
    values = np.array([json.loads(numbers) for numbers in rows["values"]], np.float64)
    frame = pd.DataFrame(values, index=pd.Index(rows["sentence"], name="sentence"))
    axis = {**METRICS, **COMPARISON_METRICS}[metric].axis
    frame.columns.name = axis
    if condition == COMPARATIVE and metric not in COMPARISON_METRICS:
        quantities = QUANTITIES * (len(rows) // len(QUANTITIES))
        texts = [label.removesuffix(f" ({name})") for label, name in zip(rows["sentence"], quantities, strict=True)]
        frame.index = pd.MultiIndex.from_arrays([texts, quantities], names=["sentence", "quantity"])
    return frame
