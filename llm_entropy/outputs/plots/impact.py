"""Where a condition acts: effect sizes by metric and layer, what is sure marked, what any push would do greyed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from llm_entropy.outputs.plots.canvas import (
    BLACK,
    MINUS,
    Numbers,
    capital,
    legend_columns,
    place_depth_ticks,
    place_legend,
    thinned,
)
from llm_entropy.outputs.plots.verdict import (
    SIGNIFICANT,
    UNTOUCHED_LABEL,
    UNTOUCHED_LOOK,
    Floats,
    Mask,
    about_placebos,
    is_significant,
    is_within,
    num_untouched,
    placebo_means,
    verdict,
)
from llm_entropy.outputs.points import filled_points, with_points
from llm_entropy.outputs.tables import ComparisonTables, ModelTables
from llm_entropy.settings import ALL_METRICS

MOST_ANNOTATED = 34
"""Most layers whose effects are written into the cells of the heat map."""
COLOUR_LIMITS = (0.2, 3.0)
"""The effect that has the strongest colour is the largest but for a few, within these limits."""
WITHIN_COLOUR, WITHIN_INK, FAINT = "#dedede", "#6e6e6e", "#b4b4b4"


class Impact(NamedTuple):
    """What the heat map shows, [metric, layer] each; block k stands at layer k."""

    effects: Numbers
    """Effect sizes; NaN where there is none."""
    missing: Mask
    """Where the metric has no block, or the block no attention."""
    significant: Mask
    """Where the difference is one after Holm's correction."""
    within: Mask
    """Where at least one placebo changes as much."""


def impact_size(num_layers: int, num_metrics: int) -> tuple[float, float]:
    """Return the width and height of the figure, in inches."""
    return float(np.clip(2.2 + 0.5 * num_layers, 6.4, 14.0)), 2.4 + 0.42 * num_metrics


