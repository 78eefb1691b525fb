"""Where the panel of a figure stands: its letters are measured once, which matplotlib's own layout does thrice."""

from __future__ import annotations

from typing import Any

from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.layout_engine import LayoutEngine

PAD = 0.042
"""Inches that stay free at the edges."""
LABEL_GAP = 0.055
"""Inches between the numbers of an axis and its label."""
FIRST_GUESS = (0.11, 0.28, 0.87, 0.58)
"""Left, bottom, width and height of the panel as parts of the figure; near the end, so that the ticks stay."""


class SinglePanel(LayoutEngine):
    """Lays out a figure that has one panel, a title above it and a legend below it."""

    _adjust_compatible = False
    _colorbar_gridspec = False

    def execute(self, fig: Figure) -> None:
        """Place title, panel and labels, so that nothing is cut off."""
        (axes,) = fig.axes
        width, height, pad = *fig.bbox.size, PAD * fig.dpi
        (heading,) = (text for text in fig.texts if text.get_text())
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


def _beyond(axis: Axis) -> Any:
    """Return the box of an axis without its label."""
    axis.label.set_visible(False)
    try:
        return axis.get_tightbbox()
    finally:
        axis.label.set_visible(True)
