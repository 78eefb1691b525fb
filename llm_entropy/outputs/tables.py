"""What the merge made of a model's shards, for plots and for the table on the terminal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llm_entropy.outputs.answers import AnswerCurves
from llm_entropy.outputs.groups import GroupCurve
from llm_entropy.outputs.inference.doses import DoseTable
from llm_entropy.outputs.inference.summary import Summary
from llm_entropy.schema.shape import ModelShape
from llm_entropy.settings import Comparison, Condition


@dataclass
class Curves:
    """One metric over depth, for all sentences of a model under one condition (or for their differences)."""

    count: int
    """Number of sentences."""
    mean: npt.NDArray[np.float64]
    """[layer], over the sentences."""
    deviation: npt.NDArray[np.float64]
    """[layer], standard deviation over the sentences (ddof 0)."""
    sample: npt.NDArray[np.float32]
    """[sample, layer], evenly spaced sentences, at most `SAMPLE_SIZE` of them."""


@dataclass
class ComparisonCurves:
    """One metric under the two conditions of a comparison."""

    baseline: Curves
    other: Curves
    difference: Curves
    """Of other - baseline, sentence by sentence."""


@dataclass
class ComparisonTables:
    """One comparison: what is drawn of it."""

    comparison: Comparison
    """Which conditions are compared."""
    metrics: dict[str, ComparisonCurves]
    """By metric."""
    between: dict[str, Curves]
    """By metric of a condition beside the baseline, as `kl_from_standard`: a key of `COMPARISON_METRICS`."""


@dataclass
class TokenTracks:
    """How the probability of the final layer's most likely tokens grows over the layers."""

    count: int
    """Number of sentences."""
    mean: npt.NDArray[np.float64]
    """[tracked, layer], over the sentences, by rank of the token at the final layer."""
    examples: list[tuple[str, list[str], npt.NDArray[np.float32]]]
    """A few sentences: text, tracked tokens, probabilities [tracked, layer]."""


@dataclass
class LensGrid:
    """Each layer's own most likely token, in a column for each position or sentence."""

    sentence: Optional[str]
    """Whose positions they are; None: each column is a sentence of its own."""
    read: list[str]
    """[column], the token that the model reads there; of several sentences their texts."""
    targets: list[str]
    """[column], the target token."""
    tokens: list[list[str]]
    """[column][layer], the most likely token."""
    probabilities: npt.NDArray[np.float32]
    """[column, layer], its probability."""
    entropy: Optional[npt.NDArray[np.float32]]
    """[column, layer], in nats; None where it was not measured."""
    num_columns: int
    """Number of the positions, or sentences, that there are; the first ones, or evenly spaced ones, are here."""


@dataclass
class SentenceSample:
    """Some sentences of a model, for the report."""

    records: pa.Table
    """Their records, at most the first few of each, in corpus order; each holds the text of its sentence."""
    num_records: list[int]
    """[sentence], how many records it has."""


@dataclass
class ModelTables:
    """All that plots, the report and the table on the terminal show of one model."""

    model: str
    """The model's key."""
    name: str
    """Its hub name, folder or built-in name."""
    shape: ModelShape
    num_sentences: int
    num_records: int
    conditions: list[Condition]
    """Those that keep tokens, in order; placebos have no plots."""
    curves: dict[str, dict[str, Curves]]
    """By condition, then by metric; attention entropy is the mean over heads."""
    tracks: dict[str, TokenTracks]
    """By condition."""
    comparisons: dict[str, ComparisonTables] = field(default_factory=dict)
    """By the condition that is compared with the baseline, in order."""

    summary: Optional[Summary] = None
    """How sure each difference is; None where nothing is compared."""
    doses: Optional[DoseTable] = None
    """How metrics grow with the strength; None where no vector has several."""
    placebos: dict[str, dict[str, npt.NDArray[np.float64]]] = field(default_factory=dict)
    """By vector, then by metric: [placebo, layer], mean difference of each of its placebos from the standard run."""
    untouched: dict[str, int] = field(default_factory=dict)
    """By condition: number of the lowest layers (and blocks) that steering does not reach, where it is known."""
    sample: Optional[SentenceSample] = None
    """Some sentences, token by token; None where no report is made."""

    answers: dict[str, AnswerCurves] = field(default_factory=dict)
    """By condition; none without right and wrong answers."""

    groups: dict[str, dict[str, dict[str, GroupCurve]]] = field(default_factory=dict)
    """By condition, then by group, then by metric; none without groups."""

    lens: dict[str, LensGrid] = field(default_factory=dict)
    """By condition; none where `analysis.lens_tokens` is off."""
    strengths: list[dict[str, Any]] = field(default_factory=list)
    """Rows of the table of doses that say how strong each steered condition is: keys are columns of that table."""

    @property
    def baselines(self) -> list[Condition]:
        """The conditions that are compared with no other: the standard one, or where it was not run every one."""
        return [condition for condition in self.conditions if condition.name not in self.comparisons]
