"""Control vectors: from a file, a folder, a list in a config, or a tensor, to a checked float32 tensor."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from llm_entropy import builtin
from llm_entropy.errors import ReportedError
from llm_entropy.settings.fields import holds_arrays
from llm_entropy.steering import placement
from llm_entropy.steering.contents import EXTRACTED, EXTRACTION, SHUFFLED, Found, find_vectors, found_rows
from llm_entropy.steering.files import FORMATS, read_content
from llm_entropy.steering.operators import PROJECTING
from llm_entropy.steering.tensors import Array, as_row, as_vector

if TYPE_CHECKING:
    from llm_entropy.settings import ControlSettings

logger = logging.getLogger("llm_entropy")

VectorSource = str | Path | Tensor | Array | list[float] | list[list[float]]
"""What a user may give as a vector."""

BUILTIN = "builtin:"
"""Before a path, the folder of what comes with the package."""


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


def resolve_vector(
    value: VectorSource,
    *,
    key: str,
    model: str,
    num_blocks: int,
    hidden_size: int,
    operator: str = "add",
    model_type: str = "",
) -> Tensor:
    """Return the vector that a user gave, checked against the model's sizes.

    Args:
        value: A file or a folder of files (`{model}` in it stands for the model's key, `~` for the home folder,
            `builtin:` for the folder of what comes with the package; relative to the working directory), numbers (rows
            shorter than the hidden size are repeated to fill it), a tensor or an array.
        key: The config key, for messages.
        model: The model's key.
        num_blocks: L.
        hidden_size: Width of the residual stream.
        operator: What is done with it: a file may be meant for another.
        model_type: Of the model; a warning says if the vector was extracted from another one. Empty: it is not known.

    Returns:
        Float32 on the CPU: [hidden], [L, hidden], or [L + 1, hidden] whose row 0 acts on the embeddings.

    Raises:
        ReportedError: An unreadable file, a wrong shape, something else than finite real numbers.
    """
    source = ""
    try:
        if isinstance(value, (str, Path)):
            path = vector_path(str(value).replace("{model}", model))
            source = f"{path}: "
            vector = read_vector(path, num_blocks=num_blocks, projects=operator in PROJECTING)
            _warn_of_another_model(path, key, model, model_type)
        elif isinstance(value, (list, tuple)) and not holds_arrays(value):
            vector = _fill(as_vector(value), hidden_size, key=key, model=model)
        elif holds_arrays(value):
            vector = as_vector(value)
        else:
            raise ReportedError(f"got {type(value).__name__}; expected a file, a list of numbers, a tensor or an array")
    except ReportedError as error:
        raise ReportedError(f"{key}: {error}") from error
    if len(vector) == 1 < num_blocks and vector.ndim == 2:
        vector = vector[0]
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


def read_shuffled(chosen: ChosenVector, count: int, *, key: str, model: str) -> Tensor:
    """Return the vectors from permuted labels that `llm-entropy extract` has kept beside a vector.

    Args:
        chosen: The vector, which `resolve_vector` has found to fit the model.
        count: How many are asked for.
        key: Where they are asked for, for messages.
        model: The model's key.

    Returns:
        Float32, [number, L, hidden], as many as there are.

    Raises:
        ReportedError: There are none, or too few.
    """
    way_out = "give a vector that llm-entropy extract has made, or use random placebos"
    if not isinstance(chosen.value, (str, Path)):
        raise ReportedError(f"{key}: got {count}, but {chosen.key} is no file; {way_out}")
    path = vector_path(str(chosen.value).replace("{model}", model))
    content = {} if path.is_dir() else read_content(path)
    kept = content.get(SHUFFLED) if isinstance(content, dict) and EXTRACTED in content else None
    if not isinstance(kept, Tensor) or kept.ndim != 3 or kept.shape[1:] != content[EXTRACTED].shape:
        raise ReportedError(f"{key}: got {count}, but {path} holds no vectors from permuted labels; {way_out}")
    if len(kept) < count:
        raise ReportedError(
            f"{key}: got {count}, but {path} holds {len(kept)} vectors from permuted labels; ask for {len(kept)}, or "
            f"extract it again with extract.shuffled {count}"
        )
    return kept


def vector_path(given: str) -> Path:
    """Return where a file is, whose name may begin with `builtin:` or `~`."""
    if given.startswith(BUILTIN):
        return builtin.FOLDER / given.removeprefix(BUILTIN)
    return Path(given).expanduser()


def read_vector(path: str | Path, *, num_blocks: int, projects: bool = False) -> Tensor:
    """Read a vector file, or a folder of them; a file's suffix says the format (`files.FORMATS`).

    A file that holds one tensor, and names no block, gives it as it is. A file that maps block numbers to vectors (keys
    like 0, "layer.3", "direction.3", "model.layers.3", "blocks.3.hook_resid_post", also below `layer_activations` or
    `directions`) gives a row for each block, zero for the blocks that it does not name; so does one that names a block
    beside its only tensor, as {"vector": ..., "layer": 3} does, and a folder of files whose names number blocks, as
    that of vec_layer_3.pt does. Blocks are counted from 0; `hook_resid_pre` of block k is the output of block k - 1, of
    block 0 that of the embeddings (`placement` has the names).

    Args:
        path: The file or folder.
        num_blocks: L, the rows of a mapping.
        projects: Whether directions that are made to be projected out are welcome.

    Returns:
        Float32, [hidden] or [rows, hidden].

    Raises:
        ReportedError: Naming the file, what it holds, and what was expected. Pickled code is refused, never run.
    """
    path = Path(path)
    found = read_vectors(path, projects=projects)
    try:
        return found.stacked(num_blocks)
    except ReportedError as error:
        raise ReportedError(f"{path}: {error}") from error


def read_vectors(path: Path, *, projects: bool = False) -> Found:
    """Return the vectors of a file or folder by block, whatever model they are for; as `read_vector`."""
    if path.is_dir():
        return _read_folder(path, projects)
    content = read_content(path)
    try:
        found = find_vectors(content, projects=projects)
    except ReportedError as error:
        raise ReportedError(f"{path}: {error}") from error
    _say_where(path, found)
    return found


def _read_folder(folder: Path, projects: bool) -> Found:
    """Return the vectors of a folder that holds a file for each block, as CAA writes them."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in FORMATS and path.is_file())
    if not paths:
        raise ReportedError(f"{folder}: got a folder without vector files; expected {', '.join(FORMATS)}")
    given = [_row_of_file(path, projects) for path in paths]
    try:
        rows = found_rows(given)
    except ReportedError as error:
        raise ReportedError(f"{folder}: {error}; keep the files of one vector alone in their folder") from error
    logger.info("%s: a file each for blocks %s, as their names say", folder, ", ".join(map(str, sorted(rows.rows))))
    return rows


