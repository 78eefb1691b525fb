"""Runs from Python, with the words of the configuration as arguments."""

from llm_entropy.analysis.extracting import extract
from llm_entropy.analysis.predicting import run_analysis

__all__ = ["extract", "run_analysis"]
