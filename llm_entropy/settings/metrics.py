"""The table of metrics: what each is called and measured in, how it is drawn, and what it is made from.

The function of a metric has its name, in `measuring.metrics`.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

Need = Literal[
    "moments",
    "runner_up",
    "square",
    "power",
    "top1",
    "mass",
    "target",
    "target_rank",
    "final_cross",
    "standard_cross",
    "attention",
    "attended",
    "sinks",
    "stream",
]
"""What a metric is made from: fields of `schema.LayerStatistics` (moments: those that are always made), the entropies
of the model's own attention, how many tokens that may see and how much of it goes to sinks, or the residual stream
itself."""


class Metric(NamedTuple):
    """One metric."""

    label: str
    """The words on a plot's axis."""
    unit: str
    """`nats`, `logits`, `tokens`, `nats squared`, or empty for a pure number."""
    axis: Literal["layer", "block", "text"]
    """What the values run over: layers 0..L, or blocks 0..L-1; of a text there is one."""
    needs: tuple[Need, ...]
    """What it is made from."""
    scale: Literal["linear", "logarithmic"] = "linear"
    """Of its axis in plots; logarithmic for what grows exponentially."""
    is_per_head: bool = False
    """Whether a record has a number for each attention head; tables and plots show the mean over the heads."""
    first: int = 0
    """The first layer (or block) that has a value; before it all are empty (NaN)."""
    has_gaps: bool = False
    """Whether a record may have no value (NaN); the mean over a sentence's records leaves it out."""
    bounds: tuple[float, float] = (0.0, math.inf)
    """The least and the largest value there can be."""

    @property
    def reads_target(self) -> bool:
        """Whether it depends on the target token; one that is predicted is each condition's own."""
        return bool({"target", "target_rank"} & set(self.needs))


SINK_MASS = "sink_mass"
METRICS: dict[str, Metric] = {
    "entropy": Metric("entropy", "nats", "layer", ("moments",)),
    "perplexity": Metric("perplexity", "", "layer", ("moments",), scale="logarithmic", bounds=(1.0, math.inf)),
    "margin": Metric("margin", "logits", "layer", ("runner_up",)),
    "kl_divergence": Metric("KL from uniform", "nats", "layer", ("moments",)),
    "surprisal": Metric("surprisal", "nats", "layer", ("moments", "target")),
    "attention_entropy": Metric("attention entropy", "nats", "block", ("attention",), is_per_head=True),
    "kl_to_final": Metric("KL to the final layer", "nats", "layer", ("moments", "final_cross")),
    "target_rank": Metric("rank of the target", "tokens", "layer", ("target_rank",)),
    "varentropy": Metric("varentropy", "nats squared", "layer", ("moments", "square")),
    "residual_norm": Metric("norm of the residual stream", "", "layer", ("stream",)),
    "entropy_change": Metric("change of entropy", "nats", "layer", ("moments",), first=1, bounds=(-math.inf, math.inf)),
    "top1_agreement": Metric("agreement with the final token", "", "layer", ("top1",), bounds=(0.0, 1.0)),
    "attended_entropy": Metric(
        "attention entropy / ln(attended tokens)",
        "",
        "block",
        ("attention", "attended"),
        is_per_head=True,
        has_gaps=True,
        bounds=(0.0, 1.0),
    ),
    SINK_MASS: Metric(
        "share of attention to sinks", "", "block", ("attention", "sinks"), is_per_head=True, bounds=(0.0, 1.0)
    ),
    "renyi_entropy": Metric("Rényi entropy", "nats", "layer", ("moments", "power")),
}
"""Every metric that `analysis.metrics` may name, in the order of the outputs."""

DEFAULT_METRICS = ("entropy", "perplexity", "margin", "kl_divergence", "attention_entropy", "surprisal")

KL_FROM_STANDARD, TOP1_CHANGED = "kl_from_standard", "top1_changed"
COMPARISON_METRICS: dict[str, Metric] = {
    KL_FROM_STANDARD: Metric("KL from standard to control", "nats", "layer", ("moments", "standard_cross")),
    TOP1_CHANGED: Metric("share of changed top tokens", "", "layer", ("top1",), bounds=(0.0, 1.0)),
}
"""Metrics of a condition beside the standard one; they are always measured in a comparison."""

RESIDUAL_NORM = "residual_norm"
BASELINE_METRICS: dict[str, Metric] = {RESIDUAL_NORM: METRICS[RESIDUAL_NORM]}
"""Metrics that the standard condition of a comparison records in any case: what a dose is measured by."""

LOG_BOUNDARY = "log_boundary"
WORD_METRICS: dict[str, Metric] = {
    "entropy": METRICS["entropy"],
    "surprisal": METRICS["surprisal"],
    LOG_BOUNDARY: Metric(
        "log probability that the word ends", "nats", "layer", ("moments", "mass"), bounds=(-math.inf, 0.0)
    ),
}
"""What the tables of words are made from; recorded where they are asked for."""

STANDARD_SURPRISAL = "standard_surprisal"
TEXT_METRICS: dict[str, Metric] = {
    STANDARD_SURPRISAL: Metric("surprisal under the standard model", "nats", "layer", ("moments", "target")),
    "text_length": Metric("length of the text", "tokens", "text", ()),
    "distinct_1": Metric("distinct-1: different tokens / all", "", "text", (), has_gaps=True, bounds=(0.0, 1.0)),
    "distinct_2": Metric("distinct-2: different pairs / all", "", "text", (), has_gaps=True, bounds=(0.0, 1.0)),
    "longest_repetition": Metric("longest repeated sequence", "tokens", "text", ()),
}
"""Metrics of generated texts; they are always measured where texts are written and compared."""

PREFERENCE, ACCURACY = "preference", "accuracy"
ANSWER_METRICS: dict[str, Metric] = {
    ACCURACY: Metric("share of right answers preferred", "", "layer", ("target",), has_gaps=True, bounds=(0.0, 1.0)),
    PREFERENCE: Metric(
        "preference for the right answer", "nats", "layer", ("target",), has_gaps=True, bounds=(-math.inf, math.inf)
    ),
}
"""Metrics of a sentence that has a right answer and a wrong one (`data.target_column`, `data.foil_column`): surprisal
of the wrong one minus that of the right one, and whether that is above 0."""

ALL_METRICS: dict[str, Metric] = {**METRICS, **COMPARISON_METRICS, **WORD_METRICS, **TEXT_METRICS, **ANSWER_METRICS}
"""Every metric, by name."""


def needs_of(names: Iterable[str]) -> set[Need]:
    """Return what metrics are made from, together.

    Args:
        names: Keys of `ALL_METRICS`.
    """
    return {need for name in names for need in ALL_METRICS[name].needs}


def beside_sinks(names: Sequence[str]) -> list[str]:
    """Return what is measured of a model with sinks: where it is something of its attention, their share as well.

    Args:
        names: Keys of `METRICS`.
    """
    wanted = {*names, SINK_MASS} if "attention" in needs_of(names) else set(names)
    return [name for name in METRICS if name in wanted]
