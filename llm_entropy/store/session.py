"""One launch of a run: which process this is, what it may write, and that nobody else writes it."""

from __future__ import annotations

import functools
import os
import platform
import resource
import secrets
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Optional

import torch
from lightning.pytorch.strategies import Strategy

from llm_entropy.errors import ReportedError
from llm_entropy.store import files, ledger
from llm_entropy.store.files import Lock
from llm_entropy.store.windows import Task

PACKAGES = (
    *("llm_entropy", "torch", "numba", "transformers", "tokenizers", "lightning", "datasets"),
    *("numpy", "pandas", "pyarrow"),
)
"""The packages whose versions a run records."""
PATIENCE = 0.2
"""Seconds between two looks at the locks of the other processes."""
GRACE = 1.0
"""Seconds that a signal, which other processes got too, may take to come to this one."""


@dataclass
class Session:
    """A process's part in a run, over all its models."""

    task: Task
    config_hash: str
    """Of the run; it goes into every part."""
    run_dir: Optional[Path] = None
    """The run's folder; processes other than the first are told when they join."""
    launch: str = field(default_factory=lambda: secrets.token_hex(4))
    """Tells the processes of one start from those of another; that of the first process counts."""
    rank: int = 0
    world_size: int = 1
    started: str = field(default_factory=lambda: datetime.now().astimezone().isoformat(timespec="microseconds"))
    """To the microsecond: the processes of a run are listed in the order in which they started."""
    _lock: Optional[Lock] = None
    _num_models: int = 1
    """How many models this process has come to."""

    def take(self, run_dir: Path) -> None:
        """Make sure that nobody else works on this task, and keep others from it. For the first process of a task.

        What processes that were killed left half-done is removed.

        Args:
            run_dir: The run's folder.

        Raises:
            ReportedError: A living process writes what this task would write.
        """
        self._acquire(run_dir)
        own = _lock_path(run_dir, self.task, self.rank)
        for path in sorted(_locks(run_dir).glob("task-*.lock")):
            # tasks of the same array do not disturb each other; those of another division of the corpus would
            other_task = f"-of-{self.task.count:05d}." in path.name and not path.name.startswith(
                f"{_task_name(self.task)}."
            )
            lock = Lock(path)
            if path != own and not other_task and lock.is_held:
                self.release()
                raise ReportedError(
                    f"{run_dir}: {lock.holder} is at work on it ({path.name.removesuffix('.lock')}); "
                    "wait until it ends, or stop it"
                )
        for folder in run_dir.glob(f"shards/*/{_task_name(self.task)}"):
            ledger.remove_leftovers(folder)
        if self.task.count == 1 and not merge_lock(run_dir).is_held:  # otherwise others may be writing
            for folder in (run_dir, *run_dir.glob("shards/*")):
                for temporary in files.temporaries(folder):
                    temporary.unlink()
        self.run_dir = run_dir

    def join(self, strategy: Strategy, rank: int, world_size: int) -> None:
        """Agree with the other processes of the task on folder and launch; called by all of them at once.

        Args:
            strategy: Lightning's, once its processes know each other.
            rank: Of this process.
            world_size: How many processes the task has.
        """
        self.rank, self.world_size = rank, world_size
        self.run_dir, self.launch = strategy.broadcast((self.run_dir, self.launch))
        assert self.run_dir is not None
        if self._lock is None:
            self._acquire(self.run_dir)
        # From here on whoever finds a process's lock free knows that the process has ended.
        strategy.barrier("every process has its lock")

    def _acquire(self, run_dir: Path) -> None:
        lock = Lock(_lock_path(run_dir, self.task, self.rank))
        if not lock.acquire(self._told()):
            raise ReportedError(f"{run_dir}: {lock.holder} is at work on it; wait until it ends, or stop it")
        self._lock = lock

    def _told(self) -> dict[str, Any]:
        return {"launch": self.launch, "job": os.environ.get("SLURM_JOB_ID"), "models": self._num_models}

    def meet(self) -> list[int]:
        """Wait until the other processes have come to the next model too, however long they work on the last one.

        What Lightning does next it does in all processes together, and none would wait for another longer than half an
        hour. Where the file system knows no locks, nothing is waited for here.

        Returns:
            The ranks of processes that have ended before, and will never come; normally none.
        """
        if self._lock is None or not self._lock.is_real:
            return []
        self._num_models += 1
        self._lock.tell(self._told())
        while missing := [rank for rank, lock in self._others() if not self._has_come(lock)]:
            lost = [rank for rank, lock in self._others() if rank in missing and not lock.is_held]
            time.sleep(GRACE if lost else PATIENCE)
            if lost := [rank for rank, lock in self._others() if rank in lost and not self._has_come(lock)]:
                return lost
        return []

    def _has_come(self, lock: Lock) -> bool:
        told = lock.told
        return told.get("launch") == self.launch and told["models"] >= self._num_models

    def _others(self) -> list[tuple[int, Lock]]:
        """Return the ranks and locks of the task's other processes."""
        assert self.run_dir is not None
        ranks = (rank for rank in range(self.world_size) if rank != self.rank)
        return [(rank, Lock(_lock_path(self.run_dir, self.task, rank))) for rank in ranks]

    def wait_for_others(self, strategy: Strategy) -> None:
        """Wait until the other processes of the task have let go of their locks, because they are done or dead."""
        if self._lock is None or not self._lock.is_real:
            strategy.barrier("every process is done")
            return
        while any(lock.is_held for _, lock in self._others()):
            time.sleep(PATIENCE)

    def release(self) -> None:
        """Say that this process writes nothing more."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def folder(self, model: str) -> Path:
        """Return where this process writes a model's parts."""
        assert self.run_dir is not None
        return ledger.rank_folder(self.run_dir / "shards" / model, self.task, self.rank)

    def describe(self) -> dict[str, Any]:
        """Return who this process is, for the markers of its parts."""
        memory = {"peak_memory_bytes": peak_memory_bytes()}
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            memory["peak_device_memory_bytes"] = torch.cuda.max_memory_allocated()
        return {
            "launch": self.launch,
            "task": [self.task.index, self.task.count],
            "rank": [self.rank, self.world_size],
            "started": self.started,
            "pid": os.getpid(),
            "slurm_job": os.environ.get("SLURM_JOB_ID"),
            # products of other numbers of threads may add up in another order, and differ in their last bits
            "threads": torch.get_num_threads(),
            **environment(),
            **memory,
        }


