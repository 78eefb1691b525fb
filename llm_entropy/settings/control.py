"""How a model is steered: the settings of one vector."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar, Literal, Optional, Union

from llm_entropy.errors import ReportedError
from llm_entropy.settings.fields import ARRAYS, check_at_least, make_plain_

VectorLike = Union[str, list[float], list[list[float]]]
TOKENS = ("all", "last", "prompt", "no_special")
"""Words for which tokens of a sentence are steered; beside them, slices."""
SCALED = ("add", "add_keep_norm")
"""Operators that push the more the larger the strength is, so that a strength can be searched."""
LEAST_TARGET = 1e-3
"""Nats: KL is right to about 3e-6 in float32, far less than the 5 % by which the search may miss the target."""
_SLICE = re.compile(r"\s*(-?\d+)?\s*:\s*(-?\d+)?\s*(?::\s*(-?\d+)?\s*)?")


@dataclass
class ControlVectors:
    """A pair of control vectors, of which `direction` chooses one."""

    positive: Optional[VectorLike] = field(default=None, metadata=ARRAYS)
    """A file, or numbers: [hidden], [blocks, hidden] or [blocks + 1, hidden]; a shorter list is repeated."""
    negative: Optional[VectorLike] = field(default=None, metadata=ARRAYS)
    """As `positive`."""

    def __post_init__(self) -> None:
        make_plain_(self, "analysis.control.control_vectors")


@dataclass
class PlaceboSettings:
    """How many placebos of each kind: vectors of the same size, without the vector's meaning."""

    random: int = 0
    """Random directions with the vector's norm at every block."""
    orthogonal: int = 0
    """The same, at right angles to the vector."""
    shuffled: int = 0
    """Vectors that `llm-entropy extract` made from permuted labels and keeps in the vector's file."""

    def __post_init__(self) -> None:
        make_plain_(self, "analysis.control.placebo")
        for item in fields(self):
            check_at_least(f"analysis.control.placebo.{item.name}", getattr(self, item.name), 0)


