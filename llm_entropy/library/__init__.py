"""A library, not only a program: models that are loaded are proved, measured and steered in memory, no folder."""

from llm_entropy.library.measuring import COLUMNS, measure
from llm_entropy.library.opening import LanguageModel, Openable, key_of, open_model
from llm_entropy.library.steering import steer

__all__ = ["COLUMNS", "LanguageModel", "Openable", "key_of", "measure", "open_model", "steer"]
