"""One run over all its models: check everything, then predict, merge and draw, model by model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import lightning as L
import numpy as np
import numpy.typing as npt
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only

from llm_entropy import manifest
from llm_entropy.architectures import view_model
from llm_entropy.configuration import read_config
from llm_entropy.corpus import Corpus, EncodedCorpus, corpus_of_sentences, encode_corpus, load_corpus, numbers_of
from llm_entropy.datamodule import SentenceDataModule
from llm_entropy.lens import Lens, check_lens
from llm_entropy.merge import merge_model
from llm_entropy.models import load_model
from llm_entropy.module import EntropyModule
from llm_entropy.plan import Plan, plan_model
from llm_entropy.plots import draw_model, draw_side_by_side
from llm_entropy.positions import Encoder
from llm_entropy.progress import SentenceProgress
from llm_entropy.results import ModelResult, RunResult
from llm_entropy.runlog import RunLog, run_log
from llm_entropy.schema import SENTENCE_ID, ModelShape, ModelTables, shard_schema
from llm_entropy.settings import (
    ATTENTION_ENTROPY,
    Settings,
    to_plain,
)
from llm_entropy.writer import ShardWriter

log = logging.getLogger("llm_entropy")


@dataclass
class _Run:
    """A run under way."""

    settings: Settings
    corpus: Corpus
    run_log: RunLog
    quiet: bool
    sentences: Optional[Sequence[str]] = None
    """The corpus, where it was given in memory."""
    clock: manifest.Clock = field(default_factory=manifest.Clock)
    run_dir: Optional[Path] = None
    """None until there is something to write."""
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What `run.json` says of each model that is done."""


def run(settings: Settings, *, quiet: bool = False, sentences: Optional[Sequence[str]] = None) -> RunResult:
    """Run an analysis.

    Args:
        settings: What to do.
        quiet: Whether the terminal shows warnings and errors alone.
        sentences: The corpus itself, instead of `settings.data.path`.

    Returns:
        Where the outputs are, and the outputs.

    Raises:
        ValueError: Something in the settings or in what they name is wrong. Nothing is left behind.
    """
    with run_log(quiet=quiet or not _is_first_process()) as messages:
        if _is_first_process():
            manifest.check_output(settings.output)
        plans = [plan_model(key, model, settings) for key, model in settings.models.items()]
        num_sentences = settings.analysis.num_sentences
        if sentences is not None:
            corpus = corpus_of_sentences(sentences, num_sentences, settings.seed)
        else:
            corpus = load_corpus(settings.data, num_sentences, settings.seed, quiet=quiet)
        skipped = f", {len(corpus.skipped):,} without text skipped" if corpus.skipped else ""
        log.info("%s: %d of %d rows%s", corpus.source, len(corpus.sentences), corpus.num_rows, skipped)
        state = _Run(settings, corpus, messages, quiet, sentences)
        try:
            tables = [table for table in (_run_model(plan, state) for plan in plans) if table is not None]
            return _finish(state, tables)
        except BaseException as error:
            _give_up(state, error)
            raise


def _is_first_process() -> bool:
    return int(rank_zero_only.rank) == 0  # type: ignore[attr-defined]


def _run_model(plan: Plan, state: _Run) -> Optional[ModelTables]:
    """Predict, merge and draw one model; only the first process gets its tables."""
    settings, source, analysis = state.settings, plan.source, state.settings.analysis
    kind = source.architecture.kind
    encoder = Encoder(
        tokenizer=source.tokenizer,
        kind=kind,
        positions=analysis.positions,
        mask_strategy=analysis.mask_strategy,
        seed=settings.seed,
        max_length=plan.max_length,
    )
    encoded = encode_corpus(state.corpus.for_kind(kind), encoder, quiet=state.quiet)
    wants_attention = ATTENTION_ENTROPY in analysis.metrics
    model = load_model(source, precision=settings.trainer.precision, needs_attention=wants_attention)
    view = view_model(model)
    lens_error = check_lens(view, f"models.{source.key}: {source.name}")
    module = EntropyModule(view, Lens(view, analysis.lens, plan.lens_path), analysis, plan.steering)
    data = SentenceDataModule(
        encoded.examples,
        pad_token_id=source.pad_token_id,
        tokens_per_batch=settings.data.tokens_per_batch,
        seed=settings.seed,
    )
    schema = shard_schema(analysis, view.shape, {"model": source.name, "revision": source.revision or ""})
    writer = ShardWriter(schema, source.tokenizer)
    progress = SentenceProgress(source.key, data.totals.num_sentences, state.quiet)
    trainer = _trainer(settings, state, [writer, progress])
    if state.run_dir is None and _is_first_process():
        _open_run(state)
    writer.folder = None if state.run_dir is None else state.run_dir / "shards" / source.key
    trainer.predict(module, datamodule=data, return_predictions=False)
    assert writer.folder is not None
    state.run_dir = writer.folder.parent.parent
    if not trainer.is_global_zero:
        return None
    expected_ids = np.unique(numbers_of(encoded.examples, SENTENCE_ID))
    state.models[source.key] = manifest.describe_model(
        {
            "name": source.name,
            "revision": source.revision,
            "model_type": source.config.model_type,
            "kind": kind,
            "shape": view.shape._asdict(),
            "dtype": str(view.decoder.weight.dtype).removeprefix("torch."),
            "attention": model.config._attn_implementation,
            "lens_error_logits": lens_error,
            "max_length": plan.max_length,
            "first_steered_layer": None if plan.steering is None else plan.steering.first_layer,
        },
        num_sentences=len(expected_ids),
        num_examples=len(encoded.examples),
        num_cut=encoded.num_cut,
        unread=encoded.unread,
        num_processes=trainer.world_size,
        num_records=writer.num_records,
        num_tokens=writer.num_tokens,
        seconds=progress.seconds,
    )
    _report(plan, encoded, progress)
    return _make_tables(state.run_dir, settings, source.key, state.models[source.key], expected_ids)


