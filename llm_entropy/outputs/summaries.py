"""What a run's tables say: read back for Python, and in a few rows for the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Optional

import numpy as np

from llm_entropy.outputs.comparison import QUANTITIES, difference, percent_change
from llm_entropy.outputs.parts import mean_by_group
from llm_entropy.outputs.tables import metric_path
from llm_entropy.schema import SENTENCE, SENTENCE_ID, ModelTables
from llm_entropy.settings import COMPARATIVE, COMPARISON_METRICS, CONTROL, METRICS, STANDARD

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
    """Return a metric, a row per sentence in corpus order: from its CSV file, or where there is none from the records.

    Args:
        run_dir: The run's folder.
        condition: `standard`, `control`, or `comparative`.
        model: The model's key.
        metric: The metric's name; in `comparative` also `kl_from_standard`.

    Returns:
        Index `sentence`, in `comparative` also `quantity` (standard, control, difference, percent_change); a column per
        layer (or block), named by its number; float64, NaN where the file says null.

    Raises:
        FileNotFoundError: The run has no such table.
    """
    path = metric_path(run_dir, condition, model, metric)
    if path.is_file():
        return _read_csv(path, condition, metric)
    if condition == COMPARATIVE and metric not in COMPARISON_METRICS:
        before, after = (read_metric(run_dir, name, model, metric) for name in (STANDARD, CONTROL))
        return _compared(before, after)
    return _read_records(run_dir / condition / "data" / f"{model}.parquet", metric)


def _read_csv(path: Path, condition: str, metric: str) -> pd.DataFrame:
    import pandas as pd

    rows = pd.read_csv(path, keep_default_na=False, dtype=str, encoding="utf-8")
    values = np.array([json.loads(numbers) for numbers in rows["values"]], np.float64)
    frame = pd.DataFrame(values, index=pd.Index(rows["sentence"], name="sentence"))
    frame.columns.name = {**METRICS, **COMPARISON_METRICS}[metric].axis
    if condition == COMPARATIVE and metric not in COMPARISON_METRICS:
        quantities = QUANTITIES * (len(rows) // len(QUANTITIES))
        texts = [label.removesuffix(f" ({name})") for label, name in zip(rows["sentence"], quantities, strict=True)]
        frame.index = pd.MultiIndex.from_arrays([texts, quantities], names=["sentence", "quantity"])
    return frame


def _read_records(path: Path, metric: str) -> pd.DataFrame:
    """Return the mean over each sentence's records, as the CSV file would have it."""
    import pandas as pd
    import pyarrow.parquet as pq

    if not path.is_file():
        raise FileNotFoundError(f"{path}: the run wrote neither CSV nor Parquet; set output.csv or output.parquet")
    table = pq.read_table(path, columns=[SENTENCE_ID, SENTENCE, metric])
    starts = np.flatnonzero(np.diff(table[SENTENCE_ID].to_numpy(), prepend=-1))
    values = table[metric].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    means = mean_by_group(values, np.diff(starts, append=len(table)))
    about = {**METRICS, **COMPARISON_METRICS}[metric]
    if about.axis == "block":
        num_blocks = int(table.schema.field(metric).metadata[b"shape"].split()[0])
        means = means.reshape(len(means), num_blocks, -1).mean(axis=2)
    numbers = means.astype(np.float32).astype(np.float64)
    numbers[~np.isfinite(numbers)] = np.nan
    sentences = table[SENTENCE].take(starts).to_pylist()
    frame = pd.DataFrame(numbers, index=pd.Index(sentences, name="sentence"))
    frame.columns.name = about.axis
    return frame


def _compared(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    first, second = before.to_numpy(), after.to_numpy()
    four = np.stack([first, second, difference(first, second), percent_change(first, second)], axis=1)
    texts, quantities = before.index.repeat(len(QUANTITIES)), pd.Index(QUANTITIES * len(before))
    index = pd.MultiIndex.from_arrays([texts, quantities], names=["sentence", "quantity"])
    frame = pd.DataFrame(four.reshape(-1, first.shape[1]), index=index)
    frame.columns.name = before.columns.name
    return frame
