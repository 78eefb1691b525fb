"""The processes of a run: how they wait for each other without a process group, and notice who is lost."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from llm_entropy.store import files
from llm_entropy.store import session as session_module
from llm_entropy.store.session import Session
from llm_entropy.store.windows import Task


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Session]]:
    """Two processes of a run that know each other."""
    monkeypatch.setattr(session_module, "PATIENCE", 0.01)
    monkeypatch.setattr(session_module, "GRACE", 0.01)
    both = [Session(Task(), "hash", tmp_path, launch="one", rank=rank, world_size=2) for rank in (0, 1)]
    for one in both:
        one._acquire(tmp_path)
    yield both
    for one in both:
        one.release()


def test_whoever_comes_first_waits_for_the_other_at_every_model(pair: list[Session]):
    with ThreadPoolExecutor(1) as thread:
        for first, second in (pair, pair[::-1], pair):
            waiting = thread.submit(first.meet)
            assert not wait([waiting], 0.05).done
            assert second.meet() == []
            assert waiting.result(10) == []


def test_whoever_has_ended_is_not_waited_for(pair: list[Session]):
    first, second = pair
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(first.meet)
        second.release()
        assert waiting.result(10) == [1]


def test_what_a_lock_told_in_an_earlier_launch_does_not_count(pair: list[Session], tmp_path: Path):
    first, second = pair
    second.launch, second._num_models = "an earlier one", 7
    assert second._lock is not None
    second._lock.tell(second._told())
    second.release()
    assert first.meet() == [1]


def test_a_process_that_was_just_writing_when_it_was_looked_at_is_looked_at_again(pair: list[Session]):
    first, second = pair
    assert second._lock is not None
    second._lock.path.write_text("")
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(first.meet)
        assert not wait([waiting], 0.05).done
        assert second.meet() == []
        assert waiting.result(10) == []


def test_where_the_file_system_knows_no_locks_nobody_waits_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(stream: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    one = Session(Task(), "hash", tmp_path, rank=0, world_size=2)
    one._acquire(tmp_path)
    assert one.meet() == []
    one.release()
