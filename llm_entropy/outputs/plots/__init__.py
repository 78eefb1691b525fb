"""Tables -> figures: the only place that draws.

`canvas` makes and saves figures, `lettering` writes on them, `condition` draws one condition, `comparative` what
control changed, `architectures` the models of a run side by side.
"""

from collections.abc import Sequence
from pathlib import Path

from llm_entropy.outputs.plots.comparative import draw_comparison
from llm_entropy.outputs.plots.condition import draw_condition
from llm_entropy.outputs.plots.side_by_side import draw_models
from llm_entropy.schema import ModelTables
from llm_entropy.settings import COMPARATIVE, STANDARD, Mode

__all__ = ["draw_model", "draw_side_by_side"]


def draw_model(tables: ModelTables, run_dir: Path, mode: Mode) -> list[Path]:
    """Draw every figure of one model.

    Args:
        tables: What the merge made.
        run_dir: The run's folder; figures go to `plots` below each condition's folder.
        mode: What the run did; `comparative` draws the comparison too.

    Returns:
        The files, in the order in which they were drawn.
    """
    drawn = [path for condition in tables.curves for path in draw_condition(tables, condition, run_dir)]
    return drawn + draw_comparison(tables, run_dir) if mode == COMPARATIVE else drawn


def draw_side_by_side(tables: Sequence[ModelTables], run_dir: Path, folder: str = STANDARD) -> list[Path]:
    """Draw one figure per metric with the mean curves of all models.

    Args:
        tables: What the merge made of each model.
        run_dir: The run's folder.
        folder: Which condition is drawn, and below which folder; `control` where nothing else was run.

    Returns:
        The files.
    """
    return draw_models(tables, run_dir, folder)
