"""How a metric grows with the strength of a vector: at the last layer, and where the effect is largest."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.container import Container
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from llm_entropy.outputs.comparison import evenly_spaced
from llm_entropy.outputs.inference.doses import DoseTable
from llm_entropy.outputs.places import place_of_comparisons
from llm_entropy.outputs.plots.canvas import (
    BLACK,
    GREY,
    MINUS,
    MOST_NAME,
    VERMILLION,
    Drawing,
    axis_label,
    capital,
    legend_columns,
    model_line,
    place_legend,
    use_scale_of,
    widen_constant,
    write_title,
)
from llm_entropy.outputs.plots.comparative import interval_about
from llm_entropy.outputs.plots.condition import MOST_TRAJECTORIES
from llm_entropy.outputs.plots.layout import PanelGrid
from llm_entropy.outputs.plots.lettering import shorten
from llm_entropy.outputs.plots.verdict import largest_effect, verdict
from llm_entropy.outputs.points import filled_points, with_points
from llm_entropy.outputs.tables import Curves, ModelTables
from llm_entropy.settings import ALL_METRICS, Condition
from llm_entropy.settings.plots import DOSE_RESPONSE

SHOWN = 0.05, 0.95
"""Quantiles of the single sentences between which the axis reaches: it would show little but the odd ones."""
MOST_STRENGTHS = 9
"""Most strengths that are written below the axis, each where it is."""


def figures_of_doses(tables: ModelTables, run_dir: Path) -> list[Drawing]:
    """Return the figures of each metric over the strength of each vector that has several.

    Args:
        tables: What the merge made of the model.
        run_dir: The run's folder; the figures go to the folder of all comparisons.

    Returns:
        The figures, not drawn yet; none where no vector has several strengths.
    """
    figures: list[Drawing] = []
    if tables.doses is None:
        return figures
    vectors = list(dict.fromkeys(tables.doses.vector.tolist()))
    place = place_of_comparisons(run_dir, tables.model)
    for vector in vectors:
        conditions = doses_of(tables, vector)
        for metric in with_points(tables.comparisons[conditions[0].name].metrics, tables.shape):
            name = f"{metric}_{DOSE_RESPONSE}" if len(vectors) == 1 else f"{vector}_{metric}_{DOSE_RESPONSE}"
            layers = _layers(tables, conditions, metric)
            draw = partial(_draw_panels, tables, conditions, metric, layers)
            width = 6.4 if len(layers) == 1 else 7.2
            figures.append(Drawing(place.plot(name), width, 3.9, draw, (metric, DOSE_RESPONSE), PanelGrid))
    return figures


def _draw_panels(
    tables: ModelTables, conditions: Sequence[Condition], metric: str, layers: Sequence[int], canvas: Figure
) -> None:
    """Draw a panel for each layer; each has its own axis."""
    panels = canvas.subplots(1, len(layers), squeeze=False)[0]
    for axes, layer in zip(panels, layers, strict=True):
        handles, labels = _draw_layer(axes, tables, conditions, metric, layer)
        axes.set_title(_panel_title(tables, conditions, metric, layer), fontsize=9, loc="left", parse_math=False)
    panels[0].set_ylabel(axis_label(metric))
    columns = legend_columns(labels, canvas.get_figwidth())
    place_legend(canvas, handles, labels, loc="outside lower center", ncols=columns)
    title = f"{capital(ALL_METRICS[metric].label)} by strength of {shorten(source_of(conditions[0]), MOST_NAME)}"
    target = ["of each condition's own target"] if ALL_METRICS[metric].reads_target else []
    write_title(canvas, title, model_line(tables, *target))


def doses_of(tables: ModelTables, vector: str) -> list[Condition]:
    """Return the conditions of a vector's strengths, the lowest first; strength 0, the standard run, is left out."""
    own = [compared.comparison.other for compared in tables.comparisons.values()]
    steered = {one.steering.strength: one for one in own if one.steering is not None and one.steering.source == vector}
    return [steered[strength] for strength in sorted(steered) if strength != 0]


def source_of(condition: Condition) -> str:
    """Return the name of the vector of a steered condition."""
    assert condition.steering is not None
    return condition.steering.source


def strength_of(condition: Condition) -> float:
    """Return the strength of a steered condition."""
    assert condition.steering is not None
    return condition.steering.strength


def strongest(conditions: Sequence[Condition]) -> Condition:
    """Return the condition of the largest strength; of -s and s that is s."""
    return max(conditions, key=lambda one: (abs(strength_of(one)), strength_of(one)))


def _layers(tables: ModelTables, conditions: Sequence[Condition], metric: str) -> list[int]:
    """Return the last layer, and that of the largest effect of the largest strength, if it is another."""
    rows = verdict(tables, strongest(conditions), metric)
    last, largest = int(filled_points(metric, tables.shape)[-1]), largest_effect(rows)
    return [last] if largest is None or largest == last else [last, largest]


