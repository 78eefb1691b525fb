"""What a run will do to a model, checked before any weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from llm_entropy.lens import read_translators
from llm_entropy.models import ModelSource, find_model
from llm_entropy.settings import CONTROL, ModelSettings, Settings
from llm_entropy.steering import SteeringPlan, plan_steering
from llm_entropy.vectors import choose_vector, resolve_vector


@dataclass(frozen=True)
class Plan:
    """A model that was found, and what is asked of it."""

    source: ModelSource
    steering: Optional[SteeringPlan]
    """None in a standard run."""
    lens_path: Optional[Path]
    """Folder of a tuned lens."""
    max_length: Optional[int]
    """Most tokens of a sentence."""


def plan_model(key: str, model: str | ModelSettings, settings: Settings) -> Plan:
    """Check everything about a model that can be checked before its weights are read.

    Raises:
        ValueError: The model, its control vector, or what is asked of it is wrong.
    """
    analysis, data = settings.analysis, settings.data
    source = find_model(key, ModelSettings(model) if isinstance(model, str) else model)
    shape = source.shape
    for name, number in (("top_k", analysis.top_k), ("tracked_tokens", analysis.tracked_tokens)):
        if number > shape.vocab_size:
            raise ValueError(
                f"analysis.{name}: got {number}; the vocabulary of {key} has {shape.vocab_size} tokens, ask for fewer"
            )
    if data.max_length is not None and source.most_tokens is not None and data.max_length > source.most_tokens:
        raise ValueError(
            f"data.max_length: got {data.max_length}; {key} takes at most {source.most_tokens} tokens; "
            "give that or less, or null"
        )
    lens_path = None
    if analysis.lens == "tuned":
        assert analysis.lens_path is not None
        lens_path = Path(analysis.lens_path.replace("{model}", key)).expanduser()
        read_translators(lens_path, shape.num_blocks, shape.hidden_size)
    steering = None
    if CONTROL in analysis.conditions:
        chosen = choose_vector(analysis.control)
        vector = resolve_vector(
            chosen.value, key=chosen.key, model=key, num_blocks=shape.num_blocks, hidden_size=shape.hidden_size
        )
        steering = plan_steering(analysis.control, vector, num_blocks=shape.num_blocks, sign=chosen.sign)
    return Plan(source, steering, lens_path, data.max_length or source.most_tokens)
