"""One run over all its models: check everything, predict what is missing, model by model, then make the outputs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Optional

import lightning as L
from datasets import Dataset

from llm_entropy.errors import ReportedError
from llm_entropy.models.finding import ModelSource
from llm_entropy.models.loaded import borrowed
from llm_entropy.outputs.results import RunResult
from llm_entropy.runs.beginning import take_up
from llm_entropy.runs.ending import end_by, ended_well, finish
from llm_entropy.runs.estimate import forecast
from llm_entropy.runs.identity import config_hash, run_identity
from llm_entropy.runs.launch import checkpoint_root, is_first_process, task_of
from llm_entropy.runs.opening import open_corpus
from llm_entropy.runs.plan import check_tokens, for_corpus, plan_model
from llm_entropy.runs.predict import predict_model
from llm_entropy.runs.state import RunState
from llm_entropy.runs.stopping import Stopped, StopSignals
from llm_entropy.runs.strengths import find_strengths
from llm_entropy.runs.trainer import make_trainer
from llm_entropy.settings import Settings, needs_of
from llm_entropy.store import manifest
from llm_entropy.store.log import run_log
from llm_entropy.store.session import Session

log = logging.getLogger("llm_entropy")


def run(
    settings: Settings,
    *,
    quiet: bool = False,
    sentences: Optional[Sequence[Optional[str]]] = None,
    columns: Optional[Dataset] = None,
    resume: bool = False,
    loaded: Optional[Mapping[str, ModelSource]] = None,
) -> RunResult:
    """Run an analysis.

    Args:
        settings: What to do.
        quiet: Whether the terminal shows warnings and errors alone.
        sentences: The corpus itself, instead of `settings.data.path`; None is a row without text.
        columns: What goes with these sentences, as far as the settings ask for it.
        resume: Whether to continue the run of this name, if it exists: only what is missing is computed.
        loaded: Models that were given in memory, by key; they are given back as they were.

    Returns:
        Where the outputs are, and the outputs. A task of an array has none: `outputs.merge_run` makes them.

    Raises:
        ReportedError: Something in the settings or in what they name is wrong. Nothing is left behind.
        RunIncompleteError: Work was lost, or the disk is full; what was done is kept.
        KeyboardInterrupt: SIGINT has come; what was done is kept. SystemExit: so has SIGTERM or SIGUSR1.
    """
    loaded = loaded or {}
    needs_attention = "attention" in needs_of(settings.analysis.metrics)
    with StopSignals() as signals, run_log(quiet=quiet) as messages, ExitStack() as lent:
        try:
            task = task_of(settings, resume)
            begun = checkpoint_root(settings, manifest.find_run(settings.output))
            trainer = make_trainer(settings.trainer, begun)  # from here on the rank is known
            _refuse_copies(loaded, trainer)
            for source in loaded.values():
                lent.enter_context(borrowed(source, needs_attention=needs_attention))
            if not is_first_process():
                messages.show_warnings_only()
            if is_first_process():
                manifest.check_output(settings.output, may_exist=resume or task.count > 1)
            plans = [plan_model(key, model, settings, loaded.get(key)) for key, model in settings.models.items()]
            corpus = open_corpus(settings, sentences, quiet=quiet, columns=columns)
            plans = [for_corpus(plan, corpus) for plan in plans]
            for plan in plans:
                check_tokens(plan, corpus, task, settings.data)
            identity = run_identity(settings, plans, corpus.fingerprint)
            if is_first_process() and corpus.num_windows is not None:  # of a stream nothing is read ahead
                for plan in plans:
                    log.info("%s", forecast(plan, settings, corpus, trainer).describe())
        except Stopped as stop:
            end_by(stop.signum)  # nothing has been begun
        session = Session(task, config_hash(identity))
        state = RunState(settings, corpus, identity, session, messages, signals, quiet, resume, sentences, columns)
        with ended_well(state):
            take_up(state)
            find_strengths(state, plans, trainer.strategy.root_device)
            for plan in plans:
                predict_model(plan, state)
            return finish(state, plans)


def _refuse_copies(loaded: Mapping[str, ModelSource], trainer: L.Trainer) -> None:
    """Refuse models in memory for several processes, of which each would have a model of its own.

    Raises:
        ReportedError: There are both.
    """
    if loaded and trainer.world_size > 1:
        raise ReportedError(
            f"models.{next(iter(loaded))}: a model that is loaded is in the memory of one process, and this run has "
            f"{trainer.world_size}; give trainer={{'devices': 1}}, or save it with save_pretrained(FOLDER) and give "
            "that folder"
        )