def workers(run_dir: Path) -> list[str]:
    """Return the tasks and ranks that are at work on a run now, as `task-00003-of-00016.rank-0000`."""
    paths = sorted(_locks(run_dir).glob("task-*.lock"))
    return [path.name.removesuffix(".lock") for path in paths if Lock(path).is_held]


def merge_lock(run_dir: Path) -> Lock:
    """Return the lock that whoever merges a run holds."""
    return Lock(_locks(run_dir) / "merge.lock")


def _locks(run_dir: Path) -> Path:
    return run_dir / files.LOCKS


def _task_name(task: Task) -> str:
    return ledger.task_folder(Path(), task).name


def _lock_path(run_dir: Path, task: Task, rank: int) -> Path:
    return _locks(run_dir) / f"{_task_name(task)}.rank-{rank:04d}.lock"


def peak_memory_bytes() -> int:
    """Return the most memory that this process has held; Linux counts it in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@functools.cache
def environment() -> dict[str, Any]:
    """Return where this process runs: versions, machine, commit of the program."""
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "git_commit": _git_commit(),
        "host": platform.node(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _git_commit() -> Optional[str]:
    """Return the commit that the program was started from, with `+changes` where files differ; None if not from git."""
    folder = Path(__file__).resolve().parents[1]
    if not (folder.parent / ".git").exists():
        return None
    git = ["git", "-C", str(folder)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        changes = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if commit.returncode:
        return None
    return commit.stdout.strip() + ("+changes" if changes.stdout.strip() else "")
