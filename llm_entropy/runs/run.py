"""One run over all its models: check everything, predict what is missing, model by model, then make the outputs."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Optional

import lightning as L
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only

from llm_entropy.corpus.corpus import Corpus, corpus_of_sentences, load_corpus
from llm_entropy.corpus.datamodule import SentenceDataModule
from llm_entropy.errors import ReportedError, RunIncompleteError
from llm_entropy.measure.budget import CPU_TOKENS, gpu_tokens
from llm_entropy.measure.lens import Lens, check_lens
from llm_entropy.measure.module import EntropyModule
from llm_entropy.models.attention import check_attention
from llm_entropy.models.attention.interface import EAGER, attention_implementation
from llm_entropy.models.families import ModelView, view_model
from llm_entropy.models.loading import load_model
from llm_entropy.outputs.making import made_of, make_outputs, read_result, refuse_full_disk
from llm_entropy.outputs.results import RunResult
from llm_entropy.runs.plan import (
    Plan,
    check_identity,
    check_tokens,
    check_versions,
    config_hash,
    plan_model,
    run_identity,
)
from llm_entropy.runs.progress import SentenceProgress
from llm_entropy.runs.stopping import StopBetweenBatches, Stopped, StopSignals, children, is_child, pass_on
from llm_entropy.runs.storable import storable
from llm_entropy.runs.trainer import make_trainer
from llm_entropy.runs.writer import ShardWriter
from llm_entropy.schema import shard_schema
from llm_entropy.settings import ATTENTION_ENTROPY, DataSettings, Settings
from llm_entropy.store import manifest
from llm_entropy.store.ledger import Expected, Ledger, read_ledger
from llm_entropy.store.log import RunLog, run_log
from llm_entropy.store.session import Session, environment
from llm_entropy.store.status import missing_of_task, resume_command
from llm_entropy.store.windows import Task

log = logging.getLogger("llm_entropy")

ARRAY_INDEX = "SLURM_ARRAY_TASK_ID"
MEGABYTE = 2**20
CHILDREN_SECONDS = 30
"""How long the processes that Lightning has started may take to stop."""


@dataclass
class _Run:
    """A run under way."""

    settings: Settings
    corpus: Corpus
    identity: dict[str, Any]
    session: Session
    run_log: RunLog
    signals: StopSignals
    quiet: bool
    resume: bool
    """Whether the run may have been begun."""
    sentences: Optional[Sequence[Optional[str]]] = None
    """The corpus, where it was given in memory."""
    is_new: bool = False
    """Whether this process has created the run's folder."""
    trainer: Optional[L.Trainer] = None
    """The latest."""
    has_predicted: bool = False
    """Whether anything was missing."""
    children: list[Any] = field(default_factory=list)
    """Processes that Lightning has started from this one."""

    @property
    def expected(self) -> Expected:
        """What must be there in the end."""
        return Expected(self.corpus.num_windows, self.corpus.num_files)


def run(
    settings: Settings,
    *,
    quiet: bool = False,
    sentences: Optional[Sequence[Optional[str]]] = None,
    resume: bool = False,
) -> RunResult:
    """Run an analysis.

    Args:
        settings: What to do.
        quiet: Whether the terminal shows warnings and errors alone.
        sentences: The corpus itself, instead of `settings.data.path`; None is a row without text.
        resume: Whether to go on with the run of this name, if it has been begun: only what is missing is computed.

    Returns:
        Where the outputs are, and the outputs. A task of an array has none: `outputs.merge_run` makes them.

    Raises:
        ReportedError: Something in the settings or in what they name is wrong. Nothing is left behind.
        RunIncompleteError: Work was lost, or the disk is full; what was done is kept.
        KeyboardInterrupt: SIGINT has come; what was done is kept. SystemExit: so has SIGTERM or SIGUSR1.
    """
    with StopSignals() as signals, run_log(quiet=quiet) as messages:
        try:
            task = _task(settings, resume)
            make_trainer(settings.trainer, _root(settings, manifest.find_run(settings.output)))  # it knows the rank
            if not _is_first_process():
                messages.show_warnings_only()
            if _is_first_process():
                manifest.check_output(settings.output, may_exist=resume or task.count > 1)
            plans = [plan_model(key, model, settings) for key, model in settings.models.items()]
            corpus = _corpus(settings, sentences, quiet)
            for plan in plans:
                check_tokens(plan, corpus, task)
            identity = run_identity(settings, plans, corpus.fingerprint)
        except Stopped as stop:
            _end(stop.signum)  # nothing has been begun
        session = Session(task, config_hash(identity))
        state = _Run(settings, corpus, identity, session, messages, signals, quiet, resume, sentences)
        try:
            _take_up(state)
            for plan in plans:
                _predict(plan, state)
            return _finish(state, plans)
        except Stopped as stop:
            _stop(state, stop)
        except BaseException as error:
            _give_up(state, error)
            raise
        finally:
            session.release()


