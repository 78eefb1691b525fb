"""Tables -> figures: the only place that draws.

`canvas` makes and saves figures, `lettering` writes on them, `condition` draws one condition, `comparative` what a
condition changed, with `impact`, where it acts; `dose_response` and `overview` draw all comparisons of a model
together, `generations` what they do to generated text, `side_by_side` the models of a run beside each other; `verdict`
looks up how sure a difference is.
"""

from collections.abc import Sequence
from pathlib import Path

from llm_entropy.outputs.plots.comparative import draw_comparison
from llm_entropy.outputs.plots.condition import draw_condition
from llm_entropy.outputs.plots.dose_response import draw_doses
from llm_entropy.outputs.plots.generations import draw_generations
from llm_entropy.outputs.plots.overview import draw_overview
from llm_entropy.outputs.plots.side_by_side import draw_models
from llm_entropy.outputs.tables import ModelTables

__all__ = ["draw_model", "draw_side_by_side"]


def draw_model(tables: ModelTables, run_dir: Path) -> list[Path]:
    """Draw every figure of one model: of its conditions, of each comparison, then of all comparisons together.

    Args:
        tables: What the merge made.
        run_dir: The run's folder; figures go to `plots` below the folder of each condition and comparison, and of all.

    Returns:
        The files, in the order in which they were drawn.
    """
    drawn = [path for condition in tables.conditions for path in draw_condition(tables, condition, run_dir)]
    drawn += [path for one in tables.comparisons.values() for path in draw_comparison(tables, one, run_dir)]
    of_all = (draw_doses, draw_overview, draw_generations)
    return [*drawn, *(path for draw in of_all for path in draw(tables, run_dir))]


def draw_side_by_side(tables: Sequence[ModelTables], run_dir: Path) -> list[Path]:
    """Draw the mean curves of all models, a figure per metric; where the standard condition was not run, of each one.

    Args:
        tables: What the merge made of each model; at least one, all of one run.
        run_dir: The run's folder; figures go to `plots` below each condition's folder.

    Returns:
        The files.
    """
    return [path for condition in tables[0].baselines for path in draw_models(tables, condition, run_dir)]
