"""Which process of a run this is: one of several, and of which task of an array."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Optional

from lightning.fabric.utilities.rank_zero import rank_zero_only

from llm_entropy.errors import ReportedError
from llm_entropy.settings import DataSettings, Settings
from llm_entropy.store.windows import Task

ARRAY_INDEX = "SLURM_ARRAY_TASK_ID"


def is_first_process() -> bool:
    """Whether this process writes what there is once; known once there is a Trainer."""
    return int(rank_zero_only.rank) == 0  # type: ignore[attr-defined]


def task_of(settings: Settings, resume: bool) -> Task:
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


def checkpoint_root(settings: Settings, run_dir: Optional[Path]) -> Path:
    """Return where Lightning's requeueing might have left a checkpoint, which would be loaded over the weights."""
    return Path(settings.output.dir) / "none" if run_dir is None else run_dir
