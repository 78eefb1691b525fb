"""How sure the differences in a figure are: rows of the summary, placebos, and layers that steering leaves alone."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.container import Container
from matplotlib.patches import Patch

from llm_entropy.outputs.inference.summary import Summary
from llm_entropy.outputs.plots.canvas import MINUS
from llm_entropy.outputs.tables import ModelTables
from llm_entropy.settings import Condition

SIGNIFICANT = 0.05
"""Holm's p below which a difference is marked."""
UNTOUCHED_LABEL = "layers untouched by steering"
UNTOUCHED_LOOK: Any = {"facecolor": "#f6f6f6", "edgecolor": "#e2e2e2", "hatch": "///", "lw": 0}

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


def verdict(tables: ModelTables, condition: Condition, metric: str) -> Summary:
    """Return the summary's rows of one condition and metric: [layer] each.

    Args:
        tables: Of a model with comparisons.
        condition: One that is compared with the standard one.
        metric: A metric of the run, or of a comparison.
    """
    summary = tables.summary
    assert summary is not None, "what is compared has a summary"
    own = (summary.condition == condition.name) & (summary.metric == metric)
    return Summary(**{item.name: getattr(summary, item.name)[own] for item in fields(summary)})


def placebo_means(tables: ModelTables, condition: Condition, metric: str) -> Floats:
    """Return the mean differences of a condition's placebos, [placebo, layer]; no rows where it has none."""
    assert condition.steering is not None
    own = tables.placebos.get(condition.steering.source, {})
    return own.get(metric, np.empty((0, len(verdict(tables, condition, metric).layer))))


def about_placebos(condition: Condition) -> str:
    """Return how strong a condition's placebos are, where its vector has several strengths: the largest."""
    assert condition.steering is not None
    strengths = condition.steering.control.all_strengths
    if len(strengths) == 1:
        return ""
    return f" at strength {max(strengths, key=lambda one: (abs(one), one)):g}".replace("-", MINUS)


def is_significant(rows: Summary) -> Mask:
    """Return where a difference is one after Holm's correction, [layer]."""
    return np.asarray(rows.p_holm < SIGNIFICANT)


def is_within(rows: Summary, placebos: Floats) -> Mask:
    """Return where at least one placebo changes as much, [layer]; nowhere without placebos."""
    least = 1 / (1 + np.maximum(np.isfinite(placebos).sum(axis=0), 1))
    return np.asarray(rows.placebo_p > least * (1 + 1e-9))


def largest_effect(rows: Summary) -> int | None:
    """Return the layer of the largest effect size that is a finite number; None where there is none.

    Only layers that steering reaches: below them a metric may change only with the target, or with the final layer.
    """
    is_reached = np.isfinite(rows.effect_size) & np.isfinite(rows.p_value)
    sizes = np.where(is_reached, np.abs(rows.effect_size), -1.0)
    return int(np.argmax(sizes)) if sizes.max(initial=0.0) > 0 else None


def num_untouched(tables: ModelTables, condition: Condition) -> int:
    """Return how many of the lowest layers a condition leaves as they are; 0 where it is not known."""
    return tables.untouched.get(condition.name, 0)


def shade_untouched(
    axes: Axes, num_layers: int, handles: list[Artist] | list[Artist | Container], labels: list[str]
) -> None:
    """Shade the layers that steering does not reach, and give the legend a line for it.

    Args:
        axes: Over depth, with their limits set.
        num_layers: How many of the lowest; nothing is shaded, or said, of 0.
        handles: Of the legend; added to.
        labels: Of the legend; added to.
    """
    if num_layers == 0:
        return
    left, right = axes.get_xlim()
    axes.axvspan(left, min(num_layers - 0.5, right), zorder=0, **UNTOUCHED_LOOK)
    axes.set_xlim(left, right)
    handles.append(Patch(**UNTOUCHED_LOOK))
    labels.append(UNTOUCHED_LABEL)
