"""A model that is opened: loaded, viewed, proved, with its lens."""

from __future__ import annotations

from typing import Literal, NamedTuple

from llm_entropy.measure.lens import Lens, check_lens
from llm_entropy.models.attention import check_attention
from llm_entropy.models.families import ModelView, view_model
from llm_entropy.models.loading import load_model
from llm_entropy.runs.plan import Plan
from llm_entropy.settings import AnalysisSettings, needs_of


class OpenedModel(NamedTuple):
    """A model that can be measured."""

    view: ModelView
    """Its parts, by what they are for."""
    lens: Lens
    """How a layer becomes logits."""
    lens_error: float
    """Largest difference between the lens's logits of the last layer and the model's own, in logits."""


def open_model(
    plan: Plan, analysis: AnalysisSettings, *, precision: Literal["32-true", "bf16-true", "16-true"] = "32-true"
) -> OpenedModel:
    """Load a model and prove on a small probe that it is read rightly.

    Args:
        plan: Of the model, as `plan_model` returns it.
        analysis: Which lens, and which metrics, so that the attention is opened where they need it.
        precision: Type of the weights, unless the model's own settings say another.

    Raises:
        ReportedError: It cannot be loaded, or what is read of it is not what it computes.
    """
    source = plan.source
    where = f"models.{source.key}: {source.name}"
    needs_attention = "attention" in needs_of(analysis.metrics)
    view = view_model(load_model(source, precision=precision, needs_attention=needs_attention))
    if needs_attention:
        check_attention(view, where)
    return OpenedModel(view, Lens(view, analysis.lens, plan.lens_path), check_lens(view, where))