def _make_tables(
    run_dir: Path,
    settings: Settings,
    key: str,
    about: Mapping[str, Any],
    expected_ids: Optional[npt.NDArray[np.int64]] = None,
) -> ModelTables:
    """Merge and draw one model, of which `about` says what `run.json` does."""
    tables = merge_model(
        run_dir,
        key,
        about["name"],
        settings.analysis,
        ModelShape(**about["shape"]),
        kind=about["kind"],
        parquet=settings.output.parquet,
        expected_ids=expected_ids,
        expected_sentences=about["num_sentences"],
    )
    if settings.output.plots:
        draw_model(tables, run_dir, settings.analysis.mode)
    return tables


def _draw_together(run_dir: Path, settings: Settings, tables: list[ModelTables]) -> RunResult:
    """Draw what shows all models, and return the result of the run."""
    if settings.output.plots:
        draw_side_by_side(tables, run_dir, settings.analysis.conditions[0])
    models = {table.model: ModelResult(run_dir, table, settings.analysis) for table in tables}
    return RunResult(run_dir, settings.analysis.mode, models)


def _trainer(settings: Settings, state: _Run, callbacks: list[L.Callback]) -> L.Trainer:
    """Return a Trainer that only predicts: no checkpoints, no logger, no sampler of its own."""
    wanted = settings.trainer
    # The folder of a checkpoint that Lightning's requeueing might have left: it would be loaded over the weights.
    root = state.run_dir if state.run_dir is not None else Path(settings.output.dir) / "none"
    try:
        trainer = L.Trainer(
            accelerator=wanted.accelerator,
            devices=wanted.devices,
            num_nodes=wanted.num_nodes,
            strategy=wanted.strategy,
            plugins=[SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else None,
            callbacks=callbacks,
            default_root_dir=root,
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (MisconfigurationException, RuntimeError, TypeError, ValueError) as error:
        got = ", ".join(f"{name} {value!r}" for name, value in to_plain(wanted).items())
        raise ValueError(f"trainer: got {got}; {str(error).rstrip('.')}; change what does not fit") from error
    if trainer.world_size != trainer.num_devices * trainer.num_nodes:
        raise ValueError(
            f"trainer: {trainer.num_devices} devices on {trainer.num_nodes} nodes were asked for, but "
            f"{trainer.world_size} processes were started; under SLURM start with srun, one task for each device"
        )
    return trainer


def _open_run(state: _Run) -> None:
    """Create the run's folder: from here on there is something to write."""
    state.run_dir = manifest.create_run_dir(state.settings.output)
    state.run_log.open(state.run_dir / "run.log")
    manifest.write_config(state.run_dir, state.settings, state.sentences)
    _write_manifest(state, state.run_dir, "running")


def _write_manifest(state: _Run, run_dir: Path, status: manifest.Status) -> None:
    settings, corpus = state.settings, state.corpus
    about = manifest.describe_corpus(
        source=corpus.source,
        fingerprint=corpus.fingerprint,
        num_rows=corpus.num_rows,
        num_sentences=len(corpus.sentences),
        skipped=corpus.skipped,
    )
    manifest.write_manifest(run_dir, settings, status, state.clock, about, state.models)


def _report(plan: Plan, encoded: EncodedCorpus, progress: SentenceProgress) -> None:
    key = plan.source.key
    log.info("%s: %s in %.1f s", key, f"{len(encoded.examples):,} sentences", progress.seconds)
    if encoded.num_cut:
        log.warning("%s: %d sentences were cut at %s tokens", key, encoded.num_cut, plan.max_length)
    if encoded.unread:
        log.warning("%s: %d sentences hold no token to read; run.json lists them", key, len(encoded.unread))


def _finish(state: _Run, tables: list[ModelTables]) -> RunResult:
    """Write down that the run is complete; processes other than the first have nothing to show."""
    assert state.run_dir is not None
    if not _is_first_process():
        return RunResult(state.run_dir, state.settings.analysis.mode, {}, is_global_zero=False)
    result = _draw_together(state.run_dir, state.settings, tables)
    _write_manifest(state, state.run_dir, "complete")
    return result


def _give_up(state: _Run, error: BaseException) -> None:
    """Leave what was recorded, and say that it is not all; a folder without records goes."""
    if state.run_dir is None or not _is_first_process():
        return
    if isinstance(error, ValueError) and not any(state.run_dir.glob("shards/**/*.parquet")):
        manifest.remove_run(state.run_dir)
        return
    log.debug("the run stopped: %s", type(error).__name__, exc_info=error)
    _write_manifest(state, state.run_dir, "failed")


def merge_run(run_dir: Path, *, quiet: bool = False) -> RunResult:
    """Make the tables and plots of a run again, from its shards.

    Args:
        run_dir: The run's folder.
        quiet: Whether the terminal shows warnings and errors alone.

    Raises:
        ValueError: There is no such run, or its shards are not complete.
    """
    with run_log(quiet=quiet):
        about = manifest.read_manifest(run_dir)
        settings = read_config(run_dir / "config.yaml")
        tables = [_make_tables(run_dir, settings, key, model) for key, model in about["models"].items()]
        return _draw_together(run_dir, settings, tables)
