"""The words of `output.plots` and `output.plot_format`: which plots there are, and how they are written."""

from typing import Literal, get_args

from llm_entropy.settings.metrics import COMPARISON_METRICS, METRICS

TOKEN_PROBABILITIES, COMPARISON, DIFFERENCES = "token_probabilities", "comparison", "differences"
LAYER_IMPACT, DOSE_RESPONSE, SUMMARY, MODELS = "layer_impact", "dose_response", "summary", "models"
GENERATIONS, ANSWERS, GROUPS, LENS_GRID = "generations", "answers", "groups", "lens_grid"

PLOTS = (
    *METRICS,
    *COMPARISON_METRICS,
    *(
        TOKEN_PROBABILITIES,
        COMPARISON,
        DIFFERENCES,
        LAYER_IMPACT,
        DOSE_RESPONSE,
        SUMMARY,
        MODELS,
        GENERATIONS,
        ANSWERS,
        GROUPS,
        LENS_GRID,
    ),
)
"""What can be chosen: a metric stands for all plots of it, a kind of plot for that plot of every metric."""

PlotFormat = Literal["png", "svg", "pdf"]
PLOT_FORMATS: tuple[str, ...] = get_args(PlotFormat)
