"""Hugging Face's `datasets`, kept quiet: its errors in one line, its progress bars, and where it may keep files."""

from __future__ import annotations

import atexit
import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Optional

import datasets

from llm_entropy.corpus.textfiles import DAMAGED, TextFiles, reason_of
from llm_entropy.errors import ReportedError

log = logging.getLogger(__name__)

READ_ERRORS = (
    datasets.exceptions.DatasetsError,
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    TypeError,
    StopIteration,
    *DAMAGED,
)
"""What `datasets` raises where it cannot read."""


def cache_folder() -> Optional[str]:
    """Return where `datasets` may keep what it makes of local files: None for its cache, if that can be written."""
    usual = Path(datasets.config.HF_DATASETS_CACHE)
    return None if is_writable(usual) else _temporary_cache(str(usual))


def is_writable(folder: Path) -> bool:
    """Whether files can be written to a folder, which is made if it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@cache
def _temporary_cache(usual: str) -> str:
    """Make a folder that goes when the program ends."""
    folder = tempfile.mkdtemp(prefix="llm_entropy_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    log.info("%s cannot be written: the corpus is kept in %s until the end", usual, folder)
    return folder


@contextmanager
def progress_bars(*, shown: bool) -> Iterator[None]:
    """Hide the progress bars of `datasets` unless they are wanted."""
    if shown or datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


@contextmanager
def as_value_error(what: str, text: Optional[TextFiles] = None) -> Iterator[None]:
    """Turn whatever `datasets` raises into one line, and keep it from printing the same first.

    Args:
        what: Could not be done.
        text: The files that are read, so that the one at fault, and the line, can be named.
    """
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    except ReportedError:
        raise
    except READ_ERRORS as error:
        cause = error.__cause__ or error
        raise ReportedError((text and reason_of(cause, text)) or f"{what}: {first_words(cause)}") from error
    finally:
        datasets.logging.set_verbosity(verbosity)


def first_words(error: BaseException) -> str:
    """Return what an error says, in one line of at most 300 characters."""
    words = " ".join(str(error).split())
    return (words[:300] or type(error).__name__).rstrip(".")


def listed(names: Iterable[Any]) -> str:
    """Return names with commas between them."""
    return ", ".join(map(str, names))
