"""Convert control vectors into the formats of other programs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from llm_entropy.errors import ReportedError
from llm_entropy.steering.blocks import chosen_blocks
from llm_entropy.steering.contents import HOOKED, Found, found_rows
from llm_entropy.steering.files import CONTROL_VECTOR, import_gguf
from llm_entropy.steering.placement import EMBEDDINGS, Place
from llm_entropy.steering.vectors import read_vectors, vector_path
from llm_entropy.store.files import written_whole

logger = logging.getLogger("llm_entropy")


class Target(NamedTuple):
    """The model that a vector is written for, as far as it is known."""

    num_blocks: int | None = None
    """L."""
    hidden_size: int | None = None
    """Width of the residual stream."""
    model_type: str = "unknown"
    """Hugging Face's name of its family."""
    blocks: str = "layers"
    """Name of its list of blocks in the model without its head: as in Llama, or `h` in GPT-2."""


UNKNOWN = Target()
"""A model of which nothing is known."""


class Format(NamedTuple):
    """A format that vectors are written in."""

    suffixes: tuple[str, ...]
    takes: Callable[[Found, Target], Any]
    """What is written: `_as_tensor` or `_by_block`."""
    write: Callable[[Path, Any, Target, str], None]
    """(path, that, model, name of the source)."""


