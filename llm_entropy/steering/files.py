"""The formats of vector files: what a file holds, before anything is made of it."""

from __future__ import annotations

import pickle
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llm_entropy.errors import ReportedError

ARCHITECTURE = "general.architecture"
"""Entry of every GGUF file: what it holds."""
CONTROL_VECTOR = "controlvector"
"""The architecture of a control vector."""


def read_content(path: Path) -> Any:
    """Return what a file holds; its suffix says the format (see `FORMATS`).

    Metadata of a file stand beside its tensors, as text or numbers.

    Args:
        path: The file.

    Raises:
        ReportedError: There is no such file, or it cannot be read. Pickled code is refused, never run.
    """
    reader = FORMATS.get(path.suffix.lower())
    if reader is None:
        raise ReportedError(f"{path}: got the suffix {path.suffix!r}; expected one of {', '.join(FORMATS)}")
    if not path.is_file():
        raise ReportedError(f"{path.absolute()}: no such file; give the path of a vector file")
    try:
        return reader(path)
    except _UNREADABLE as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ReportedError(f"{path}: got a file that cannot be read as {path.suffix}: {reason[:200]}") from error


_SavedVector = type("SteeringVector", (), {"__module__": "steering_vectors.steering_vector"})
"""Takes the place of steering-vectors' class where an object was saved whole: its entries, and none of its code."""


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # Which pickle protocol a file was written with is no news to the user: it is read or it is refused.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            with torch.serialization.safe_globals([_SavedVector]):
                content = torch.load(path, map_location="cpu", weights_only=True)
        return vars(content) if isinstance(content, _SavedVector) else content
    except pickle.UnpicklingError as error:
        # The message of torch advises the user to switch the protection off.
        raise ReportedError(
            "it holds no tensors, or pickled code or objects beside them, which are refused and never run; "
            "expected torch.save(tensor, path)"
        ) from error
    except LookupError as error:
        # The restricted unpickler looks up whatever byte it finds: text ends in a KeyError.
        raise ReportedError("it was not written by torch.save") from error


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {**(file.metadata() or {}), **{name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118
    except SafetensorError as error:
        raise ReportedError(str(error)) from error


def _read_numpy(path: Path) -> Any:
    try:
        # Opened here: numpy leaves a file open that it opened and could not read.
        with path.open("rb") as file:
            content = np.load(file, allow_pickle=False)
            return content if isinstance(content, np.ndarray) else {name: content[name] for name in content.files}
    except ValueError as error:
        # The message of numpy advises the user to switch the protection off.
        raise ReportedError("it holds no array, or pickled objects, which are refused and never run") from error


def import_gguf() -> Any:
    """Return the package of GGUF files, an extra.

    Raises:
        ReportedError: It is not installed.
    """
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise ReportedError("GGUF files need a package that is not installed: pip install gguf") from error
    return gguf


def _read_gguf(path: Path) -> Any:
    gguf = import_gguf()
    reader = gguf.GGUFReader(path)
    entries = {
        name: field.contents()
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.") and field.types[:1] != [gguf.GGUFValueType.ARRAY]
    }
    architecture = entries.setdefault(ARCHITECTURE, None)
    # The weights of a whole model are not worth reading for saying that it is one.
    tensors = reader.tensors if architecture == CONTROL_VECTOR else ()
    return entries | {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in tensors}


FORMATS: dict[str, Callable[[Path], Any]] = {
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".bin": _read_torch,
    ".safetensors": _read_safetensors,
    ".npy": _read_numpy,
    ".npz": _read_numpy,
    ".gguf": _read_gguf,
}
"""Suffix to reader: path -> a tensor, an array, a list, or a mapping of names to them."""

_UNREADABLE = (
    *(ValueError, RuntimeError, EOFError, LookupError, TypeError, AttributeError, AssertionError, OSError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError),
)
"""What the readers were seen to raise for files with bytes changed or cut off."""
