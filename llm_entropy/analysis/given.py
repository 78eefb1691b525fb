"""What is given in Python, as settings hold it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union

import numpy as np
import numpy.typing as npt
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm_entropy.errors import ReportedError
from llm_entropy.library import LanguageModel, key_of
from llm_entropy.models.finding import ModelSource
from llm_entropy.models.loaded import loaded_source
from llm_entropy.settings import ControlSettings, ControlVectors, ModelSettings
from llm_entropy.settings.fields import holds_arrays, plain_value
from llm_entropy.steering.tensors import as_vector

Section = TypeVar("Section")
Loaded = Union[LanguageModel, PreTrainedModel, tuple[PreTrainedModel, PreTrainedTokenizerBase]]
Model = Union[str, Path, Mapping[str, Any], ModelSettings, Loaded]
Row = Union[Tensor, npt.NDArray[np.floating], Sequence[float]]
Vector = Union[str, Path, Row, Sequence[Row]]
Weights = Union[Tensor, npt.NDArray[np.floating], Sequence[float]]


def section_of(given: Any, key: str, section: type[Section], name: str = "", hint: str = "") -> Section:
    """Return a section of the settings, of settings, a mapping, or the value of the key that matters most in it.

    Args:
        given: None: the defaults.
        key: Of the section.
        section: The class of its settings.
        name: The key in it that text or a path stands for.
        hint: What to do with anything else.
    """
    if given is None:
        return section()
    if name and isinstance(given, (str, os.PathLike)):
        given = {name: given}
    if hint and not isinstance(given, (Mapping, section)):
        raise ReportedError(f"{key}: got {type(given).__name__}; expected text, a path, or {section.__name__}; {hint}")
    made: Section = plain_value(given, section, key)
    return made


def models_by_key(models: Any) -> dict[str, Any]:
    """Return models by a key each, which names files; of a name or of several, the last part of the name is the key."""
    if isinstance(models, Mapping):
        return dict(models)
    several = list(models) if isinstance(models, (list, tuple)) and not _is_pair(models) else [models]
    by_key: dict[str, Any] = {}
    for model in several:
        key, taken = key_of(_model_in(model)), {other.casefold() for other in by_key}
        numbered = itertools.chain([key], (f"{key}-{number}" for number in itertools.count(2)))
        by_key[next(name for name in numbered if name.casefold() not in taken)] = model
    return by_key


def _is_pair(model: Any) -> bool:
    """Whether it is a model with its tokenizer, and not several models."""
    return (
        isinstance(model, (list, tuple))
        and len(model) == 2
        and isinstance(model[0], PreTrainedModel)
        and isinstance(model[1], PreTrainedTokenizerBase)
    )


def _model_in(model: Any) -> Any:
    """Return what names a model: of one that is loaded, the model itself."""
    return model.model if isinstance(model, LanguageModel) else model[0] if _is_pair(model) else model


def loaded_apart(models: Mapping[Any, Any]) -> tuple[dict[str, Any], dict[str, ModelSource]]:
    """Return models by key as settings hold them, and those that are loaded."""
    by_key, loaded = dict(models), {}
    for key, model in models.items():
        if isinstance(model, LanguageModel):
            assert model.source.loaded is not None
            loaded[key] = loaded_source(key, model.source.loaded, model.tokenizer)
        elif isinstance(model, PreTrainedModel) or _is_pair(model):
            loaded[key] = loaded_source(key, *(model if _is_pair(model) else (model,)))
        if key in loaded:
            by_key[key] = loaded[key].settings
    return by_key, loaded


def vector_of(key: str, vector: Any) -> Any:
    """Return a vector as settings hold it: arrays and lists of them as a tensor, whose width is taken as meant."""
    if not holds_arrays(vector):
        return vector
    try:
        return as_vector(vector)
    except ReportedError as error:
        raise ReportedError(f"{key}: {error}") from error


def vectors_of(pair: Any, key: str = "analysis.control") -> Any:
    """Return `positive` and `negative` vectors as settings hold them."""
    if isinstance(pair, ControlVectors):
        pair = vars(pair)
    if not isinstance(pair, Mapping):
        return pair
    return {name: vector_of(f"{key}.control_vectors.{name}", vector) for name, vector in pair.items()}


def conditions_of(conditions: Any) -> Any:
    """Return further conditions as settings hold them."""
    if conditions is None:
        return {}
    if not isinstance(conditions, Mapping):
        return conditions
    made = {}
    for name, given in conditions.items():
        own, key = vars(given) if isinstance(given, ControlSettings) else given, f"analysis.conditions.{name}"
        if isinstance(own, Mapping):
            own = {**own}
            if "control_vector" in own:
                own["control_vector"] = vector_of(f"{key}.control_vector", own["control_vector"])
            if "control_vectors" in own:
                own["control_vectors"] = vectors_of(own["control_vectors"], key)
        made[name] = own
    return made
