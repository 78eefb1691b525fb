"""Finding and loading models and their tokenizers: hub names, local folders, built-in models."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import logging
import re
import struct
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import logging as hub_logging
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file, extract_commit_hash
from transformers.utils.peft_utils import find_adapter_config_file

from llm_entropy.builtin import BUILTIN_MODELS, model_folder
from llm_entropy.errors import ReportedError
from llm_entropy.models.adapters import check_adapter, find_adapter, merge_adapter
from llm_entropy.models.attention.interface import EAGER, READABLE, in_language_model
from llm_entropy.models.checkpoints import (
    ADAPTER_CONFIG,
    CONFIG,
    UNREADABLE,
    adapter_fault,
    quick_fault,
    thorough_fault,
)
from llm_entropy.models.families import (
    Architecture,
    find_architecture,
    fuse_activations,
    most_tokens,
    outline_model,
    shape_of,
)
from llm_entropy.models.own_code import (
    class_of,
    code_name,
    copying_alone,
    needs_permission,
    reference_of,
    refusal,
    takes_attention,
    way_out,
)
from llm_entropy.models.quantised import decompress_, method_of, missing_package, restore_head_
from llm_entropy.schema.shape import ModelShape
from llm_entropy.settings import LOADED_PREFIX, ModelSettings

log = logging.getLogger("llm_entropy")

BUILTIN_PREFIX = "builtin:"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PRECISION_DTYPES = {"32-true": torch.float32, "bf16-true": torch.bfloat16, "16-true": torch.float16}
"""Type of the weights by `trainer.precision`."""
UNLIMITED = 10**9
"""Tokenizers say "no limit" by an enormous number."""
HARMLESS = re.compile(
    # heads that a language model does without; constants that are made anew
    r"(^|\.)(pooler|seq_relationship|sop_classifier|discriminator_predictions)\."
    r"|attn\.(attention\.)?(masked_)?bias$|rotary_emb\.inv_freq$|(^|\.)position_ids$"
)
"""Weights of which it says nothing that they are not used."""
CLASSIFIERS = ("score", "classifier", "qa_outputs")
"""Heads of models that were trained to classify."""
REFUSALS = (ImportError, StrictDataclassError, ArithmeticError, struct.error, *UNREADABLE)
"""What transformers raises when it cannot get a model, or does not take its configuration."""
CONFIG_FAULTS = (*REFUSALS, AttributeError, TypeError)
"""As `REFUSALS`, while configuration and tokenizer are read: a dtype that is none, a special token that is a number."""


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
    gguf_file: Optional[str] = None
    """The GGUF file in `location` that holds configuration, tokenizer and weights."""
    adapter: Optional[Path] = None
    """Folder of an adapter that is merged into the model."""
    code: Optional[str] = None
    """A name for the bytes of the model's own code; None: it has none that is run."""
    loaded: Optional[PreTrainedModel] = None
    """The model itself, where it was given in memory."""

    @property
    def pad_token_id(self) -> int:
        """A token to pad with, one that the model knows; the attention mask hides it, whatever it is."""
        pad = self.tokenizer.pad_token_id
        return int(pad) if pad is not None and 0 <= pad < self.shape.vocab_size else 0


