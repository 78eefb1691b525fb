"""Figures of a finished run for a notebook, drawn from its tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
import pandas as pd

from llm_entropy.outputs.comparison import Moments, evenly_spaced
from llm_entropy.outputs.curves import SAMPLE_SIZE
from llm_entropy.outputs.inference.summary import Summary
from llm_entropy.outputs.lens_grids import read_lens_grid
from llm_entropy.outputs.places import place_of_condition
from llm_entropy.outputs.plots.canvas import Drawing, NotebookFigure
from llm_entropy.outputs.plots.comparative import figures_of_comparison
from llm_entropy.outputs.plots.condition import figures_of_condition
from llm_entropy.outputs.plots.lens_grid import figure_of_lens
from llm_entropy.outputs.plots.side_by_side import figures_of_models
from llm_entropy.outputs.reading import read_comparison, read_metric, read_summary
from llm_entropy.outputs.tables import ComparisonCurves, ComparisonTables, Curves, ModelTables
from llm_entropy.schema.shape import ModelShape
from llm_entropy.settings import COMPARISON_METRICS, Comparison, Condition
from llm_entropy.settings.plots import COMPARISON
from llm_entropy.store import manifest


def plot_condition(run_dir: Path, model: str, condition: Condition, metric: str) -> NotebookFigure:
    """Return a metric over depth: single sentences, their mean and deviation.

    Args:
        run_dir: The run's folder.
        model: The model's key.
        condition: One that keeps tokens.
        metric: A metric of the run.
    """
    tables = _tables(run_dir, model, [condition], [metric])
    return _of(figures_of_condition(tables, condition, run_dir), metric).figure()


def plot_comparison(run_dir: Path, model: str, comparison: Comparison, metric: str) -> NotebookFigure:
    """Return a metric under both conditions, with the interval of the difference; or a metric of the comparison alone.

    Args:
        run_dir: The run's folder.
        model: The model's key.
        comparison: Its other condition keeps tokens.
        metric: A metric of the run, `kl_from_standard` or `top1_changed`.
    """
    is_between = metric in COMPARISON_METRICS
    tables = _tables(run_dir, model, [])
    both = {}
    if not is_between:
        first, second = (read_metric(run_dir, model, condition, metric) for condition in comparison)
        difference = pd.DataFrame(second.to_numpy() - first.to_numpy())
        both = {metric: ComparisonCurves(_curves(first), _curves(second), _curves(difference))}
    between = {name: _curves(read_comparison(run_dir, model, comparison, name)) for name in COMPARISON_METRICS}
    compared = ComparisonTables(comparison, both, between)
    frame = read_summary(run_dir, model)
    tables.summary = Summary(**{name: frame[name].to_numpy() for name in frame.columns})
    return _of(figures_of_comparison(tables, compared, run_dir), metric, *([] if is_between else [COMPARISON])).figure()


def plot_models(run_dir: Path, models: Sequence[str], condition: Condition, metric: str) -> NotebookFigure:
    """Return the means of several models over relative depth.

    Args:
        run_dir: The run's folder.
        models: The models' keys.
        condition: One that keeps tokens.
        metric: A metric of the run.
    """
    tables = [_tables(run_dir, model, [condition], [metric]) for model in models]
    return _of(figures_of_models(tables, condition, run_dir), metric).figure()


def plot_lens_grid(
    run_dir: Path, model: str, shown: Condition | Comparison, sentence: Optional[int] = None
) -> NotebookFigure:
    """Return the lens grid of a condition, or of both conditions of a comparison.

    Args:
        run_dir: The run's folder.
        model: The model's key.
        shown: One that keeps tokens.
        sentence: As in `read_lens_grid`.
    """
    conditions = [*shown] if isinstance(shown, Comparison) else [shown]
    tables = _tables(run_dir, model, conditions)
    tables.lens = {one.name: read_lens_grid(run_dir, model, one, sentence) for one in conditions}
    return figure_of_lens(tables, place_of_condition(run_dir, conditions[-1], model), conditions).figure()


def _of(figures: Sequence[Drawing], *names: str) -> Drawing:
    return next(figure for figure in figures if set(names) <= set(figure.names))


def _tables(run_dir: Path, model: str, conditions: Sequence[Condition], metrics: Sequence[str] = ()) -> ModelTables:
    """Return some metrics of a model, as the merge would."""
    about: dict[str, Any] = manifest.read_manifest(run_dir)["models"][model]
    curves = {
        one.name: {metric: _curves(read_metric(run_dir, model, one, metric)) for metric in metrics}
        for one in conditions
    }
    count = about["num_sentences"]
    untouched = {name: own["first_layer"] or 0 for name, own in about.get("steering", {}).items()}
    shape = ModelShape.of(about["shape"])
    return ModelTables(
        model, about["name"], shape, count, about["num_records"], list(conditions), curves, {}, untouched=untouched
    )


def _curves(frame: pd.DataFrame) -> Curves:
    rows = frame.to_numpy(np.float64)
    moments = Moments.of(rows)
    sample = rows[evenly_spaced(len(rows), SAMPLE_SIZE)].astype(np.float32)
    return Curves(moments.rows, moments.mean, moments.deviation, sample)
