"""Where a file says that its vectors act: in their names, and in what stands beside them.

Blocks are counted from 0, as the code that writes such files counts them: `model.layers[2]` of transformers and
`blocks.2` of TransformerLens are the third block. A vector taken before block k belongs to what block k - 1 hands
on; one taken before block 0 belongs to the embeddings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Literal, NamedTuple

from llm_entropy.errors import ReportedError

EMBEDDINGS = -1
"""In the place of a block's number: the embeddings, which block 0 reads."""

SHOWN = 40
"""How many characters of an entry an error shows."""

Offset = Literal[0, -1]
"""Added to the number in a name, it gives the block that hands on what the vector belongs to."""

_NAMES = (
    # 3, direction.3, layer_activations.3, layer.3, layer2, L2, model.layers.2, transformer.h.2, model.layers[2]
    re.compile(
        r"(?!l[12]_?norm)(?:(?:layer_activations|directions?)[._])*"
        r"(?:(?:(?:.*[._/])?(?:layers?|blocks?)|(?:.*[./])?[hl])(?:[._-]|\[)?)?"
        r"(?P<number>-?\d+)\]?(?:[._/](?P<site>\w.*))?",
        re.IGNORECASE,
    ),
    # resid_post_2, hook_resid_pre.2, attn_out_2, hidden_states.2
    re.compile(
        r"(?P<site>(?:hook_)?(?:resid_[a-z]+|attn_out|mlp_out)|hidden_states?)[._-]?(?P<number>\d+)", re.IGNORECASE
    ),
)
"""Names that number a block; `site` is what of the block."""

_SITES: tuple[tuple[re.Pattern[str], Offset | None], ...] = (
    (
        re.compile(r"(?:hook_)?resid(?:ual)?(?:_stream)?(?:_post(?:_layer)?)?|hook_out|(?:block_|layer_)?output", re.I),
        0,
    ),
    (
        re.compile(
            r"(?:hook_)?resid(?:ual)?(?:_stream)?_pre(?:_layer)?|hook_in|(?:block_|layer_)?input|hidden_states?", re.I
        ),
        -1,  # the first of transformers' hidden states are the embeddings
    ),
    (re.compile(r"(?:.*[._/])?(?:self_attn|attn|mlp|ffn|hook|resid_mid)(?:[._/].*)?", re.I), None),
)
"""Names of places in or around a block; None: inside of it, where no vector of the residual stream belongs."""

_FILE_NAME = re.compile(r"(?:(?:(?<![A-Za-z])(?i:layer|block)|Layer|Block)[ ._-]?|(?<![A-Za-z])L)(\d+)")
"""vec_layer_13, layer-10, vecLayer3, L15; not player2."""

_NUMBER_ENTRY = re.compile(
    r"(?:(?!n_|num_|total_|max_|min_)\w+_)?(?:layer|block)(?:_?(?:idx|index|id|num|number|no))?"
    r"|(?:layer|block)(?:s|_?(?:ids|indices))",
    re.IGNORECASE,
)
"""Entries that say which block: layer, layer_idx, target_layer."""
_SITE_ENTRY = re.compile(
    r"(?:\w+_)?(?:hook|module|submodule|site|component|act|activation|layer|block)(?:_?(?:name|point|path|location))?",
    re.IGNORECASE,
)
"""Entries that may say what of the block, or name it whole: hook_point, module, act_name."""


class Place(NamedTuple):
    """A block that something names."""

    number: int
    offset: Offset | None
    """None: the name does not say what of the block is meant."""
    words: str
    """Where that is said, for messages."""

    def block(self, offset: Offset) -> int:
        """Return the block that hands on what the vector belongs to, or `EMBEDDINGS`.

        Args:
            offset: What of the block is meant where the name does not say it.
        """
        return self.number + (offset if self.offset is None else self.offset)


class Beside(NamedTuple):
    """What the entries beside the tensors say."""

    places: list[Place]
    offset: Offset
    """What of the block is meant where a name does not say it."""
    unclear: list[str]
    """Entries that speak of layers, but do not give one number."""
    ignored: list[str]
    """Names of the others."""


def find_place(name: Any, words: str = "") -> Place | None:
    """Return the block that a tensor's name numbers; None if it numbers none.

    Args:
        name: A key of the file; a tuple, as TransformerLens has them, is one with its parts joined.
        words: Where it stands, for messages; empty: the name.

    Raises:
        ReportedError: It names something inside of a block.
    """
    text = ".".join(map(str, name)) if isinstance(name, tuple) else str(name)
    words = words or text
    for pattern in _NAMES:
        found = pattern.fullmatch(text)
        if found is not None:
            site = found["site"]
            return Place(int(found["number"]), None if site is None else _offset(site, words), words)
    if _is_site(text):
        _offset(text, words)
    return None


def _offset(site: str, words: str) -> Offset:
    """Return what a site adds to a block's number; one inside of the block is refused."""
    offset = next((offset for pattern, offset in _SITES if pattern.fullmatch(site)), None)
    if offset is None:
        raise ReportedError(
            f"got a vector for {words}, which is not known as the residual stream between blocks; expected a name like "
            "layer.3 or blocks.3.hook_resid_post"
        )
    return offset


def read_beside(entries: Mapping[str, Any]) -> Beside:
    """Return what is said of blocks beside the tensors.

    Args:
        entries: Everything in the file that is no tensor with dimensions; see `flat_entries`.

    Raises:
        ReportedError: An entry names something inside of a block.
    """
    places: list[Place] = []
    offset: Offset = 0
    unclear, ignored = [], []
    for name, value in entries.items():
        last = name.rpartition(".")[2]
        shown = f"{name} {str(value)[:SHOWN]!r}" if isinstance(value, str) else f"{name} {str(value)[:SHOWN]}"
        place = _place_of_entry(last, value, shown)
        if place is not None:
            places.append(place)
            offset = offset if place.offset is None else place.offset
        elif isinstance(value, str) and _SITE_ENTRY.fullmatch(last) and _is_site(value):
            offset = _offset(value, shown)
        elif _NUMBER_ENTRY.fullmatch(last) and value is not None and not isinstance(value, bool):
            unclear.append(shown)
        else:
            ignored.append(name)
    return Beside(places, offset, unclear, ignored)


def _place_of_entry(name: str, value: Any, words: str) -> Place | None:
    if isinstance(value, str):
        numbers = _NUMBER_ENTRY.fullmatch(name) is not None
        return find_place(value, words) if numbers or (_SITE_ENTRY.fullmatch(name) and not value.isdecimal()) else None
    is_whole = isinstance(value, (int, float)) and not isinstance(value, bool) and float(value).is_integer()
    return Place(int(value), None, words) if is_whole and _NUMBER_ENTRY.fullmatch(name) else None


def _is_site(text: str) -> bool:
    return any(pattern.fullmatch(text) for pattern, _ in _SITES)


def flat_entries(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield name and value of everything in nested mappings, and in text that is a mapping in JSON.

    Names of inner entries are joined by dots; arrays without dimensions are numbers.
    """
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, str) and value.lstrip().startswith("{"):
            with suppress(json.JSONDecodeError):
                value = json.loads(value)
        if isinstance(value, Mapping):
            yield from flat_entries(value, f"{name}.")
        else:
            yield name, value.item() if getattr(value, "ndim", None) == 0 else value


def layer_in_name(stem: str) -> int | None:
    """Return the layer that the name of a file speaks of, as vec_layer_13 does; None if it speaks of none."""
    found = _FILE_NAME.search(stem)
    return None if found is None else int(found[1])