def find_model(key: str, settings: ModelSettings) -> ModelSource:
    """Read a model's configuration and tokenizer.

    Args:
        key: Its name in the settings.
        settings: Which model.

    Raises:
        ReportedError: There is no such model, it cannot be reached, or its family is not known.
    """
    name = f"models.{key}: {settings.name}"
    location, gguf_file = _location(f"models.{key}", settings)
    options: dict[str, Any] = {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code}
    if gguf_file is None:
        with _one_error(key, settings, location), _quiet_transformers():
            beside = find_adapter_config_file(location, revision=settings.revision)
            fault = _folder_fault(location, beside, settings.name)
        if fault:
            raise ReportedError(f"{name} {fault}")
    else:
        _check_gguf(name)
        options["gguf_file"] = gguf_file
    adapter = None if settings.adapter is None else find_adapter(key, settings.adapter)
    with _reading(key, settings, location):
        config = AutoConfig.from_pretrained(location, **options)
    if package := missing_package(config):
        raise ReportedError(
            f"{name} has weights quantised by {method_of(config)}, which need the package {package}; run: "
            "pip install 'llm-entropy[quantized]'"
        )
    if adapter is not None and method_of(config):
        raise ReportedError(
            f"{name} is quantised ({method_of(config)}), and an adapter is merged in full precision; give the model "
            "that it was quantised from"
        )
    architecture, model_class = _find_class(key, settings, location, config)
    shape = shape_of(config)
    if min(shape.plain().values()) < 1:
        sizes = ", ".join(f"{size} {number}" for size, number in shape.plain().items())
        raise ReportedError(f"{name}: config.json says {sizes}; expected at least 1 of each; correct it")
    with _reading(key, settings, location):
        tokenizer = AutoTokenizer.from_pretrained(location, **options)
        made = [type(config), type(tokenizer), *([] if model_class is None else [model_class])]
        code = code_name(made) if settings.trust_remote_code else None
        commit = extract_commit_hash(cached_file(location, gguf_file or CONFIG, revision=settings.revision), None)
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        # transformers makes one up where there are no files: every word would be read as unknown
        raise ReportedError(
            f"{name} holds no tokenizer, or one without words; save the model's own beside it "
            "(tokenizer.save_pretrained)"
        )
    longest: Any = tokenizer.model_max_length  # what tokenizer_config.json says, whatever it is
    if not isinstance(longest, (int, float)):
        raise ReportedError(
            f"{name}: tokenizer_config.json says model_max_length {longest!r}; expected a number; correct it"
        )
    source = ModelSource(
        key=key,
        name=settings.name,
        location=location,
        settings=settings,
        config=config,
        tokenizer=cast(PreTrainedTokenizerBase, tokenizer),
        architecture=architecture,
        shape=shape,
        most_tokens=limit_of(most_tokens(config), longest),
        revision=commit,
        gguf_file=gguf_file,
        adapter=adapter,
        code=code,
    )
    if adapter is not None:
        skeleton = load_skeleton(replace(source, config=copy.deepcopy(config)))  # peft writes into it
        check_adapter(skeleton, source.tokenizer, adapter, _adapter_name(source), source.name)
    return source


def _adapter_name(source: ModelSource) -> str:
    return f"models.{source.key}.adapter: {source.settings.adapter}"


def _find_class(
    key: str, settings: ModelSettings, location: str, config: PretrainedConfig
) -> tuple[Architecture, Optional[type[Any]]]:
    """Return what is known of a model's family, and the class that its own code makes it, if it has any.

    Raises:
        ReportedError: Its family is not known, its code is not allowed to run, or needs what is not installed.
    """
    architecture = find_architecture(config, f"models.{key}: {settings.name}")
    auto = architecture.auto
    if not settings.trust_remote_code:
        if type(config) not in auto._model_mapping and reference_of(auto, config) is not None:
            raise ReportedError(refusal(key, settings.name, location, settings.revision))
        return architecture, None
    with _reading(key, settings, location):
        model_class = class_of(auto, config, location, settings.revision)
        if model_class is not None and not takes_attention(model_class, config, READABLE):
            architecture = replace(architecture, eager_only=True)
    return architecture, model_class


def weights_dtype(source: ModelSource, precision: str) -> torch.dtype:
    """Return the type of a model's weights: its own `dtype`, or what `trainer.precision` says.

    Args:
        source: The model; `auto` is the type that its configuration gives, and float32 where it gives none.
        precision: `trainer.precision`.
    """
    dtype = source.settings.dtype
    if dtype == "auto":
        written = source.config.dtype
        return written if isinstance(written, torch.dtype) and written in DTYPES.values() else torch.float32
    return DTYPES[dtype] if dtype else PRECISION_DTYPES[precision]


def limit_of(*limits: Optional[float]) -> Optional[int]:
    """Return the least of several limits of a sentence's tokens; None where there is none."""
    return min((int(limit) for limit in limits if limit and limit < UNLIMITED), default=None)


def load_model(source: ModelSource, *, precision: str, needs_attention: bool) -> PreTrainedModel:
    """Read a model's weights.

    Args:
        source: What `find_model` found.
        precision: `trainer.precision`; the model's own `dtype`, if given, goes before it.
        needs_attention: Whether attention entropy will be read; a family outside of transformers' attention interface
            needs eager attention, which is always read.

    Returns:
        The model with its head, in evaluation mode, on the CPU; one that is loaded is returned as it is, for whoever
        has borrowed it.

    Raises:
        ReportedError: The weights cannot be read, or are not those of a language model.
    """
    if source.loaded is not None:
        return source.loaded
    settings = source.settings
    auto = source.architecture.auto
    dtype = weights_dtype(source, precision)
    attention = EAGER if source.architecture.eager_only else READABLE if needs_attention else None
    with _one_error(source.key, settings, source.location), _quiet_transformers():
        loaded: Any = auto.from_pretrained(
            source.location,
            revision=source.revision or settings.revision,  # what `find_model` read: a branch may have moved on
            trust_remote_code=settings.trust_remote_code,
            dtype=dtype if source.adapter is None else torch.float32,
            attn_implementation=None if attention is None else in_language_model(source.config, attention),
            **({} if source.gguf_file is None else {"gguf_file": source.gguf_file}),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are looked at below; transformers would only point to its own report
        )
        model, loading = loaded
        if decompress_(model):
            log.info("models.%s: %s: its compressed weights were made whole", source.key, source.name)
    _check_weights(source, model, loading)
    if source.adapter is not None:
        merged: Any = merge_adapter(model, source.adapter, _adapter_name(source), source.name)
        model = merged.to(dtype)
    if restore_head_(model, dtype):
        log.info("models.%s: %s: its quantised decoder was dequantised once, to %s", source.key, source.name, dtype)
    for config in (model.config, model.config.get_text_config()):
        config.use_cache = False
    fuse_activations(model)
    return cast(PreTrainedModel, model.eval().requires_grad_(False))