def _row_of_file(path: Path, projects: bool) -> tuple[placement.Place, int, Tensor]:
    """Return the block that a file's name numbers, and the vector [hidden] in it."""
    content = read_content(path)
    try:
        number = placement.layer_in_name(path.stem)
        place = placement.find_place(path.stem) if number is None else placement.Place(number, 0, path.name)
        if place is None:
            raise ReportedError(
                "got a name that numbers no block, in a folder; expected a file for each block, as vec_layer_12.pt, or "
                "one of the files itself"
            )
        place, block = place._replace(words=path.name), place.block(0)
        found = find_vectors(content, projects=projects)
        if found.whole is not None:
            return place, block, as_row(found.whole)
        if list(found.rows) == [block]:
            return place, block, found.rows[block]
        inside = ", ".join(one.words for one in found.places.values())
        raise ReportedError(f"got a vector for {inside} inside; expected one for block {block}, as the name says")
    except ReportedError as error:
        raise ReportedError(f"{path}: {error}") from error


def _say_where(path: Path, found: Found) -> None:
    """Log at which block a file's only vector acts, and what of the file says something else or is not read."""
    layer, place = placement.layer_in_name(path.stem), found.place
    if place is not None:
        (block,) = found.rows
        where = "at the embeddings" if block == placement.EMBEDDINGS else f"at the output of block {block}"
        logger.info("%s: acts %s alone, as %s says; blocks are counted from 0", path, where, place.words)
        if layer is not None and layer not in (place.number, block):
            logger.warning("%s: its name speaks of layer %d, which is not read; it acts %s", path, layer, where)
    elif layer is not None and found.whole is not None and found.whole.ndim == 1:
        logger.warning(
            "%s: its name speaks of layer %d, which is not read: a single vector acts at every block whose weight in "
            "layer_weights is not 0; blocks: [%d] makes it act there alone",
            path,
            layer,
            layer,
        )
    for factor in found.factors:
        logger.warning("%s: %s is not read; the factor on a vector is the setting strength", path, factor)
    if found.ignored:
        logger.debug("%s: not read: %s", path, ", ".join(found.ignored))


def _warn_of_another_model(path: Path, key: str, model: str, model_type: str) -> None:
    """Warn if a vector of `llm-entropy extract` steers a model of another type, whose width may be the same."""
    content = read_content(path) if model_type and path.is_file() else None
    if not isinstance(content, dict) or EXTRACTED not in content or EXTRACTION not in content:
        return
    made_from = json.loads(content[EXTRACTION])
    if made_from["model_type"] != model_type:
        logger.warning(
            "%s: %s was extracted from %s, a model of type %s, but %s is of type %s, where its directions mean "
            "something else",
            *(key, path, made_from["name"], made_from["model_type"], model, model_type),
        )


def _fill(vector: Tensor, hidden_size: int, *, key: str, model: str) -> Tensor:
    """Repeat the last axis until it is `hidden_size` long; a longer one stays as it is, for the caller to refuse."""
    width = vector.shape[-1]
    if width >= hidden_size:
        return vector
    numbers = "1 number" if width == 1 else f"{width} numbers"
    logger.warning("%s: %s repeated to fill the hidden size of %s, %d", key, numbers, model, hidden_size)
    return vector[..., torch.arange(hidden_size) % width]
