"""What the content of a vector file means: vectors by block, or one that names no block.

A vector that belongs to one block is numbered by that block, 0 .. L-1, in every format: it is added to what the block
hands on. That is how the community's files count, too: repeng takes `direction.N` from, and adds it to, the output of
block N; llama.cpp stores it at offset N - 1 and reads it back at offset il - 1 for its layer il, so that it acts at the
output of layer il = N, counted from 0 (llama.cpp refuses N = 0; here it is block 0); steering-vectors numbers
`layer_activations` by decoder block; CAA numbers the files of a folder by decoder block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from llm_entropy.errors import ReportedError
from llm_entropy.settings.fields import holds_arrays
from llm_entropy.steering import placement
from llm_entropy.steering.files import ARCHITECTURE, CONTROL_VECTOR
from llm_entropy.steering.tensors import as_row, as_vector

HOOKED = "steering_vector"
"""Where lm-evaluation-harness keeps the vector of a hook point."""
EXTRACTED, SHUFFLED = "control_vector", "shuffled"
"""Tensors of a file of `llm-entropy extract`: [L, hidden], and from permuted labels [number, L, hidden]."""
EXTRACTION = "extraction"
"""Key of such a file's metadata that holds, as JSON, what the vectors were made from."""
_MEANT = {"axis": {"default_mean", "role_mean"}, EXTRACTED: {SHUFFLED}}
"""The tensor that is meant, and those beside it that are not: the assistant axis, and vectors of `extract`."""
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


class Found(NamedTuple):
    """What a file holds: `whole`, or `rows`."""

    whole: Tensor | None = None
    """[hidden] or [rows, hidden], of a file that names no block."""
    rows: Mapping[int, Tensor] = {}
    """Vectors [hidden] by the block that hands on what they belong to, `EMBEDDINGS` among them; of one width."""
    places: Mapping[int, placement.Place] = {}
    """What names these blocks."""
    factors: Sequence[str] = ()
    """Entries that say how often the vector is to be taken."""
    ignored: Sequence[str] = ()
    """Names of the other entries."""

    @property
    def place(self) -> placement.Place | None:
        """What names the only block of a single vector, if anything does."""
        return next(iter(self.places.values())) if len(self.places) == 1 else None

    def stacked(self, num_blocks: int) -> Tensor:
        """Return the whole, or [L, hidden], zero for other blocks; where one acts on the embeddings, [L + 1, hidden].

        Raises:
            ReportedError: A block is named that the model does not have.
        """
        if self.whole is not None:
            return self.whole
        beyond = next((place for place in self.places.values() if place.number >= num_blocks), None)
        if beyond is not None:
            raise ReportedError(
                f"got a vector for block {beyond.number} ({beyond.words}); expected one each for blocks 0 to "
                f"{num_blocks - 1}"
            )
        first = placement.EMBEDDINGS if placement.EMBEDDINGS in self.rows else 0
        stacked = torch.zeros(num_blocks - first, len(next(iter(self.rows.values()))))
        for block, row in self.rows.items():
            stacked[block - first] = row
        return stacked


def find_vectors(content: Any, *, projects: bool = False) -> Found:
    """Return the vectors of a file's content.

    Args:
        content: As `files.read_content` returns it.
        projects: Whether directions that are made to be projected out are welcome.

    Raises:
        ReportedError: Naming what the file holds, and what was expected.
    """
    content = _from_hook_points(content)
    if isinstance(content, Mapping):
        return _in_mapping(content, projects)
    if isinstance(content, (list, tuple)) and not holds_arrays(content):  # in a config they mean something else
        raise ReportedError(f"got {type(content).__name__}; expected a tensor, or a mapping of blocks to tensors")
    return Found(as_vector(content))


def _from_hook_points(content: Any) -> Any:
    """Return vectors by hook point where lm-evaluation-harness has written them, times their coefficients.

    It takes {hook point: {"steering_vector", "steering_coefficient", "action", "bias"}}, and describes a list of the
    same with a "hookpoint" in each; a `bias` counts for clamping alone.
    """
    if isinstance(content, (list, tuple)) and content and all(isinstance(one, Mapping) for one in content):
        if not all("hookpoint" in one for one in content):
            return content
        content = {one["hookpoint"]: one for one in content}
    if not isinstance(content, Mapping) or not content:
        return content
    if not all(isinstance(one, Mapping) and HOOKED in one for one in content.values()):
        return content
    return {name: _hooked(str(name), one) for name, one in content.items()}