def load_skeleton(source: ModelSource) -> PreTrainedModel:
    """Return a model without its weights, which takes no memory: its modules are on the meta device.

    One that is loaded is returned as it is.

    Args:
        source: What `find_model` found.

    Raises:
        ReportedError: transformers does not take its configuration.
    """
    if source.loaded is not None:
        return source.loaded
    auto = source.architecture.auto
    with _one_error(source.key, source.settings, source.location), _quiet_transformers(), torch.device("meta"):
        return cast(
            PreTrainedModel, auto.from_config(source.config, trust_remote_code=source.settings.trust_remote_code)
        )


# --- whether the weights are those of the model ----------------------------------------------------------------


def _check_weights(source: ModelSource, model: PreTrainedModel, loading: dict[str, Any]) -> None:
    """Refuse weights that make another model than the configuration says, and list those that are not used.

    Args:
        source: What was asked for.
        model: As transformers has made it.
        loading: What transformers says of it: keys that are missing, unexpected, or of other sizes.

    Raises:
        ReportedError: The weights are not those of this language model.
    """
    name = f"models.{source.key}: {source.name}"
    if missing := sorted(loading["missing_keys"]):
        raise ReportedError(
            f"{name} lacks {len(missing)} weights of a {source.architecture.kind} language model "
            f"({_listed(missing)}); it may be a checkpoint for another task, give one with a language-model head"
        )
    if mismatched := sorted(loading["mismatched_keys"]):
        weight, found, expected = mismatched[0]
        raise ReportedError(
            f"{name}: {weight} is {list(found)} in the weights, and {list(expected)} by {CONFIG} ({len(mismatched)} "
            "weights have other sizes); give the configuration and the weights of one model"
        )
    num_rows, promised = _num_embeddings(model), source.shape.vocab_size
    if num_rows < promised:
        raise ReportedError(
            f"{name}: the embeddings have {num_rows} rows, and {CONFIG} says {promised}; correct its vocab_size"
        )
    unused = sorted(loading["unexpected_keys"])
    _refuse_other_model(source, model, unused, name)
    if surprising := [key for key in unused if not HARMLESS.search(key)]:
        log.warning("%s: %d weights of its files are not used: %s", name, len(surprising), _listed(surprising))
    if unused:
        log.debug("%s: not used: %s", name, ", ".join(unused))


def _refuse_other_model(source: ModelSource, model: PreTrainedModel, unused: Sequence[str], name: str) -> None:
    """Refuse a model if what it does not use of its files shows that it was another one.

    Raises:
        ReportedError: It had more blocks, or was a classifier.
    """
    path, blocks, head = outline_model(model)
    num_blocks = len(set(blocks))
    pattern = re.compile(rf"(?:^|\.){re.escape(path)}\.(\d+)\.")
    numbers = [int(match[1]) for key in unused if (match := pattern.search(key))]
    if max(numbers, default=-1) >= num_blocks:
        raise ReportedError(
            f"{name} holds weights of {max(numbers) + 1} blocks, and {CONFIG} says {num_blocks}: it would be measured "
            "without the last ones; correct the number of layers, or give the configuration of these weights"
        )
    classifier = [key for key in unused if key.split(".")[0] in CLASSIFIERS]
    embeddings = model.get_input_embeddings()
    if classifier and head is not None and head.weight is embeddings.weight:
        raise ReportedError(
            f"{name} holds the head of a classifier ({_listed(classifier)}) and none of a language model: its tied "
            "embeddings would pass for one, though it was trained for something else; give a language model"
        )


def _num_embeddings(model: PreTrainedModel) -> int:
    """Return how many tokens the model knows."""
    return int(cast(torch.Tensor, model.get_input_embeddings().weight).shape[0])


