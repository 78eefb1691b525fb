"""Where the panels of a figure stand: its letters are measured once, which matplotlib's own layout does thrice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.layout_engine import LayoutEngine
from matplotlib.text import Text

PAD = 0.042
"""Inches that stay free at the edges."""
LABEL_GAP = 0.055
"""Inches between the numbers of an axis and its label."""
FIRST_GUESS = (0.11, 0.28, 0.87, 0.58)
"""Left, bottom, width and height of the panel as parts of the figure; near the end, so that the ticks stay."""
FIRST_MARGINS = (0.42, 0.12), (0.36, 0.3)
"""Inches at the left and right, bottom and top of each panel of a grid, until these are measured."""
MOST_MEASURES = 3
"""Most times that a grid is measured: again where the panels' new sizes have other numbers on their axes."""

Floats = npt.NDArray[np.float64]
Span = tuple[float, float]


class SinglePanel(LayoutEngine):
    """Lays out a figure that has one panel, a title above it and a legend below it."""

    _adjust_compatible = False
    _colorbar_gridspec = False

    def execute(self, fig: Figure) -> None:
        """Place title, panel and labels, so that nothing is cut off."""
        (axes,) = fig.axes
        width, height, pad = *fig.bbox.size, PAD * fig.dpi
        heading = _heading(fig)
        heading.set_y(1 - pad / height)
        top = heading.get_window_extent().height + 3 * pad  # the number at the upper end of the axis stands out by half
        axes.set_position(FIRST_GUESS)
        panel = axes.get_window_extent().frozen()  # as it is now: it moves with the panel
        beside, below = _beyond(axes.yaxis), _beyond(axes.xaxis)
        gap = LABEL_GAP * fig.dpi
        left = pad + axes.yaxis.label.get_window_extent().width + gap + panel.x0 - beside.x0
        legend: Any = axes.get_legend()
        below_panel = legend.get_window_extent()
        share = (panel.y0 - below_panel.y1) / panel.height  # how far below the panel, as a part of its height
        inner = (height - top - pad - below_panel.height) / (1 + share)
        bottom = height - top - inner
        axes.set_position((left / width, bottom / height, (width - left - pad) / width, inner / height))
        axes.yaxis.set_label_coords(-(panel.x0 - beside.x0 + gap) / (width - left - pad), 0.5)
        axes.xaxis.set_label_coords(0.5, -(panel.y0 - below.y0 + gap) / inner)


class PanelGrid(LayoutEngine):
    """Lays out a figure whose panels stand in a grid, with a title above it, and legends below it, if there are any."""

    _adjust_compatible = False
    _colorbar_gridspec = False

    def execute(self, fig: Figure) -> None:
        """Place title and panels, so that nothing is cut off."""
        (width, height), pad = fig.bbox.size, PAD * fig.dpi
        heading = _heading(fig)
        heading.set_y(1 - pad / height)
        bottom = pad + sum(legend.get_window_extent().height + 2 * pad for legend in fig.legends)
        across, upward = (pad, width - pad), (bottom, height - heading.get_window_extent().height - 3 * pad)
        cells = _cells(fig)
        sizes = zip(FIRST_MARGINS, (len(cells.widths), len(cells.heights)), strict=True)
        margins = [np.tile(np.multiply(first, fig.dpi), (size, 1)) for first, size in sizes]
        numbers = None
        for _ in range(MOST_MEASURES):
            _place(fig, cells, across, upward, margins)
            shown = [tuple(axes.yaxis.get_majorticklocs()) for axes in fig.axes]
            if shown == numbers:
                return
            numbers, margins = shown, _measured(fig, cells)
        _place(fig, cells, across, upward, margins)


class _Cells(NamedTuple):
    """Which cells of a grid the panels take up; rows are counted from below."""

    columns: list[tuple[int, int]]
    """First and last of each panel."""
    rows: list[tuple[int, int]]
    """Lowest and highest of each panel."""
    widths: Sequence[float]
    """Of the columns, in proportion."""
    heights: Sequence[float]
    """Of the rows, in proportion."""


