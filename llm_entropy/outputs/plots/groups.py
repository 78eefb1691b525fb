"""Groups of sentences over depth, under each condition, in one figure for each metric."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from llm_entropy.outputs.groups import GroupCurve
from llm_entropy.outputs.places import place_of_condition
from llm_entropy.outputs.plots.canvas import (
    PALETTE,
    Drawing,
    about_blocks,
    capital,
    finish,
    legend_columns,
    marker,
    model_line,
    place_legend,
    shade,
    shown_name,
    write_title,
)
from llm_entropy.outputs.plots.lettering import shorten
from llm_entropy.outputs.points import Places, drawn_points, with_points
from llm_entropy.outputs.tables import ModelTables
from llm_entropy.settings import ALL_METRICS, Condition
from llm_entropy.settings.plots import GROUPS

MOST_PANELS = 6
"""Most conditions that a figure shows, each in a panel."""
LINES = ("-", "--")
MOST_LABEL = 40


def figures_of_groups(tables: ModelTables, run_dir: Path) -> list[Drawing]:
    """Return figures of the mean curves of all groups, one for each metric, with a panel for each condition.

    Args:
        tables: What the merge made of the model.
        run_dir: The run's folder; the figures go to `plots` below the folder of the first condition.

    Returns:
        The figures, not drawn yet; none without groups.
    """
    shown = [condition for condition in tables.conditions if condition.name in tables.groups][:MOST_PANELS]
    if not shown or not tables.groups[shown[0].name]:
        return []
    first_group = next(iter(tables.groups[shown[0].name].values()))
    place, width = place_of_condition(run_dir, shown[0], tables.model), 4.6 * len(shown) + 0.8
    return [
        Drawing(
            place.plot(f"{metric}_groups"), width, 4.2, partial(_draw_groups, tables, shown, metric), (metric, GROUPS)
        )
        for metric in with_points(first_group, tables.shape)
    ]


def _draw_groups(tables: ModelTables, shown: Sequence[Condition], metric: str, canvas: Figure) -> None:
    groups = list(tables.groups[shown[0].name])
    panels = np.atleast_1d(canvas.subplots(1, len(shown), sharey=True))
    for axes, condition in zip(panels.tolist(), shown, strict=True):
        curves = {group: own[metric] for group, own in tables.groups[condition.name].items()}
        _draw_panel(axes, curves, metric, drawn_points(metric, tables.shape))
        if condition is not shown[0]:
            axes.set_ylabel("")
        axes.set_title(shown_name(condition), fontsize=9, parse_math=False)
    sizes = [int(tables.groups[shown[0].name][group][metric].n.max(initial=0)) for group in groups]
    labels = [f"{shorten(group, MOST_LABEL)} (n = {size:,})" for group, size in zip(groups, sizes, strict=True)]
    handles = [Line2D([], [], lw=2.0, **look(index)) for index in range(len(groups))]
    columns = legend_columns(labels, 4.6 * len(shown))
    place_legend(canvas, handles, labels, loc="outside lower center", ncols=columns)
    title = f"{capital(ALL_METRICS[metric].label)} by group"
    line = model_line(tables, "mean of each group, 95 % interval", *about_blocks(metric, tables.shape))
    write_title(canvas, title, line)


def look(index: int) -> dict[str, Any]:
    """Return colour and line of a group: more groups than colours have dashes."""
    return {"color": PALETTE[index % len(PALETTE)], "ls": LINES[index // len(PALETTE) % len(LINES)]}


def _draw_panel(axes: Axes, curves: dict[str, GroupCurve], metric: str, at: Places) -> None:
    num_points = 1
    for index, curve in enumerate(curves.values()):
        num_points = len(curve.mean)
        low, high = curve.interval.low[at], curve.interval.high[at]
        shade(axes, at, low, high, color=look(index)["color"], alpha=0.15, lw=0, zorder=2)
        axes.plot(at, curve.mean[at], lw=2.0, zorder=3, **look(index), **marker(num_points))
    finish(axes, num_points, metric)