def _is_first_process() -> bool:
    """Whether this process writes what there is once; known once there is a Trainer."""
    return int(rank_zero_only.rank) == 0  # type: ignore[attr-defined]


def _task(settings: Settings, resume: bool) -> Task:
    """Return which task of an array this is."""
    data, name = settings.data, settings.output.run_name
    if name is None and (resume or data.num_shards > 1):
        asked = "--resume" if resume else "data.num_shards"
        raise ReportedError(
            f"output.run_name: {asked} needs the name of the run; got null, give --output.run_name NAME"
        )
    index = data.shard_index
    if index is None and data.num_shards > 1:
        index = _array_index(data)
    return Task(index or 0, data.num_shards)


def _array_index(data: DataSettings) -> int:
    text, last = os.environ.get(ARRAY_INDEX), data.num_shards - 1
    if text is None or not text.isdecimal():
        raise ReportedError(
            f"data.shard_index: got null, and {ARRAY_INDEX} is {text or 'not set'}; "
            f"give a number from 0 to {last}, or start as an array: sbatch --array=0-{last}"
        )
    if int(text) > last:
        raise ReportedError(
            f"{ARRAY_INDEX}: got {text}, but data.num_shards is {data.num_shards}; start with --array=0-{last}"
        )
    return int(text)


def _corpus(settings: Settings, sentences: Optional[Sequence[Optional[str]]], quiet: bool) -> Corpus:
    num_sentences = settings.analysis.num_sentences
    if sentences is not None:
        corpus: Corpus = corpus_of_sentences(sentences, num_sentences, settings.seed)
    else:
        corpus = load_corpus(settings.data, num_sentences, settings.seed, quiet=quiet)
    if corpus.num_sentences is None:
        log.info("%s: a stream of %d files", corpus.source, corpus.num_files)
    else:
        skipped = f", {len(corpus.skipped):,} without text skipped" if corpus.skipped else ""
        log.info("%s: %d of %d rows%s", corpus.source, corpus.num_sentences, corpus.num_rows, skipped)
    return corpus


def _take_up(state: _Run) -> None:
    """Go on with a run that has been begun; one that is new is created when there is something to write."""
    if not _is_first_process():
        return
    run_dir = manifest.find_run(state.settings.output)
    if run_dir is None:
        return
    about = manifest.read_manifest(run_dir)
    check_identity(about, state.identity, run_dir)
    if about["status"] != "complete":  # of one that is complete outputs may be made anew
        check_versions(about, environment()["versions"], run_dir)
    task = state.session.task
    if not state.resume and any(run_dir.glob(f"shards/*/task-{task.index:05d}-of-*")):
        raise ReportedError(f"{run_dir}: task {task.index} has been begun already; add --resume to go on with it")
    state.session.take(run_dir)
    _open_log(state, run_dir)
    if task.count == 1 and about["status"] != "complete":
        manifest.update_manifest(run_dir, "running")
    log.info("%s: resuming", run_dir)


def _create(state: _Run) -> None:
    """Create the run's folder: from here on there is something to write."""
    settings, corpus, task = state.settings, state.corpus, state.session.task
    about = {
        "status": "running",
        "mode": settings.analysis.mode,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seed": settings.seed,
        "num_shards": task.count,
        "config_hash": state.session.config_hash,
        "identity": state.identity,
        "corpus": manifest.describe_corpus(
            source=corpus.source,
            fingerprint=corpus.fingerprint,
            num_rows=corpus.num_rows,
            num_sentences=corpus.num_sentences,
            num_windows=corpus.num_windows,
            num_files=corpus.num_files,
            skipped=corpus.skipped,
        ),
        "models": {},
        **environment(),
    }
    run_dir, is_ours = manifest.create_run(
        settings.output,
        about,
        storable=partial(storable, settings, state.sentences),
        may_exist=state.resume or task.count > 1,
    )
    state.is_new = is_ours and task.count == 1
    check_identity(manifest.read_manifest(run_dir), state.identity, run_dir)
    state.session.take(run_dir)
    _open_log(state, run_dir)
    log.info("if it is interrupted, go on with: %s", resume_command(run_dir, settings, task))


