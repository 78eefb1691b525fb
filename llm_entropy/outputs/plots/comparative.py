"""What a condition changed: both conditions over depth, the differences, and their size beside their spread."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.container import Container
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from llm_entropy.outputs.comparison import standardised_effect
from llm_entropy.outputs.places import place_of_comparison
from llm_entropy.outputs.plots.canvas import (
    BLACK,
    GREEN,
    MINUS,
    MOST_MARKERS,
    ROLE_COLOURS,
    Numbers,
    axis_label,
    band,
    band_label,
    capital,
    figure,
    finish,
    is_logarithmic,
    marker,
    model_line,
    place_depth_ticks,
    place_legend,
    shown_name,
    thinned,
    use_both_logarithms,
    widen_constant,
    write_title,
)
from llm_entropy.outputs.plots.condition import draw_trajectories
from llm_entropy.outputs.tables import ComparisonCurves, ComparisonTables, Curves, ModelTables
from llm_entropy.settings import ALL_METRICS, KL_FROM_STANDARD, TOP1_CHANGED, Comparison

BETWEEN = {
    KL_FROM_STANDARD: ("KL from {baseline} to {other} (nats)", "How far {other} moves the prediction, by layer"),
    TOP1_CHANGED: ("Share of positions that change", "Where {other} changes the most likely token, by layer"),
}
"""What the axis and the title of each metric of `COMPARISON_METRICS` say."""
DIFFERENCE_COLOUR = "#6a51a3"
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
MOST_ANNOTATED = 34
"""Most layers whose effects are written into the cells of the heat map."""
COLOUR_LIMITS = (0.2, 3.0)
"""The effect that has the strongest colour is the largest but for a few, within these limits."""


def draw_comparison(tables: ModelTables, compared: ComparisonTables, run_dir: Path) -> list[Path]:
    """Draw every figure of a comparison.

    Args:
        tables: What the merge made of the model.
        compared: The comparison, one of theirs.
        run_dir: The run's folder.

    Returns:
        The files.
    """
    drawn: list[Path] = []
    place = place_of_comparison(run_dir, compared.comparison, tables.model)
    for metric in compared.metrics:
        _draw_metric(tables, compared, metric, run_dir, drawn)
    baseline, other = map(shown_name, compared.comparison)
    with figure(
        place.plot("layer_impact"), *_impact_size(tables.shape.num_layers, len(compared.metrics)), drawn
    ) as canvas:
        _draw_impact(canvas, compared, tables.shape.num_layers)
        about = "no spread to divide by" if tables.num_sentences == 1 else f"{other} {MINUS} {baseline}"
        title = f"Where {other} acts: standardised effect by metric and layer"
        write_title(canvas, title, model_line(tables, about))
    for metric, (label, title) in BETWEEN.items():
        with figure(place.plot(metric), 6.4, 4.0, drawn) as canvas:
            axes = canvas.add_subplot()
            draw_trajectories(axes, compared.between[metric], metric, GREEN)
            axes.set_ylabel(label.format(baseline=baseline, other=other))
            write_title(canvas, title.format(other=other), model_line(tables))
    return drawn


def _draw_metric(
    tables: ModelTables, compared: ComparisonTables, metric: str, run_dir: Path, drawn: list[Path]
) -> None:
    """Draw a metric under both conditions, and its differences."""
    about, curves = ALL_METRICS[metric], compared.metrics[metric]
    place = place_of_comparison(run_dir, compared.comparison, tables.model)
    baseline, other = map(shown_name, compared.comparison)
    start = f"{capital(about.label)} by {about.axis}"
    target = ["of each condition's own target"] if about.reads_target else []
    with figure(place.plot(f"{metric}_comparison"), 6.4, 4.0, drawn) as canvas:
        _draw_both(canvas.add_subplot(), compared.comparison, curves, metric)
        write_title(canvas, f"{start}, {baseline} and {other}", model_line(tables, *target))
    with figure(place.plot(f"{metric}_differences"), 6.4, 4.0, drawn) as canvas:
        _draw_differences(canvas.add_subplot(), curves.difference, metric)
        line = model_line(tables, *target, *_of_sample(curves.difference))
        write_title(canvas, f"{start}, {other} {MINUS} {baseline}", line)


def _of_sample(curves: Curves) -> list[str]:
    num_rows = len(curves.sample)
    return [f"ranges of {num_rows:,} of them"] if curves.count > num_rows else []


def _draw_both(axes: Axes, comparison: Comparison, both: ComparisonCurves, metric: str) -> None:
    depth = np.arange(len(both.baseline.mean))
    handles: list[Artist] = []
    labels: list[str] = []
    for condition, curves, style in zip(comparison, (both.baseline, both.other), ("-", "--"), strict=True):
        name, colour = shown_name(condition), ROLE_COLOURS[condition.role]
        if curves.count > 1:
            axes.fill_between(depth, *band(curves, metric), color=colour, alpha=0.16, lw=0)
        handles += axes.plot(depth, curves.mean, style, color=colour, lw=2.0, **marker(len(depth)))
        labels.append(f"{name}, mean" if curves.count > 1 else name)
    if both.baseline.count > 1:
        handles.append(Patch(color=BLACK, alpha=0.16, lw=0))
        labels.append(band_label(metric))
    finish(axes, len(depth), metric)
    place_legend(axes, handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)


def _draw_differences(axes: Axes, curves: Curves, metric: str) -> None:
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
    widen_constant(axes)
    if is_logarithmic(metric):
        use_both_logarithms(axes)
    axes.set_ylabel(f"Difference in {axis_label(metric)[0].lower() + axis_label(metric)[1:]}")
    place_legend(axes, handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=5)


def _quantiles(rows: Numbers) -> Numbers:
    """Return the quantiles of each column, [quantile, layer], NaN where a column has no number."""
    columns = [column[np.isfinite(column)] for column in rows.T]
    return np.stack([np.quantile(c, QUANTILES) if len(c) else np.full(len(QUANTILES), np.nan) for c in columns], axis=1)


def _impact_size(num_layers: int, num_metrics: int) -> tuple[float, float]:
    return float(np.clip(2.2 + 0.5 * num_layers, 6.4, 14.0)), 2.1 + 0.42 * num_metrics


def _effects(compared: ComparisonTables, num_layers: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Return the standardised effects, [metric, layer], and where there is none; block k stands at layer k."""
    effects = np.full((len(compared.metrics), num_layers), np.nan)
    missing = np.zeros(effects.shape, bool)
    for row, (metric, curves) in enumerate(compared.metrics.items()):
        change = curves.difference
        effects[row, : len(change.mean)] = standardised_effect(change.mean, change.deviation)
        missing[row, len(change.mean) :] = True
        missing[row, : ALL_METRICS[metric].first] = True
    return effects, missing


