"""What a language model believes at every layer, over a whole corpus, and what a control vector changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_entropy.settings import (
    METRICS,
    AnalysisSettings,
    ControlSettings,
    DataSettings,
    ExtractSettings,
    ModelSettings,
    OutputSettings,
    Settings,
    TrainerSettings,
)

if TYPE_CHECKING:
    from llm_entropy import functional
    from llm_entropy.analysis import extract, run_analysis
    from llm_entropy.library import LanguageModel, measure, open_model, steer
    from llm_entropy.outputs.extraction.making import merge_vectors
    from llm_entropy.outputs.extraction.result import ExtractionResult
    from llm_entropy.outputs.making import merge_run
    from llm_entropy.outputs.results import RunResult

__all__ = [
    "METRICS",
    "AnalysisSettings",
    "ControlSettings",
    "DataSettings",
    "ExtractSettings",
    "ExtractionResult",
    "LanguageModel",
    "ModelSettings",
    "OutputSettings",
    "RunResult",
    "Settings",
    "TrainerSettings",
    "extract",
    "functional",
    "measure",
    "merge_run",
    "merge_vectors",
    "open_model",
    "run_analysis",
    "steer",
]

_LATE = {
    "extract": "llm_entropy.analysis",
    "run_analysis": "llm_entropy.analysis",
    "LanguageModel": "llm_entropy.library",
    "measure": "llm_entropy.library",
    "open_model": "llm_entropy.library",
    "steer": "llm_entropy.library",
    "ExtractionResult": "llm_entropy.outputs.extraction.result",
    "merge_vectors": "llm_entropy.outputs.extraction.making",
    "RunResult": "llm_entropy.outputs.results",
    "merge_run": "llm_entropy.outputs.making",
}


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first asked for, so that the command line's help does not."""
    from importlib import import_module, metadata

    if name == "__version__":
        return metadata.version("llm_entropy")
    if name == "functional":
        return import_module(f"{__name__}.{name}")
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATE[name]), name)