def _panel_title(tables: ModelTables, conditions: Sequence[Condition], metric: str, layer: int) -> str:
    rows = verdict(tables, strongest(conditions), metric)
    axis, is_last = ALL_METRICS[metric].axis, layer == filled_points(metric, tables.shape)[-1]
    having = "" if layer == len(rows.layer) - 1 else " with attention"
    which = f"last {axis}{having} ({layer})" if is_last else f"{axis} {layer}"
    if layer == largest_effect(rows):
        which += ", of the largest effect"
    assert tables.doses is not None
    return f"{capital(which)}\n{_slope(tables.doses, source_of(conditions[0]), metric, layer)}"


def _slope(doses: DoseTable, vector: str, metric: str, layer: int) -> str:
    """Return the slope per unit of strength, with its interval, in words short enough for the width of a panel."""
    (row,) = np.flatnonzero((doses.vector == vector) & (doses.metric == metric) & (doses.layer == layer))
    slope, low, high = doses.slope[row], doses.slope_ci_low[row], doses.slope_ci_high[row]
    if np.isnan(slope):
        return "slope: no sentence has finite numbers"
    interval = "" if np.isnan(low) else f", 95 % [{_number(low)}, {_number(high)}]"
    return f"slope {_number(slope)}{interval}"


def _number(value: float) -> str:
    text = f"{value:+,.0f}" if 1_000 <= abs(value) < 1_000_000 else f"{value:+.3g}"
    return text.replace("-", MINUS) if value else "0"


def _draw_layer(
    axes: Axes, tables: ModelTables, conditions: Sequence[Condition], metric: str, layer: int
) -> tuple[list[Artist | Container], list[str]]:
    """Draw single sentences, the mean, and the interval of its distance from the standard run, over the strength."""
    both = [tables.comparisons[one.name].metrics[metric] for one in conditions]
    baseline = both[0].baseline
    order = sorted(
        [(strength_of(one), own.other) for one, own in zip(conditions, both, strict=True)] + [(0.0, baseline)],
        key=lambda one: one[0],
    )
    strengths = np.array([strength for strength, _ in order])
    handles, labels = _draw_sentences(axes, strengths, [curves for _, curves in order], layer)
    means = [curves.mean[layer] for _, curves in order]
    handles += axes.plot(strengths, means, "-", color=VERMILLION, marker="o", ms=4.5, lw=1.8, zorder=3)
    labels.append("mean" if baseline.count > 1 else "the sentence")
    if baseline.count > 1:
        ends = [interval_about(baseline.mean, verdict(tables, one, metric), metric) for one in conditions]
        low, high = np.array([[low[layer], high[layer]] for low, high in ends]).T
        bars = axes.vlines([strength_of(one) for one in conditions], low, high, color=BLACK, lw=2.2, zorder=3.5)
        handles.append(bars)
        labels.append("95 % interval of the mean difference")
    handles += axes.plot([0], [baseline.mean[layer]], "o", color="white", mec=BLACK, mew=1.2, ms=5.5, zorder=4)
    labels.append("standard")
    axes.set_xlabel("Strength")
    _place_strengths(axes, strengths)
    use_scale_of(axes, metric)
    widen_constant(axes)
    return handles, labels


def _draw_sentences(
    axes: Axes, strengths: np.ndarray, curves: Sequence[Curves], layer: int
) -> tuple[list[Artist | Container], list[str]]:
    """Draw some sentences faintly: the same ones at each strength."""
    if curves[0].count == 1:
        return [], []
    sample = np.stack([one.sample[:, layer] for one in curves], axis=1)
    rows = sample[evenly_spaced(len(sample), MOST_TRAJECTORIES)]
    lines = np.stack([np.broadcast_to(strengths, rows.shape), rows], axis=-1)
    colour = to_rgba(GREY, float(np.clip(12 / len(rows), 0.14, 0.5)))
    axes.add_collection(LineCollection(list(lines), colors=[colour], linewidths=0.6, zorder=2), autolim=False)
    finite = np.isfinite(rows)
    if finite.any():
        axes.update_datalim([(strengths[0], height) for height in np.quantile(rows[finite], SHOWN)])
    return [Line2D([], [], color=to_rgba(GREY, 0.6), lw=0.8)], ["single sentences (axis: middle 90 %)"]


def _place_strengths(axes: Axes, strengths: np.ndarray) -> None:
    """Put a tick at each strength, unless they would run into each other."""
    width = strengths[-1] - strengths[0]
    if len(strengths) <= MOST_STRENGTHS and np.diff(strengths).min() > 0.07 * width:
        axes.set_xticks(strengths, [f"{strength:g}".replace("-", MINUS) for strength in strengths])
    axes.set_xlim(strengths[0] - 0.06 * width, strengths[-1] + 0.06 * width)