def _open_log(state: _Run, run_dir: Path) -> None:
    task = state.session.task
    name = "run.log" if task.count == 1 else f"logs/task-{task.index:05d}-of-{task.count:05d}.log"
    (run_dir / name).parent.mkdir(exist_ok=True)
    state.run_log.open(run_dir / name)


# --- predicting --------------------------------------------------------------------------------------------------


def _predict(plan: Plan, state: _Run) -> None:
    """Predict what is missing of one model."""
    settings, source, session = state.settings, plan.source, state.session
    analysis, kind = settings.analysis, source.architecture.kind
    trainer = make_trainer(settings.trainer, _root(settings, session.run_dir))
    state.trainer = trainer
    ledger = Ledger()
    if session.run_dir is not None and _is_first_process():
        ledger = read_ledger(session.run_dir / "shards" / source.key, session.config_hash, session.task)
        if trainer.world_size == 1 and not missing_of_task(ledger, state.expected, session.task):
            log.info("%s: nothing is missing", source.key)
            return
    wants_attention = ATTENTION_ENTROPY in analysis.metrics
    model = load_model(source, precision=settings.trainer.precision, needs_attention=wants_attention)
    view = view_model(model)
    if wants_attention:
        check_attention(view, f"models.{source.key}: {source.name}")
    lens_error = check_lens(view, f"models.{source.key}: {source.name}")
    module = EntropyModule(view, Lens(view, analysis.lens, plan.lens_path), analysis, plan.steering)
    data = SentenceDataModule(
        state.corpus.for_kind(kind),
        plan.encoder,
        pad_token_id=source.pad_token_id,
        tokens_per_batch=_tokens_per_batch(settings, view, trainer, plan.max_length),
        seed=settings.seed,
        task=session.task,
        done=ledger.done,
        num_workers=settings.data.num_workers,
    )
    about = {"model": source.name, "revision": source.revision or "", "config_hash": session.config_hash}
    writer = ShardWriter(
        shard_schema(analysis, view.shape, about),
        source.tokenizer,
        source.key,
        session,
        part_bytes=settings.output.part_megabytes * MEGABYTE,
        part_seconds=settings.output.part_seconds,
    )
    progress = SentenceProgress(source.key, data.num_sentences, state.quiet)
    if _is_first_process():
        is_begun = session.run_dir is not None
        if not is_begun:
            _create(state)
        assert session.run_dir is not None
        check_versions(manifest.read_manifest(session.run_dir), environment()["versions"], session.run_dir)
        if not is_begun:  # another process may have begun it, and may have ended, since this one looked for it
            data.done = read_ledger(session.run_dir / "shards" / source.key, session.config_hash, session.task).done
        about_model = {
            "name": source.name,
            "revision": source.revision,
            "model_type": source.config.model_type,
            "kind": kind,
            "shape": view.shape._asdict(),
            "dtype": str(view.decoder.weight.dtype).removeprefix("torch."),
            "attention": attention_implementation(model),
            "lens_error_logits": lens_error,
            "max_length": plan.max_length,
            "tokens_per_batch": data.tokens_per_batch,
            "first_steered_layer": None if plan.steering is None else plan.steering.first_layer,
        }
        # Whoever goes on with a run, or takes part in it, has to plan the same batches.
        data.tokens_per_batch = manifest.write_model(session.run_dir, source.key, about_model)["tokens_per_batch"]
    if session.world_size > 1 and (lost := session.meet()):
        raise _lost(state, f"process {', '.join(map(str, lost))} of {session.world_size} ended before {source.key}")
    stopping = StopBetweenBatches(state.signals)
    module.listeners += [progress.move, stopping.within_batch]
    trainer.callbacks += [writer, progress, stopping]  # type: ignore[attr-defined]
    state.has_predicted = True
    try:
        trainer.predict(module, datamodule=data, return_predictions=False)
    finally:
        state.children += children(trainer)
    log.info("%s: this process took %.1f s", source.key, progress.seconds)


def _root(settings: Settings, run_dir: Optional[Path]) -> Path:
    """Return where Lightning's requeueing might have left a checkpoint, which would be loaded over the weights."""
    return Path(settings.output.dir) / "none" if run_dir is None else run_dir


