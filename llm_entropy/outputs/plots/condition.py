"""One condition: each metric over depth, and how the final answer emerges."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Optional

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from llm_entropy.outputs.comparison import evenly_spaced
from llm_entropy.outputs.places import place_of_condition
from llm_entropy.outputs.plots.canvas import (
    BLACK,
    PALETTE,
    ROLE_COLOURS,
    Drawing,
    Numbers,
    about_blocks,
    band,
    band_label,
    capital,
    finish,
    marker,
    model_line,
    place_depth_ticks,
    place_legend,
    shade,
    shown_name,
    write_title,
)
from llm_entropy.outputs.plots.layout import PanelGrid, SinglePanel
from llm_entropy.outputs.plots.lettering import plain, token_label, wrapped
from llm_entropy.outputs.plots.verdict import shade_untouched
from llm_entropy.outputs.points import Places, drawn_points, with_points
from llm_entropy.outputs.tables import Curves, ModelTables, TokenTracks
from llm_entropy.settings import ALL_METRICS, Condition
from llm_entropy.settings.plots import TOKEN_PROBABILITIES

MOST_TRAJECTORIES = 200
"""Most sentences that are drawn as lines of their own."""
MOST_TRACKED = 6
"""Most tokens that are drawn for a sentence."""


def figures_of_condition(tables: ModelTables, condition: Condition, run_dir: Path) -> list[Drawing]:
    """Return every figure of one condition.

    Args:
        tables: What the merge made.
        condition: Which condition.
        run_dir: The run's folder.

    Returns:
        The figures, not drawn yet.
    """
    place = place_of_condition(run_dir, condition, tables.model)
    of_metrics = [
        Drawing(place.plot(metric), 6.4, 4.0, partial(_draw_metric, tables, condition, metric), (metric,), SinglePanel)
        for metric in with_points(tables.curves[condition.name], tables.shape)
    ]
    emerging = partial(_draw_emerging, tables, condition)
    return [
        *of_metrics,
        Drawing(place.plot(TOKEN_PROBABILITIES), 10.0, 5.0, emerging, (TOKEN_PROBABILITIES,), PanelGrid),
    ]


def _draw_metric(tables: ModelTables, condition: Condition, metric: str, canvas: Figure) -> None:
    about, curves = ALL_METRICS[metric], tables.curves[condition.name][metric]
    at = drawn_points(metric, tables.shape)
    draw_trajectories(canvas.add_subplot(), curves, metric, ROLE_COLOURS[condition.role], at=at)
    title = f"{capital(about.label)} by {about.axis}, {shown_name(condition)}"
    write_title(canvas, title, model_line(tables, *_shown(curves), *about_blocks(metric, tables.shape)))


def _draw_emerging(tables: ModelTables, condition: Condition, canvas: Figure) -> None:
    _draw_tracks(canvas, tables.tracks[condition.name])
    about = "probability at each layer of the tokens that the final layer ranks highest"
    write_title(canvas, f"How the final answer emerges, {shown_name(condition)}", model_line(tables, about))


def _shown(curves: Curves) -> list[str]:
    return [f"{MOST_TRAJECTORIES} of them drawn"] if curves.count > MOST_TRAJECTORIES else []


def draw_trajectories(
    axes: Axes, curves: Curves, metric: str, colour: str, num_untouched: int = 0, at: Optional[Places] = None
) -> None:
    """Draw single sentences lightly, one standard deviation in grey, and the mean in black.

    Args:
        axes: Where to.
        curves: The metric over depth.
        metric: Its name, for the axes.
        colour: Of the single sentences.
        num_untouched: How many of the lowest layers steering does not reach.
        at: The layers, or blocks, that the curves run through; None: all.
    """
    depth = np.arange(len(curves.mean)) if at is None else at
    rows = curves.sample[evenly_spaced(len(curves.sample), MOST_TRAJECTORIES)][:, depth]
    alpha = float(np.clip(12 / len(rows), 0.10, 0.5))
    lines = np.stack([np.broadcast_to(depth, rows.shape), rows], axis=-1)
    axes.add_collection(LineCollection(list(lines), colors=[to_rgba(colour, alpha)], linewidths=0.6, zorder=2))
    axes.update_datalim(lines[np.isfinite(rows)])
    dots: dict[str, Any] = marker(len(depth)) if len(depth) < len(curves.mean) or len(depth) == 1 else {}
    if len(depth) == 1:
        axes.plot(*lines.reshape(-1, 2).T, "_", color=to_rgba(colour, alpha), ms=14, zorder=2)
    (mean,) = axes.plot(depth, curves.mean[depth], color=BLACK, lw=2.0, zorder=4, **dots)
    grey: dict[str, Any] = {"color": "#555555", "alpha": 0.28, "lw": 0}
    handles: list[Artist]
    handles, labels = [Line2D([], [], color=to_rgba(colour, 0.5), linewidth=0.8)], ["single sentences"]
    if curves.count > 1:
        shade(axes, depth, *(end[depth] for end in band(curves, metric)), **grey, zorder=3)
        handles += [mean, Patch(**grey)]
        labels += ["mean", band_label(metric)]
    else:
        handles, labels = [mean], ["the sentence"]
    axes.autoscale_view()
    finish(axes, len(curves.mean), metric)
    shade_untouched(axes, num_untouched, handles, labels)
    place_legend(
        axes, handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2 if num_untouched else 3
    )


def _draw_tracks(canvas: Figure, tracks: TokenTracks) -> None:
    """Draw the mean by rank at the left, and some sentences with their own tokens at the right."""
    examples = tracks.examples
    num_columns = 1 if len(examples) < 3 else 2
    num_rows = -(-len(examples) // num_columns)
    grid = canvas.add_gridspec(num_rows, 1 + num_columns, width_ratios=[1.25] + [1.0] * num_columns)
    axes = canvas.add_subplot(grid[:, 0])
    ranks = [f"rank {rank + 1}" for rank in range(len(tracks.mean))]
    _draw_tokens(axes, tracks.mean, ranks, _top(tracks.mean), is_large=True)
    axes.set_title("Mean by rank at the final layer" if tracks.count > 1 else "By rank at the final layer", fontsize=9)
    axes.set_ylabel("Probability")
    top = max(_top(probabilities) for _, _, probabilities in examples)
    for index, (sentence, tokens, probabilities) in enumerate(examples):
        axes = canvas.add_subplot(grid[index // num_columns, 1 + index % num_columns])
        _draw_tokens(axes, probabilities, [token_label(token) for token in tokens], top, is_large=False)
        axes.set_title(wrapped(plain(sentence), 46, 2), fontsize=7.5, parse_math=False)
        axes.tick_params(labelsize=8)
        if index // num_columns < num_rows - 1 and index + num_columns < len(examples):
            axes.set_xlabel("")


def _top(probabilities: Numbers) -> float:
    """Return where an axis from 0 ends that holds these probabilities."""
    return 1.08 * max(float(np.nanmax(probabilities[:MOST_TRACKED], initial=0.0)), 1e-6)


def _draw_tokens(axes: Axes, probabilities: Numbers, labels: list[str], top: float, *, is_large: bool) -> None:
    """Draw a line per token, named at its right end: probabilities [tracked, layer], on an axis from 0 to `top`."""
    shown = probabilities[:MOST_TRACKED]
    num_layers = probabilities.shape[1]
    axes.set_ylim(-0.02 * top, top)
    ends = spread(np.nan_to_num(shown[:, -1]), (0.045 if is_large else 0.1) * top)
    for row, label, end, colour in zip(shown, labels, ends, PALETTE, strict=False):
        axes.plot(np.arange(num_layers), row, color=colour, lw=1.8, **marker(num_layers, size=2.5))
        look: dict[str, Any] = {"color": colour, "fontsize": 8.5, "parse_math": False, "annotation_clip": False}
        place = (num_layers - 1, float(end))
        axes.annotate(label, place, xytext=(7, 0), textcoords="offset points", va="center", **look)
    place_depth_ticks(axes, num_layers, "entropy", most=9 if is_large else 6)


def spread(heights: Numbers, gap: float) -> Numbers:
    """Move labels apart, as little as is needed, and none below the first gap above zero.

    Args:
        heights: [label], where they would be.
        gap: Least distance between two.

    Returns:
        [label], where they are.
    """
    order = np.argsort(heights, kind="stable")
    placed = np.asarray(heights, np.float64)[order]
    for index in range(1, len(placed)):
        placed[index] = max(placed[index], placed[index - 1] + gap)
    result = np.empty_like(placed)
    result[order] = placed
    return result
