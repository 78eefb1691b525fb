"""The settings of a run: the typed, documented shape of its configuration, its conditions, and what a metric is called.

Plain data: nothing here imports anything heavy, not even for type checkers, so that help and errors are quick.
"""

from typing import Literal

from llm_entropy.settings.conditions import COMPARATIVE, CONTROL, STANDARD, Comparison, Condition, Mode, compared
from llm_entropy.settings.control import ControlSettings, ControlVectors, PlaceboSettings
from llm_entropy.settings.data import DataSettings
from llm_entropy.settings.extraction import ExtractionSettings, ExtractSettings
from llm_entropy.settings.metrics import (
    ACCURACY,
    ALL_METRICS,
    ANSWER_METRICS,
    BASELINE_METRICS,
    COMPARISON_METRICS,
    DEFAULT_METRICS,
    KL_FROM_STANDARD,
    LOG_BOUNDARY,
    METRICS,
    PREFERENCE,
    RESIDUAL_NORM,
    SINK_MASS,
    STANDARD_SURPRISAL,
    TEXT_METRICS,
    TOP1_CHANGED,
    WORD_METRICS,
    Metric,
    beside_sinks,
    needs_of,
)
from llm_entropy.settings.sections import (
    LOADED_PREFIX,
    AnalysisSettings,
    ModelSettings,
    OutputSettings,
    Settings,
    TrainerSettings,
    default_models,
    is_loaded,
    to_plain,
)

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
"""Where Lightning looks for a process's number, whether or not anybody has started several."""

Kind = Literal["causal", "masked"]

__all__ = [
    "ACCURACY",
    "ALL_METRICS",
    "ANSWER_METRICS",
    "BASELINE_METRICS",
    "COMPARATIVE",
    "COMPARISON_METRICS",
    "CONTROL",
    "DEFAULT_METRICS",
    "KL_FROM_STANDARD",
    "LOADED_PREFIX",
    "LOG_BOUNDARY",
    "METRICS",
    "PREFERENCE",
    "RANKS",
    "RESIDUAL_NORM",
    "SINK_MASS",
    "STANDARD",
    "STANDARD_SURPRISAL",
    "TEXT_METRICS",
    "TOP1_CHANGED",
    "WORD_METRICS",
    "AnalysisSettings",
    "Comparison",
    "Condition",
    "ControlSettings",
    "ControlVectors",
    "DataSettings",
    "ExtractSettings",
    "ExtractionSettings",
    "Kind",
    "Metric",
    "Mode",
    "ModelSettings",
    "OutputSettings",
    "PlaceboSettings",
    "Settings",
    "TrainerSettings",
    "beside_sinks",
    "compared",
    "default_models",
    "is_loaded",
    "needs_of",
    "to_plain",
]
