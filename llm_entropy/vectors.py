"""Control vectors: from a file, a list in a config, or a tensor, to a checked float32 tensor.

A vector that belongs to one block is numbered by that block, 0 .. L-1, in every format: it is added to what the block
hands on. That is how the community's files count, too: repeng takes `direction.N` from, and adds it to, the output of
block N; llama.cpp stores it at offset N - 1 and reads it back at offset il - 1 for its layer il, so that it acts at the
output of layer il = N, counted from 0 (llama.cpp refuses N = 0; here it is block 0); steering-vectors numbers
`layer_activations` by decoder block.
"""

from __future__ import annotations

import logging
import pickle
import re
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llm_entropy import builtin
from llm_entropy.errors import ReportedError

if TYPE_CHECKING:
    from llm_entropy.settings import ControlSettings

logger = logging.getLogger("llm_entropy")

Array = npt.NDArray[Any]
VectorSource = str | Path | Tensor | Array | list[float] | list[list[float]]
"""What a user may give as a vector."""

BLOCK_KEY = re.compile(r"(?:(?:layer_activations|directions?|layers?|blocks?)[._])*(-?\d+)")
"""A name that says which block its tensor belongs to: 3, layer.3, direction.3, layer_activations.3."""
BUILTIN = "builtin:"
"""Before a path, the folder of what comes with the package."""
NESTS = ("layer_activations", "directions")
"""Where steering-vectors and repeng keep the mapping of blocks to vectors inside of a saved state."""


class ChosenVector(NamedTuple):
    """Which of the configured vectors acts."""

    key: str
    """The config key that it came from, for messages."""
    value: Any
    """A file, numbers, a tensor or an array: what `resolve_vector` takes."""
    sign: Literal[-1, 1]
    """-1 turns the vector: `direction: negative` with a single `control_vector`."""


def choose_vector(control: ControlSettings) -> ChosenVector:
    """Choose the vector that acts: `control_vector`, or that one of `control_vectors` which `direction` names.

    Raises:
        ReportedError: There is none, or the pair lacks the direction.
    """
    if control.control_vector is not None:
        sign: Literal[-1, 1] = -1 if control.direction == "negative" else 1
        return ChosenVector("analysis.control.control_vector", control.control_vector, sign)
    key = f"analysis.control.control_vectors.{control.direction}"
    if control.control_vectors is None:
        raise ReportedError(
            "analysis.control: got no vector; give control_vector (--control-vector FILE) or control_vectors"
        )
    value = getattr(control.control_vectors, control.direction)
    if value is None:
        raise ReportedError(
            f"{key}: got no vector, but analysis.control.direction is {control.direction}; "
            "give that vector, or change the direction"
        )
    return ChosenVector(key, value, 1)


def resolve_vector(value: VectorSource, *, key: str, model: str, num_blocks: int, hidden_size: int) -> Tensor:
    """Return the vector that a user gave, checked against the model's sizes.

    Args:
        value: A file (`{model}` in it stands for the model's key, `~` for the home folder, `builtin:` for the folder
            of what comes with the package; relative to the working directory), numbers (rows shorter than the hidden
            size are repeated to fill it), a tensor or an array.
        key: The config key, for messages.
        model: The model's key.
        num_blocks: L.
        hidden_size: Width of the residual stream.

    Returns:
        Float32 on the CPU: [hidden], [L, hidden], or [L + 1, hidden] whose row 0 acts on the embeddings.

    Raises:
        ReportedError: An unreadable file, a wrong shape, something else than finite real numbers.
    """
    source = ""
    try:
        if isinstance(value, (str, Path)):
            path = _path(str(value).replace("{model}", model))
            source = f"{path}: "
            vector = read_vector(path, num_blocks=num_blocks)
        elif isinstance(value, (list, tuple)):
            vector = _fill(_from_numbers(value), hidden_size, key=key, model=model)
        elif isinstance(value, (Tensor, np.ndarray)):
            vector = _checked(value)
        else:
            raise ReportedError(f"got {type(value).__name__}; expected a file, a list of numbers, a tensor or an array")
    except ReportedError as error:
        raise ReportedError(f"{key}: {error}") from error
    *rows, width = vector.shape
    got = f"{key}: {source}got a vector of shape {list(vector.shape)}"
    if width != hidden_size:
        raise ReportedError(f"{got}: width {width}; expected width {hidden_size}, the hidden size of {model}")
    if rows and rows[0] not in (num_blocks, num_blocks + 1):
        raise ReportedError(
            f"{got}: {rows[0]} rows; expected {num_blocks}, one for each block of {model}, "
            f"or {num_blocks + 1}, the first for the embeddings"
        )
    return vector


def _path(given: str) -> Path:
    if given.startswith(BUILTIN):
        return builtin.FOLDER / given.removeprefix(BUILTIN)
    return Path(given).expanduser()


def read_vector(path: str | Path, *, num_blocks: int) -> Tensor:
    """Read a vector file; its suffix says the format (see `FORMATS`).

    A file that holds one tensor gives it as it is. A file that maps block numbers to vectors (keys like 0, "0",
    "layer.3", "direction.3", also inside of `layer_activations` or `directions`) gives a row for each block, zero for
    the blocks that it does not name; that holds for a single numbered vector as well.

    Args:
        path: The file.
        num_blocks: L, the rows of a mapping.

    Returns:
        Float32, [hidden] or [rows, hidden].

    Raises:
        ReportedError: Naming the file, what it holds, and what was expected. Pickled code is refused, never run.
    """
    path = Path(path)
    reader = FORMATS.get(path.suffix.lower())
    if reader is None:
        raise ReportedError(f"{path}: got the suffix {path.suffix!r}; expected one of {', '.join(FORMATS)}")
    if not path.is_file():
        raise ReportedError(f"{path.absolute()}: got no such file; expected a vector file")
    try:
        content = reader(path)
    except _UNREADABLE as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ReportedError(f"{path}: got a file that cannot be read as {path.suffix}: {reason[:200]}") from error
    try:
        return _block_rows(content, num_blocks) if isinstance(content, Mapping) else _checked(content)
    except ReportedError as error:
        raise ReportedError(f"{path}: {error}") from error


