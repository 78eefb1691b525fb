"""Answers over depth: how often and how much the right one is preferred, and from which layer on for good."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llm_entropy.outputs.answers import AnswerCurves
from llm_entropy.outputs.inference.resampling import Interval
from llm_entropy.outputs.places import place_of_condition
from llm_entropy.outputs.plots.canvas import (
    BLACK,
    BLUE,
    GREY,
    Drawing,
    Numbers,
    marker,
    model_line,
    place_depth_ticks,
    shown_name,
    write_title,
)
from llm_entropy.outputs.tables import ModelTables
from llm_entropy.settings import ACCURACY, Condition
from llm_entropy.settings.plots import ANSWERS


def figures_of_answers(tables: ModelTables, run_dir: Path) -> list[Drawing]:
    """Return a figure of the answers under each condition.

    Args:
        tables: What the merge made of the model.
        run_dir: The run's folder; each figure goes to `plots` below its condition's folder.

    Returns:
        The figures, not drawn yet; none without right and wrong answers.
    """
    found = []
    for condition in tables.conditions:
        curves = tables.answers.get(condition.name)
        if curves is not None and curves.count:
            path = place_of_condition(run_dir, condition, tables.model).plot(ANSWERS)
            found.append(Drawing(path, 10.5, 3.9, partial(_draw_answers, tables, condition, curves), (ANSWERS,)))
    return found


def _draw_answers(tables: ModelTables, condition: Condition, curves: AnswerCurves, canvas: Figure) -> None:
    accuracy, preference, first = canvas.subplots(1, 3)
    _draw_curve(accuracy, curves.accuracy, curves.accuracy_interval, chance=0.5)
    accuracy.set_ylabel("Share of right answers preferred")
    accuracy.set_ylim(-0.03, 1.03)
    _draw_curve(preference, curves.preference, curves.preference_interval, chance=0.0)
    preference.set_ylabel("Preference for the right answer (nats)")
    _draw_first(first, curves)
    about = f"{curves.count:,} with both answers · mean, 95 % interval; dashed: no preference"
    write_title(canvas, f"Right against wrong answer, {shown_name(condition)}", model_line(tables, about))


def _draw_curve(axes: Axes, mean: Numbers, interval: Interval, chance: float) -> None:
    """Draw a mean over depth with its interval, and a line where neither answer is preferred."""
    depth = np.arange(len(mean))
    axes.axhline(chance, color=GREY, lw=1.0, ls="--", zorder=1)
    axes.fill_between(depth, interval.low, interval.high, color=BLUE, alpha=0.25, lw=0, zorder=2)
    axes.plot(depth, mean, color=BLACK, lw=2.0, zorder=3, **marker(len(depth)))
    place_depth_ticks(axes, len(depth), ACCURACY, most=8)


def _draw_first(axes: Axes, curves: AnswerCurves) -> None:
    """Draw from which layer on how many sentences prefer the right answer for good."""
    num_layers = len(curves.accuracy)
    shares = np.cumsum(curves.preferred_from[:-1]) / curves.count
    axes.step(np.arange(num_layers), shares, where="post", color=BLACK, lw=2.0)
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel("Share preferred from here on for good")
    place_depth_ticks(axes, num_layers, ACCURACY, most=8)
