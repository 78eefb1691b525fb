"""Control vectors: from a file, a list in a config, or a tensor, to a checked float32 tensor.

A vector that belongs to one block is numbered by that block, 0 .. L-1, in every format: it is added to what the block
hands on. That is how the community's files count, too: repeng takes `direction.N` from, and adds it to, the output of
block N; llama.cpp stores it at offset N - 1 and reads it back at offset il - 1 for its layer il, so that it acts at the
output of layer il = N, counted from 0 (llama.cpp refuses N = 0; here it is block 0); steering-vectors numbers
`layer_activations` by decoder block.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llm_entropy import builtin
from llm_entropy.errors import ReportedError
from llm_entropy.settings.fields import holds_arrays
from llm_entropy.steering import placement
from llm_entropy.steering.files import ARCHITECTURE, CONTROL_VECTOR, read_content

if TYPE_CHECKING:
    from llm_entropy.settings import ControlSettings

logger = logging.getLogger("llm_entropy")

Array = npt.NDArray[Any]
VectorSource = str | Path | Tensor | Array | list[float] | list[list[float]]
"""What a user may give as a vector."""

BUILTIN = "builtin:"
"""Before a path, the folder of what comes with the package."""
NESTS = ("layer_activations", "directions")
"""Where steering-vectors and repeng keep the mapping of blocks to vectors inside of a saved state."""
_WANTED = {
    "layer_type": ("decoder_block", "vectors of the residual stream, as steering-vectors writes them"),
    ARCHITECTURE: (CONTROL_VECTOR, "a control vector, as repeng and llama.cpp write it"),
}
"""What an entry must say where it is there, and what that means."""
_PROJECTED = ("project", "project_out", "ablate", "ablation", "orthogonalize")
"""Modes of directions that are not made to be added."""
_FACTORS = ("strength", "coeff", "coefficient", "multiplier", "alpha", "alpha_default", "scale")
"""Entries that are factors on the vector, for those who read them."""


class ChosenVector(NamedTuple):
    """Which of the configured vectors acts."""

    key: str
    """The config key that it came from, for messages."""
    value: Any
    """A file, numbers, a tensor or an array: what `resolve_vector` takes."""
    sign: Literal[-1, 1]
    """-1 turns the vector: `direction: negative` with a single `control_vector`."""


def choose_vector(control: ControlSettings, key: str) -> ChosenVector:
    """Choose the vector that acts: `control_vector`, or that one of `control_vectors` which `direction` names.

    Args:
        control: The settings of a vector.
        key: Where they are in the configuration, for messages.

    Raises:
        ReportedError: There is none, or the pair lacks the direction.
    """
    if control.control_vector is not None:
        sign: Literal[-1, 1] = -1 if control.direction == "negative" else 1
        return ChosenVector(f"{key}.control_vector", control.control_vector, sign)
    if control.control_vectors is None:
        raise ReportedError(f"{key}: got no vector; give control_vector (--control-vector FILE) or control_vectors")
    value = getattr(control.control_vectors, control.direction)
    if value is None:
        raise ReportedError(
            f"{key}.control_vectors.{control.direction}: got no vector, but {key}.direction is {control.direction}; "
            "give that vector, or change the direction"
        )
    return ChosenVector(f"{key}.control_vectors.{control.direction}", value, 1)


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
        elif isinstance(value, (list, tuple)) and not holds_arrays(value):
            vector = _fill(as_vector(value), hidden_size, key=key, model=model)
        elif holds_arrays(value):
            vector = as_vector(value)
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
    """Read a vector file; its suffix says the format (`vector_files.FORMATS`).

    A file that holds one tensor, and names no block, gives it as it is. A file that maps block numbers to vectors (keys
    like 0, "layer.3", "direction.3", "model.layers.3", "blocks.3.hook_resid_post", also below `layer_activations` or
    `directions`) gives a row for each block, zero for the blocks that it does not name; so does one that names a block
    beside its only tensor, as {"vector": ..., "layer": 3} does. Blocks are counted from 0; `hook_resid_pre` of block k
    is the output of block k - 1, of block 0 that of the embeddings (`placement` has the names).

    Args:
        path: The file.
        num_blocks: L, the rows of a mapping.

    Returns:
        Float32, [hidden] or [rows, hidden].

    Raises:
        ReportedError: Naming the file, what it holds, and what was expected. Pickled code is refused, never run.
    """
    path = Path(path)
    content = read_content(path)
    try:
        found = _named_rows(content, num_blocks) if isinstance(content, Mapping) else _Found(_only_tensors(content))
    except ReportedError as error:
        raise ReportedError(f"{path}: {error}") from error
    _say_where(path, found)
    return found.vector


def _only_tensors(content: Any) -> Tensor:
    """Return a tensor, or a list of them, a row each; other lists are refused: in a config they mean something else."""
    if isinstance(content, (list, tuple)) and not holds_arrays(content):
        raise ReportedError(f"got {type(content).__name__}; expected a tensor, or a mapping of blocks to tensors")
    return as_vector(content)


def _say_where(path: Path, found: _Found) -> None:
    """Log at which block a file's only vector acts, and what of the file says something else or is not read."""
    layer, place, block = placement.layer_in_name(path.stem), found.place, found.block
    if place is not None:
        where = "at the embeddings" if block == placement.EMBEDDINGS else f"at the output of block {block}"
        logger.info("%s: acts %s alone, as %s says; blocks are counted from 0", path, where, place.words)
        if layer is not None and layer not in (place.number, block):
            logger.warning("%s: its name speaks of layer %d, which is not read; it acts %s", path, layer, where)
    elif layer is not None and found.vector.ndim == 1:
        logger.warning(
            "%s: its name speaks of layer %d, which is not read: a single vector acts at every block whose weight in "
            "layer_weights is not 0",
            path,
            layer,
        )
    for factor in found.factors:
        logger.warning("%s: %s is not read; the factor on a vector is the setting strength", path, factor)
    if found.ignored:
        logger.debug("%s: not read: %s", path, ", ".join(found.ignored))


