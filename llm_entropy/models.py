"""Finding and loading models and their tokenizers: hub names, local folders, built-in models."""

from __future__ import annotations

import contextlib
import logging
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, cast

import torch
from huggingface_hub.utils import logging as hub_logging
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file, extract_commit_hash

from llm_entropy.architectures import Architecture, find_architecture, fuse_activations, most_tokens, shape_of
from llm_entropy.attention_interface import EAGER, READABLE
from llm_entropy.builtin import BUILTIN_MODELS, model_folder
from llm_entropy.errors import ReportedError
from llm_entropy.schema import ModelShape
from llm_entropy.settings import ModelSettings

BUILTIN_PREFIX = "builtin:"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PRECISION_DTYPES = {"32-true": torch.float32, "bf16-true": torch.bfloat16, "16-true": torch.float16}
"""Type of the weights by `trainer.precision`."""
UNLIMITED = 10**9
"""Tokenizers say "no limit" by an enormous number."""


@dataclass(frozen=True)
class ModelSource:
    """A model that was found, before its weights are read."""

    key: str
    """Its name in the settings, and in the file names."""
    name: str
    """Hub name, local folder, or `builtin:...`, as it was given."""
    location: str
    """What transformers loads from."""
    settings: ModelSettings
    """As given."""
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    architecture: Architecture
    shape: ModelShape
    most_tokens: Optional[int]
    """How many tokens of a sentence the model takes; None: no limit."""
    revision: Optional[str]
    """Commit of a hub model."""

    @property
    def pad_token_id(self) -> int:
        """A token to pad with; the attention mask hides it, whatever it is."""
        pad = self.tokenizer.pad_token_id
        return int(pad) if pad is not None else 0


def find_model(key: str, settings: ModelSettings) -> ModelSource:
    """Read a model's configuration and tokenizer.

    Args:
        key: Its name in the settings.
        settings: Which model.

    Raises:
        ReportedError: There is no such model, it cannot be reached, or its family is not known.
    """
    location = _location(settings.name)
    options: dict[str, Any] = {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code}
    with _one_error(settings), _quiet_transformers():
        config = AutoConfig.from_pretrained(location, **options)
    architecture = find_architecture(config, f"models.{key}: {settings.name}")
    with _one_error(settings), _quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(location, **options)
        commit = extract_commit_hash(cached_file(location, "config.json", revision=settings.revision), None)
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        # transformers makes one up where there are no files: every word would be read as unknown
        raise ReportedError(
            f"models.{key}: {settings.name} holds no tokenizer, or one without words; save the model's own beside it "
            "(tokenizer.save_pretrained)"
        )
    limits = [limit for limit in (most_tokens(config), tokenizer.model_max_length) if limit and limit < UNLIMITED]
    return ModelSource(
        key=key,
        name=settings.name,
        location=location,
        settings=settings,
        config=config,
        tokenizer=cast(PreTrainedTokenizerBase, tokenizer),
        architecture=architecture,
        shape=shape_of(config),
        most_tokens=min(limits, default=None),
        revision=commit,
    )


def load_model(source: ModelSource, *, precision: str, needs_attention: bool) -> PreTrainedModel:
    """Read a model's weights.

    Args:
        source: What `find_model` found.
        precision: `trainer.precision`; the model's own `dtype`, if given, goes before it.
        needs_attention: Whether attention entropy will be read; a family outside of transformers' attention interface
            needs eager attention, which is always read.

    Returns:
        The model with its head, in evaluation mode, on the CPU.

    Raises:
        ReportedError: The weights cannot be read, or are not those of a language model.
    """
    settings = source.settings
    auto = AutoModelForCausalLM if source.architecture.kind == "causal" else AutoModelForMaskedLM
    dtype = DTYPES[settings.dtype] if settings.dtype else PRECISION_DTYPES[precision]
    attention = EAGER if source.architecture.eager_only else READABLE if needs_attention else None
    with _one_error(settings), _quiet_transformers():
        loaded: Any = auto.from_pretrained(
            source.location,
            revision=settings.revision,
            trust_remote_code=settings.trust_remote_code,
            dtype=dtype,
            attn_implementation=attention,
            output_loading_info=True,
        )
    model, loading = loaded
    missing = sorted(loading["missing_keys"])
    if missing:
        raise ReportedError(
            f"models.{source.key}: {source.name} lacks {len(missing)} weights of a {source.architecture.kind} "
            f"language model ({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}); it may be a checkpoint "
            "for another task, give one with a language-model head"
        )
    model.config.use_cache = False
    fuse_activations(model)
    return cast(PreTrainedModel, model.eval().requires_grad_(False))


def _location(name: str) -> str:
    """Return what transformers loads a model from."""
    if name.startswith(BUILTIN_PREFIX):
        return str(model_folder(name.removeprefix(BUILTIN_PREFIX)))
    folder = Path(name).expanduser()
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_local and not folder.is_dir():
        raise ReportedError(
            f"models: there is no folder {name}; give a local folder, a hub name, or {_builtin_names()}"
        )
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ReportedError(
                f"models: the folder {name} holds no config.json; a folder of this name in the working directory hides "
                "a hub model of the same name, so rename it, or give a model's folder"
            )
        return str(folder)
    return name


def _builtin_names() -> str:
    return ", ".join(BUILTIN_PREFIX + name for name in BUILTIN_MODELS)


@contextlib.contextmanager
def _one_error(settings: ModelSettings) -> Iterator[None]:
    """Turn what transformers raises when a model cannot be had into one line."""
    try:
        yield
    except (OSError, ImportError, KeyError, RuntimeError, ValueError) as error:
        # The first line says what happened, unless it only introduces a list; the others give advice about the hub.
        words = str(error).strip()
        first = words.partition("\n")[0].strip()
        reason = (
            textwrap.shorten(words if first.endswith(":") else first, 300, placeholder=" ...") or type(error).__name__
        )
        revision = f" at revision {settings.revision!r}" if settings.revision else ""
        raise ReportedError(
            f"cannot load the model {settings.name!r}{revision}: {reason.rstrip(' .')}. {_way_out(error)}"
        ) from error


def _way_out(error: Exception) -> str:
    """Say what to do about a model that cannot be had."""
    if "trust_remote_code" in str(error):
        return "Its own code is not run unless its settings say trust_remote_code: true; say so if you trust it"
    return f"Without network or cache, give a local folder, or a built-in model: {_builtin_names()}"


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep loading reports, bars and the hub's retries off the terminal; what matters is checked and raised."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    hub_verbosity = hub_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    hub_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
