"""What a run reads, opened: a model that is loaded, viewed, proved, with its lens; and the corpus."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal, NamedTuple, Optional

from datasets import Dataset

from llm_entropy.corpus.corpus import Corpus
from llm_entropy.corpus.picking import corpus_of_sentences, load_corpus
from llm_entropy.errors import ReportedError
from llm_entropy.measuring.lens import Lens, LensProof, check_lens
from llm_entropy.models.attention import about_attention, check_sinks, open_attention
from llm_entropy.models.cached import check_cache
from llm_entropy.models.families import ModelView, view_model
from llm_entropy.models.loading import load_model
from llm_entropy.models.proofs import check_parts, check_size
from llm_entropy.runs.launch import is_first_process
from llm_entropy.runs.plan import Plan
from llm_entropy.settings import AnalysisSettings, Settings, needs_of

log = logging.getLogger("llm_entropy")


class OpenedModel(NamedTuple):
    """A model that can be measured."""

    view: ModelView
    """Its parts, by what they are for."""
    lens: Lens
    """How a layer becomes logits."""
    proof: LensProof
    """How well the lens gives the model's own logits at the last layer."""


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
    check_size(view, where)
    _check_length(view, plan, where)
    view = check_parts(view, where)
    if analysis.is_generated and not view.takes_padding:
        raise ReportedError(
            f"{where}: padding changes what it computes, and texts that it writes are of different lengths; set "
            "analysis.positions to last or all"
        )
    if analysis.is_generated:
        check_cache(view, where)
    if needs_attention:
        check_sinks(view, analysis.metrics, where)
        view = open_attention(view, where)
        for line in about_attention(view, analysis.metrics):  # of several processes the first one says it
            log.log(logging.WARNING if is_first_process() else logging.DEBUG, "%s: %s", where, line)
    return OpenedModel(view, Lens(view, analysis.lens, plan.lens_path), check_lens(view, where))


def _check_length(view: ModelView, plan: Plan, where: str) -> None:
    """Refuse sentences for which a model's table of positions has no rows, though its configuration promises them.

    Raises:
        ReportedError: There may be such sentences.
    """
    most, written = view.most_tokens, max(0, plan.encoder.num_new_tokens - 1)  # the last token is not read
    if most is None or (plan.max_length is not None and plan.max_length + written <= most):
        return
    planned = "any number of" if plan.max_length is None else f"up to {plan.max_length}"
    beside = f", and {written} that are written behind them are read" if written else ""
    raise ReportedError(
        f"{where}: sentences of {planned} tokens are to be read{beside}, and its table of positions has rows for "
        f"{most} tokens; give data.max_length: {most - written}, or correct its configuration"
    )


def open_corpus(
    settings: Settings,
    sentences: Optional[Sequence[Optional[str]]],
    *,
    quiet: bool,
    columns: Optional[Dataset] = None,
) -> Corpus:
    """Open the corpus of a run, and say how large it is.

    Args:
        settings: Of the run.
        sentences: The corpus itself, where it was given in memory.
        quiet: Whether progress bars are hidden.
        columns: What goes with sentences that were given in memory.
    """
    num_sentences = settings.analysis.num_sentences
    if sentences is not None:
        corpus: Corpus = corpus_of_sentences(sentences, num_sentences, settings.seed, columns, settings.data)
    else:
        corpus = load_corpus(settings.data, num_sentences, settings.seed, quiet=quiet)
    if corpus.num_sentences is None:
        log.info("%s: a stream of %d files", corpus.source, corpus.num_files)
    else:
        skipped = f", {len(corpus.skipped):,} without text skipped" if corpus.skipped else ""
        log.info("%s: %d of %d rows%s", corpus.source, corpus.num_sentences, corpus.num_rows, skipped)
    return corpus
