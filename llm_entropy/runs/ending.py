"""Coming to an end: with outputs, by a signal, or by an error; what was done is kept."""

from __future__ import annotations

import logging
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn, Optional

import torch

from llm_entropy.errors import ReportedError, RunIncompleteError
from llm_entropy.outputs.making import made_of, make_outputs, read_result
from llm_entropy.outputs.opening import refuse_full_disk
from llm_entropy.outputs.results import RunResult
from llm_entropy.runs.launch import is_first_process
from llm_entropy.runs.plan import Plan
from llm_entropy.runs.state import RunState, lost_work
from llm_entropy.runs.stopping import Stopped, is_child, pass_on
from llm_entropy.store import manifest
from llm_entropy.store.ledger import Ledger, read_ledger
from llm_entropy.store.status import missing_of_task, resume_command

log = logging.getLogger("llm_entropy")

CHILDREN_SECONDS = 30
"""How long the processes that Lightning has started may take to stop."""


def finish(state: RunState, plans: Sequence[Plan]) -> RunResult:
    """Make sure that nothing is missing, and make the outputs; a task of an array leaves that to the merge."""
    settings, session, mode = state.settings, state.session, state.settings.analysis.mode
    assert session.run_dir is not None
    ledgers = complete_ledgers(state, plans)
    if ledgers is None:
        return RunResult(session.run_dir, mode, {}, is_global_zero=session.rank == 0)
    about = manifest.read_manifest(session.run_dir)
    if not state.has_predicted and about["status"] == "complete" and about["output"] == made_of(settings):
        log.info("%s is complete", session.run_dir)
        return read_result(session.run_dir, settings, about)
    return make_outputs(session.run_dir, settings, about, ledgers)


def complete_ledgers(state: RunState, plans: Sequence[Plan]) -> Optional[dict[str, Ledger]]:
    """Wait for the other processes, and return what was done of each model.

    Returns:
        None where this process makes no outputs: it is not the first, or a task of an array.

    Raises:
        RunIncompleteError: Something is missing.
    """
    session = state.session
    assert session.run_dir is not None
    if session.rank != 0:
        return None
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
        raise lost_work(state, f"records of {', '.join(lost)} are missing: another process of this run was lost")
    if session.task.count > 1:
        task = session.task
        words = "task %d of %d is done; when all tasks are, run: llm-entropy merge %s"
        log.info(words, task.index, task.count, session.run_dir)
        return None
    return ledgers


@contextmanager
def ended_well(state: RunState) -> Iterator[None]:
    """Whatever ends the run inside of the context, keep what was done, say how to go on, and release the run."""
    try:
        yield
    except Stopped as stop:
        end_stopped(state, stop.signum)
    except BaseException as error:
        give_up(state, error)
        raise
    finally:
        state.session.release()


def end_stopped(state: RunState, signum: int) -> NoReturn:
    """Say how to go on, and end as programs do that a signal has ended."""
    session = state.session
    pass_on(signum, state.children)
    for process in state.children:
        with suppress(subprocess.TimeoutExpired, Stopped):  # who asks once more does not want to wait
            process.wait(CHILDREN_SECONDS)
    if session.rank == 0 and session.run_dir is not None:
        name = signal.Signals(signum).name
        command = resume_command(session.run_dir, state.settings, session.task)
        log.warning("stopped by %s; what was done is kept; resume with: %s", name, command)
        if session.task.count == 1:
            manifest.update_manifest(session.run_dir, "stopped")
    if state.trainer is not None and is_child(state.trainer):
        raise SystemExit(0)  # to Lightning any other status is a crash, on which it kills the other processes
    end_by(signum)


def end_by(signum: int) -> NoReturn:
    """End as programs do that a signal has ended."""
    if signum == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + signum)


def give_up(state: RunState, error: BaseException) -> None:
    """Leave what was recorded, and say that it is not all; a new folder without records goes."""
    run_dir = state.session.run_dir
    if run_dir is None or not is_first_process():
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
