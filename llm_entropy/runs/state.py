"""A run under way, as the parts of this process know it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import lightning as L
from datasets import Dataset

from llm_entropy.corpus.corpus import Corpus
from llm_entropy.errors import RunIncompleteError
from llm_entropy.runs.stopping import StopSignals
from llm_entropy.settings import Settings
from llm_entropy.store.ledger import Expected
from llm_entropy.store.log import RunLog
from llm_entropy.store.session import Session
from llm_entropy.store.status import resume_command

Found = dict[str, dict[str, float]]
"""By model and vector, the strength that a `target_kl` has led to."""


@dataclass
class RunState:
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
    sentences: Optional[Sequence[Any]] = None
    """The corpus, or the rows of pairs of an extraction, where it was given in memory."""
    columns: Optional[Dataset] = None
    """What goes with its sentences."""
    found: Found = field(default_factory=dict)
    """Empty where no strength is searched."""
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


def lost_work(state: RunState, what: str) -> RunIncompleteError:
    """Return the error of a run of which work was lost, with what is lost and how to go on."""
    run_dir, task = state.session.run_dir, state.session.task
    assert run_dir is not None
    return RunIncompleteError(f"{run_dir}: {what}; resume with: {resume_command(run_dir, state.settings, task)}")
