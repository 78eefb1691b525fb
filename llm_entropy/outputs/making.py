"""From the shards of all tasks to what people open: merge, draw, and say in `run.json` what the run was."""

from __future__ import annotations

import logging
import shlex
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from math import isfinite, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from llm_entropy.errors import ReportedError
from llm_entropy.outputs.effects import SteeringFacts
from llm_entropy.outputs.merge import MergeOptions, MergeSource, collect_model, merge_model
from llm_entropy.outputs.opening import ledgers_of, merging, open_and_make, refuse_full_disk
from llm_entropy.outputs.report import write_report
from llm_entropy.outputs.report.page import SENTENCE_BYTES
from llm_entropy.outputs.results import ModelResult, RunResult
from llm_entropy.outputs.summaries import EffectRow, SummaryRow, effect_rows, summary_rows
from llm_entropy.outputs.tables import ModelTables
from llm_entropy.schema.shape import ModelShape, measured_of
from llm_entropy.settings import Settings
from llm_entropy.settings.configuration import read_config
from llm_entropy.store import manifest
from llm_entropy.store.ledger import Ledger
from llm_entropy.store.status import refuse_incomplete

if TYPE_CHECKING:
    from llm_entropy.outputs.plots.drawing import Drawers

log = logging.getLogger("llm_entropy")


def merge_run(run_dir: Path, *, quiet: bool = False) -> RunResult:
    """Make the tables and plots of a run, from the shards of all its tasks.

    Args:
        run_dir: The run's folder.
        quiet: Whether the terminal shows warnings and errors alone.

    Raises:
        ReportedError: There is no such run, its shards are not complete, or one is corrupt.
        RunIncompleteError: The disk is full.
    """
    other_kind = "is a run of llm-entropy extract; merge_vectors makes its vectors"
    return open_and_make(make_outputs, run_dir, Settings, other_kind, quiet=quiet)


def make_outputs(run_dir: Path, settings: Settings, about: dict[str, Any], ledgers: dict[str, Ledger]) -> RunResult:
    """Merge and draw every model, and write down that the run is complete.

    Args:
        run_dir: The run's folder.
        settings: Of the run.
        about: What `run.json` says.
        ledgers: By model, complete.

    Raises:
        ReportedError: Something is missing or corrupt, a sentence is not there exactly once, or somebody else is
            merging.
    """
    with merging(run_dir, about, ledgers):
        models, tables = {}, []
        with _drawers(settings, run_dir) as drawers:
            for key, ledger in ledgers.items():
                model = manifest.read_model(run_dir, key)
                assert model is not None, "a complete model has a model.json"
                tables.append(_merge_model(run_dir, settings, source_of(run_dir, settings, key, model, ledger)))
                if drawers is not None:
                    drawers.draw_model(tables[-1])
                found = {
                    "summary": [_plain(row) for row in summary_rows(tables[-1])],
                    "effects": [_plain(row) for row in effect_rows(tables[-1], settings.analysis.run_conditions)],
                }
                models[key] = {**model, **manifest.model_totals(ledger), **found}
            if drawers is not None:
                drawers.draw_side_by_side(tables)
        corpus = about["corpus"]
        if corpus["num_windows"] is None:
            corpus = {**corpus, **manifest.corpus_totals(next(iter(ledgers.values())))}
        finished = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        changes = {"finished": finished, "corpus": corpus, "models": models, "output": made_of(settings)}
        if settings.output.report:  # before the run is complete: a complete one has it
            write_report(run_dir, settings, {**about, **changes}, tables)
        manifest.update_manifest(run_dir, "complete", **changes)
        for model in models.values():
            report_reading(model)
        return read_result(run_dir, settings, manifest.read_manifest(run_dir))


def _drawers(settings: Settings, run_dir: Path) -> AbstractContextManager[Optional[Drawers]]:
    if not settings.output.draws:
        return nullcontext()
    from llm_entropy.outputs.plots.drawing import Drawers  # who wants no plots does not wait for its imports

    return Drawers(settings.output, run_dir)


