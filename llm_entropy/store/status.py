"""How far a run is, and the commands that do what is missing."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from llm_entropy.errors import ReportedError
from llm_entropy.settings import Settings, is_loaded
from llm_entropy.settings.configuration import read_config
from llm_entropy.store import manifest
from llm_entropy.store.ledger import Expected, Ledger, Missing, find_missing, read_ledger
from llm_entropy.store.session import workers
from llm_entropy.store.windows import WINDOWS_PER_FILE, Task, owner

NUM_NAMED = 5
"""How many windows an error names."""


@dataclass(frozen=True)
class ModelStatus:
    """How far one model is."""

    model: str
    """Its key."""
    missing: list[Missing]
    """What is missing, ascending."""
    num_sentences: int
    """Sentences of the windows that are complete."""
    num_records: int
    """Records, all in all."""


@dataclass(frozen=True)
class RunStatus:
    """How far a run is."""

    run_dir: Path
    settings: Settings
    status: str
    """As `run.json` has it."""
    num_sentences: Optional[int]
    """Of the corpus; None for a stream that nobody has read to the end."""
    num_tasks: int
    """Of the array that the run was begun as."""
    missing_tasks: list[int]
    """Those that are not complete."""
    models: list[ModelStatus]
    workers: list[str]
    """Processes that are at work on it now."""

    @property
    def is_complete(self) -> bool:
        """Whether no record is missing."""
        return not any(model.missing for model in self.models)


def run_status(run_dir: Path) -> RunStatus:
    """Find out how far a run is, from the markers of its parts.

    Args:
        run_dir: The run's folder.

    Raises:
        ReportedError: There is no such run, or a part is corrupt.
    """
    about = manifest.read_manifest(run_dir)
    settings = read_config(run_dir / manifest.CONFIG)
    expected = _expected(about)
    num_tasks = about["num_shards"]
    models, missing_tasks = [], set()
    for key in settings.models:
        ledger = read_ledger(run_dir / "shards" / key, about["config_hash"])
        missing = find_missing(ledger, expected)
        missing_tasks |= {task for one in missing for task in _tasks_of(one, expected, num_tasks)}
        whole = [state for state in ledger.windows.values() if state.is_complete and state.notes is not None]
        num_sentences = sum(state.notes.num_sentences for state in whole if state.notes is not None)
        num_records = sum(marker.num_records for marker in ledger.markers)
        models.append(ModelStatus(key, missing, num_sentences, num_records))
    return RunStatus(
        run_dir=run_dir,
        settings=settings,
        status=about["status"],
        num_sentences=about["corpus"]["num_sentences"],
        num_tasks=num_tasks,
        missing_tasks=sorted(missing_tasks),
        models=models,
        workers=workers(run_dir),
    )


def print_status(status: RunStatus, *, missing_only: bool = False) -> None:
    """Print how far a run is, and how to run what is missing.

    Args:
        status: Of the run.
        missing_only: Whether only the list of the tasks that are not complete is printed.
    """
    if missing_only:
        print(ranges_of(status.missing_tasks))
        return
    state = "every record is there" if status.is_complete else "incomplete"
    print(f"{status.run_dir}: {state} (run.json says {status.status})")
    of_all = "" if status.num_sentences is None else f" of {status.num_sentences:,}"
    for model in status.models:
        counts = f"{model.num_sentences:,}{of_all} sentences done, {model.num_records:,} records"
        print(f"  {model.model}: {counts}")
        if model.missing:
            print(f"    missing: {_in_words(model.missing)}")
    if status.workers:
        print(f"  at work now: {', '.join(status.workers)}")
    for line in how_to_go_on(status.run_dir, status.settings, status.num_tasks, status.missing_tasks):
        print(line)
    if status.is_complete and status.status != "complete":
        print(f"merge it with:\n  llm-entropy merge {shlex.quote(str(status.run_dir))}")


def missing_of_task(ledger: Ledger, expected: Expected, task: Task, *, for_sure: bool = False) -> list[Missing]:
    """Return the windows of which batches of a task are missing.

    Args:
        ledger: Of the model.
        expected: What must be there in the end, from all tasks.
        task: Which one.
        for_sure: Whether that is left out of which it is not known yet whether the task has any of it.
    """
    return [
        one for one in find_missing(ledger, expected) if task.index in _tasks_of(one, expected, task.count, for_sure)
    ]


def refuse_incomplete(run_dir: Path, about: dict[str, Any], ledgers: dict[str, Ledger]) -> None:
    """Make sure that every batch of every model is there.

    Args:
        run_dir: The run's folder.
        about: What `run.json` says.
        ledgers: By model.

    Raises:
        ReportedError: Something is missing; the error says what, and how to run just that.
    """
    expected = _expected(about)
    tasks: set[int] = set()
    words = []
    for key, ledger in ledgers.items():
        missing = find_missing(ledger, expected)
        tasks |= {task for one in missing for task in _tasks_of(one, expected, about["num_shards"])}
        if missing:
            words.append(f"{key} lacks {_in_words(missing)}")
    if words:
        settings = read_config(run_dir / manifest.CONFIG)
        ways = " ".join(how_to_go_on(run_dir, settings, about["num_shards"], sorted(tasks)))
        raise ReportedError(f"{run_dir}: is not complete: {'; '.join(words)}. {' '.join(ways.split())}")


def how_to_go_on(run_dir: Path, settings: Settings, num_tasks: int, missing: Sequence[int]) -> list[str]:
    """Return lines that say how to run the tasks that are missing; none where there are none."""
    if not missing:
        return []
    if num_tasks == 1:
        return ["run what is missing with:", f"  {resume_command(run_dir, settings, Task())}"]
    array = f"--array={ranges_of(missing)}"
    command = resume_command(run_dir, settings, Task(0, num_tasks), with_index=False)
    return [f"tasks that are not complete, for sbatch: {array}", f"each of them runs: {command}"]


def resume_command(run_dir: Path, settings: Settings, task: Task, *, with_index: bool = True) -> str:
    """Return the command that resumes a run, ready for a shell; for models in memory, the call that does.

    Args:
        run_dir: The run's folder.
        settings: Of the run.
        task: Which of its tasks.
        with_index: Whether the task's number is given, or left to the array.
    """
    if any(is_loaded(model) for model in settings.models.values()):
        output = f"output={{'dir': {settings.output.dir!r}, 'run_name': {run_dir.name!r}}}"
        return f"run_analysis(..., {output}, resume=True), with the same models and arguments"
    words = ["llm-entropy", settings.COMMAND, "--config", str(run_dir / manifest.CONFIG)]
    words += ["--output.dir", settings.output.dir, "--output.run_name", run_dir.name, "--resume"]
    if task.count > 1:
        words += ["--data.num_shards", str(task.count)]
        if with_index:
            words += ["--data.shard_index", str(task.index)]
    return shlex.join(words)


def ranges_of(numbers: Iterable[int]) -> str:
    """Return numbers as `sbatch --array` takes them: `3,7-9`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _expected(about: dict[str, Any]) -> Expected:
    return Expected(about["corpus"]["num_windows"], about["corpus"]["num_files"])


