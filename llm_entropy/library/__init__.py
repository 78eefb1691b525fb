"""Measuring and steering models in memory, without a run's folder."""

from llm_entropy.library.measuring import COLUMNS, measure
from llm_entropy.library.opening import LanguageModel, Openable, key_of, open_model
from llm_entropy.library.steering import steer

__all__ = ["COLUMNS", "LanguageModel", "Openable", "key_of", "measure", "open_model", "steer"]
