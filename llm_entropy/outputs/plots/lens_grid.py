"""The lens grid: the token that each layer would say, at the positions of a sentence or for several sentences."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch, Rectangle

from llm_entropy.outputs.comparison import evenly_spaced
from llm_entropy.outputs.places import Place, place_of_comparison, place_of_condition
from llm_entropy.outputs.plots.canvas import (
    BLACK,
    Drawing,
    Numbers,
    axis_label,
    model_line,
    place_legend,
    shown_name,
    thinned,
    write_title,
)
from llm_entropy.outputs.plots.lettering import plain, shorten, token_label
from llm_entropy.outputs.tables import LensGrid, ModelTables
from llm_entropy.settings import Condition
from llm_entropy.settings.plots import LENS_GRID

MOST_ROWS = 32
"""About how many layers are drawn; of more, some evenly between the first and the last."""
MOST_BESIDE = 6
"""Most columns of a grid that stands beside another."""
COLUMN, ROW = 0.76, 0.25
"""Inches of a cell."""
MOST_TOKEN = 10
"""Letters of a token that a cell has room for."""
MOST_SENTENCE, LEAST_SENTENCE = 26, 12
"""Letters of a sentence below its column; and at least of one in the line below the title."""
LETTERS = 13
"""Letters of that line to an inch."""
LEAST_WIDTH = 4
"""A panel is as wide as so many columns at least."""
FRAMED = "the last layer's token"
COLOURS = "cividis"
"""From dark to light in any colour vision; a layer that is sure is light."""


class Panel(NamedTuple):
    """The grid of one condition, as far as it is drawn."""

    condition: Condition
    grid: LensGrid
    columns: list[int]
    """Which columns of the grid are drawn."""

    @property
    def values(self) -> Numbers:
        """[column, layer], what the colours show of the columns that are drawn."""
        grid = self.grid
        return (grid.probabilities if grid.entropy is None else grid.entropy)[self.columns]


def figures_of_lens(tables: ModelTables, run_dir: Path) -> list[Drawing]:
    """Return the lens grid of each condition that is compared with no other, and of each comparison, side by side.

    A condition without plots of its own has none.

    Args:
        tables: What the merge made; without `lens` there are no grids.
        run_dir: The run's folder.

    Returns:
        The figures, not drawn yet.
    """
    if not tables.lens:
        return []
    alone = [(place_of_condition(run_dir, one, tables.model), [one]) for one in tables.baselines]
    beside = [
        (place_of_comparison(run_dir, one.comparison, tables.model), [*one.comparison])
        for one in tables.comparisons.values()
        if one.comparison.other.has_plots
    ]
    return [figure_of_lens(tables, place, conditions) for place, conditions in [*alone, *beside]]


def figure_of_lens(tables: ModelTables, place: Place, conditions: Sequence[Condition]) -> Drawing:
    """Return the lens grid of some conditions side by side.

    Args:
        tables: What the merge made; with `lens` of each.
        place: Where it goes.
        conditions: One or two of them.
    """
    panels = [_panel(one, tables.lens[one.name], is_alone=len(conditions) == 1) for one in conditions]
    num_rows = len(thinned(tables.shape.num_layers, MOST_ROWS))
    width = 1.7 + sum(0.2 + COLUMN * _width(panel) for panel in panels)
    height = 1.95 + ROW * num_rows + (0.0 if panels[0].grid.sentence is not None else 1.0)
    return Drawing(place.plot(LENS_GRID), max(width, 6.4), height, partial(_draw, tables, panels), (LENS_GRID,))


def _panel(condition: Condition, grid: LensGrid, *, is_alone: bool) -> Panel:
    """Return what is drawn of a grid: the first positions of a sentence, or of many sentences some evenly between."""
    count = len(grid.tokens)
    most = count if is_alone else min(count, MOST_BESIDE)
    return Panel(
        condition, grid, list(range(most)) if grid.sentence is not None else evenly_spaced(count, most).tolist()
    )


def _width(panel: Panel) -> int:
    """Return over how many columns a panel stretches."""
    return max(len(panel.columns), LEAST_WIDTH)


def _draw(tables: ModelTables, panels: Sequence[Panel], canvas: Figure) -> None:
    is_entropy = panels[0].grid.entropy is not None
    largest = max((float(np.nanmax(panel.values, initial=0.0)) for panel in panels), default=0.0)
    scale = Normalize(0, (largest or 1.0) if is_entropy else 1.0)
    colours = f"{COLOURS}_r" if is_entropy else COLOURS
    layers = thinned(tables.shape.num_layers, MOST_ROWS)
    widths = [_width(panel) for panel in panels]
    all_axes = canvas.subplots(1, len(panels), squeeze=False, sharey=True, width_ratios=widths)[0]
    images = [_draw_panel(axes, panel, layers, scale, colours) for axes, panel in zip(all_axes, panels, strict=True)]
    all_axes[0].set_yticks(range(len(layers)), [str(layer) if layer else "emb." for layer in layers])
    all_axes[0].set_ylabel("Layer")
    bar = canvas.colorbar(images[0], ax=list(all_axes), pad=0.015, aspect=30, fraction=0.03)
    bar.outline.set_visible(False)
    bar.set_label(axis_label("entropy") if is_entropy else "Probability of the token", fontsize=8.5)
    place_legend(
        canvas, [Patch(facecolor="none", edgecolor=BLACK, lw=0.6)], [FRAMED], loc="outside lower center", fontsize=8
    )
    names = " and ".join(shown_name(panel.condition) for panel in panels)
    room = int(LETTERS * canvas.get_figwidth()) - len(model_line(tables))
    write_title(canvas, f"Most likely token by layer, {names}", model_line(tables, *_about(panels[0], room)))


def _about(panel: Panel, room: int) -> list[str]:
    """Return what the columns are, in at most about `room` letters."""
    shown, count, sentence = len(panel.columns), panel.grid.num_columns, panel.grid.sentence
    if sentence is None:
        return [f"{shown} of them drawn"] if shown < count else []
    part = f"the first {shown} of {count} positions of" if shown < count else "all positions of"
    return [f"{part} \u201c{shorten(plain(sentence), max(room - len(part) - 6, LEAST_SENTENCE))}\u201d"]


def _draw_panel(axes: Axes, panel: Panel, layers: Sequence[int], scale: Normalize, colours: str) -> AxesImage:
    grid = panel.grid
    values = panel.values[:, layers].T
    axes.grid(False)
    image = axes.imshow(
        np.ma.masked_invalid(values), cmap=colours, norm=scale, aspect="auto", origin="lower", interpolation="nearest"
    )
    inks = _inks(values, scale, colours)
    frames: dict[str, list[Rectangle]] = {}
    for (row, place), ink in np.ndenumerate(inks):
        own = grid.tokens[panel.columns[place]]
        token = own[layers[row]]
        look: dict[str, Any] = {
            "ha": "center",
            "va": "center",
            "fontsize": 6.5,
            "parse_math": False,
            "in_layout": False,
        }
        axes.text(place, row, token_label(token, MOST_TOKEN) if token else "", color=ink, **look)
        if token and token == own[-1]:
            frames.setdefault(ink, []).append(Rectangle((place - 0.46, row - 0.42), 0.92, 0.84))
    for ink, patches in frames.items():
        axes.add_collection(PatchCollection(patches, facecolor="none", edgecolor=ink, linewidths=0.6))
    _name_columns(axes, panel)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return image


def _inks(values: Numbers, scale: Normalize, colours: str) -> Any:
    """Return the colour of letters on each cell: white on dark."""
    red, green, blue, _ = np.moveaxis(colormaps[colours](scale(np.nan_to_num(values))), -1, 0)
    return np.where(0.3 * red + 0.59 * green + 0.11 * blue < 0.5, "white", BLACK)


def _name_columns(axes: Axes, panel: Panel) -> None:
    """Write what is read below each column, and its target above it, with the condition."""
    grid, places = panel.grid, range(len(panel.columns))
    read, targets = ([names[column] for column in panel.columns] for names in (grid.read, grid.targets))
    look: dict[str, Any] = {"fontsize": 7, "parse_math": False}
    if grid.sentence is None:
        labels = [shorten(plain(text), MOST_SENTENCE) for text in read]
        axes.set_xticks(places, labels, rotation=35, ha="right", rotation_mode="anchor", **look)
    else:
        axes.set_xticks(places, [token_label(token, MOST_TOKEN) for token in read], **look)
    axes.set_xlabel("Sentence" if grid.sentence is None else "Token that is read")
    above = axes.secondary_xaxis("top")
    above.set_xticks(places, [token_label(token, MOST_TOKEN) for token in targets], **look)
    above.tick_params(length=0)
    above.spines[:].set_visible(False)
    above.set_xlabel(f"Target, {plain(shown_name(panel.condition))}", parse_math=False, labelpad=7)