def _tasks_of(missing: Missing, expected: Expected, num_tasks: int, for_sure: bool = False) -> list[int]:
    """Return the tasks to which what is missing belongs."""
    window = missing.window
    if expected.num_windows is None:
        file, number = divmod(window, WINDOWS_PER_FILE)
        if expected.num_files >= num_tasks:
            return [file % num_tasks]
        # the window behind the last known one is there for sure; which ones follow is not known
        return list(range(num_tasks)) if missing.reaches_on and not for_sure else [number % num_tasks]
    if missing.batches is None:
        first = window * num_tasks // expected.num_windows
        tasks = list(range(first, -(-(window + 1) * num_tasks // expected.num_windows)))
        # of several tasks some may own nothing of it: that is known once somebody has planned it
        return [] if for_sure and len(tasks) > 1 else tasks
    assert missing.num_batches is not None
    owners = {owner(window, b, missing.num_batches, expected.num_windows, num_tasks) for b in missing.batches}
    return sorted(owners)


def _in_words(missing: Sequence[Missing]) -> str:
    """Say what is missing, the first windows by name."""
    named = [_one_in_words(one) for one in missing[:NUM_NAMED]]
    more = f", and {len(missing) - NUM_NAMED} more" if len(missing) > NUM_NAMED else ""
    return ", ".join(named) + more


def _one_in_words(missing: Missing) -> str:
    file, number = divmod(missing.window, WINDOWS_PER_FILE)
    name = f"window {number}" + (f" of file {file}" if file else "")
    if missing.reaches_on:
        return f"{name} and what follows"
    if missing.batches is None:
        return name
    return f"{len(missing.batches)} of the {missing.num_batches} batches of {name}"
