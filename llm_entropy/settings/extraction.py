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
    """Mean difference of the pairs, or a first principal component, centred over all pairs or within each pair."""
    position: TokenChoice = "last"
    """Where a text's state is read: at its last token, or as a mean over its tokens, or over those after the prompt."""
    test_share: float = 0.2
    """Share of the pairs that is left out of the vectors, and on which they are judged."""
    splits: int = 200
    """How often the other pairs are split into halves, to measure reliability; 0: never."""
    shuffled: int = 10
    """Number of vectors to extract from permuted labels, for control.placebo.shuffled."""
    positive_label: Optional[str] = None
    """The positive label of labelled texts; null: the larger number, or the later in the alphabet."""

    def __post_init__(self) -> None:
        make_plain_(self, "extract")
        if not 0 < self.test_share < 1:
            raise ReportedError(f"extract.test_share: got {self.test_share:g}; expected a share between 0 and 1")
        for name in ("splits", "shuffled"):
            check_at_least(f"extract.{name}", getattr(self, name), 0)


@dataclass
class ExtractionSettings(Settings):
    """All settings of an extraction, as its `config.yaml` holds them."""

    COMMAND: ClassVar[str] = "extract"
    analysis: ClassVar[AnalysisSettings] = AnalysisSettings(num_sentences=None, metrics=["entropy"])  # type: ignore[misc]
    """The same in every extraction: every text is read once, as the model is."""
    extract: ExtractSettings = field(default_factory=ExtractSettings)