def _hooked(name: str, about: Mapping[str, Any]) -> Tensor:
    if about.get("head_index") is not None:
        raise ReportedError(
            f"{name}: got head_index {about['head_index']}, for the output of an attention head; expected a vector of "
            "the residual stream"
        )
    action, coefficient = about.get("action", "add"), about.get("steering_coefficient", 1.0)
    if action != "add":
        raise ReportedError(
            f"{name}: got action {action!r}, which sets the component along the vector; expected 'add'; "
            "save the tensor alone, and set operator: project_out or cap"
        )
    if isinstance(coefficient, bool) or not isinstance(coefficient, (int, float)):
        raise ReportedError(f"{name}: got steering_coefficient {str(coefficient)[:60]}; expected a number")
    return coefficient * _named(name, as_row, about[HOOKED])


def _named(name: Any, make: Callable[[Any], Tensor], value: Any) -> Tensor:
    """Return what is made of a tensor; an error names it."""
    try:
        return make(value)
    except ReportedError as error:
        raise ReportedError(f"{name}: {error}") from error


def _in_mapping(content: Mapping[Any, Any], projects: bool) -> Found:
    """Return the only tensor of a mapping that names no block, or the rows of those that it names."""
    tensors, entries = _tensors_and_entries(content)
    _refuse_foreign(entries, projects)
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
            (key, value), *_ = tensors.items()
            return Found(_named(key, as_vector, value), factors=factors, ignored=beside.ignored)
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
    rows = [(places[key], blocks[key], _named(key, as_row, value)) for key, value in tensors.items()]
    return found_rows(rows)._replace(factors=factors, ignored=beside.ignored)


def found_rows(given: Iterable[tuple[placement.Place, int, Tensor]]) -> Found:
    """Return vectors by block.

    Args:
        given: For each vector what names its block, the block that hands on what it belongs to, and its numbers,
            [hidden].

    Raises:
        ReportedError: Two are for the same block, or of another width.
    """
    rows: dict[int, Tensor] = {}
    places: dict[int, placement.Place] = {}
    for place, block, row in given:
        if place.number < 0 or block in rows:
            problem = f"a second vector, beside that of {places[block].words}," if block in rows else "a vector"
            raise ReportedError(
                f"got {problem} for block {place.number} ({place.words}); expected one each for blocks from 0 on"
            )
        rows[block], places[block] = row, place
    widths = {len(row): places[block].words for block, row in rows.items()}
    if len(widths) > 1:
        shown = ", ".join(f"{width} ({words})" for width, words in sorted(widths.items())[:3])
        raise ReportedError(f"got vectors of widths {shown}; expected one width")
    return Found(rows=rows, places=places)


def _tensors_and_entries(content: Mapping[Any, Any]) -> tuple[dict[Any, Any], dict[str, Any]]:
    """Return the tensors of a file by their keys, and everything else by its name."""
    inner = next((content[nest] for nest in NESTS if isinstance(content.get(nest), Mapping)), content)
    tensors = {key: value for key, value in inner.items() if _is_tensor(value)}
    meant = next((name for name, others in _MEANT.items() if set(tensors) == {name, *others}), None)
    tensors = tensors if meant is None else {meant: tensors[meant]}
    beside = _MEANT.get(str(meant), set())
    left = {key: value for key, value in content.items() if value is not inner and key not in {*tensors, *beside}}
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


def _refuse_foreign(entries: Mapping[str, Any], projects: bool) -> None:
    """Refuse a file that says that it is something else than vectors of the residual stream, for another operator."""
    for name, (wanted, meaning) in _WANTED.items():
        if entries.get(name, wanted) != wanted:
            kinds = "".join(
                f", {kind} {entries[kind]!r}" for kind in ("general.type", "adapter.type") if kind in entries
            )
            raise ReportedError(f"got {name} {entries[name]!r}{kinds}; expected {wanted!r}: {meaning}")
    for name, value in entries.items():
        if not projects and name.rpartition(".")[2] == "mode" and value in _PROJECTED:
            raise ReportedError(
                f"got {name} {value!r}: directions that are made to be projected out; expected vectors that are added, "
                "or operator: project_out"
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
