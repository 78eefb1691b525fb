"""The models of a run beside each other, causal and masked, over relative depth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from llm_entropy.outputs.comparison import relative_depth, share_of_log_vocabulary
from llm_entropy.outputs.places import place_of_condition
from llm_entropy.outputs.plots.canvas import (
    PALETTE,
    Drawing,
    Numbers,
    band,
    band_label,
    capital,
    finish,
    marker,
    place_legend,
    sentences,
    shown_name,
    write_title,
)
from llm_entropy.outputs.plots.layout import PanelGrid
from llm_entropy.outputs.points import drawn_points, with_points
from llm_entropy.outputs.tables import ModelTables
from llm_entropy.settings import ALL_METRICS, METRICS, Condition
from llm_entropy.settings.plots import MODELS

LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MOST_BANDS = 3
"""Most models whose spread is drawn too."""


def figures_of_models(tables: Sequence[ModelTables], condition: Condition, run_dir: Path) -> list[Drawing]:
    """Return the figures of the mean curves of all models, a figure per metric.

    Metrics in nats per layer have a second panel, as a share of ln V: what is comparable between vocabularies.

    Args:
        tables: What the merge made of each model.
        condition: Which condition.
        run_dir: The run's folder.

    Returns:
        The figures, not drawn yet.
    """
    figures: list[Drawing] = []
    place = place_of_condition(run_dir, condition, "models")
    for metric in METRICS:
        models = {  # by their number among all, which their colours keep
            number: model
            for number, model in enumerate(tables)
            if metric in with_points(model.curves[condition.name], model.shape)
        }
        if not models:
            continue
        num_panels = 2 if _has_share(metric) else 1
        size = 9.4 if num_panels == 2 else 6.4, 4.0 + 0.21 * -(-len(models) // num_panels)
        draw = partial(_draw_models, models, condition, metric)
        figures.append(Drawing(place.plot(metric), *size, draw, (metric, MODELS), PanelGrid))
    return figures


def _has_share(metric: str) -> bool:
    return ALL_METRICS[metric].unit == "nats" and ALL_METRICS[metric].axis == "layer"


def _draw_models(models: Mapping[int, ModelTables], condition: Condition, metric: str, canvas: Figure) -> None:
    label, has_share = capital(ALL_METRICS[metric].label), _has_share(metric)
    panels = canvas.subplots(1, 1 + has_share, squeeze=False)[0]
    handles = _draw_means(panels[0], models, condition, metric, lambda values, _: values)
    if has_share:
        _draw_means(panels[1], models, condition, metric, share_of_log_vocabulary)
        panels[1].set_ylabel(f"{label} / ln V")
    shaded = f", {band_label(metric)} shaded" if len(models) <= MOST_BANDS else ""
    title = f"{label} over relative depth, {shown_name(condition)}"
    write_title(canvas, title, f"mean over the sentences{shaded}")
    labels = [_legend_of(model) for model in models.values()]
    place_legend(canvas, handles, labels, loc="outside lower center", ncols=1 + has_share)


def _legend_of(model: ModelTables) -> str:
    blocks, vocabulary = model.shape.num_blocks, model.shape.vocab_size
    return f"{model.model}: {sentences(model.num_sentences)}, {blocks} blocks, V = {vocabulary:,}"


def _draw_means(
    axes: Axes,
    models: Mapping[int, ModelTables],
    condition: Condition,
    metric: str,
    scale: Callable[[Numbers, int], Numbers],
) -> list[Line2D]:
    """Draw each model's mean; `scale` turns nats into what is shown, given V. Return the lines."""
    lines = []
    for index, model in models.items():
        curves, size = model.curves[condition.name][metric], model.shape.vocab_size
        at = drawn_points(metric, model.shape)
        depth = relative_depth(len(curves.mean))[at]
        colour = PALETTE[index % len(PALETTE)]
        if curves.count > 1 and len(models) <= MOST_BANDS:
            low, high = (end[at] for end in band(curves, metric))
            axes.fill_between(depth, scale(low, size), scale(high, size), color=colour, alpha=0.12, lw=0)
        style = LINES[index // len(PALETTE) % len(LINES)]
        dots = marker(len(depth), MARKERS[index % len(MARKERS)], 4)
        lines += axes.plot(depth, scale(curves.mean[at], size), style, color=colour, lw=1.8, **dots)
    finish(axes, 2, metric)
    is_layer = ALL_METRICS[metric].axis == "layer"
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["emb." if is_layer else "0", "0.25", "0.5", "0.75", "1"])
    axes.set_xlabel(f"Relative depth (1: last {'layer' if is_layer else 'block'})")
    axes.set_xlim(-0.03, 1.03)
    return lines
