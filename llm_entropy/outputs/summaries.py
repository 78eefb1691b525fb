"""What a run found, in a few rows for the terminal and `run.json`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import fields
from math import nan
from typing import Any, Literal, NamedTuple

import numpy as np

from llm_entropy.outputs.inference.summary import Summary
from llm_entropy.outputs.points import filled_points
from llm_entropy.outputs.tables import ModelTables
from llm_entropy.settings import ACCURACY, ALL_METRICS, PREFERENCE, Condition

_MOST_DECIMALS, _TOO_LONG = 6, 1e6
"""An interval that takes more decimals, or larger numbers, is written with exponents."""


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
    """Mean over the sentences at the first layer (or block) that has a value."""
    last_layer: float
    """The same at the last that has one."""


class EffectRow(NamedTuple):
    """What one condition changes in one metric, at one layer: a row of the model's summary."""

    at: Literal["last", "largest"]
    """Why this layer: it is the last one (the last block with attention), or that of the largest effect size of those
    that steering reaches."""
    strength: float
    """The condition's."""
    num_placebos: int
    """Of the condition's vector."""
    columns: dict[str, Any]
    """The columns of `inference.summary.Summary`, by name."""


def summary_rows(tables: ModelTables) -> list[SummaryRow]:
    """Return one row per metric; per metric and condition where nothing is compared.

    Args:
        tables: What the merge made.

    Returns:
        The rows, in the order of the conditions, then of the metrics, accuracy and preference last.
    """
    rows = [
        SummaryRow(
            tables.model,
            metric,
            ALL_METRICS[metric].unit,
            condition.name,
            *_ends(curve.mean[filled_points(metric, tables.shape)].tolist()),
        )
        for condition in tables.baselines
        for metric, curve in tables.curves[condition.name].items()
    ]
    for condition in tables.baselines:
        if (answers := tables.answers.get(condition.name)) is not None:
            for metric, mean in ((ACCURACY, answers.accuracy), (PREFERENCE, answers.preference)):
                unit = ALL_METRICS[metric].unit
                rows.append(SummaryRow(tables.model, metric, unit, condition.name, float(mean[0]), float(mean[-1])))
    return rows


def _ends(means: Sequence[float]) -> tuple[float, float]:
    """Return the first and the last number; NaN where there is none."""
    return (means[0], means[-1]) if means else (nan, nan)


def effect_rows(tables: ModelTables, conditions: Sequence[Condition]) -> list[EffectRow]:
    """Return two rows for each condition and metric: at the last layer, and where the effect is largest.

    Args:
        tables: What the merge made.
        conditions: Of the run, placebos included.
    """
    if tables.summary is None:
        return []
    steering = {one.name: one.steering for one in conditions if one.steering is not None}
    num_placebos = Counter(one.source for one in steering.values() if one.placebo is not None)
    rows = []
    for name, places in _groups(tables.summary):
        own = steering[name]
        about = own.strength, num_placebos[own.source]
        filled = filled_points(str(tables.summary.metric[places[0]]), tables.shape)
        last = places[filled[-1]] if len(filled) else places[-1]
        rows.append(EffectRow("last", *about, _row(tables.summary, last)))
        # Below the first steered layer surprisal and rank change with each condition's own target alone.
        is_reached = np.isfinite(tables.summary.p_value[places])
        sizes = np.abs(tables.summary.effect_size[places])
        sizes = np.where(is_reached, sizes, np.nan) if is_reached.any() else sizes
        if np.isfinite(sizes).any():
            largest = int(places[np.argmax(np.where(np.isfinite(sizes), sizes, -1.0))])
            rows.append(EffectRow("largest", *about, _row(tables.summary, largest)))
    return rows


def interval_text(low: float, high: float) -> str:
    """Return an interval with as many decimals as show its width; empty where there is none, that is NaN."""
    width = high - low
    if not math.isfinite(width):
        return ""
    decimals = 1 - math.floor(math.log10(width)) if width > 0 else _MOST_DECIMALS + 1
    if decimals > _MOST_DECIMALS or max(abs(low), abs(high)) >= _TOO_LONG:
        return f"{low:+.4g} to {high:+.4g}"
    return f"{low:+.{max(decimals, 0)}f} to {high:+.{max(decimals, 0)}f}"


def _groups(summary: Summary) -> Iterator[tuple[str, Any]]:
    """Yield each condition with the places of its rows of a metric, metric by metric."""
    keys = list(zip(summary.condition.tolist(), summary.metric.tolist(), strict=True))
    for key in dict.fromkeys(keys):
        yield key[0], np.array([place for place, own in enumerate(keys) if own == key])


def _row(summary: Summary, place: int) -> dict[str, Any]:
    return {item.name: getattr(summary, item.name)[place].item() for item in fields(summary)}
