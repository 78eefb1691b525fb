"""An extraction: the states of contrastive pairs go into shards as the records of any run do, then become vectors."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Optional

from llm_entropy.corpus.own_tokens import StateEncoder
from llm_entropy.corpus.pairs import Pairs, load_pairs, pairs_in_memory
from llm_entropy.measuring.states import StatesModule
from llm_entropy.models.finding import ModelSource
from llm_entropy.outputs.extraction.making import make_vectors
from llm_entropy.outputs.extraction.result import ExtractionResult
from llm_entropy.runs.beginning import take_up
from llm_entropy.runs.ending import complete_ledgers, end_by, ended_well
from llm_entropy.runs.identity import config_hash, run_identity
from llm_entropy.runs.launch import checkpoint_root, is_first_process, task_of
from llm_entropy.runs.plan import Plan, check_tokens, plan_model
from llm_entropy.runs.predict import Work, predict_model
from llm_entropy.runs.state import RunState
from llm_entropy.runs.stopping import Stopped, StopSignals
from llm_entropy.runs.trainer import make_trainer
from llm_entropy.schema.shards import states_schema
from llm_entropy.settings import ExtractionSettings
from llm_entropy.store import manifest
from llm_entropy.store.log import run_log
from llm_entropy.store.session import Session

log = logging.getLogger("llm_entropy")

EXTRACTION = Work(
    lambda plan, opened, settings: StatesModule(opened.view),
    lambda opened, settings, about: states_schema(opened.view.shape, about),
)
"""A run that reads states."""


def run_extraction(
    settings: ExtractionSettings,
    *,
    quiet: bool = False,
    pairs: Optional[Sequence[Mapping[str, Any]]] = None,
    resume: bool = False,
) -> ExtractionResult:
    """Extract vectors.

    Args:
        settings: What to do.
        quiet: Whether the terminal shows warnings and errors alone.
        pairs: The pairs themselves, as rows, instead of `settings.data.path`.
        resume: Whether to continue the run of this name, if it exists.

    Returns:
        Where the vectors are. A task of an array has none: `merge_vectors` makes them.

    Raises:
        ReportedError: Something in the settings or in what they name is wrong. Nothing is left behind.
        RunIncompleteError: Work was lost, or the disk is full; what was done is kept.
        KeyboardInterrupt: SIGINT has come; what was done is kept. SystemExit: so has SIGTERM or SIGUSR1.
    """
    with StopSignals() as signals, run_log(quiet=quiet) as messages:
        try:
            task = task_of(settings, resume)
            make_trainer(settings.trainer, checkpoint_root(settings, manifest.find_run(settings.output)))
            if is_first_process():  # known once there is a Trainer
                manifest.check_output(settings.output, may_exist=resume or task.count > 1)
            else:
                messages.show_warnings_only()
            label = settings.extract.positive_label
            found = load_pairs(settings.data, label, quiet=quiet) if pairs is None else pairs_in_memory(pairs, label)
            corpus = found.corpus
            skipped = f", {len(corpus.skipped):,} rows without text skipped" if corpus.skipped else ""
            log.info("%s: %d pairs%s", corpus.source, corpus.num_sentences // 2, skipped)
            plans = [_plan(key, model, settings, found) for key, model in settings.models.items()]
            for plan in plans:
                check_tokens(plan, corpus, task, settings.data)
            identity = _identity(settings, plans, corpus.fingerprint)
        except Stopped as stop:
            end_by(stop.signum)  # nothing has been begun
        session = Session(task, config_hash(identity))
        state = RunState(settings, corpus, identity, session, messages, signals, quiet, resume, pairs)
        with ended_well(state):
            take_up(state)
            for plan in plans:
                predict_model(plan, state, EXTRACTION)
            return _finish(state, plans)


def _plan(key: str, model: Any, settings: ExtractionSettings, pairs: Pairs) -> Plan:
    """Check everything about a model that can be checked before its weights are read."""
    plan = plan_model(key, model, settings)
    source: ModelSource = plan.source
    encoder = StateEncoder(
        tokenizer=source.tokenizer,
        kind=source.architecture.kind,
        seed=settings.seed,
        max_length=plan.max_length,
        num_embeddings=source.shape.vocab_size,
        choice=settings.extract.position,
        prompt_ends=pairs.starts,
    )
    return replace(plan, encoder=encoder)


def _identity(settings: ExtractionSettings, plans: Sequence[Plan], corpus: str) -> dict[str, Any]:
    """Return everything that decides what the vectors are."""
    about = run_identity(settings, plans, corpus)
    kept = {key: value for key, value in about.items() if not key.startswith(("analysis.", "conditions"))}
    own = {f"extract.{item.name}": getattr(settings.extract, item.name) for item in fields(settings.extract)}
    return {**kept, **own}


def _finish(state: RunState, plans: Sequence[Plan]) -> ExtractionResult:
    """Make sure that nothing is missing, and make the vectors; a task of an array leaves that to the merge."""
    session, settings = state.session, state.settings
    assert session.run_dir is not None
    assert isinstance(settings, ExtractionSettings)
    ledgers = complete_ledgers(state, plans)
    if ledgers is None:
        return ExtractionResult(session.run_dir, is_global_zero=session.rank == 0)
    about = manifest.read_manifest(session.run_dir)
    if not state.has_predicted and about["status"] == "complete":
        log.info("%s is complete", session.run_dir)
        return ExtractionResult(session.run_dir, tuple(about["models"]))
    return make_vectors(session.run_dir, settings, about, ledgers)
