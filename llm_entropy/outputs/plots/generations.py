"""What each condition does to the text that the model writes: fluency, length and repetition, beside the standard."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from llm_entropy.outputs.places import place_of_comparisons
from llm_entropy.outputs.plots.canvas import (
    BLACK,
    Drawing,
    axis_label,
    legend_columns,
    model_line,
    place_legend,
    shown_name,
    write_title,
)
from llm_entropy.outputs.plots.overview import PLACEBO_COLOUR, PLACEBO_EDGE, Look, chosen, looks_of
from llm_entropy.outputs.plots.verdict import about_placebos, placebo_means, verdict
from llm_entropy.outputs.tables import ModelTables
from llm_entropy.settings import KL_FROM_STANDARD, STANDARD_SURPRISAL, TEXT_METRICS
from llm_entropy.settings.plots import GENERATIONS

SHOWN = (STANDARD_SURPRISAL, KL_FROM_STANDARD, *(name for name in TEXT_METRICS if name != STANDARD_SURPRISAL))
"""The metrics that are drawn, each at its last layer."""
NUM_COLUMNS = 3
BAR_HEIGHT = 0.6
"""Of what shows the placebos, in rows."""


def figures_of_generations(tables: ModelTables, run_dir: Path) -> list[Drawing]:
    """Return the figure of how the texts of each condition differ from those of the standard one.

    Args:
        tables: What the merge made of the model.
        run_dir: The run's folder; the figure goes to the folder of all comparisons.

    Returns:
        The figure, not drawn yet; none where nothing is compared, or no text was written.
    """
    if tables.summary is None or not np.isin(STANDARD_SURPRISAL, tables.summary.metric):
        return []
    shown, about = chosen([compared.comparison.other for compared in tables.comparisons.values()])
    looks = looks_of(shown)
    height = 2 * (1.1 + 0.24 * len(looks)) + 1.0
    path = place_of_comparisons(run_dir, tables.model).plot(GENERATIONS)
    return [Drawing(path, 9.3, height, partial(_draw_generations, tables, looks, about), (GENERATIONS,))]


def _draw_generations(tables: ModelTables, looks: Sequence[Look], about: Sequence[str], canvas: Figure) -> None:
    panels = canvas.subplots(-(-len(SHOWN) // NUM_COLUMNS), NUM_COLUMNS, sharey=True, squeeze=False).flat
    is_beside_placebos = [_draw_panel(axes, tables, looks, metric) for axes, metric in zip(panels, SHOWN, strict=True)]
    handles: list[Artist] = [Line2D([], [], color=BLACK, marker="o", ms=4, lw=1.5)]
    labels = ["mean difference from standard" + (", 95 % interval" if tables.num_sentences > 1 else "")]
    if any(is_beside_placebos):
        handles.append(Patch(facecolor=PLACEBO_COLOUR, edgecolor=PLACEBO_EDGE, lw=0.6))
        of_doses = any(about_placebos(look.condition) for look in looks)
        labels.append("range of the placebos of its vector" + (", at its largest strength" if of_doses else ""))
    columns = legend_columns(labels, canvas.get_figwidth())
    place_legend(canvas, handles, labels, loc="outside lower center", ncols=columns)
    subject = shown_name(looks[0].condition) if len(looks) == 1 else "each condition"
    write_title(canvas, f"What {subject} does to the text that is written", model_line(tables, *about))


def _draw_panel(axes: Axes, tables: ModelTables, looks: Sequence[Look], metric: str) -> bool:
    """Draw one metric, a row for each condition, the first above; return whether there are placebos beside it."""
    axes.grid(axis="y", visible=False)
    axes.use_sticky_edges = False  # of bars: they would end where the axis does
    has_placebos = False
    standard = np.nan
    for row, look in enumerate(looks):
        rows = verdict(tables, look.condition, metric)
        standard = rows.mean_standard[-1]
        placebos = placebo_means(tables, look.condition, metric)[:, -1]
        finite = placebos[np.isfinite(placebos)]
        if len(finite):
            has_placebos = True
            box: dict[str, Any] = {"color": PLACEBO_COLOUR, "edgecolor": PLACEBO_EDGE, "lw": 0.6, "zorder": 1}
            axes.barh(row, np.ptp(finite), BAR_HEIGHT, left=finite.min(), **box)
        axes.plot([rows.ci_low[-1], rows.ci_high[-1]], [row, row], color=look.colour, lw=1.8, zorder=2)
        axes.plot(rows.mean_difference[-1], row, "o", color=look.colour, ms=4.5, zorder=3)
    axes.axvline(0, color=BLACK, lw=0.7, zorder=1.5)
    axes.set_yticks(range(len(looks)), [shown_name(look.condition) for look in looks], parse_math=False)
    axes.set_ylim(len(looks) - 0.5, -0.5)
    beside = "" if metric == KL_FROM_STANDARD or np.isnan(standard) else f"\nstandard: {standard:.3g}"
    label = "KL from standard on that text (nats)" if metric == KL_FROM_STANDARD else axis_label(metric)
    axes.set_title(label + beside, fontsize=8.5, loc="left", parse_math=False)
    axes.tick_params(labelsize=8)
    _widen_constant(axes)
    return has_placebos


def _widen_constant(axes: Axes) -> None:
    """Keep differences that are all 0 from filling the axis with rounding errors."""
    low, high = axes.get_xlim()
    if high - low < 1e-6:
        axes.set_xlim(low - 0.5, high + 0.5)
