"""Code that a model brings along: where it lies, one process at a time that copies it, and a name for its bytes."""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Optional

import torch
import transformers
import xxhash
from transformers import PretrainedConfig, dynamic_module_utils
from transformers.models.auto.tokenization_auto import get_tokenizer_config

UPSTREAM = "--"
"""Stands between a hub repository and a class of its code, where a model names the code of another one."""
LOCK = ".llm_entropy.lock"
"""In transformers' cache of modules, a file that whoever copies there holds."""
COPIES = "transformers_modules."
"""Begins the names of modules that transformers has copied from models."""


def needs_permission(error: Exception) -> bool:
    """Return whether transformers refuses to run a model's own code because nobody allowed it."""
    return isinstance(error, ValueError) and "trust_remote_code" in str(error)


def refusal(key: str, name: str, location: str, revision: Optional[str]) -> str:
    """Say where a model's own code lies, and how it is allowed to run.

    Args:
        key: The model's, in the settings.
        name: As it was given.
        location: What transformers loads from.
        revision: Of a hub model.
    """
    lies_in = ", ".join(_places(location, revision))
    return (
        f"models.{key}: {name} needs code of its own; its code lies in {lies_in}; it is run only with "
        f"models.{key}.trust_remote_code: true, so read it first"
    )


def way_out(error: Exception) -> Optional[str]:
    """Say what to do about code of a model that cannot be run; None: its code is not to blame."""
    if isinstance(error, ImportError):
        return (
            f"Its own code needs that; install it, or, in the place of transformers {transformers.__version__}, the "
            "version for which the code was written"
        )
    if str(getattr(error, "filename", None)).startswith(str(_copies_folder())):
        return "Its code is copied there before it is run; set HF_MODULES_CACHE to a folder that can be written to"
    return None


def _places(location: str, revision: Optional[str]) -> list[str]:
    """Return the folder and the hub repositories that hold a model's code."""
    maps: list[Any] = []
    with suppress(OSError, ValueError):
        maps.append(PretrainedConfig.get_config_dict(location, revision=revision)[0].get("auto_map"))
    with suppress(OSError, ValueError):
        maps.append(get_tokenizer_config(location, revision=revision).get("auto_map"))
    own = str(Path(location).absolute()) if Path(location).is_dir() else f"the hub repository {location}"
    found = [
        f"the hub repository {reference.partition(UPSTREAM)[0]}" if UPSTREAM in reference else own
        for auto_map in maps
        for reference in _references(auto_map)
    ]
    return list(dict.fromkeys(found)) or [own]


def _references(auto_map: Any) -> Iterator[str]:
    """Iterate over the classes that a model names: strings, or lists of them for tokenizers."""
    if isinstance(auto_map, str):
        yield auto_map
    elif isinstance(auto_map, (dict, list, tuple)):
        for value in auto_map.values() if isinstance(auto_map, dict) else auto_map:
            yield from _references(value)


@contextmanager
def copying_alone() -> Iterator[None]:
    """Let one process at a time copy code into transformers' cache of modules.

    transformers copies byte by byte to the final name: another process of a run, or another task of an array, would
    import half a file. Where nothing can be locked there is no such care.
    """
    with ExitStack() as stack:
        with suppress(OSError):
            folder = _copies_folder()
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((folder / LOCK).open("a"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _copies_folder() -> Path:
    return Path(dynamic_module_utils.HF_MODULES_CACHE)  # type: ignore[attr-defined]


def class_of(auto: Any, config: PretrainedConfig, location: str, revision: Optional[str]) -> Optional[type[Any]]:
    """Return the class that a model's own code makes it, imported; None: transformers has one, or the user.

    transformers remembers the first class that it has seen for a configuration: it is told of this one, so that code
    that has changed since is not ignored.

    Args:
        auto: AutoModelForCausalLM, or its like.
        config: The model's.
        location: What transformers loads from.
        revision: Of a hub model.
    """
    reference = reference_of(auto, config)
    known = auto._model_mapping.get(type(config), None)
    if reference is None or (known is not None and not _is_of_own_code(known) and not _is_of_transformers(known)):
        return None
    found: type[Any] = dynamic_module_utils.get_class_from_dynamic_module(reference, location, revision=revision)
    if known is None or _is_of_own_code(known):
        auto.register(type(config), found, exist_ok=True)
    return found


def reference_of(auto: Any, config: PretrainedConfig) -> Optional[str]:
    """Return what a configuration calls the class that an AutoModel is to make."""
    return (getattr(config, "auto_map", None) or {}).get(auto.__name__)


def _is_of_own_code(known: Any) -> bool:
    return isinstance(known, type) and known.__module__.startswith(COPIES)


def _is_of_transformers(known: Any) -> bool:
    return not isinstance(known, type) or known.__module__.startswith(f"{transformers.__name__}.")


def takes_attention(model_class: type[Any], config: PretrainedConfig, implementation: str) -> bool:
    """Return whether a class, and the parts that it is made of, can attend in a way of transformers' interface.

    Args:
        model_class: Of a model's own code.
        config: The model's.
        implementation: Name of the way to attend.
    """
    if not model_class._can_set_attn_implementation():
        return False
    try:
        with torch.device("meta"):
            model_class._from_config(config, attn_implementation=implementation)
    except (ValueError, LookupError):  # transformers refuses it, or the code looks it up in a table of its own
        return False
    return True


def code_name(classes: Iterable[type[Any]]) -> Optional[str]:
    """Return a name for the bytes of the code that made some classes, 32 hexadecimal digits.

    Args:
        classes: Of a configuration, a model, a tokenizer.

    Returns:
        None: all of them are of installed packages.
    """
    content: set[tuple[str, bytes]] = set()
    for module in {own.__module__ for made in classes for own in made.__mro__ if _is_of_own_code(own)}:
        path = Path(str(sys.modules[module].__file__))
        for file in (path, *map(Path, dynamic_module_utils.get_relative_import_files(path))):
            content.add((file.name, file.read_bytes()))
    if not content:
        return None
    digest = xxhash.xxh3_128()
    for name, code in sorted(content):
        digest.update(f"{name} {len(code)} ".encode() + code)
    return digest.hexdigest()