def _cells(figure: Figure) -> _Cells:
    spans: list[Any] = [axes.get_subplotspec() for axes in figure.axes]
    grid = spans[0].get_gridspec()
    last = grid.nrows - 1
    return _Cells(
        [(span.colspan.start, span.colspan.stop - 1) for span in spans],
        [(last - span.rowspan.stop + 1, last - span.rowspan.start) for span in spans],
        grid.get_width_ratios(),
        grid.get_height_ratios()[::-1],
    )


def _place(figure: Figure, cells: _Cells, across: Span, upward: Span, margins: Sequence[Floats]) -> None:
    """Place the panels between two ends across and upward, with margins as `_measured` returns them."""
    (width, height), gap = figure.bbox.size, 2 * PAD * figure.dpi
    left, right = _edges(*across, margins[0], cells.widths, gap) / width
    lower, upper = _edges(*upward, margins[1], cells.heights, gap) / height
    for axes, (first, last), (lowest, highest) in zip(figure.axes, cells.columns, cells.rows, strict=True):
        x, y = left[first], lower[lowest]
        axes.set_position((x, y, right[last] - x, upper[highest] - y))


def _measured(figure: Figure, cells: _Cells) -> list[Floats]:
    """Return what is needed before and after each column, [column, 2], and below and above each row, [row, 2]."""
    boxes = [(axes.get_window_extent(), _around(axes)) for axes in figure.axes]
    beside = [(own.x0 - box.x0, box.x1 - own.x1) for own, box in boxes]
    beyond = [(own.y0 - box.y0, box.y1 - own.y1) for own, box in boxes]
    return [_margins(cells.columns, beside, len(cells.widths)), _margins(cells.rows, beyond, len(cells.heights))]


def _heading(figure: Figure) -> Text:
    (heading,) = (text for text in figure.texts if text.get_text())
    return heading


def _around(axes: Axes) -> Any:
    """Return the box of a panel with all that belongs to it."""
    for axis in (axes.xaxis, axes.yaxis):
        if not axis.label.get_text():
            axis.set_label_coords(0.5, 0.5)  # anywhere: without a place it is looked for here, and when it is drawn
    return axes.get_tightbbox(for_layout_only=True)


def _margins(spans: Sequence[tuple[int, int]], sizes: Sequence[tuple[float, float]], count: int) -> Floats:
    """Return what is needed before and after each column of a grid, or each row: [column, 2].

    Args:
        spans: First and last column of each panel.
        sizes: What each panel needs before and after it.
        count: Number of columns.
    """
    margins = np.zeros((count, 2))
    for span, own in zip(spans, sizes, strict=True):
        for side in (0, 1):
            margins[span[side], side] = max(margins[span[side], side], own[side])
    return margins


def _edges(start: float, end: float, margins: Floats, ratios: Sequence[float], gap: float) -> Floats:
    """Return where each column of a grid, or each row, begins and ends: [2, column].

    Args:
        start: Of the grid.
        end: Of the grid.
        margins: [column, 2], as `_margins` returns them.
        ratios: Of the sizes of the columns.
        gap: Between the margins of two.
    """
    outer = margins.sum(axis=1)
    sizes = (end - start - outer.sum() - gap * (len(outer) - 1)) * np.asarray(ratios) / np.sum(ratios)
    before = start + np.cumsum(np.concatenate([[0.0], outer[:-1] + sizes[:-1] + gap]))
    begin = before + margins[:, 0]
    return np.stack([begin, begin + sizes])


def _beyond(axis: Axis) -> Any:
    """Return the box of an axis without its label."""
    axis.label.set_visible(False)
    axis.set_label_coords(0.5, 0.5)  # anywhere: without a place it is looked for here, and whenever it is drawn
    try:
        return axis.get_tightbbox()
    finally:
        axis.label.set_visible(True)