def report_run(run_dir: Path) -> Path:
    """Make the report of a complete run anew, from its shards, and return where it is. No other file is written.

    Args:
        run_dir: The run's folder.

    Raises:
        ReportedError: There is no such run, it extracts vectors, is not complete, or a shard is corrupt.
        RunIncompleteError: The disk is full.
    """
    about = manifest.read_manifest(run_dir)
    if about.get("mode") == "extract":
        raise ReportedError(f"{run_dir}: holds extracted vectors, of which there is no report; give a run of predict")
    settings = read_config(run_dir / manifest.CONFIG)
    folder = shlex.quote(str(run_dir))
    if about["status"] != "complete":
        raise ReportedError(
            f"{run_dir}: is not complete (run.json says {about['status']}); see what is missing with: llm-entropy "
            f"status {folder}; when nothing is: llm-entropy merge {folder}"
        )
    ledgers = ledgers_of(run_dir, settings, about)
    refuse_incomplete(run_dir, about, ledgers)
    tables = [
        collect_model(
            source_of(run_dir, settings, key, about["models"][key], ledger), settings.analysis, _room(settings)
        )
        for key, ledger in ledgers.items()
    ]
    try:
        return write_report(run_dir, settings, about, tables)
    except OSError as error:
        refuse_full_disk(error, run_dir, f"llm-entropy report {folder}")
        raise


def source_of(run_dir: Path, settings: Settings, key: str, model: dict[str, Any], ledger: Ledger) -> MergeSource:
    """Return what a merge has to know of a model.

    Args:
        run_dir: The run's folder.
        settings: Of the run.
        key: The model's.
        model: What its `model.json` says.
        ledger: Of the model, complete.

    Raises:
        ReportedError: The shards are those of an earlier llm_entropy.
    """
    if "steering" not in model:
        raise ReportedError(
            f"{run_dir}: its shards were written by an earlier llm_entropy and lack columns that this one reads; merge "
            f"it with the version that wrote them, {manifest.written_by(manifest.read_manifest(run_dir))}"
        )
    facts = {name: SteeringFacts(**about) for name, about in model["steering"].items()}
    return MergeSource(
        key, model["name"], model["kind"], ModelShape.of(model["shape"]), ledger, facts, settings.seed, settings.data
    )


def _merge_model(run_dir: Path, settings: Settings, source: MergeSource) -> ModelTables:
    output = settings.output
    options = MergeOptions(output.csv, output.parquet, report_bytes=_room(settings) if output.report else 0)
    return merge_model(run_dir, source, settings.analysis, options)


def _room(settings: Settings) -> int:
    """Return what the sentences of each model may need in the report."""
    return SENTENCE_BYTES // len(settings.models)


def made_of(settings: Settings) -> dict[str, Any]:
    """Return what is made of the records, as `run.json` says it; the format of plots where it is not PNG."""
    output = settings.output
    made = {"csv": output.csv, "parquet": output.parquet, "plots": output.plots, "report": output.report}
    return made if output.plot_format == "png" else {**made, "plot_format": output.plot_format}


def read_result(run_dir: Path, settings: Settings, about: dict[str, Any]) -> RunResult:
    """Return the outputs of a run that is complete.

    Args:
        run_dir: The run's folder.
        settings: Of the run.
        about: What `run.json` says.
    """
    models = {
        key: ModelResult(
            run_dir,
            key,
            replace(settings.analysis, metrics=measured_of(settings.analysis, ModelShape.of(model["shape"]))),
            [SummaryRow(**_numbers(row)) for row in model["summary"]],
            [EffectRow(**{**row, "columns": _numbers(row["columns"])}) for row in model["effects"]],
        )
        for key, model in about["models"].items()
    }
    return RunResult(run_dir, settings.analysis.mode, models)


def _plain(value: Any) -> Any:
    """Return a row, or what is in one, as JSON can hold it, which has no word for what is not finite."""
    if isinstance(value, (SummaryRow, EffectRow)):
        return _plain(value._asdict())
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return None if isinstance(value, float) and not isfinite(value) else value


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row that `_plain` wrote, with NaN where there is no number."""
    return {name: nan if value is None else value for name, value in row.items()}


def report_reading(model: dict[str, Any]) -> None:
    """Warn of what a model has not read as it was given.

    Args:
        model: What `run.json` says of it.
    """
    if model["num_cut"]:
        log.warning("%s: %d sentences were cut at %s tokens", model["name"], model["num_cut"], model["max_length"])
    if model["num_own_start"]:
        log.warning(
            "%s: %d sentences begin with the special token (BOS) that the tokenizer adds; it was not added again",
            model["name"],
            model["num_own_start"],
        )
    if model["num_unread"]:
        log.warning("%s: %d sentences hold no token to read; run.json lists them", model["name"], model["num_unread"])
