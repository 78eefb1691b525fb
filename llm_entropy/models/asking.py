"""Asking transformers for a model's files: quietly, and with one error that says what to do."""

from __future__ import annotations

import contextlib
import logging
import struct
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import logging as hub_logging
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from llm_entropy.builtin import BUILTIN_MODELS
from llm_entropy.errors import ReportedError
from llm_entropy.models.checkpoints import UNREADABLE, thorough_fault
from llm_entropy.models.own_code import copying_alone, needs_permission, refusal, way_out
from llm_entropy.settings import ModelSettings

BUILTIN_PREFIX = "builtin:"
REFUSALS = (ImportError, StrictDataclassError, ArithmeticError, struct.error, *UNREADABLE)
"""What transformers raises when it cannot get a model, or does not take its configuration."""
CONFIG_FAULTS = (*REFUSALS, AttributeError, TypeError)
"""As `REFUSALS`, while configuration and tokenizer are read: a dtype that is none, a special token that is a number."""


def builtin_names() -> str:
    """Return the names of the models that come with the package, for a message."""
    return ", ".join(BUILTIN_PREFIX + name for name in BUILTIN_MODELS)


@contextlib.contextmanager
def reading(key: str, settings: ModelSettings, location: str) -> Iterator[None]:
    """Read configuration, code and tokenizer: quietly, with one error, and copying code while no other process does."""
    alone = copying_alone() if settings.trust_remote_code else contextlib.nullcontext()
    with one_error(key, settings, location, CONFIG_FAULTS), quiet_transformers(), alone:
        yield


@contextlib.contextmanager
def one_error(
    key: str, settings: ModelSettings, location: str, refusals: tuple[type[Exception], ...] = REFUSALS
) -> Iterator[None]:
    """Turn what transformers raises when a model cannot be had into one line, with the file that is to blame.

    Args:
        key: The model's, in the settings.
        settings: Of the model.
        location: What transformers loads from.
        refusals: What is raised where the model is to blame, and not a program.
    """
    try:
        yield
    except Exception as error:
        if needs_permission(error):
            raise ReportedError(refusal(key, settings.name, location, settings.revision)) from error
        folder = Path(location)
        fault = thorough_fault(folder) if folder.is_dir() else None
        # tokenizers raises plain exceptions. Other kinds are faults of a program, unless a broken file explains them.
        if fault is None and not isinstance(error, refusals) and type(error) is not Exception:
            raise
        revision = f" at revision {settings.revision!r}" if settings.revision else ""
        reason = fault or f"{reason_of(error)}. {_way_out(error, folder.is_dir(), settings)}"
        raise ReportedError(f"cannot load the model {settings.name!r}{revision}: {reason}") from error


def reason_of(error: Exception) -> str:
    """Return what an error of transformers says, in one line."""
    words = str(error).strip()
    if isinstance(error, LookupError) or not words:
        words = f"{type(error).__name__} {words}".strip()  # of a KeyError the words are the key alone
    # The first line says what happened, unless it only introduces a list; the others give advice about the hub.
    first = words.partition("\n")[0].strip()
    return textwrap.shorten(words if first.endswith(":") else first, 300, placeholder=" ...").rstrip(" .")


def _way_out(error: Exception, is_folder: bool, settings: ModelSettings) -> str:
    """Say what to do about a model that cannot be had."""
    if settings.trust_remote_code and (own := way_out(error)):
        return own
    if is_folder:
        return "Correct its files, or save or download the model again"
    return f"Without network or cache, give a local folder, or a built-in model: {builtin_names()}"


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep loading reports, bars and the hub's retries off the terminal; what matters is checked and raised.

    Bars that loaders of GGUF files and of quantised weights make by themselves have no switch but tqdm's own.
    """
    bar_class: Any = tqdm
    make_bar = bar_class.__init__

    def make_hidden(bar: Any, *args: Any, **options: Any) -> None:
        make_bar(bar, *args, **{**options, "disable": True})

    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    hub_verbosity = hub_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    hub_logging.set_verbosity(logging.ERROR)
    bar_class.__init__ = make_hidden
    try:
        yield
    finally:
        bar_class.__init__ = make_bar
        transformers_logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
