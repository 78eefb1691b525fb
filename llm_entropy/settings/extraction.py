"""How vectors are extracted from contrastive pairs: the settings of `llm-entropy extract`."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal, Optional

from llm_entropy.errors import ReportedError
from llm_entropy.settings.fields import check_at_least, make_plain_
from llm_entropy.settings.sections import AnalysisSettings, Settings

Method = Literal["mean_difference", "pca_difference", "pca_center"]
TokenChoice = Literal["last", "mean", "completion"]


@dataclass
class ExtractSettings:
    """How pairs become vectors, and how these are judged."""

    method: Method = "mean_difference"
    """Mean difference of the pairs, or the first component of their differences, centred over pairs or in each pair."""
    position: TokenChoice = "last"
    """Which tokens give a text's state: the last, the mean over all of its own, or over those behind the prompt."""
    test_share: float = 0.2
    """Share of the pairs that is left out of the vectors, and on which they are judged."""
    splits: int = 200
    """How often the other pairs are split into halves, for the reliability; 0: it is not measured."""
    shuffled: int = 10
    """How many vectors are extracted again from permuted labels, for control.placebo.shuffled."""
    positive_label: Optional[str] = None
    """Of texts with labels: which label is positive; null: the larger number, or the later in the alphabet."""

    def __post_init__(self) -> None:
        make_plain_(self, "extract")
        if not 0 < self.test_share < 1:
            raise ReportedError(f"extract.test_share: got {self.test_share:g}; expected a share between 0 and 1")
        for name in ("splits", "shuffled"):
            check_at_least(f"extract.{name}", getattr(self, name), 0)


@dataclass
class ExtractionSettings(Settings):
    """One extraction, whole: what its `config.yaml` holds. Its run is a run like any other, but for the analysis."""

    COMMAND: ClassVar[str] = "extract"
    analysis: ClassVar[AnalysisSettings] = AnalysisSettings(num_sentences=None, metrics=["entropy"])  # type: ignore[misc]
    """The same in every extraction: every text is read once, as the model is."""
    extract: ExtractSettings = field(default_factory=ExtractSettings)