def _draw_impact(canvas: Figure, compared: ComparisonTables, num_layers: int) -> None:
    """Draw metric by layer; block k stands where layer k does, which is what its attention reads."""
    effects, missing = _effects(compared, num_layers)
    sizes = np.abs(effects[np.isfinite(effects)])
    limit = float(np.clip(np.quantile(sizes, 0.95, method="higher") if sizes.size else 0.0, *COLOUR_LIMITS))
    axes = canvas.add_subplot()
    axes.grid(False)
    colours = colormaps["RdBu_r"].with_extremes(bad="#ffffff")
    shown = np.clip(effects, -2 * limit, 2 * limit)
    image = axes.imshow(np.ma.masked_invalid(shown), cmap=colours, norm=Normalize(-limit, limit), aspect="auto")
    for row, layer in np.argwhere(missing):
        axes.add_patch(_hatched(row, layer))
    if num_layers <= MOST_ANNOTATED:
        _write_effects(axes, np.where(missing, np.nan, effects), limit)
    axes.set_yticks(range(len(effects)), [_row_label(metric) for metric in compared.metrics])
    place_depth_ticks(axes, num_layers, "entropy")
    axes.set_xticks(thinned(num_layers))
    axes.set_xlim(-0.5, num_layers - 0.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = canvas.colorbar(image, ax=axes, extend="both" if (sizes > limit).any() else "neither", pad=0.02, aspect=14)
    bar.outline.set_visible(False)
    bar.set_label("mean difference /\nstandard deviation", fontsize=8.5)


def _hatched(row: int, layer: int) -> Rectangle:
    return Rectangle((layer - 0.5, row - 0.5), 1, 1, fill=False, hatch="////", edgecolor="#c4c4c4", lw=0)


def _row_label(metric: str) -> str:
    label = capital(ALL_METRICS[metric].label)
    return label if ALL_METRICS[metric].axis == "layer" else f"{label}\n(block k at layer k)"


def _write_effects(axes: Axes, effects: Numbers, limit: float) -> None:
    """Write each effect into its cell, in white where the cell is dark."""
    size = 7.5 if effects.shape[1] <= 20 else 6.0
    for (row, layer), effect in np.ndenumerate(effects):
        if not np.isnan(effect):
            colour = "white" if abs(effect) > 0.65 * limit else BLACK
            axes.text(layer, row, _effect_text(float(effect)), ha="center", va="center", fontsize=size, color=colour)


def _effect_text(effect: float) -> str:
    if abs(effect) < 0.005:
        return "0" if effect == 0 else "0.00"
    if abs(effect) >= 100:
        return ("+" if effect > 0 else MINUS) + ("∞" if np.isinf(effect) else "≫")
    text = f"{effect:+.1f}" if abs(effect) >= 9.95 else f"{effect:+.2f}"
    return text.replace("-", MINUS)
