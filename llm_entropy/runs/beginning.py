"""Beginning a run: its folder is created when there is something to write, or one that was begun is taken up."""

from __future__ import annotations

import logging
import time
from functools import partial
from pathlib import Path

from llm_entropy.errors import ReportedError
from llm_entropy.runs.identity import check_identity, check_versions
from llm_entropy.runs.launch import is_first_process
from llm_entropy.runs.state import RunState
from llm_entropy.runs.storable import storable
from llm_entropy.runs.strengths import FOUND_STRENGTHS, take_found, with_found
from llm_entropy.settings import ExtractionSettings
from llm_entropy.store import manifest
from llm_entropy.store.session import environment
from llm_entropy.store.status import resume_command

log = logging.getLogger("llm_entropy")


def take_up(state: RunState) -> None:
    """Resume a run that was started before. A new run is created when there is something to write."""
    if not is_first_process():
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
        raise ReportedError(f"{run_dir}: task {task.index} was started already; add --resume to continue it")
    state.session.take(run_dir)
    _open_log(state, run_dir)
    if task.count == 1 and about["status"] != "complete":
        manifest.update_manifest(run_dir, "running")
    log.info("%s: resuming", run_dir)


def create(state: RunState) -> None:
    """Create the run's folder: from here on there is something to write."""
    settings, corpus, task = state.settings, state.corpus, state.session.task
    about = {
        "status": "running",
        "mode": "extract" if isinstance(settings, ExtractionSettings) else settings.analysis.mode,
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
    if state.found:
        about[FOUND_STRENGTHS] = state.found
        settings = with_found(settings, state.found)
    run_dir, is_ours = manifest.create_run(
        settings.output,
        about,
        storable=partial(storable, settings, state.sentences, columns=state.columns),
        may_exist=state.resume or task.count > 1,
    )
    state.is_new = is_ours and task.count == 1
    begun = manifest.read_manifest(run_dir)  # by this process or another
    check_identity(begun, state.identity, run_dir)
    take_found(state, begun, run_dir)
    state.session.take(run_dir)
    _open_log(state, run_dir)
    log.info("the results will be in %s", run_dir)
    log.info("if the run is interrupted, resume with: %s", resume_command(run_dir, settings, task))


def _open_log(state: RunState, run_dir: Path) -> None:
    task = state.session.task
    name = "run.log" if task.count == 1 else f"logs/task-{task.index:05d}-of-{task.count:05d}.log"
    (run_dir / name).parent.mkdir(exist_ok=True)
    state.run_log.open(run_dir / name)