# --- content -----------------------------------------------------------------------------------------------------


class _Found(NamedTuple):
    """What a file holds."""

    vector: Tensor
    """[hidden] or [rows, hidden]."""
    place: placement.Place | None = None
    """What names the only block of a single vector, if anything does."""
    block: int | None = None
    """That block, or `EMBEDDINGS`."""
    factors: Sequence[str] = ()
    """Entries that say how often the vector is to be taken."""
    ignored: Sequence[str] = ()
    """Names of the other entries."""


def _named_rows(content: Mapping[Any, Any], num_blocks: int) -> _Found:
    """Return the only tensor of a mapping that names no block, or the rows of those that it names."""
    tensors, entries = _tensors_and_entries(content)
    _refuse_foreign(entries)
    if not tensors:
        raise ReportedError("got no tensor; expected one, or one for each steered block")
    beside = placement.read_beside(entries)
    factors = [f"{name} {value}" for name, value in entries.items() if _is_factor(name, value)]
    named = {key: placement.find_place(key) for key in tensors}
    if len(tensors) == 1 and not any(named.values()):
        if beside.unclear:
            raise ReportedError(
                f"got {beside.unclear[0]} for a single vector; expected one number, or a vector for each block, named "
                "layer.3, layer.4"
            )
        if not beside.places:
            return _Found(as_vector(next(iter(tensors.values()))), factors=factors, ignored=beside.ignored)
        named = dict.fromkeys(tensors, beside.places[0])
    places = {key: place for key, place in named.items() if place is not None}
    if len(places) < len(tensors):
        strangers = [str(key) for key in tensors if key not in places]
        raise ReportedError(
            f"got {len(tensors)} tensors, among them {', '.join(strangers[:3])}; "
            "expected a single tensor, or names that number blocks, as layer.3 or direction.3"
        )
    blocks = {key: place.block(beside.offset) for key, place in places.items()}
    _refuse_contradiction(beside, list(places.values()), set(blocks.values()))
    vector = _stack({key: (places[key], blocks[key], as_vector(tensors[key])) for key in tensors}, num_blocks)
    place, block = (next(iter(places.values())), next(iter(blocks.values()))) if len(places) == 1 else (None, None)
    return _Found(vector, place, block, factors, beside.ignored)


def _tensors_and_entries(content: Mapping[Any, Any]) -> tuple[dict[Any, Any], dict[str, Any]]:
    """Return the tensors of a file by their keys, and everything else by its name."""
    inner = next((content[nest] for nest in NESTS if isinstance(content.get(nest), Mapping)), content)
    tensors = {key: value for key, value in inner.items() if _is_tensor(value)}
    left = {key: value for key, value in content.items() if value is not inner and key not in tensors}
    entries = dict(placement.flat_entries(left))
    hidden = [name for name, value in entries.items() if _holds_tensors(value)]
    if hidden:
        raise ReportedError(
            f"got tensors inside of {', '.join(hidden[:3])}; expected a single tensor, or one for each block, at the "
            f"top or in {' or '.join(NESTS)}"
        )
    return tensors, entries


def _is_tensor(value: Any) -> bool:
    """Whether a value is a tensor or an array of numbers; one without dimensions is an entry, as text is."""
    is_text = isinstance(value, np.ndarray) and value.dtype.kind in "SU"
    return isinstance(value, (Tensor, np.ndarray)) and value.ndim > 0 and not is_text


def _holds_tensors(value: Any) -> bool:
    return any(map(_holds_tensors, value)) if isinstance(value, (list, tuple)) else _is_tensor(value)


