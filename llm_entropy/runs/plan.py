"""What a run will do to its models, checked before any weight is read."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

from torch import Tensor

from llm_entropy.corpus.chats import refuse_without_template
from llm_entropy.corpus.corpus import Corpus
from llm_entropy.corpus.encoded import EncodedSentences
from llm_entropy.corpus.encoding import Encoder
from llm_entropy.corpus.words import word_starts
from llm_entropy.errors import ReportedError
from llm_entropy.measuring.asked import Asked
from llm_entropy.measuring.lens import read_translators
from llm_entropy.models.finding import ModelSource, find_model
from llm_entropy.settings import AnalysisSettings, DataSettings, ModelSettings, Settings
from llm_entropy.steering.conditions import plan_conditions
from llm_entropy.steering.plan import SteeringPlan
from llm_entropy.steering.tokens import special_tokens_of
from llm_entropy.store.windows import Task

log = logging.getLogger("llm_entropy")

LEAST_ROOM = 3
"""Fewest tokens of a sentence that a model must have room for beside what it writes, as `data.max_length` has it."""


@dataclass(frozen=True)
class Plan:
    """A model that was found, and what is asked of it."""

    source: ModelSource
    encoder: Encoder
    """Makes examples of its sentences."""
    steering: dict[str, SteeringPlan]
    """How each steered condition steers it, by name."""
    lens_path: Optional[Path]
    """Folder of a tuned lens."""
    max_length: Optional[int]
    """Most tokens of a sentence."""

    def word_starts(self) -> Optional[Tensor]:
        """Return which tokens begin a word or end the text, [vocab]; None where nobody asks, or nobody can tell."""
        if not self.encoder.words or self.encoder.kind == "masked":
            return None
        tokenizer, config = self.source.tokenizer, self.source.config.get_text_config()
        ends = getattr(config, "eos_token_id", None)
        ends = [tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])]
        found = word_starts(tokenizer, self.source.shape.vocab_size, [token for token in ends if token is not None])
        if found is None:
            log.warning(
                "%s: the tokens of its vocabulary do not begin with white space: the corrected surprisal of words is "
                "empty",
                self.source.key,
            )
        return found

    def asked(self, settings: Settings) -> Asked:
        """Return what the module that measures the model is asked for."""
        return Asked(
            settings.analysis,
            self.steering,
            word_starts=self.word_starts(),
            reads_answers=settings.data.target_column is not None,
        )


def plan_model(key: str, model: str | ModelSettings, settings: Settings, loaded: Optional[ModelSource] = None) -> Plan:
    """Check everything about a model that can be checked before its weights are read.

    Args:
        key: The model's.
        model: Which one.
        settings: Of the run.
        loaded: The model, where it was given in memory.

    Raises:
        ReportedError: The model, a control vector, or what is asked of it is wrong.
    """
    analysis, data = settings.analysis, settings.data
    source = loaded or find_model(key, ModelSettings(model) if isinstance(model, str) else model)
    shape = source.shape
    for name, number in (("top_k", analysis.top_k), ("tracked_tokens", analysis.tracked_tokens)):
        if number > shape.vocab_size:
            raise ReportedError(
                f"analysis.{name}: got {number}; the vocabulary of {key} has {shape.vocab_size} tokens, ask for fewer"
            )
    most_tokens = _most_tokens(source, analysis)
    if data.max_length is not None and most_tokens is not None and data.max_length > most_tokens:
        beside = f", and {analysis.num_new_tokens} more are written" if analysis.is_generated else ""
        raise ReportedError(
            f"data.max_length: got {data.max_length}; {key} takes at most {source.most_tokens} tokens{beside}; "
            f"give {'that' if not beside else most_tokens} or less, or null"
        )
    lens_path = None
    if analysis.lens == "tuned":
        assert analysis.lens_path is not None
        lens_path = Path(analysis.lens_path.replace("{model}", key)).expanduser()
        read_translators(lens_path, shape.num_blocks, shape.hidden_size)
    steering = plan_conditions(
        analysis.run_conditions,
        model=key,
        num_blocks=shape.num_blocks,
        hidden_size=shape.hidden_size,
        seed=settings.seed,
        special=special_tokens_of(source.tokenizer, source.architecture.kind),
        model_type=source.config.model_type,
    )
    max_length = data.max_length or most_tokens
    encoder = Encoder(
        tokenizer=source.tokenizer,
        kind=source.architecture.kind,
        positions=analysis.positions,
        mask_strategy=analysis.mask_strategy,
        seed=settings.seed,
        max_length=max_length,
        num_embeddings=shape.vocab_size,
        words=analysis.words,
        num_new_tokens=analysis.num_new_tokens,
    )
    return Plan(source, encoder, steering, lens_path, max_length)


def _most_tokens(source: ModelSource, analysis: AnalysisSettings) -> Optional[int]:
    """Return how many tokens of a sentence a model can take, with room for what it is to write; None: any number.

    Raises:
        ReportedError: It does not write texts, or has no room for them.
    """
    if not analysis.is_generated:
        return source.most_tokens
    if source.architecture.kind == "masked":
        raise ReportedError(
            f"analysis.positions: got generated, but {source.key} ({source.name}) is a masked model, which does not "
            "continue texts; leave it out of the models, or set the positions to last"
        )
    if source.most_tokens is None:
        return None
    room = source.most_tokens - (analysis.num_new_tokens - 1)  # the last token is not read
    if room < LEAST_ROOM:
        raise ReportedError(
            f"analysis.max_new_tokens: got {analysis.num_new_tokens}; {source.key} takes at most {source.most_tokens} "
            f"tokens, the sentence's own included; give {max(1, source.most_tokens - LEAST_ROOM + 1)} or less"
        )
    return room


def for_corpus(plan: Plan, corpus: Corpus) -> Plan:
    """Return the plan of a model for what a corpus holds: text, or chats.

    Raises:
        ReportedError: It holds chats, and the model reads none.
    """
    if not corpus.is_chat:
        return plan
    source = plan.source
    refuse_without_template(source.tokenizer, source.key, source.architecture.kind)
    return replace(plan, encoder=replace(plan.encoder, reads_chats=True))


def check_tokens(plan: Plan, corpus: Corpus, task: Task, data: DataSettings) -> None:
    """Make sure that the model knows all tokens, if its tokenizer has others, and can read all answers and chats.

    Where one of these may fail, the sentences are tokenised once more. Those of a stream are checked when they come.

    Args:
        plan: Of the model.
        corpus: Of the run.
        task: Which share of it.
        data: Says whether there are answers.

    Raises:
        ReportedError: A sentence has a token for which the model has no embedding, or an answer or a chat cannot be
            read.
    """
    encoder = plan.encoder
    is_needed = encoder.may_be_unknown or encoder.reads_chats or data.target_column is not None
    if corpus.num_windows is None or not is_needed:
        return
    for window in corpus.for_kind(plan.source.architecture.kind).windows(task):
        EncodedSentences(plan.encoder, window.sentence_ids, window.sentences, window.answers, data.answer_delimiter)
