"""Tables -> figures: the only place that draws.

`canvas` makes and saves figures, `layout` places their panels, `lettering` writes on them, `condition` draws one
condition, `lens_grid` the token of each layer, `answers` its answers, `groups` groups of sentences, `comparative` what
a condition changed, with `impact`, where it acts; `dose_response` and `overview` draw all comparisons of a model
together, `generations` what they do to generated text, `side_by_side` the models of a run beside each other; `verdict`
looks up how sure a difference is; `quality` draws how good extracted vectors are. `drawing` chooses figures and has
several processes draw them, each of which runs `worker`.
"""

from collections.abc import Sequence
from pathlib import Path

from llm_entropy.outputs.plots.answers import figures_of_answers
from llm_entropy.outputs.plots.canvas import Drawing
from llm_entropy.outputs.plots.comparative import figures_of_comparison
from llm_entropy.outputs.plots.condition import figures_of_condition
from llm_entropy.outputs.plots.dose_response import figures_of_doses
from llm_entropy.outputs.plots.generations import figures_of_generations
from llm_entropy.outputs.plots.groups import figures_of_groups
from llm_entropy.outputs.plots.lens_grid import figures_of_lens
from llm_entropy.outputs.plots.overview import figures_of_overview
from llm_entropy.outputs.plots.side_by_side import figures_of_models
from llm_entropy.outputs.tables import ModelTables

__all__ = ["draw_model", "draw_side_by_side", "figures_of_model", "figures_side_by_side"]


def figures_of_model(tables: ModelTables, run_dir: Path) -> list[Drawing]:
    """Return every figure of one model: of its conditions, of each comparison, then of all comparisons together.

    Those of a condition, and of its comparison, are left out where it has no plots of its own.

    Args:
        tables: What the merge made.
        run_dir: The run's folder; figures go to `plots` below the folder of each condition and comparison, and of all.

    Returns:
        The figures, not drawn yet.
    """
    conditions = [one for one in tables.conditions if one.has_plots]
    compared = [one for one in tables.comparisons.values() if one.comparison.other.has_plots]
    figures = [figure for condition in conditions for figure in figures_of_condition(tables, condition, run_dir)]
    figures += [figure for one in compared for figure in figures_of_comparison(tables, one, run_dir)]
    of_all = (
        figures_of_answers,
        figures_of_groups,
        figures_of_doses,
        figures_of_overview,
        figures_of_generations,
        figures_of_lens,
    )
    return [*figures, *(figure for make in of_all for figure in make(tables, run_dir))]


def figures_side_by_side(tables: Sequence[ModelTables], run_dir: Path) -> list[Drawing]:
    """Return the mean curves of all models, a figure per metric; without the standard condition, of each one.

    Args:
        tables: What the merge made of each model; at least one, all of one run.
        run_dir: The run's folder; figures go to `plots` below each condition's folder.

    Returns:
        The figures, not drawn yet.
    """
    return [figure for condition in tables[0].baselines for figure in figures_of_models(tables, condition, run_dir)]


def draw_model(tables: ModelTables, run_dir: Path) -> list[Path]:
    """Draw every figure of one model, in this process; return the files, in the order in which they were drawn.

    Args:
        tables: What the merge made.
        run_dir: The run's folder.
    """
    return [figure.save() for figure in figures_of_model(tables, run_dir)]


def draw_side_by_side(tables: Sequence[ModelTables], run_dir: Path) -> list[Path]:
    """Draw the mean curves of all models, in this process; return the files.

    Args:
        tables: What the merge made of each model; at least one, all of one run.
        run_dir: The run's folder.
    """
    return [figure.save() for figure in figures_side_by_side(tables, run_dir)]