# --- formats -----------------------------------------------------------------------------------------------------


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # Which pickle protocol a file was written with is no news to the user: it is read or it is refused.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True)
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
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
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


def _read_gguf(path: Path) -> Any:
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise ReportedError("GGUF files need a package that is not installed: pip install gguf") from error
    tensors = gguf.GGUFReader(path).tensors
    return {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in tensors}


FORMATS: dict[str, Callable[[Path], Any]] = {
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".bin": _read_torch,
    ".safetensors": _read_safetensors,
    ".npy": _read_numpy,
    ".npz": _read_numpy,
    ".gguf": _read_gguf,
}
"""Suffix to reader: path -> a tensor, an array, or a mapping of names to them."""

_UNREADABLE = (
    *(ValueError, RuntimeError, EOFError, LookupError, TypeError, AttributeError, AssertionError, OSError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError),
)
"""What the readers were seen to raise for files with bytes changed or cut off."""


# --- content -----------------------------------------------------------------------------------------------------


def _block_rows(content: Mapping[Any, Any], num_blocks: int) -> Tensor:
    """Return the only tensor of a mapping, or the rows [num_blocks, hidden] that its numbered tensors make."""
    layer_type = content.get("layer_type", "decoder_block")
    if layer_type != "decoder_block":
        raise ReportedError(f"got vectors for {layer_type!r}; expected 'decoder_block': vectors of the residual stream")
    for nest in NESTS:
        if isinstance(content.get(nest), Mapping):
            content = content[nest]
    tensors = {key: value for key, value in content.items() if isinstance(value, (Tensor, np.ndarray))}
    if not tensors:
        raise ReportedError("got no tensor; expected one, or one for each steered block")
    matches = {key: BLOCK_KEY.fullmatch(str(key)) for key in tensors}
    if len(tensors) == 1 and not any(matches.values()):
        return _checked(next(iter(tensors.values())))
    strangers = [str(key) for key, match in matches.items() if match is None]
    if strangers:
        raise ReportedError(
            f"got {len(tensors)} tensors, among them {', '.join(strangers[:3])}; "
            "expected a single tensor, or names that number blocks, as layer.3 or direction.3"
        )
    rows: dict[int, Tensor] = {}
    for key, match in matches.items():
        assert match is not None
        block, row = int(match[1]), _checked(tensors[key])
        if not 0 <= block < num_blocks or block in rows:
            problem = "a second vector" if block in rows else "a vector"
            raise ReportedError(
                f"got {problem} for block {block} ({key}); expected one each for blocks 0 to {num_blocks - 1}"
            )
        if row.ndim != 1:
            raise ReportedError(f"got shape {list(row.shape)} for block {block} ({key}); expected [hidden]")
        rows[block] = row
    widths = sorted({len(row) for row in rows.values()})
    if len(widths) > 1:
        raise ReportedError(f"got vectors of widths {widths}; expected one width")
    stacked = torch.zeros(num_blocks, widths[0])
    for block, row in rows.items():
        stacked[block] = row
    return stacked


def _from_numbers(numbers: list[Any] | tuple[Any, ...]) -> Tensor:
    """Return a list of numbers, or of equally long lists of numbers, as a tensor."""
    try:
        array = np.asarray(numbers)
    except ValueError as error:
        raise ReportedError(
            "got lists of different lengths; expected numbers, or equally long lists of them"
        ) from error
    if array.size and array.dtype.kind not in "iuf":
        raise ReportedError(f"got {str(numbers)[:60]}; expected numbers")
    return _checked(array.astype(np.float64))


def _fill(vector: Tensor, hidden_size: int, *, key: str, model: str) -> Tensor:
    """Repeat the last axis until it is `hidden_size` long; a longer one stays as it is, for the caller to refuse."""
    width = vector.shape[-1]
    if width >= hidden_size:
        return vector
    numbers = "1 number" if width == 1 else f"{width} numbers"
    logger.warning("%s: %s repeated to fill the hidden size of %s, %d", key, numbers, model, hidden_size)
    return vector[..., torch.arange(hidden_size) % width]


def _checked(value: Any) -> Tensor:
    """Return a tensor or array as float32 on the CPU: [hidden] or [rows, hidden], not empty, finite."""
    if isinstance(value, np.ndarray):
        is_real = np.issubdtype(value.dtype, np.floating)
    elif isinstance(value, Tensor):
        is_real = value.is_floating_point()
    else:
        raise ReportedError(f"got {type(value).__name__}; expected a tensor, or a mapping of blocks to tensors")
    if not is_real:
        raise ReportedError(f"got numbers of type {value.dtype}; expected floating-point numbers")
    if value.ndim not in (1, 2) or 0 in value.shape:
        raise ReportedError(f"got shape {list(value.shape)}; expected [hidden] or [rows, hidden], not empty")
    if isinstance(value, np.ndarray):
        # What overflows float32 is reported as infinite below.
        with np.errstate(over="ignore"):
            value = torch.from_numpy(np.array(value, dtype=np.float32))
    vector: Tensor = value.detach().to("cpu", torch.float32)
    num_bad = int((~vector.isfinite()).sum())
    if num_bad:
        raise ReportedError(f"got NaN or infinity in {num_bad} of {vector.numel()} numbers; expected finite float32")
    return vector
