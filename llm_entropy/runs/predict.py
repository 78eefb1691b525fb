"""Predicting one model: what is missing of it goes through the Trainer, and lands in shards."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple, Optional

import lightning as L
import pyarrow as pa
import torch

from llm_entropy.corpus.datamodule import SentenceDataModule
from llm_entropy.measuring.budget import CPU_TOKENS, gpu_tokens
from llm_entropy.measuring.generated import measuring_module
from llm_entropy.models.attention import PROBE_TOLERANCE
from llm_entropy.models.attention.interface import EAGER, attention_implementation
from llm_entropy.models.families import ModelView
from llm_entropy.runs.beginning import create
from llm_entropy.runs.identity import check_versions
from llm_entropy.runs.launch import checkpoint_root, is_first_process
from llm_entropy.runs.opening import OpenedModel, open_model
from llm_entropy.runs.plan import Plan
from llm_entropy.runs.progress import SentenceProgress
from llm_entropy.runs.state import RunState, lost_work
from llm_entropy.runs.stopping import StopBetweenBatches, children
from llm_entropy.runs.strengths import SharedStrengths, at_found, budgets
from llm_entropy.runs.trainer import make_trainer
from llm_entropy.runs.writer import ShardWriter
from llm_entropy.schema.shards import shard_schema
from llm_entropy.settings import Settings
from llm_entropy.store import manifest
from llm_entropy.store.ledger import Ledger, read_ledger
from llm_entropy.store.session import environment
from llm_entropy.store.status import missing_of_task

log = logging.getLogger("llm_entropy")

MEGABYTE = 2**20


class Work(NamedTuple):
    """What a run does with the batches of a model."""

    module: Callable[[Plan, OpenedModel, Settings], Any]
    """Makes the LightningModule, whose `predict_step` returns `Records`, and which has `listeners`."""
    schema: Callable[[OpenedModel, RunState, dict[str, str]], pa.Schema]
    """Makes the columns of its shards, with what is to be said of them."""


ANALYSIS = Work(
    lambda plan, opened, settings: measuring_module(opened.view, opened.lens, plan.asked(settings)),
    lambda opened, state, about: shard_schema(
        *(state.settings.analysis, opened.view.shape, about),
        kept=list(state.corpus.kept_schema),
        answers=state.settings.data.target_column is not None,
    ),
)
"""A run that measures."""


def predict_model(plan: Plan, state: RunState, work: Work = ANALYSIS) -> None:
    """Predict what is missing of one model."""
    settings, source, session = state.settings, plan.source, state.session
    trainer = make_trainer(settings.trainer, checkpoint_root(settings, session.run_dir))
    state.trainer = trainer
    ledger = Ledger()
    if session.run_dir is not None and is_first_process():
        ledger = read_ledger(session.run_dir / "shards" / source.key, session.config_hash, session.task)
        if trainer.world_size == 1 and not missing_of_task(ledger, state.expected, session.task):
            log.info("%s: nothing is missing", source.key)
            return
    opened = open_model(plan, settings.analysis, precision=settings.trainer.precision)
    data = SentenceDataModule(
        state.corpus.for_kind(source.architecture.kind),
        plan.encoder,
        pad_token_id=source.pad_token_id,
        tokens_per_batch=tokens_per_batch(settings, opened.view, trainer, plan.max_length),
        seed=settings.seed,
        task=session.task,
        done=ledger.done,
        num_workers=settings.data.num_workers,
        answer_delimiter=settings.data.answer_delimiter,
        pads=opened.view.takes_padding,
    )
    writer = _make_writer(plan, opened, state, work)
    progress = SentenceProgress(source.key, data.num_sentences, state.quiet)
    if is_first_process():
        _write_down(plan, opened, state, data)
    if session.world_size > 1 and (lost := session.meet()):
        whose = f"process {', '.join(map(str, lost))} of {session.world_size}"
        raise lost_work(state, f"{whose} ended before {source.key}")
    module = work.module(plan, opened, settings)
    if budgets(settings.analysis):
        trainer.callbacks.append(SharedStrengths(plan, state))  # type: ignore[attr-defined]
    stopping = StopBetweenBatches(state.signals)
    module.listeners += [progress.move, stopping.within_batch]
    trainer.callbacks += [writer, progress, stopping]  # type: ignore[attr-defined]
    state.has_predicted = True
    try:
        trainer.predict(module, datamodule=data, return_predictions=False)
    finally:
        state.children += children(trainer)
    log.info("%s: this process took %.1f s", source.key, progress.seconds)


def _make_writer(plan: Plan, opened: OpenedModel, state: RunState, work: Work) -> ShardWriter:
    source, session, output = plan.source, state.session, state.settings.output
    about = {"model": source.name, "revision": source.revision or "", "config_hash": session.config_hash}
    return ShardWriter(
        work.schema(opened, state, about),
        source.tokenizer,
        source.key,
        session,
        part_bytes=output.part_megabytes * MEGABYTE,
        part_seconds=output.part_seconds,
    )


def _write_down(plan: Plan, opened: OpenedModel, state: RunState, data: SentenceDataModule) -> None:
    """Write down what the model is, in a run that is created now if it was not before.

    Whoever goes on with a run, or takes part in it, has to plan the same batches: `data` gets their size.
    """
    session, source = state.session, plan.source
    is_begun = session.run_dir is not None
    if not is_begun:
        create(state)
    assert session.run_dir is not None
    check_versions(manifest.read_manifest(session.run_dir), environment()["versions"], session.run_dir)
    if not is_begun:  # another process may have begun it, and may have ended, since this one looked for it
        data.done = read_ledger(session.run_dir / "shards" / source.key, session.config_hash, session.task).done
    plan = at_found(plan, state.settings.analysis, state.found.get(source.key, {}))
    about = _describe(plan, opened, data.tokens_per_batch)
    data.tokens_per_batch = manifest.write_model(session.run_dir, source.key, about)["tokens_per_batch"]


def _describe(plan: Plan, opened: OpenedModel, tokens: int) -> dict[str, Any]:
    """Return what `model.json` says of a model."""
    source, view = plan.source, opened.view
    return {
        "name": source.name,
        "revision": source.revision,
        "model_type": source.config.model_type,
        "kind": source.architecture.kind,
        "shape": view.shape.plain(),
        "dtype": str(view.decoder.weight.dtype).removeprefix("torch."),
        "attention": attention_implementation(view.model),
        "attention_error_nats": view.attention_error,
        "attention_allowed_nats": None if view.attention_error is None else PROBE_TOLERANCE,
        "lens_error_logits": opened.proof.error,
        "lens_allowed_logits": opened.proof.allowed,
        "max_length": plan.max_length,
        "tokens_per_batch": tokens,
        "steering": {
            name: {"first_layer": steering.first_layer, "added_norms": steering.added_norms}
            for name, steering in plan.steering.items()
        },
    }


def tokens_per_batch(settings: Settings, view: ModelView, trainer: L.Trainer, max_length: Optional[int]) -> int:
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
        num_conditions=len(settings.analysis.run_conditions),
        reads_all=settings.analysis.positions != "last",
        map_length=max_length if attention_implementation(view.model) == EAGER else None,
    )
