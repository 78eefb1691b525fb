"""Text files as corpora: written, and read every way that there is."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_entropy.corpus.corpus import Corpus
from llm_entropy.corpus.picking import load_corpus
from llm_entropy.settings import DataSettings
from llm_entropy.store.windows import Task

STREAMS_LEFT_OPEN = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
"""Where a stream is left before its end, `datasets` does not close its files."""


@pytest.fixture(scope="module", autouse=True)
def left_files_are_closed_here() -> Iterator[None]:
    """Collect what streams leave open before another module, which does not expect it, starts."""
    yield
    gc.collect()


def load(path: Any, num_sentences: Any = None, **settings: Any) -> Corpus:
    return load_corpus(DataSettings(path=str(path), **settings), num_sentences, 0, quiet=True)


def texts(corpus: Corpus) -> list[str]:
    return [text for window in corpus.windows(Task()) for text in window.sentences]


def both_ways(path: Path, **settings: Any) -> list[str]:
    """Return the texts of a file, which have to be the same however it is read."""
    mapped, streamed = (texts(load(path, streaming=streaming, **settings)) for streaming in (False, True))
    assert mapped == streamed == texts(load(path, max(1, len(mapped)), streaming=True, **settings))
    return mapped


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path
