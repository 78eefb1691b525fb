"""What control changed: both conditions over depth, the differences, and their size beside their spread."""

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
from llm_entropy.outputs.plots.canvas import (
    ALL_METRICS,
    BLACK,
    CONDITION_COLOURS,
    GREEN,
    LOGARITHMIC,
    MINUS,
    MOST_MARKERS,
    Numbers,
    axis_label,
    band,
    band_label,
    capital,
    figure,
    finish,
    marker,
    model_line,
    place_depth_ticks,
    place_legend,
    thinned,
    use_both_logarithms,
    widen_constant,
    write_title,
)
from llm_entropy.outputs.plots.condition import draw_trajectories
from llm_entropy.schema import Comparison, Curves, ModelTables
from llm_entropy.settings import COMPARATIVE, CONTROL, KL_FROM_STANDARD, STANDARD

OF_TARGETS = frozenset({"surprisal", "target_rank"})
"""Metrics that read a target, which may differ between the conditions: a predicted one is each condition's own."""
DIFFERENCE_COLOUR = "#6a51a3"
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
MOST_ANNOTATED = 34
"""Most layers whose effects are written into the cells of the heat map."""
COLOUR_LIMITS = (0.2, 3.0)
"""The effect that has the strongest colour is the largest but for a few, within these limits."""


def draw_comparison(tables: ModelTables, run_dir: Path) -> list[Path]:
    """Draw every figure of the comparison.

    Args:
        tables: What the merge made of a comparative run.
        run_dir: The run's folder.

    Returns:
        The files.
    """
    drawn: list[Path] = []
    start = str(run_dir / COMPARATIVE / "plots" / f"{tables.model}_")
    for metric, comparison in tables.comparisons.items():
        label, _, axis = ALL_METRICS[metric]
        target = ["of each condition's own target"] if metric in OF_TARGETS else []
        with figure(Path(f"{start}{metric}_comparison.png"), 6.4, 4.0, drawn) as canvas:
            _draw_both(canvas.add_subplot(), comparison, metric)
            write_title(canvas, f"{capital(label)} by {axis}, standard and control", model_line(tables, *target))
        with figure(Path(f"{start}{metric}_differences.png"), 6.4, 4.0, drawn) as canvas:
            _draw_differences(canvas.add_subplot(), comparison.difference, metric)
            about = [*target, *_of_sample(comparison.difference)]
            write_title(canvas, f"{capital(label)} by {axis}, control {MINUS} standard", model_line(tables, *about))
    with figure(Path(f"{start}layer_impact.png"), *_impact_size(tables), drawn) as canvas:
        _draw_impact(canvas, tables)
    kl = tables.kl_from_standard
    assert kl is not None, "a comparative run measures KL from standard to control"
    with figure(Path(f"{start}{KL_FROM_STANDARD}.png"), 6.4, 4.0, drawn) as canvas:
        draw_trajectories(canvas.add_subplot(), kl, KL_FROM_STANDARD, GREEN)
        write_title(canvas, "How far control moves the prediction, by layer", model_line(tables))
    return drawn


def _of_sample(curves: Curves) -> list[str]:
    num_rows = len(curves.sample)
    return [f"ranges of {num_rows:,} of them"] if curves.count > num_rows else []


def _draw_both(axes: Axes, comparison: Comparison, metric: str) -> None:
    depth = np.arange(len(comparison.standard.mean))
    handles: list[Artist] = []
    labels: list[str] = []
    for name, curves, style in ((STANDARD, comparison.standard, "-"), (CONTROL, comparison.control, "--")):
        colour = CONDITION_COLOURS[name]
        if curves.count > 1:
            axes.fill_between(depth, *band(curves, metric), color=colour, alpha=0.16, lw=0)
        handles += axes.plot(depth, curves.mean, style, color=colour, lw=2.0, **marker(len(depth)))
        labels.append(f"{name}, mean" if curves.count > 1 else name)
    if comparison.standard.count > 1:
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
    if metric in LOGARITHMIC:
        use_both_logarithms(axes)
    axes.set_ylabel(f"Difference in {axis_label(metric)[0].lower() + axis_label(metric)[1:]}")
    place_legend(axes, handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=5)


def _quantiles(rows: Numbers) -> Numbers:
    """Return the quantiles of each column, [quantile, layer], NaN where a column has no number."""
    columns = [column[np.isfinite(column)] for column in rows.T]
    return np.stack([np.quantile(c, QUANTILES) if len(c) else np.full(len(QUANTILES), np.nan) for c in columns], axis=1)


def _impact_size(tables: ModelTables) -> tuple[float, float]:
    num_layers, num_metrics = tables.shape.num_layers, len(tables.comparisons)
    return float(np.clip(2.2 + 0.5 * num_layers, 6.4, 14.0)), 2.1 + 0.42 * num_metrics


def _draw_impact(canvas: Figure, tables: ModelTables) -> None:
    """Draw metric by layer; block k stands where layer k does, which is what its attention reads."""
    num_layers, metrics = tables.shape.num_layers, list(tables.comparisons)
    effects: npt.NDArray[np.float64] = np.full((len(metrics), num_layers), np.nan)
    missing = np.zeros(effects.shape, bool)
    for row, metric in enumerate(metrics):
        change = tables.comparisons[metric].difference
        effects[row, : len(change.mean)] = standardised_effect(change.mean, change.deviation)
        missing[row, len(change.mean) :] = True
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
    axes.set_yticks(range(len(metrics)), [_row_label(metric) for metric in metrics])
    place_depth_ticks(axes, num_layers, "entropy")
    axes.set_xticks(thinned(num_layers))
    axes.set_xlim(-0.5, num_layers - 0.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = canvas.colorbar(image, ax=axes, extend="both" if (sizes > limit).any() else "neither", pad=0.02, aspect=14)
    bar.outline.set_visible(False)
    bar.set_label("mean difference /\nstandard deviation", fontsize=8.5)
    about = ["no spread to divide by" if tables.num_sentences == 1 else f"control {MINUS} standard"]
    write_title(canvas, "Where control acts: standardised effect by metric and layer", model_line(tables, *about))


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