def convert_vector(
    source: str | Path,
    target: str | Path,
    *,
    to: str | None = None,
    model: Target = UNKNOWN,
    blocks: str | list[int] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a control vector in another format, whole or not at all.

    Args:
        source: A file or folder, as `vectors.read_vector` takes it; `builtin:` and `~` as in the settings.
        target: The file to write.
        to: A key of `FORMATS_OUT`; None: as the suffix of `target` says.
        model: What is known of the model; formats need of it what the source does not tell.
        blocks: Numbers of blocks, or a slice as "1:", which alone keep their vectors; None: all.
        overwrite: Whether a file that is there is replaced.

    Returns:
        The file that was written.

    Raises:
        ReportedError: The source cannot be read or does not fit the model, the format cannot hold it, or the target is
            there or cannot be written.
    """
    path = Path(target).expanduser()
    chosen = FORMATS_OUT[_format_of(path, to)]
    if path.exists() and not (overwrite and path.is_file()):
        hint = ", or replace it with --force" if path.is_file() else ""
        raise ReportedError(f"{path}: is there already; choose another name{hint}")
    if not path.parent.is_dir():
        raise ReportedError(f"{path}: got the folder {path.parent}, which is not there; make it first")
    given = vector_path(str(source))
    found = read_vectors(given)
    try:
        vector = chosen.takes(found if blocks is None else _only(found, blocks, model), model)
    except ReportedError as error:
        raise ReportedError(f"{given}: {error}") from error
    try:
        with written_whole(path) as temporary:
            chosen.write(temporary, vector, model, given.name)
    except OSError as error:
        raise ReportedError(f"{path}: cannot be written: {error.strerror or error}") from error
    return path


def _format_of(path: Path, to: str | None) -> str:
    """Return the format of a target: as its suffix says, which must be one of the format that was asked for."""
    suffix = path.suffix.lower()
    if to is None:
        to = next((name for name, one in FORMATS_OUT.items() if suffix in one.suffixes), None)
        if to is None:
            known = ", ".join(f"{'/'.join(one.suffixes)} ({name})" for name, one in FORMATS_OUT.items())
            raise ReportedError(f"{path}: got the suffix {suffix!r}; expected one of {known}")
    if to not in FORMATS_OUT:
        raise ReportedError(f"--to: got {to!r}; expected one of {', '.join(FORMATS_OUT)}")
    if suffix not in FORMATS_OUT[to].suffixes:
        wanted = " or ".join(FORMATS_OUT[to].suffixes)
        raise ReportedError(f"{path}: got the suffix {suffix!r} for {to}; expected {wanted}, by which it is read")
    return to


# --- what a format takes -----------------------------------------------------------------------------------------

TELL = "give --model, or --num-blocks"


def _only(found: Found, blocks: str | list[int], model: Target) -> Found:
    """Return the vectors of the chosen blocks alone."""
    if model.num_blocks is None:
        raise ReportedError(f"got blocks {blocks!r}, but not how many the model has; {TELL}")
    vector = _as_tensor(found, model)
    each = vector.expand(model.num_blocks, -1) if vector.ndim == 1 else vector[len(vector) - model.num_blocks :]
    chosen = chosen_blocks(blocks, model.num_blocks, "blocks")
    return found_rows((Place(block, 0, f"block {block}"), block, each[block]) for block in sorted(set(chosen)))


def _as_tensor(found: Found, model: Target) -> Tensor:
    """Return [hidden], [L, hidden] or [L + 1, hidden]."""
    if model.num_blocks is None:
        if found.whole is None:
            blocks = ", ".join(map(str, sorted(found.rows)[:8]))
            raise ReportedError(f"got vectors for blocks {blocks}, which do not tell how many the model has; {TELL}")
        vector = found.whole[0] if len(found.whole) == 1 and found.whole.ndim == 2 else found.whole
    else:
        vector = found.stacked(model.num_blocks)
        if vector.ndim == 2 and len(vector) == 1 < model.num_blocks:
            vector = vector[0]
        if vector.ndim == 2 and len(vector) not in (model.num_blocks, model.num_blocks + 1):
            raise ReportedError(
                f"got {len(vector)} rows; expected {model.num_blocks}, one for each block, or {model.num_blocks + 1}, "
                "the first for the embeddings"
            )
    if model.hidden_size is not None and vector.shape[-1] != model.hidden_size:
        raise ReportedError(f"got width {vector.shape[-1]}; expected {model.hidden_size}, the hidden size of the model")
    return vector


def _by_block(found: Found, model: Target) -> dict[int, Tensor]:
    """Return vectors [hidden] by block, none for the embeddings."""
    if found.rows and model.num_blocks is None:
        rows = dict(found.rows)
        width = len(next(iter(rows.values())))
        if model.hidden_size not in (None, width):
            raise ReportedError(f"got width {width}; expected {model.hidden_size}, the hidden size of the model")
    elif model.num_blocks is None:
        assert found.whole is not None
        what = "one vector for all blocks" if found.whole.ndim == 1 else f"{len(found.whole)} rows"
        why = "" if found.whole.ndim == 1 else ", of which the first may be for the embeddings"
        raise ReportedError(f"got {what}{why}: it does not tell how many blocks the model has; {TELL}")
    else:
        vector = _as_tensor(found, model)
        each = vector.expand(model.num_blocks, -1) if vector.ndim == 1 else vector
        rows = {block: row for block, row in enumerate(each, start=model.num_blocks - len(each))}
    if rows.pop(EMBEDDINGS, torch.zeros(1)).any():
        raise ReportedError(
            "got a vector for the embeddings, for which this format has no place; expected blocks alone"
        )
    if not any(row.any() for row in rows.values()):
        raise ReportedError("got zeros alone; expected a vector that steers")
    return rows


# --- the formats -------------------------------------------------------------------------------------------------


def _write_safetensors(path: Path, vector: Tensor, model: Target, source: str) -> None:
    about = {
        "format": "pt",
        "content": "control vector of the residual stream: added to what each block hands on",
        "source": source,
        "written_by": f"llm_entropy {metadata.version('llm_entropy')}",
    }
    save_file({"vector": vector.contiguous()}, path, about)


def _write_numpy(path: Path, vector: Tensor, model: Target, source: str) -> None:
    with path.open("wb") as file:  # numpy would add its suffix to a name
        np.save(file, vector.numpy())


def _write_gguf(path: Path, rows: Mapping[int, Tensor], model: Target, source: str) -> None:
    """Write `direction.k` for block k, as repeng and llama.cpp count; block 0 has one only where it is steered."""
    gguf = import_gguf()
    directions = {block: row for block, row in sorted(rows.items()) if block > 0 or row.any()}
    if 0 in directions:
        logger.warning(
            "got a vector for block 0, which becomes direction.0: llama.cpp refuses a file that has it, repeng and "
            "llm_entropy read it; for llama.cpp leave block 0 out, as with --blocks 1:"
        )
    writer = gguf.GGUFWriter(path, CONTROL_VECTOR)
    try:
        writer.add_string(f"{CONTROL_VECTOR}.model_hint", model.model_type)
        writer.add_uint32(f"{CONTROL_VECTOR}.layer_count", len(directions))
        for block, row in directions.items():
            writer.add_tensor(f"direction.{block}", row.contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _write_lm_eval(path: Path, rows: Mapping[int, Tensor], model: Target, source: str) -> None:
    """Write hook points, as `lm_eval --model steered --model_args steer_path=...` takes them."""
    steered = {block: row for block, row in sorted(rows.items()) if row.any()}
    points = {
        f"{model.blocks}.{block}": {HOOKED: row.clone(), "steering_coefficient": 1.0, "action": "add", "bias": None}
        for block, row in steered.items()
    }
    if model.model_type == UNKNOWN.model_type:
        logger.info("hook points are called layers.0, layers.1 ..., as in Llama; --model gives those of other families")
    if len(points) > 1:
        logger.info(
            "lm-evaluation-harness up to 0.4.9.1 adds the last of a file's vectors at every hook point; later releases "
            "add each at its own"
        )
    torch.save(points, path)


FORMATS_OUT: dict[str, Format] = {
    "safetensors": Format((".safetensors",), _as_tensor, _write_safetensors),
    "npy": Format((".npy",), _as_tensor, _write_numpy),
    "gguf": Format((".gguf",), _by_block, _write_gguf),
    "lm-eval": Format((".pt", ".pth"), _by_block, _write_lm_eval),
}
"""Every format that vectors are written in, by its name."""
