"""All comparisons of a model in one figure: effects over depth with their intervals, the placebos behind them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.container import Container
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from llm_entropy.outputs.places import place_of_comparisons
from llm_entropy.outputs.plots.canvas import (
    BLACK,
    BLUE,
    GREEN,
    MOST_NAME,
    ORANGE,
    ROLE_COLOURS,
    Drawing,
    axis_label,
    is_logarithmic,
    legend_columns,
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
from llm_entropy.outputs.plots.dose_response import source_of, strength_of, strongest
from llm_entropy.outputs.plots.layout import PanelGrid
from llm_entropy.outputs.plots.lettering import shorten
from llm_entropy.outputs.plots.verdict import about_placebos, num_untouched, placebo_means, shade_untouched, verdict
from llm_entropy.outputs.points import drawn_points, num_points, with_points
from llm_entropy.outputs.tables import ModelTables
from llm_entropy.settings import COMPARISON_METRICS, KL_FROM_STANDARD, Condition
from llm_entropy.settings.plots import SUMMARY

MOST_CONDITIONS = 8
"""Most conditions that are told apart."""
DOSE_COLOURS = (("Blues", "Reds"), ("Purples", "Greens"))
"""Of doses below and above 0, for each of the first vectors that have several."""
BESIDE_DOSES = (ORANGE, BLACK, "#CC79A7", "#8c6d31", "#56B4E9", GREEN, "#999999", BLUE)
VECTOR_COLOURS = (ROLE_COLOURS["control"], GREEN, ORANGE, "#CC79A7", "#56B4E9", BLACK, BLUE, "#8c6d31")
LINES = ("-", "--", "-.", ":")
PLACEBO_COLOUR, PLACEBO_EDGE = "#d4d4d4", "#7a7a7a"
MOST_COLUMNS = 3


class Look(NamedTuple):
    """How a condition is drawn."""

    condition: Condition
    colour: str
    line: str


def figures_of_overview(tables: ModelTables, run_dir: Path) -> list[Drawing]:
    """Return the figure of what every condition changes in every metric.

    Args:
        tables: What the merge made of the model.
        run_dir: The run's folder; the figure goes to the folder of all comparisons.

    Returns:
        The figure, not drawn yet; none where nothing is compared.
    """
    if not tables.comparisons:
        return []
    metrics = with_points([*next(iter(tables.comparisons.values())).metrics, *COMPARISON_METRICS], tables.shape)
    num_columns = MOST_COLUMNS if len(metrics) > 4 else min(len(metrics), 2)
    num_rows = -(-len(metrics) // num_columns)
    size = max(3.1 * num_columns, 6.4), 1.2 + 2.05 * num_rows
    draw = partial(_draw_overview, tables, metrics, num_rows, num_columns)
    return [Drawing(place_of_comparisons(run_dir, tables.model).plot(SUMMARY), *size, draw, (SUMMARY,), PanelGrid)]


def _draw_overview(
    tables: ModelTables, metrics: Sequence[str], num_rows: int, num_columns: int, canvas: Figure
) -> None:
    everything = [compared.comparison.other for compared in tables.comparisons.values()]
    shown, about = chosen(everything)
    panels = canvas.subplots(num_rows, num_columns, squeeze=False).flat
    for axes in panels[len(metrics) :]:
        axes.remove()
    looks = looks_of(shown)
    for axes, metric in zip(panels, metrics, strict=False):
        handles, labels = _draw_panel(axes, tables, looks, metric)
    columns = legend_columns(labels, canvas.get_figwidth())
    place_legend(canvas, handles, labels, loc="outside lower center", ncols=columns)
    subject = shown_name(shown[0]) if len(shown) == 1 else "each condition"
    line = model_line(tables, "mean difference from standard", *about)
    write_title(canvas, f"What {subject} changes, by depth", line)


def chosen(conditions: Sequence[Condition]) -> tuple[list[Condition], list[str]]:
    """Return the conditions that are drawn, and what there is to say of those that are not.

    Strength 0 is the standard run itself, and left out beside others. Of more than eight the strongest dose of each
    vector is drawn, up and down; if these are more than eight, the strongest of the first eight vectors.
    """
    steered = [one for one in conditions if strength_of(one) != 0] or list(conditions)
    if len(steered) <= MOST_CONDITIONS:
        return steered, []
    by_sign = _strongest(steered, with_sign=True)
    if len(by_sign) <= MOST_CONDITIONS:
        return by_sign, ["the strongest dose of each vector and sign"]
    by_vector = _strongest(steered, with_sign=False)
    more = f" of the first {MOST_CONDITIONS} vectors" if len(by_vector) > MOST_CONDITIONS else " of each vector"
    return by_vector[:MOST_CONDITIONS], [f"the strongest dose{more}"]


def _strongest(conditions: Sequence[Condition], *, with_sign: bool) -> list[Condition]:
    groups: dict[tuple[str, bool], list[Condition]] = {}
    for one in conditions:
        groups.setdefault((source_of(one), with_sign and strength_of(one) < 0), []).append(one)
    return [strongest(group) for group in groups.values()]


def looks_of(conditions: Sequence[Condition]) -> list[Look]:
    """Return how conditions are drawn: doses of a vector in shades of two colours about 0, other vectors in their own.

    Lines differ too, for paper without colour: those of doses below 0 are dashed, those of vectors beside doses dotted.
    """
    if len(conditions) == 1:
        return [Look(conditions[0], ROLE_COLOURS["control"], "-")]
    sources = [source_of(one) for one in conditions]
    dosed = [source for source, count in Counter(sources).items() if count > 1]
    shades = dict(zip(dosed, DOSE_COLOURS, strict=False))
    rest = [one for one, source in zip(conditions, sources, strict=True) if source not in shades]
    colours = BESIDE_DOSES if shades else VECTOR_COLOURS
    lines = LINES[2:] if shades else LINES
    looks = {one.name: Look(one, colours[k], lines[k % len(lines)]) for k, one in enumerate(rest)}
    sizes = {
        source: sorted({abs(strength_of(one)) for one in conditions if source_of(one) == source}) for source in shades
    }
    for one, source in zip(conditions, sources, strict=True):
        if source in shades:
            looks[one.name] = _dose_look(one, shades[source], sizes[source])
    return [looks[one.name] for one in conditions]


def _dose_look(condition: Condition, maps: tuple[str, str], sizes: list[float]) -> Look:
    """Return the look of a dose: one colour up, another down, the darker the stronger, in even steps."""
    strength = strength_of(condition)
    share = (1 + sizes.index(abs(strength))) / len(sizes)
    colour = colormaps[maps[strength > 0]](0.38 + 0.52 * share)
    return Look(condition, to_hex(colour), "-" if strength > 0 else "--")


def _draw_panel(
    axes: Axes, tables: ModelTables, looks: Sequence[Look], metric: str
) -> tuple[list[Artist | Container], list[str]]:
    """Draw one metric: placebos, zero, then each condition."""
    handles: list[Artist | Container] = []
    labels: list[str] = []
    own = [(look, verdict(tables, look.condition, metric)) for look in looks]
    depth, width = drawn_points(metric, tables.shape), num_points(metric, tables.shape)
    has_dots = len(looks) == 1 or len(depth) < width
    for look, rows in own:
        shade(axes, depth, rows.ci_low[depth], rows.ci_high[depth], color=look.colour, alpha=0.25, lw=0, zorder=2)
        dots: dict[str, Any] = marker(len(depth), size=2.4) if has_dots else {}
        means = rows.mean_difference[depth]
        handles += axes.plot(depth, means, look.line, color=look.colour, lw=1.5, zorder=3, **dots)
        labels.append(shown_name(look.condition))
    if tables.num_sentences > 1:
        handles.append(Patch(color=looks[0].colour if len(looks) == 1 else BLACK, alpha=0.25, lw=0))
        labels.append("95 % interval")
    _draw_placebos(axes, tables, looks, metric, handles, labels)
    axes.axhline(0, color=BLACK, lw=0.7, zorder=1.5)
    place_depth_ticks(axes, width, metric, most=7)
    axes.set_title(
        "KL from standard (nats)" if metric == KL_FROM_STANDARD else axis_label(metric),
        fontsize=9,
        loc="left",
        parse_math=False,
    )
    axes.tick_params(labelsize=8)
    widen_constant(axes)
    if is_logarithmic(metric):
        use_both_logarithms(axes, beyond=1000)
    shade_untouched(axes, min(num_untouched(tables, look.condition) for look in looks), handles, labels)
    return handles, labels


def _draw_placebos(
    axes: Axes,
    tables: ModelTables,
    looks: Sequence[Look],
    metric: str,
    handles: list[Artist | Container],
    labels: list[str],
) -> None:
    """Draw from the smallest to the largest mean difference of the placebos of all vectors that are drawn."""
    by_source = {source_of(look.condition): look.condition for look in looks}
    own = {source: placebo_means(tables, condition, metric) for source, condition in by_source.items()}
    means = np.concatenate(list(own.values()))
    if not len(means):
        return
    values = np.ma.masked_invalid(means)
    depth = drawn_points(metric, tables.shape)
    low, high = (end.filled(np.nan)[depth] for end in (values.min(axis=0), values.max(axis=0)))
    shade(axes, depth, low, high, color=PLACEBO_COLOUR, lw=0, zorder=1)
    for edge in (low, high):  # seen through the intervals before it
        axes.plot(depth, edge, color=PLACEBO_EDGE, lw=0.6, zorder=2.5)
    handles.append(Patch(facecolor=PLACEBO_COLOUR, edgecolor=PLACEBO_EDGE, lw=0.6))
    labels.append(
        _placebo_label([by_source[source] for source in own if len(own[source])], len(means), are_many=len(own) > 1)
    )


def _placebo_label(conditions: Sequence[Condition], count: int, *, are_many: bool) -> str:
    """Return what the legend calls the placebos: whose they are where that is a question, and how strong."""
    label = "the one placebo" if count == 1 else f"range of {count} placebos"
    if len(conditions) > 1:
        return label
    whose = f" of {shorten(source_of(conditions[0]), MOST_NAME)}" if are_many else ""
    return label + whose + about_placebos(conditions[0])
