"""How good the vectors of an extraction are, over depth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes

from llm_entropy.outputs.plots.canvas import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    VERMILLION,
    figure,
    marker,
    place_legend,
    thinned,
    write_title,
)

if TYPE_CHECKING:
    import pandas as pd

PANELS = (
    ("Left-out pairs told apart", {"auroc": ("AUROC", BLUE), "shuffled_auroc": ("permuted labels", GREY)}),
    ("Standard deviations between means", {"d_prime": ("d'", VERMILLION)}),
    (
        "Agreement",
        {
            "split_half": ("two halves", GREEN),
            "mean_cosine": ("left-out pairs, mean cosine", ORANGE),
            "explained_variance": ("left-out pairs, explained", GREY),
        },
    ),
)
"""Titles of the axes, and what they show: label and colour by column."""


def draw_quality(table: pd.DataFrame, about: str, path: Path) -> None:
    """Draw the table of a model's quality.

    Args:
        table: A row per block.
        about: The line below the title.
        path: The file.
    """
    with figure(path, 10.2, 4.4) as canvas:
        for axes, (title, lines) in zip(canvas.subplots(1, len(PANELS)), PANELS, strict=True):
            _draw_lines(axes, table, title, lines)
        write_title(canvas, "Quality of the vectors by block", about)


def _draw_lines(axes: Axes, table: pd.DataFrame, title: str, lines: dict[str, tuple[str, str]]) -> None:
    num_blocks = len(table)
    shown = {name: look for name, look in lines.items() if table[name].notna().any()}
    handles = [
        axes.plot(table["block"], table[name], color=colour, lw=1.6, **marker(num_blocks))[0]
        for name, (_, colour) in shown.items()
    ]
    if "auroc" in lines:
        axes.axhline(0.5, color=GREY, lw=0.8, ls=":")
        axes.set_ylim(min(0.4, table[list(shown)].min().min() - 0.02), 1.02)
    ticks = thinned(num_blocks)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlabel("Block")
    axes.set_ylabel(title)
    place_legend(axes, handles, [label for label, _ in shown.values()], loc="lower left", bbox_to_anchor=(0, 1))