def _tokens_per_batch(settings: Settings, view: ModelView, trainer: L.Trainer, max_length: Optional[int]) -> int:
    """Return how many tokens fill a batch."""
    wanted = settings.data.tokens_per_batch
    if wanted != "auto":
        return wanted
    device = trainer.strategy.root_device
    if device.type != "cuda":
        return CPU_TOKENS
    weights = view.decoder.weight
    model_bytes = sum(parameter.nbytes for parameter in view.model.parameters())
    return gpu_tokens(
        torch.cuda.mem_get_info(device)[0] - model_bytes,
        view.shape,
        bytes_per_number=weights.itemsize,
        num_conditions=len(settings.analysis.conditions),
        reads_all=settings.analysis.positions == "all",
        map_length=max_length if attention_implementation(view.model) == EAGER else None,
    )


# --- coming to an end --------------------------------------------------------------------------------------------


def _finish(state: _Run, plans: Sequence[Plan]) -> RunResult:
    """Make sure that nothing is missing, and make the outputs; a task of an array leaves that to the merge."""
    settings, session, mode = state.settings, state.session, state.settings.analysis.mode
    assert session.run_dir is not None
    if session.rank != 0:
        return RunResult(session.run_dir, mode, {}, is_global_zero=False)
    if session.world_size > 1:
        assert state.trainer is not None
        session.wait_for_others(state.trainer.strategy)
    ledgers = {
        key: read_ledger(session.run_dir / "shards" / key, session.config_hash, session.task)
        for key in (plan.source.key for plan in plans)
    }
    lost = [
        key for key, ledger in ledgers.items() if missing_of_task(ledger, state.expected, session.task, for_sure=True)
    ]
    if lost:
        raise _lost(state, f"records of {', '.join(lost)} are missing: another process of this run was lost")
    if session.task.count > 1:
        task = session.task
        log.info("task %d of %d is done; when all are: llm-entropy merge %s", task.index, task.count, session.run_dir)
        return RunResult(session.run_dir, mode, {})
    about = manifest.read_manifest(session.run_dir)
    if not state.has_predicted and about["status"] == "complete" and about["output"] == made_of(settings):
        log.info("%s: is complete", session.run_dir)
        return read_result(session.run_dir, settings, about)
    return make_outputs(session.run_dir, settings, about, ledgers)


def _lost(state: _Run, what: str) -> RunIncompleteError:
    run_dir, task = state.session.run_dir, state.session.task
    assert run_dir is not None
    return RunIncompleteError(f"{run_dir}: {what}; go on with: {resume_command(run_dir, state.settings, task)}")


def _stop(state: _Run, stop: Stopped) -> NoReturn:
    """Say how to go on, and end as programs do that a signal has ended."""
    session, signum = state.session, stop.signum
    pass_on(signum, state.children)
    for process in state.children:
        with suppress(subprocess.TimeoutExpired, Stopped):  # who asks once more does not want to wait
            process.wait(CHILDREN_SECONDS)
    if session.rank == 0 and session.run_dir is not None:
        name = signal.Signals(signum).name
        command = resume_command(session.run_dir, state.settings, session.task)
        log.warning("stopped by %s; what was done is kept; go on with: %s", name, command)
        if session.task.count == 1:
            manifest.update_manifest(session.run_dir, "stopped")
    if state.trainer is not None and is_child(state.trainer):
        raise SystemExit(0)  # to Lightning any other status is a crash, on which it kills the other processes
    _end(signum)


def _end(signum: int) -> NoReturn:
    if signum == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + signum)


def _give_up(state: _Run, error: BaseException) -> None:
    """Leave what was recorded, and say that it is not all; a new folder without records goes."""
    run_dir = state.session.run_dir
    if run_dir is None or not _is_first_process():
        return
    if state.is_new and isinstance(error, ReportedError) and not any(run_dir.glob("shards/**/part-*")):
        state.run_log.close()
        manifest.remove_run(run_dir)
        return
    if state.session.task.count == 1:
        with suppress(OSError):  # the reason may be that nothing can be written
            manifest.update_manifest(run_dir, "failed")
    if isinstance(error, torch.OutOfMemoryError):
        raise RunIncompleteError(
            f"{run_dir}: the device has no memory for a single sentence ({str(error).splitlines()[0]}); what was done "
            "is kept; start another run with a smaller data.max_length, another trainer.precision, or a larger device"
        ) from error
    if isinstance(error, OSError):
        refuse_full_disk(error, run_dir, resume_command(run_dir, state.settings, state.session.task))
