"""What a module that measures is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Optional

from torch import Tensor

from llm_entropy.settings import AnalysisSettings
from llm_entropy.steering.plan import SteeringPlan


class Asked(NamedTuple):
    """What is measured of a model, and under which conditions."""

    analysis: AnalysisSettings
    """The metrics, where they are read, and the conditions."""
    plans: Mapping[str, SteeringPlan]
    """How each steered condition steers, by name."""
    word_starts: Optional[Tensor] = None
    """[vocab], bool, the tokens that begin a word or end the text, for the table of words; None: the vocabulary does
    not tell, or nobody asks."""
    reads_answers: bool = False
    """Whether there are answers: then surprisal and rank of the target are measured in any case."""
