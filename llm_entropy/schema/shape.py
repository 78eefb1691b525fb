"""The sizes of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Optional

from llm_entropy.settings import AnalysisSettings, beside_sinks


class ModelShape(NamedTuple):
    """The sizes that fix a model's record columns."""

    num_blocks: int
    """L; there are L + 1 layers."""
    num_heads: int
    """Attention heads of a block; where blocks differ, of the one that has most."""
    hidden_size: int
    """Width of the residual stream."""
    vocab_size: int
    """V, the number of logits."""
    heads: Optional[tuple[int, ...]] = None
    """[block], the heads whose attention can be read; None: `num_heads` of every block."""
    has_sinks: bool = False
    """Whether a part of the attention goes to what is no token."""

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> ModelShape:
        """Return the sizes that `plain` has made."""
        heads = about.get("heads")
        return cls(**{**about, "heads": None if heads is None else tuple(heads)})

    def plain(self) -> dict[str, Any]:
        """Return the sizes as JSON holds them; what is as in most models is left out."""
        usual = self._field_defaults
        return {name: value for name, value in self._asdict().items() if name not in usual or value != usual[name]}

    @property
    def num_layers(self) -> int:
        """L + 1."""
        return self.num_blocks + 1


def measured_of(analysis: AnalysisSettings, shape: ModelShape) -> list[str]:
    """Return the metrics that are measured of a model: those asked for, and of its sinks what goes with them."""
    return beside_sinks(analysis.metrics) if shape.has_sinks else analysis.metrics
