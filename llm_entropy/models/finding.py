"""Finding models and their tokenizers: hub names, local folders, built-in models."""

from __future__ import annotations

import copy
import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional, cast

import torch
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file, extract_commit_hash
from transformers.utils.peft_utils import find_adapter_config_file

from llm_entropy.builtin import model_folder
from llm_entropy.errors import ReportedError
from llm_entropy.models.adapters import check_adapter, find_adapter
from llm_entropy.models.asking import BUILTIN_PREFIX, builtin_names, one_error, quiet_transformers, reading, reason_of
from llm_entropy.models.attention.interface import READABLE
from llm_entropy.models.checkpoints import ADAPTER_CONFIG, CONFIG, adapter_fault, quick_fault
from llm_entropy.models.families import Architecture, find_architecture, most_tokens, shape_of
from llm_entropy.models.own_code import class_of, code_name, reference_of, refusal, takes_attention
from llm_entropy.models.quantised import method_of, missing_package
from llm_entropy.schema.shape import ModelShape
from llm_entropy.settings import LOADED_PREFIX, ModelSettings

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
        with one_error(key, settings, location), quiet_transformers():
            beside = find_adapter_config_file(location, revision=settings.revision)
            fault = _folder_fault(location, beside, settings.name)
        if fault:
            raise ReportedError(f"{name} {fault}")
    else:
        _check_gguf(name)
        options["gguf_file"] = gguf_file
    adapter = None if settings.adapter is None else find_adapter(key, settings.adapter)
    with reading(key, settings, location):
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
    with reading(key, settings, location):
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
        check_adapter(skeleton, source.tokenizer, adapter, adapter_name(source), source.name)
    return source


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
    with reading(key, settings, location):
        model_class = class_of(auto, config, location, settings.revision)
        if model_class is not None and not takes_attention(model_class, config, READABLE):
            architecture = replace(architecture, eager_only=True)
    return architecture, model_class


def adapter_name(source: ModelSource) -> str:
    """Return what messages call a model's adapter."""
    return f"models.{source.key}.adapter: {source.settings.adapter}"


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
    with one_error(source.key, source.settings, source.location), quiet_transformers(), torch.device("meta"):
        return cast(
            PreTrainedModel, auto.from_config(source.config, trust_remote_code=source.settings.trust_remote_code)
        )


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
        raise ReportedError(f"{key}: {name} cannot be reached ({reason_of(error)}); give {_ways()}") from error
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
    return f"a local folder, a hub name, or {builtin_names()}"


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