@dataclass
class ControlSettings:
    """How a condition steers the model."""

    KEY: ClassVar[str] = "analysis.control"
    """Its place in the configuration, in messages, unless it is one of `analysis.conditions`."""

    enabled: Optional[bool] = None
    """Whether it is run; null: if a vector is given."""
    control_vector: Optional[VectorLike] = field(default=None, metadata=ARRAYS)
    """A file (.pt, .safetensors, .npy, .gguf; `{model}` in it stands for the model's key), or numbers."""
    control_vectors: Optional[ControlVectors] = None
    """A pair, from which `direction` chooses one. `control_vector` takes precedence."""
    direction: Literal["positive", "negative"] = "positive"
    """Which of `control_vectors` acts. With a single `control_vector`, negative reverses its sign."""
    strength: float = 1.0
    """Factor on every vector."""
    strengths: Optional[list[float]] = None
    """Several factors, instead of `strength`. Each makes a condition, such as control_-1 or control_+0.5."""
    target_kl: Optional[float] = None
    """Search, for each model, the strength at which the 95th percentile of KL(standard, condition) over positions is
    this many nats. `strength` and `strengths` are then multiples of it. null: no search."""
    found_strengths: Optional[dict[str, float]] = None
    """Strengths that `target_kl` found, by model. A run writes them here; a resume does not search them again."""
    layer_weights: Optional[list[float]] = None
    """A factor for each block (or one more, the first for the embeddings); other lengths are interpolated."""
    token_weights: Optional[list[float]] = None
    """Factors interpolated over the real tokens of each sentence."""
    operator: Literal["add", "add_keep_norm", "project_out", "cap"] = "add"
    """What happens to the stream: the vector is added, or added at the same norm, projected out, or capped along it."""
    cap: Optional[float] = None
    """Largest component along the vector that `operator: cap` leaves."""
    blocks: Optional[Union[str, list[int]]] = None
    """Which blocks are steered: a list of numbers, or a slice such as "8:12" (in quotes); null: all of the vector's."""
    tokens: str = "all"
    """Which tokens of a sentence are steered, without padding: all, last, prompt, no_special, or a slice as "5:"."""
    placebo: PlaceboSettings = field(default_factory=PlaceboSettings)
    """Placebos that are run beside the vector, at the largest of its strengths; needs compare_control."""

    def __post_init__(self) -> None:
        make_plain_(self, self.KEY)
        _check_finite("analysis.control.strength", [self.strength])
        _check_finite("analysis.control.strengths", self.strengths)
        _check_finite("analysis.control.layer_weights", self.layer_weights)
        _check_finite("analysis.control.token_weights", self.token_weights)
        if self.strengths is not None and self.strength != 1.0:
            raise ReportedError(
                f"analysis.control.strengths: got {self.strengths} beside analysis.control.strength {self.strength:g}; "
                "give one of the two"
            )
        self._check_target()
        self._check_cap()
        _check_blocks(self.blocks)
        if self.tokens not in TOKENS and not is_slice(self.tokens):
            raise ReportedError(
                f"analysis.control.tokens: got {self.tokens!r}; expected one of {', '.join(TOKENS)}, or a slice as '5:'"
            )

    def _check_target(self) -> None:
        if self.found_strengths is not None:
            if self.target_kl is None:
                raise ReportedError(
                    f"analysis.control.found_strengths: got {self.found_strengths}, but analysis.control.target_kl is "
                    "null; give the strength itself as analysis.control.strength, or the target that led to these"
                )
            for model, strength in self.found_strengths.items():
                if not (math.isfinite(strength) and strength > 0):
                    raise ReportedError(
                        f"analysis.control.found_strengths.{model}: got {strength}; expected a number above 0"
                    )
        if self.target_kl is None:
            return
        if not (math.isfinite(self.target_kl) and self.target_kl >= LEAST_TARGET):
            raise ReportedError(
                f"analysis.control.target_kl: got {self.target_kl:g}; expected a number of nats, at least "
                f"{LEAST_TARGET:g}, below which rounding counts"
            )
        if self.operator not in SCALED:
            raise ReportedError(
                f"analysis.control.target_kl: got {self.target_kl:g}, but analysis.control.operator is "
                f"{self.operator}, whose strength is the share that is taken off (1 is all), not a dose that can be "
                f"raised; expected {' or '.join(SCALED)}, or no target_kl"
            )
        if not any(self.all_strengths):
            raise ReportedError(
                f"analysis.control.target_kl: got {self.target_kl:g}, but every strength is 0, which is the standard "
                "run; expected a strength that is not 0, a multiple of the one that is searched"
            )

    def _check_cap(self) -> None:
        if self.operator == "cap" and self.cap is None:
            raise ReportedError(
                "analysis.control.cap: got null, but analysis.control.operator is cap; give a number, the largest "
                "component along the vector that is left"
            )
        if self.operator != "cap" and self.cap is not None:
            raise ReportedError(
                f"analysis.control.cap: got {self.cap:g}, but analysis.control.operator is {self.operator}; "
                "set the operator to cap, or leave the cap out"
            )
        _check_finite("analysis.control.cap", None if self.cap is None else [self.cap])

    @property
    def has_vector(self) -> bool:
        """Whether any vector is given, whatever `enabled` says."""
        pair = self.control_vectors or ControlVectors()
        return any(vector is not None for vector in (self.control_vector, pair.positive, pair.negative))

    @property
    def is_enabled(self) -> bool:
        """Whether it is to be run."""
        return self.has_vector if self.enabled is None else self.enabled

    @property
    def all_strengths(self) -> list[float]:
        """The strengths, at least one."""
        return [self.strength] if self.strengths is None else self.strengths


def _check_finite(key: str, numbers: Optional[Sequence[float]]) -> None:
    if numbers is not None and (not numbers or not all(math.isfinite(number) for number in numbers)):
        raise ReportedError(f"{key}: got {numbers}; expected finite numbers")


def is_slice(text: str) -> bool:
    """Whether a text is a slice as Python writes it, `start:stop` or `start:stop:step`."""
    return _SLICE.fullmatch(text) is not None and as_slice(text).step != 0


def as_slice(text: str) -> slice:
    """Return the slice that a text is, for which `is_slice` holds."""
    found = _SLICE.fullmatch(text)
    assert found is not None, text
    return slice(*(None if part is None else int(part) for part in found.groups()))


def _check_blocks(blocks: Optional[Union[str, list[int]]]) -> None:
    if blocks is None or (is_slice(blocks) if isinstance(blocks, str) else blocks):
        return
    raise ReportedError(
        f"analysis.control.blocks: got {blocks!r}; expected a list of block numbers, as [8, 9], or a slice, as '8:12' "
        "(in quotes), or null for all"
    )
