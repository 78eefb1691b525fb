"""What a condition changed: both conditions over depth, the differences, and how far the prediction moves."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Optional

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.container import Container
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from llm_entropy.outputs.inference.summary import Summary
from llm_entropy.outputs.places import place_of_comparison
from llm_entropy.outputs.plots.canvas import (
    BLACK,
    GREEN,
    MINUS,
    MOST_MARKERS,
    ROLE_COLOURS,
    Drawing,
    Numbers,
    about_blocks,
    band,
    band_label,
    capital,
    difference_label,
    finish,
    is_logarithmic,
    marker,
    model_line,
    place_depth_ticks,
    place_legend,
    shade,
    shown_name,
    use_both_logarithms,
    widen_constant,
    write_title,
)
from llm_entropy.outputs.plots.condition import draw_trajectories
from llm_entropy.outputs.plots.impact import draw_impact, impact_size
from llm_entropy.outputs.plots.layout import SinglePanel
from llm_entropy.outputs.plots.verdict import num_untouched, shade_untouched, verdict
from llm_entropy.outputs.points import Places, drawn_points, with_points
from llm_entropy.outputs.tables import ComparisonCurves, ComparisonTables, Curves, ModelTables
from llm_entropy.settings import ALL_METRICS, KL_FROM_STANDARD, TOP1_CHANGED, Comparison
from llm_entropy.settings.plots import COMPARISON, DIFFERENCES, LAYER_IMPACT

BETWEEN = {
    KL_FROM_STANDARD: ("KL from {baseline} to {other} (nats)", "How far {other} moves the prediction, by layer"),
    TOP1_CHANGED: ("Share of positions that change", "Where {other} changes the most likely token, by layer"),
}
"""What the axis and the title of each metric of `COMPARISON_METRICS` say."""
DIFFERENCE_COLOUR = "#6a51a3"
SPREAD_ALPHA, INTERVAL_ALPHA = 0.1, 0.42
"""Of one deviation of the sentences, and of the interval of the mean difference."""
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def figures_of_comparison(tables: ModelTables, compared: ComparisonTables, run_dir: Path) -> list[Drawing]:
    """Return every figure of a comparison.

    Args:
        tables: What the merge made of the model.
        compared: The comparison, one of theirs.
        run_dir: The run's folder.

    Returns:
        The figures, not drawn yet.
    """
    place = place_of_comparison(run_dir, compared.comparison, tables.model)
    both = {COMPARISON: _draw_conditions, DIFFERENCES: _draw_distances}
    of_metrics = [
        Drawing(
            place.plot(f"{metric}_{kind}"),
            6.4,
            4.0,
            partial(draw, tables, compared, metric),
            (metric, kind),
            SinglePanel,
        )
        for metric in with_points(compared.metrics, tables.shape)
        for kind, draw in both.items()
    ]
    num_metrics = len(with_points(compared.metrics, tables.shape))
    size, draw_it = impact_size(tables.shape.num_layers, num_metrics), partial(_draw_impact, tables, compared)
    impact = [Drawing(place.plot(LAYER_IMPACT), *size, draw_it, (LAYER_IMPACT,))] if num_metrics else []
    between = [
        Drawing(place.plot(metric), 6.4, 4.0, partial(_draw_between, tables, compared, metric), (metric,), SinglePanel)
        for metric in BETWEEN
    ]
    return [*of_metrics, *impact, *between]


def _draw_conditions(tables: ModelTables, compared: ComparisonTables, metric: str, canvas: Figure) -> None:
    """Draw a metric under both conditions."""
    baseline, other = map(shown_name, compared.comparison)
    rows = verdict(tables, compared.comparison.other, metric)
    first = num_untouched(tables, compared.comparison.other)
    at = drawn_points(metric, tables.shape)
    _draw_both(canvas.add_subplot(), compared.comparison, compared.metrics[metric], metric, rows, first, at)
    line = model_line(tables, *_target(metric), *about_blocks(metric, tables.shape))
    write_title(canvas, f"{_start(metric)}, {baseline} and {other}", line)


def _draw_distances(tables: ModelTables, compared: ComparisonTables, metric: str, canvas: Figure) -> None:
    """Draw the differences of a metric, sentence by sentence."""
    baseline, other = map(shown_name, compared.comparison)
    curves, first = compared.metrics[metric].difference, num_untouched(tables, compared.comparison.other)
    _draw_differences(canvas.add_subplot(), curves, metric, first)
    line = model_line(tables, *_target(metric), *_of_sample(curves), *about_blocks(metric, tables.shape))
    write_title(canvas, f"{_start(metric)}, {other} {MINUS} {baseline}", line)


def _draw_impact(tables: ModelTables, compared: ComparisonTables, canvas: Figure) -> None:
    baseline, other = map(shown_name, compared.comparison)
    draw_impact(canvas, tables, compared)
    about = "no spread to divide by" if tables.num_sentences == 1 else f"{other} {MINUS} {baseline}"
    title = f"Where {other} acts: standardised effect by metric and layer"
    write_title(canvas, title, model_line(tables, about))


def _draw_between(tables: ModelTables, compared: ComparisonTables, metric: str, canvas: Figure) -> None:
    """Draw a metric of a condition beside the baseline."""
    baseline, other = map(shown_name, compared.comparison)
    label, title = BETWEEN[metric]
    axes = canvas.add_subplot()
    first = num_untouched(tables, compared.comparison.other)
    draw_trajectories(axes, compared.between[metric], metric, GREEN, first)
    axes.set_ylabel(label.format(baseline=baseline, other=other))
    write_title(canvas, title.format(other=other), model_line(tables))


def _start(metric: str) -> str:
    return f"{capital(ALL_METRICS[metric].label)} by {ALL_METRICS[metric].axis}"


def _target(metric: str) -> list[str]:
    return ["of each condition's own target"] if ALL_METRICS[metric].reads_target else []


def _of_sample(curves: Curves) -> list[str]:
    num_rows = len(curves.sample)
    return [f"ranges of {num_rows:,} of them"] if curves.count > num_rows else []


def _draw_both(
    axes: Axes,
    comparison: Comparison,
    both: ComparisonCurves,
    metric: str,
    rows: Summary,
    first: int,
    at: Optional[Places] = None,
) -> None:
    """Draw the means, the spread of the sentences lightly, and how sure the distance of the means is."""
    depth = np.arange(len(both.baseline.mean)) if at is None else at
    handles: list[Artist] = []
    labels: list[str] = []
    for condition, curves, style in zip(comparison, (both.baseline, both.other), ("-", "--"), strict=True):
        name, colour = shown_name(condition), ROLE_COLOURS[condition.role]
        if curves.count > 1:
            ends = [end[depth] for end in band(curves, metric)]
            shade(axes, depth, *ends, color=colour, alpha=SPREAD_ALPHA, lw=0)
        handles += axes.plot(depth, curves.mean[depth], style, color=colour, lw=1.6, zorder=3, **marker(len(depth)))
        labels.append(f"{name}, mean" if curves.count > 1 else name)
    if both.baseline.count > 1:
        handles.append(Patch(color=BLACK, alpha=SPREAD_ALPHA, lw=0))
        labels.append(band_label(metric))
        colour = ROLE_COLOURS[comparison.other.role]
        look: dict[str, Any] = {"color": colour, "alpha": INTERVAL_ALPHA, "lw": 0}
        ends = [end[depth] for end in interval_about(both.baseline.mean, rows, metric)]
        shade(axes, depth, *ends, **look, zorder=2.5)
        handles.append(Patch(**look))
        labels.append("95 % interval of the mean difference")
    finish(axes, len(both.baseline.mean), metric)
    shade_untouched(axes, first, handles, labels)
    place_legend(axes, handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)


def interval_about(baseline: Numbers, rows: Summary, metric: str) -> tuple[Numbers, Numbers]:
    """Return the 95 % interval of the mean difference about the baseline's mean: [layer] each, low and high.

    It ends at what the metric can be.
    """
    bounds = ALL_METRICS[metric].bounds
    return np.clip(baseline + rows.ci_low, *bounds), np.clip(baseline + rows.ci_high, *bounds)


def _draw_differences(axes: Axes, curves: Curves, metric: str, first: int = 0) -> None:
    """Draw nested quantile ranges: unlike a density they are true for a constant, and for any number of sentences."""
    depth = np.arange(len(curves.mean))
    least, low, lower, median, upper, high, most = _quantiles(curves.sample)
    colour = DIFFERENCE_COLOUR
    axes.axhline(0, color=BLACK, lw=0.8, zorder=1.5)
    handles: list[Artist | Container] = []
    labels: list[str] = []
    if curves.count > 1:
        handles = [
            axes.vlines(depth, least, most, color=colour, alpha=0.45, lw=0.8),
            axes.bar(depth, high - low, 0.62, low, color=colour, alpha=0.22, lw=0),
            axes.bar(depth, upper - lower, 0.62, lower, color=colour, alpha=0.5, lw=0),
            axes.hlines(median, depth - 0.31, depth + 0.31, color=colour, lw=1.6, zorder=3),
        ]
        labels = ["whole range", "middle 90 %", "middle 50 %", "median"]
    handles += axes.plot(
        depth,
        curves.mean,
        "o",
        color="white",
        mec=BLACK,
        mew=0.9,
        ms=4.2 if len(depth) <= MOST_MARKERS else 2.2,
        zorder=4,
    )
    labels.append("mean" if curves.count > 1 else "the sentence")
    place_depth_ticks(axes, len(depth), metric)
    axes.set_xlim(-0.5, len(depth) - 0.5)
    widen_constant(axes)
    if is_logarithmic(metric):
        use_both_logarithms(axes)
    axes.set_ylabel(difference_label(metric))
    shade_untouched(axes, first, handles, labels)
    place_legend(
        axes, handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=min(len(labels), 5 - bool(first))
    )


def _quantiles(rows: Numbers) -> Numbers:
    """Return the quantiles of each column, [quantile, layer], NaN where a column has no number."""
    columns = [column[np.isfinite(column)] for column in rows.T]
    return np.stack([np.quantile(c, QUANTILES) if len(c) else np.full(len(QUANTILES), np.nan) for c in columns], axis=1)
