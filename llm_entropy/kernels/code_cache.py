"""Where compiled loops are kept on the disk, so that only the first process has to wait for the compiler.

Each kind of processor, version of the compiler and state of the source has a folder of its own. All that is ever
written there is the same code: processes that compile at once, or machines that share a home, may replace each other's
files (numba renames them into place), and none ever runs what was made for another processor.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import platform
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, Optional

import numba
from numba.core import config
from numba.core.registry import cpu_target

log = logging.getLogger("llm_entropy")
_settings: Any = config  # numba's, made when it is imported: no checker of types sees them

CANNOT_KEEP = (
    OSError,
    RuntimeError,
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    ImportError,
    LookupError,
    TypeError,
    ValueError,
)
"""What numba raises where its cache cannot be written, and what a damaged file ends in when it is unpickled. What has
another cause comes again without a cache, where nothing is caught."""


def compiled(signature: str) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that compiles a function for one signature, or reads what was compiled before.

    Args:
        signature: The types, as numba writes them. One alone, so that a folder holds one compiled code.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        folder = cache_folder(Path(function.__code__.co_filename))
        if folder is not None:
            try:
                with _kept_in(folder):
                    return numba.njit(signature, nogil=True, cache=True)(function)
            except CANNOT_KEEP as error:
                log.debug("compiled loops cannot be kept in %s: %s", folder, error)
        return numba.njit(signature, nogil=True)(function)

    return decorate


def cache_folder(source: Path) -> Optional[Path]:
    """Return the folder for the code that this machine makes of a source; None where none can be written.

    Args:
        source: The file with the functions.
    """
    made_by = f"python{platform.python_version()}-numba{numba.__version__}-llvmlite{metadata.version('llvmlite')}"
    target = cpu_target.target_context.codegen().magic_tuple()  # operating system, processor, its features
    about = hashlib.sha256(repr(target).encode() + source.read_bytes()).hexdigest()[:16]
    try:
        folder = _base() / made_by / f"{target[1]}-{about}"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        log.debug("compiled loops are not kept: %s", error)
        return None


def _base() -> Path:
    """Return NUMBA_CACHE_DIR, or a folder below that of the user's caches."""
    if _settings.CACHE_DIR:
        return Path(_settings.CACHE_DIR)
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "llm_entropy"


@contextmanager
def _kept_in(folder: Path) -> Iterator[None]:
    """Let numba keep what is compiled inside of the context in a folder."""
    before = _settings.CACHE_DIR
    _settings.CACHE_DIR = str(folder)
    try:
        yield
    finally:
        _settings.CACHE_DIR = before
