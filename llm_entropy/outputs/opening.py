"""A run's folder, opened to make its outputs: of the right kind, complete, and by one process at a time."""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from llm_entropy.errors import ReportedError, RunIncompleteError
from llm_entropy.settings import Settings
from llm_entropy.settings.configuration import read_config
from llm_entropy.store import manifest
from llm_entropy.store.ledger import Ledger, read_ledger
from llm_entropy.store.log import run_log
from llm_entropy.store.session import merge_lock
from llm_entropy.store.status import refuse_incomplete

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}

Kind = TypeVar("Kind", bound=Settings)
Outputs = TypeVar("Outputs")


def refuse_full_disk(error: OSError, run_dir: Path, command: str) -> None:
    """Say that the disk is full, if that is what an error means.

    Args:
        error: What went wrong.
        run_dir: The run's folder.
        command: What goes on, once there is room.

    Raises:
        RunIncompleteError: There is no room.
    """
    if error.errno in NO_ROOM:
        raise RunIncompleteError(
            f"{run_dir}: cannot write: {os.strerror(error.errno)}; what was done is kept; "
            f"free some space, then resume with: {command}"
        ) from error


def open_and_make(
    make: Callable[[Path, Kind, dict[str, Any], dict[str, Ledger]], Outputs],
    run_dir: Path,
    kind: type[Kind],
    other_kind: str,
    *,
    quiet: bool,
) -> Outputs:
    """Open the folder of a run, and make its outputs from the shards of all its tasks.

    Args:
        make: Makes them, of the folder, the settings, what `run.json` says, and the ledgers by model.
        run_dir: The run's folder.
        kind: The class of its settings.
        other_kind: What to say of a run whose settings are of another class.
        quiet: Whether the terminal shows warnings and errors alone.

    Raises:
        ReportedError: There is no such run, it is of another kind, or `make` refuses it.
        RunIncompleteError: The disk is full.
    """
    with run_log(quiet=quiet) as messages:
        about, settings = manifest.read_manifest(run_dir), read_config(run_dir / manifest.CONFIG)
        if type(settings) is not kind:
            raise ReportedError(f"{run_dir}: {other_kind}")
        messages.open(run_dir / "run.log")
        ledgers = ledgers_of(run_dir, settings, about)
        try:
            return make(run_dir, settings, about, ledgers)
        except OSError as error:
            refuse_full_disk(error, run_dir, f"llm-entropy merge {shlex.quote(str(run_dir))}")
            raise


def ledgers_of(run_dir: Path, settings: Settings, about: dict[str, Any]) -> dict[str, Ledger]:
    """Return what all tasks of a run have done, by model.

    Args:
        run_dir: The run's folder.
        settings: Of the run.
        about: What `run.json` says.
    """
    return {key: read_ledger(run_dir / "shards" / key, about["config_hash"]) for key in settings.models}


@contextmanager
def merging(run_dir: Path, about: dict[str, Any], ledgers: dict[str, Ledger]) -> Iterator[None]:
    """Keep others from merging a run inside of the context.

    Args:
        run_dir: The run's folder.
        about: What `run.json` says.
        ledgers: By model.

    Raises:
        ReportedError: Something is missing, or somebody else is merging.
    """
    refuse_incomplete(run_dir, about, ledgers)
    lock = merge_lock(run_dir)
    if not lock.acquire({}):
        raise ReportedError(f"{run_dir}: {lock.holder} is merging it; wait until it ends, or stop it")
    try:
        yield
    finally:
        lock.release()
