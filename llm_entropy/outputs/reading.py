"""The tables of a run, read back as data frames."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llm_entropy.outputs.chunk import mean_by_group
from llm_entropy.outputs.comparison import difference, percent_change, quantities
from llm_entropy.outputs.effects import DOSE_COLUMNS
from llm_entropy.outputs.inference.summary import Summary
from llm_entropy.outputs.placebos import SCHEMA
from llm_entropy.outputs.places import doses_path, place_of_comparison, place_of_condition, placebos_path, summary_path
from llm_entropy.outputs.points import mean_over_heads
from llm_entropy.schema.shards import SENTENCE, SENTENCE_ID
from llm_entropy.settings import ALL_METRICS, COMPARISON_METRICS, Comparison, Condition

if TYPE_CHECKING:
    import pandas as pd


def read_metric(run_dir: Path, model: str, condition: Condition, metric: str) -> pd.DataFrame:
    """Return a metric, a row per sentence in corpus order: from its CSV file, or where there is none from the records.

    Args:
        run_dir: The run's folder.
        model: The model's key.
        condition: One that keeps tokens.
        metric: The metric's name.

    Returns:
        Index `sentence`; a column per layer (or block), named by its number; float64, NaN where the file says null.

    Raises:
        FileNotFoundError: The run has no such table.
    """
    place = place_of_condition(run_dir, condition, model)
    return _read_rows(place.metric(metric), place.records, metric)


def read_comparison(run_dir: Path, model: str, comparison: Comparison, metric: str) -> pd.DataFrame:
    """Return a metric in a comparison, four rows per sentence: as `read_metric`.

    Args:
        run_dir: The run's folder.
        model: The model's key.
        comparison: Its other condition keeps tokens.
        metric: The metric's name; also `kl_from_standard` and `top1_changed`, which have one row per sentence.

    Returns:
        As `read_metric`; with four rows the index has a level `quantity` too: the names of both conditions, difference,
        percent_change.

    Raises:
        FileNotFoundError: The run has no such table.
    """
    place = place_of_comparison(run_dir, comparison, model)
    if metric in COMPARISON_METRICS:
        return _read_rows(place.metric(metric), place.records, metric)
    names = quantities(*(condition.name for condition in comparison))
    if place.metric(metric).is_file():
        rows = _read_csv(place.metric(metric), metric)
        labels = zip(rows.index, names * (len(rows) // len(names)), strict=True)
        return _with_quantities(
            rows, [label.removesuffix(f" ({name})") for label, name in labels][:: len(names)], names
        )
    before, after = (read_metric(run_dir, model, condition, metric) for condition in comparison)
    return _compared(before, after, names)


def read_placebos(run_dir: Path, model: str) -> pd.DataFrame:
    """Return the table of a model's placebos; without rows where the run has none.

    Args:
        run_dir: The run's folder.
        model: The model's key.

    Returns:
        Columns condition, source, kind, metric, layer, mean_difference, sd_difference, n; a row for each placebo,
        metric and layer (or block).
    """
    import pandas as pd

    path = placebos_path(run_dir, model)
    return pd.read_parquet(path) if path.is_file() else SCHEMA.empty_table().to_pandas()


def _read_rows(path: Path, records: Path, metric: str) -> pd.DataFrame:
    return _read_csv(path, metric) if path.is_file() else _read_records(records, metric)


def _read_csv(path: Path, metric: str) -> pd.DataFrame:
    import pandas as pd

    rows = pd.read_csv(path, keep_default_na=False, dtype=str, encoding="utf-8")
    values = np.array([json.loads(numbers) for numbers in rows["values"]], np.float64)
    frame = pd.DataFrame(values, index=pd.Index(rows["sentence"], name="sentence"))
    frame.columns.name = ALL_METRICS[metric].axis
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
    about = ALL_METRICS[metric]
    means = mean_by_group(values, np.diff(starts, append=len(table)), has_gaps=about.has_gaps)
    if about.is_per_head:
        shape, heads = (table.schema.field(metric).metadata.get(name, b"").split() for name in (b"shape", b"heads"))
        means = mean_over_heads(means, int(shape[0]), [*map(int, heads)] or None)
    numbers = means.astype(np.float32).astype(np.float64)
    numbers[~np.isfinite(numbers)] = np.nan
    sentences = table[SENTENCE].take(starts).to_pylist()
    frame = pd.DataFrame(numbers, index=pd.Index(sentences, name="sentence"))
    frame.columns.name = about.axis
    return frame


def _compared(before: pd.DataFrame, after: pd.DataFrame, names: tuple[str, ...]) -> pd.DataFrame:
    import pandas as pd

    first, second = before.to_numpy(), after.to_numpy()
    four = np.stack([first, second, difference(first, second), percent_change(first, second)], axis=1)
    frame = pd.DataFrame(four.reshape(-1, first.shape[1]))
    frame.columns.name = before.columns.name
    return _with_quantities(frame, before.index, names)


def _with_quantities(frame: pd.DataFrame, sentences: Sequence[str] | pd.Index, names: tuple[str, ...]) -> pd.DataFrame:
    """Name the rows of a comparison by sentence and quantity."""
    import pandas as pd

    texts = pd.Index(sentences).repeat(len(names))
    quantity = pd.Index(names * len(sentences))
    frame.index = pd.MultiIndex.from_arrays([texts, quantity], names=["sentence", "quantity"])
    return frame


def read_summary(run_dir: Path, model: str) -> pd.DataFrame:
    """Return what each condition changes, and how surely; without rows where nothing is compared.

    Args:
        run_dir: The run's folder.
        model: The model's key.
    """
    return _read_table(summary_path(run_dir, model), [item.name for item in fields(Summary)])


def read_doses(run_dir: Path, model: str) -> pd.DataFrame:
    """Return how metrics grow with the strength of a vector; without rows where none has several.

    Args:
        run_dir: The run's folder.
        model: The model's key.
    """
    return _read_table(doses_path(run_dir, model), list(DOSE_COLUMNS))


def _read_table(path: Path, columns: list[str]) -> pd.DataFrame:
    import pandas as pd

    if not path.is_file():
        return pd.DataFrame(columns=columns)
    texts = dict.fromkeys(("condition", "metric", "vector", "test"), str)
    return pd.read_csv(path, dtype={name: kind for name, kind in texts.items() if name in columns}, encoding="utf-8")
