"""The files of a model's folder: which of them are read, and which is broken."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Optional

import torch
from safetensors import SafetensorError, safe_open

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
INDEX = ".index.json"
"""Ending of a file that names the file of each weight."""
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Where weights are, in the order in which transformers looks for them."""
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
"""Weights of an adapter (PEFT)."""
OBJECTS: dict[str, tuple[str, ...]] = {
    CONFIG: (),
    "tokenizer.json": ("model", "added_tokens"),
    "tokenizer_config.json": (),
    "special_tokens_map.json": (),
    "added_tokens.json": (),
    "vocab.json": (),
}
"""JSON files that are read beside the weights, and the keys that each must have."""
INDEX_KEYS = ("weight_map", "metadata")
"""The keys that an index must have."""
VOCABULARIES = ("vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
"""What else is read beside the weights."""
POINTER = b"version https://git-lfs"
"""How a file begins that git-lfs has not fetched."""
ZIP = b"PK\x03\x04"
"""How a file of PyTorch begins; one of a version before 1.6 does not."""
HEAD = 512
"""Bytes that tell what a file is."""
UNREADABLE = (SafetensorError, pickle.UnpicklingError, EOFError, LookupError, OSError, RuntimeError, ValueError)
"""What the readers of weights raise on broken files."""
AGAIN = "download it again"


def weight_files(folder: Path) -> list[Path]:
    """Return the files of weights that transformers reads from a folder; some may be missing or broken.

    Args:
        folder: Of a model.
    """
    named = _read_object(folder / CONFIG).get("transformers_weights")
    names = (str(named), *WEIGHTS) if named else WEIGHTS
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None or any(folder.glob("*.distcp")):  # torch.distributed.checkpoint goes before, and checks itself
        return []
    if not found.name.endswith(INDEX):
        return [found]
    weight_map = _read_object(found).get("weight_map")
    shards = {value for value in weight_map.values() if isinstance(value, str)} if isinstance(weight_map, dict) else ()
    return [found, *(folder / name for name in sorted(shards))]


def _read_object(path: Path) -> dict[str, Any]:
    """Return a JSON file's object; where there is none, an empty one."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def adapter_fault(folder: Path, config: Path) -> Optional[str]:
    """Say what is wrong with an adapter (LoRA, PEFT) that is given as a model, or lies beside one.

    Args:
        folder: What was given.
        config: Its `adapter_config.json`.

    Returns:
        What follows the folder's name in a message; None: there is no adapter.
    """
    is_whole = bool(weight_files(folder)) and (folder / CONFIG).is_file()
    weights = () if is_whole else [folder / name for name in ADAPTERS]  # without a configuration nobody applies them
    found = next((path for path in (config, *weights) if path.is_file()), None)
    if found is None:
        return None
    about = _read_object(config)
    base = about.get("base_model_name_or_path")
    details = ", ".join(str(part) for part in (about.get("peft_type"), base and f"of {base}", found.name) if part)
    instead = (
        f"give a copy without {found.name} to measure the model as it is, and" if is_whole else "give its base, and"
    )
    return f"holds a PEFT adapter ({details}), which is not applied here; {instead} the adapter's folder as its adapter"


# --- broken files ------------------------------------------------------------------------------------------------


def quick_fault(folder: Path) -> Optional[str]:
    """Say which file of a folder is broken, as far as their heads tell: it takes no time.

    Args:
        folder: Of a model.

    Returns:
        The file, what is wrong with it, and what to do; None: nothing was found.
    """
    beside = (_pointer_fault(folder / name) for name in (*OBJECTS, *VOCABULARIES))
    return next((fault for fault in chain(beside, map(_weight_fault, weight_files(folder))) if fault), None)


def thorough_fault(folder: Path) -> Optional[str]:
    """Say which file of a folder is broken, after transformers could not read them: each is opened.

    Args:
        folder: Of a model.

    Returns:
        The file, what is wrong with it, and what to do; None: nothing was found.
    """
    objects = [folder / name for name in OBJECTS if (folder / name).is_file()]
    pointers = map(_pointer_fault, sorted(folder.iterdir()))
    return next((fault for fault in chain(map(_json_fault, objects), _unreadable(folder), pointers) if fault), None)


def _head(path: Path) -> bytes:
    if not path.is_file():
        return b""
    with path.open("rb") as stream:
        return stream.read(HEAD)


def _pointer_fault(path: Path) -> Optional[str]:
    head = _head(path)
    if not head.startswith(POINTER):
        return None
    sizes = [line.split()[-1] for line in head.decode(errors="replace").splitlines() if line.startswith("size ")]
    what = f"a file of {sizes[0]} bytes" if sizes else "the file"
    return f"{path} is a git-lfs pointer in place of {what}; run git lfs pull, or {AGAIN}"


def _weight_fault(path: Path) -> Optional[str]:
    """Say what is wrong with a file of weights, or with their index."""
    if path.name.endswith(INDEX):
        return _json_fault(path)
    if not path.is_file():
        return f"{path} is missing, though the index names it; {AGAIN}"
    size, head = path.stat().st_size, _head(path)
    if not size:
        return f"{path} is empty; {AGAIN}"
    if fault := _pointer_fault(path):
        return fault
    if head.lstrip()[:1] == b"<":
        return f"{path} is a web page, not a file of weights; {AGAIN}"
    if path.suffix == ".safetensors":
        return _safetensors_fault(path, size)
    if head.startswith(ZIP) and not zipfile.is_zipfile(path):
        return f"{path} is cut off, its end is missing; {AGAIN}"
    return None


def _safetensors_fault(path: Path, size: int) -> Optional[str]:
    """Compare a file's size with what its header says."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        begins_well = stream.read(1) == b"{"
        if not begins_well and size > 8:
            return f"{path} is damaged, or no safetensors file; {AGAIN}"
        if size < 8 + length:
            return f"{path} is cut off at {size:,} bytes, within its header; {AGAIN}"
        stream.seek(8)
        header = stream.read(length)
    try:
        ends = [entry["data_offsets"][1] for name, entry in json.loads(header).items() if name != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except (ValueError, LookupError, TypeError, AttributeError):
        return f"{path} is damaged: its header cannot be read; {AGAIN}"
    if size != expected:
        what = "cut off" if size < expected else "damaged"
        return f"{path} is {what}: it has {size:,} bytes, and {expected:,} by its header; {AGAIN}"
    return None


def _json_fault(path: Path) -> Optional[str]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        return f"{path} is no valid JSON ({error}); {AGAIN}"
    if not isinstance(about, dict):
        return f"{path} holds a {type(about).__name__} where a JSON object is expected; {AGAIN}"
    needed = INDEX_KEYS if path.name.endswith(INDEX) else OBJECTS[path.name]
    if missing := [key for key in needed if key not in about]:
        return f"{path} has no {missing[0]!r}; {AGAIN}"
    return None


def _unreadable(folder: Path) -> Iterator[str]:
    """Iterate over what is wrong with weights that cannot be opened."""
    for path in weight_files(folder):
        if fault := _weight_fault(path):
            yield fault
        elif path.suffix == ".safetensors":
            try:
                safe_open(path, framework="pt")
            except UNREADABLE as error:
                yield f"{path} is damaged ({error}); {AGAIN}"
        elif not path.name.endswith(INDEX):
            try:
                weights = torch.load(path, map_location="meta", weights_only=True)
            except pickle.UnpicklingError:
                yield f"{path} is damaged, or holds code, which is never run; {AGAIN}, or save it as safetensors"
            except UNREADABLE as error:
                yield f"{path} is damaged ({type(error).__name__}); {AGAIN}"
            else:
                if not isinstance(weights, dict):
                    yield f"{path} holds a {type(weights).__name__} where a dict of tensors is expected; {AGAIN}"