def _listed(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")


# --- where a model is --------------------------------------------------------------------------------------------


def _location(key: str, settings: ModelSettings) -> tuple[str, Optional[str]]:
    """Return what transformers loads a model from, and the GGUF file in it, if it is one."""
    name, gguf_file = settings.name, settings.gguf_file
    if name.startswith(LOADED_PREFIX):
        raise ReportedError(
            f"{key}: {name} was given in memory; only Python can resume such a run: run_analysis(..., resume=True) "
            "with the same model, arguments and output"
        )
    if name.startswith(BUILTIN_PREFIX):
        return str(model_folder(name.removeprefix(BUILTIN_PREFIX))), gguf_file
    try:
        folder = Path(name).expanduser()
        is_file, is_folder = folder.is_file(), folder.is_dir()
    except (OSError, RuntimeError) as error:  # RuntimeError: nobody's home
        raise ReportedError(f"{key}: {name} cannot be reached ({_reason(error)}); give {_ways()}") from error
    if not name.strip() or "://" in name:
        raise ReportedError(f"{key}: got {name!r}; expected {_ways()}")
    if is_file and folder.suffix == ".gguf" and gguf_file is None:
        return str(folder.parent), folder.name
    if is_file:
        raise ReportedError(
            f"{key}: {name} is a file; give the folder that holds it, with config.json and the tokenizer"
        )
    if _looks_local(name) and not is_folder:
        raise ReportedError(f"{key}: there is no folder {name}; give {_ways()}")
    if is_folder and gguf_file is not None and not (folder / gguf_file).is_file():
        raise ReportedError(f"{key}.gguf_file: there is no file {folder / gguf_file}; give the name of one in {name}")
    return (str(folder) if is_folder else name), gguf_file


def _check_gguf(name: str) -> None:
    """Refuse a GGUF file where the packages that read it are not installed.

    Raises:
        ReportedError: One of them is missing.
    """
    if missing := [package for package in ("gguf", "accelerate") if importlib.util.find_spec(package) is None]:
        raise ReportedError(
            f"{name}: a GGUF file needs the package {' and '.join(missing)}; run: pip install 'llm-entropy[gguf]'"
        )


def _looks_local(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def _ways() -> str:
    return f"a local folder, a hub name, or {_builtin_names()}"


def _builtin_names() -> str:
    return ", ".join(BUILTIN_PREFIX + name for name in BUILTIN_MODELS)


def _folder_fault(location: str, adapter: Optional[str], name: str) -> Optional[str]:
    """Say why what was given is not the folder of a whole model that can be read; None: nothing is known against it.

    Args:
        location: A folder, or a hub name.
        adapter: Its `adapter_config.json`, if there is one. transformers applies it, or does not, without a word.
        name: What was given.

    Returns:
        What follows the name in a message.
    """
    folder = Path(location)
    config = folder / ADAPTER_CONFIG if adapter is None else Path(adapter)
    if folder.is_dir() or adapter is not None:
        fault = adapter_fault(config.parent, config)
        if fault is not None:
            return fault
    if not folder.is_dir():
        return None
    if not (folder / CONFIG).is_file():
        return f"is a folder that holds no {CONFIG}; {_other_folder(folder, name)}"
    fault = quick_fault(folder)
    return None if fault is None else f"cannot be read: {fault}"


def _other_folder(folder: Path, name: str) -> str:
    """Say which folder may be meant instead of one that holds no model."""
    inside = sorted(path.parent for pattern in ("*", "snapshots/*") for path in folder.glob(f"{pattern}/{CONFIG}"))
    if inside:
        return f"its subfolder {inside[-1].relative_to(folder)} does, give {inside[-1]}"
    if _looks_local(name):
        return "give a model's folder, as save_pretrained writes it"
    return (
        "give a model's folder, as save_pretrained writes it; or, since it hides a hub model of the same name in this "
        "working directory, rename it"
    )


@contextlib.contextmanager
def _reading(key: str, settings: ModelSettings, location: str) -> Iterator[None]:
    """Read configuration, code and tokenizer: quietly, with one error, and copying code while no other process does."""
    alone = copying_alone() if settings.trust_remote_code else contextlib.nullcontext()
    with _one_error(key, settings, location, CONFIG_FAULTS), _quiet_transformers(), alone:
        yield


@contextlib.contextmanager
def _one_error(
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
        reason = fault or f"{_reason(error)}. {_way_out(error, folder.is_dir(), settings)}"
        raise ReportedError(f"cannot load the model {settings.name!r}{revision}: {reason}") from error


def _reason(error: Exception) -> str:
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
    return f"Without network or cache, give a local folder, or a built-in model: {_builtin_names()}"


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
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