def _is_factor(name: str, value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and value != 1 and name.rpartition(".")[2].lower() in _FACTORS


def _refuse_foreign(entries: Mapping[str, Any]) -> None:
    """Refuse a file that says that it is something else than vectors to be added to the residual stream."""
    for name, (wanted, meaning) in _WANTED.items():
        if entries.get(name, wanted) != wanted:
            kinds = "".join(
                f", {kind} {entries[kind]!r}" for kind in ("general.type", "adapter.type") if kind in entries
            )
            raise ReportedError(f"got {name} {entries[name]!r}{kinds}; expected {wanted!r}: {meaning}")
    for name, value in entries.items():
        if name.rpartition(".")[2] == "mode" and value in _PROJECTED:
            raise ReportedError(
                f"got {name} {value!r}: directions that are made to be projected out; expected vectors that are added"
            )


def _refuse_contradiction(beside: placement.Beside, places: list[placement.Place], blocks: set[int]) -> None:
    """Refuse a file that names other blocks beside its tensors than in their names."""
    offset = next((place.offset for place in places if place.offset is not None), beside.offset)
    for said in beside.places:
        if {said.block(offset)} != blocks:
            raise ReportedError(
                f"got {said.words} beside a vector for {', '.join(place.words for place in places[:3])}; "
                "expected one word on where it acts: remove the other, or keep the vector of that block alone"
            )


def _stack(rows: dict[Any, tuple[placement.Place, int, Tensor]], num_blocks: int) -> Tensor:
    """Return [num_blocks, hidden], with a row more, the first, where one acts on the embeddings; zero where none is."""
    seen: set[int] = set()
    for place, block, row in rows.values():
        if not 0 <= place.number < num_blocks or block in seen:
            problem = "a second vector" if block in seen else "a vector"
            raise ReportedError(
                f"got {problem} for block {place.number} ({place.words}); "
                f"expected one each for blocks 0 to {num_blocks - 1}"
            )
        if row.ndim != 1:
            raise ReportedError(
                f"got shape {list(row.shape)} for block {place.number} ({place.words}); expected [hidden]"
            )
        seen.add(block)
    widths = sorted({len(row) for _, _, row in rows.values()})
    if len(widths) > 1:
        raise ReportedError(f"got vectors of widths {widths}; expected one width")
    first = placement.EMBEDDINGS if placement.EMBEDDINGS in seen else 0
    stacked = torch.zeros(num_blocks - first, widths[0])
    for _, block, row in rows.values():
        stacked[block - first] = row
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
    return as_vector(array.astype(np.float64))


def _fill(vector: Tensor, hidden_size: int, *, key: str, model: str) -> Tensor:
    """Repeat the last axis until it is `hidden_size` long; a longer one stays as it is, for the caller to refuse."""
    width = vector.shape[-1]
    if width >= hidden_size:
        return vector
    numbers = "1 number" if width == 1 else f"{width} numbers"
    logger.warning("%s: %s repeated to fill the hidden size of %s, %d", key, numbers, model, hidden_size)
    return vector[..., torch.arange(hidden_size) % width]


def as_vector(value: Any) -> Tensor:
    """Return what was given as a vector in memory as a tensor.

    Args:
        value: A tensor of any floating type, on any device; an array of floating-point numbers, or what numpy makes
            one of; a list of them, a row each; a list of numbers, or of equally long lists of them.

    Returns:
        Float32 on the CPU, finite: [hidden] or [rows, hidden].

    Raises:
        ReportedError: Another type or shape, integers in an array, something else than finite numbers.
    """
    if isinstance(value, (list, tuple)):
        return _stacked_rows(value) if holds_arrays(value) else _from_numbers(value)
    if not isinstance(value, Tensor) and hasattr(value, "__array__"):
        value = np.asarray(np.ma.filled(value, np.nan) if isinstance(value, np.ma.MaskedArray) else value)
    if not isinstance(value, (Tensor, np.ndarray)):
        raise ReportedError(f"got {type(value).__name__}; expected a tensor, or a mapping of blocks to tensors")
    is_real = value.is_floating_point() if isinstance(value, Tensor) else np.issubdtype(value.dtype, np.floating)
    if not is_real:
        raise ReportedError(
            f"got numbers of type {value.dtype}; expected floating-point numbers, as float32 (what integers stand for "
            "is not known: they may be quantised)"
        )
    if value.ndim not in (1, 2) or 0 in value.shape:
        raise ReportedError(f"got shape {list(value.shape)}; expected [hidden] or [rows, hidden], not empty")
    vector = _float32(value)
    num_bad = int((~vector.isfinite()).sum())
    if num_bad:
        raise ReportedError(f"got NaN or infinity in {num_bad} of {vector.numel()} numbers; expected finite float32")
    return vector


def _float32(value: Tensor | Array) -> Tensor:
    if isinstance(value, np.ndarray):
        # A copy, in the machine's byte order and without negative strides, neither of which torch has. What overflows
        # is infinite, which is reported.
        with np.errstate(over="ignore"):
            return torch.from_numpy(np.array(value, dtype=np.float32))
    if value.is_meta:
        raise ReportedError("got a tensor on the meta device, which holds no numbers; expected one that is loaded")
    return value.detach().to_dense().to("cpu", torch.float32).contiguous()


def _stacked_rows(rows: list[Any] | tuple[Any, ...]) -> Tensor:
    vectors = [as_vector(row) for row in rows]
    shapes = sorted({tuple(vector.shape) for vector in vectors})
    if len(shapes) > 1 or len(shapes[0]) != 1:
        raise ReportedError(
            f"got a list of tensors of the shapes {[list(shape) for shape in shapes]}; expected [hidden] for each"
        )
    return torch.stack(vectors)