def draw_impact(canvas: Figure, tables: ModelTables, compared: ComparisonTables) -> None:
    """Draw metric by layer; block k stands where layer k does, which is what its attention reads.

    Args:
        canvas: An empty figure.
        tables: What the merge made of the model.
        compared: The comparison, one of theirs.
    """
    impact, num_layers = _impact(tables, compared), tables.shape.num_layers
    first = num_untouched(tables, compared.comparison.other)
    shown = impact.effects.copy()
    shown[:, :first] = np.nan
    sizes = np.abs(shown[np.isfinite(shown)])
    shown[impact.within] = np.nan
    limit = float(np.clip(np.quantile(sizes, 0.95, method="higher") if sizes.size else 0.0, *COLOUR_LIMITS))
    axes = canvas.add_subplot()
    axes.grid(False)
    colours = colormaps["RdBu_r"].with_extremes(bad="#ffffff")
    clipped = np.ma.masked_invalid(np.clip(shown, -2 * limit, 2 * limit))
    image = axes.imshow(clipped, cmap=colours, norm=Normalize(-limit, limit), aspect="auto")
    if impact.within[:, first:].any():
        greyed = np.ma.masked_where(~impact.within, np.ones(shown.shape))
        axes.imshow(greyed, cmap=ListedColormap([WITHIN_COLOUR]), aspect="auto")
    if first:
        axes.add_patch(Rectangle((-0.5, -0.5), first, len(shown), zorder=1.5, **UNTOUCHED_LOOK))
    _write_cells(axes, impact, first, limit)
    axes.set_yticks(range(len(shown)), [_row_label(metric) for metric in _metrics(tables, compared)])
    place_depth_ticks(axes, num_layers, "entropy")
    axes.set_xticks(thinned(num_layers))
    axes.set_xlim(-0.5, num_layers - 0.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = canvas.colorbar(image, ax=axes, extend="both" if (sizes > limit).any() else "neither", pad=0.02, aspect=14)
    bar.outline.set_visible(False)
    bar.set_label("mean difference /\nstandard deviation", fontsize=8.5)
    num_placebos = max(map(len, _placebos(tables, compared)), default=0)
    _explain(canvas, impact, first, num_placebos, about_placebos(compared.comparison.other))


def _metrics(tables: ModelTables, compared: ComparisonTables) -> list[str]:
    return with_points(compared.metrics, tables.shape)


def _placebos(tables: ModelTables, compared: ComparisonTables) -> list[Floats]:
    return [placebo_means(tables, compared.comparison.other, metric) for metric in _metrics(tables, compared)]


def _impact(tables: ModelTables, compared: ComparisonTables) -> Impact:
    metrics = _metrics(tables, compared)
    shape = len(metrics), tables.shape.num_layers
    impact = Impact(np.full(shape, np.nan), np.zeros(shape, bool), np.zeros(shape, bool), np.zeros(shape, bool))
    for row, (metric, placebos) in enumerate(zip(metrics, _placebos(tables, compared), strict=True)):
        rows = verdict(tables, compared.comparison.other, metric)
        width = len(rows.layer)
        impact.effects[row, :width] = rows.effect_size
        impact.missing[row] = True
        impact.missing[row, filled_points(metric, tables.shape)] = False
        impact.significant[row, :width] = is_significant(rows)
        impact.within[row, :width] = is_within(rows, placebos)
    return impact


def _row_label(metric: str) -> str:
    label = capital(ALL_METRICS[metric].label)
    return label if ALL_METRICS[metric].axis == "layer" else f"{label}\n(block k at layer k)"


def _write_cells(axes: Axes, impact: Impact, first: int, limit: float) -> None:
    """Write each effect into its cell, and a dot below it, or alone, where it is significant."""
    is_written = impact.effects.shape[1] <= MOST_ANNOTATED
    size = 7.5 if impact.effects.shape[1] <= 20 else 6.0
    dots: dict[str, list[tuple[int, float]]] = {}
    for (row, layer), effect in np.ndenumerate(impact.effects):
        if layer < first:
            continue
        is_significant = bool(impact.significant[row, layer])
        ink = "white" if abs(effect) > 0.65 * limit else BLACK
        ink = WITHIN_INK if impact.within[row, layer] else ink
        if is_significant:
            dots.setdefault(ink, []).append((layer, row + 0.28 if is_written else row))
        if impact.missing[row, layer]:
            axes.text(layer, row, "\u2013", ha="center", va="center", fontsize=size, color=FAINT)
        elif is_written and not np.isnan(effect):
            axes.text(layer, row, effect_text(float(effect)), ha="center", va="center", fontsize=size, color=ink)
    for ink, places in dots.items():
        axes.plot(*np.transpose(places), "o", color=ink, ms=2.6, mew=0)


def _explain(canvas: Figure, impact: Impact, first: int, num_placebos: int, about: str) -> None:
    handles: list[Artist] = []
    labels: list[str] = []
    if impact.significant.any():
        handles.append(Line2D([], [], ls="", marker="o", ms=3, color=BLACK))
        labels.append(f"p < {SIGNIFICANT:g} after Holm's correction")
    if num_placebos:
        handles.append(Patch(color=WITHIN_COLOUR, lw=0))
        which = "the one placebo" if num_placebos == 1 else f"at least one of {num_placebos} placebos"
        labels.append(f"{which}{about} changes it as much")
    if first:
        handles.append(Patch(**UNTOUCHED_LOOK))
        labels.append(UNTOUCHED_LABEL)
    if handles:
        place_legend(
            canvas, handles, labels, loc="outside lower center", ncols=legend_columns(labels, canvas.get_figwidth())
        )


def effect_text(effect: float) -> str:
    """Return an effect size in at most five characters."""
    if abs(effect) < 0.005:
        return "0" if effect == 0 else "0.00"
    if abs(effect) >= 100:
        return ("+" if effect > 0 else MINUS) + ("∞" if np.isinf(effect) else "≫")
    text = f"{effect:+.1f}" if abs(effect) >= 9.95 else f"{effect:+.2f}"
    return text.replace("-", MINUS)
