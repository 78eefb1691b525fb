"""The table of families in the documentation: `python tests/families_table.py` writes it anew.

A row says what was seen of a tiny random model: how it was found and proved, and how its attention is read.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import transformers
from tiny_families import FAMILIES, make_tiny, tiny_config
from transformers.models.auto import modeling_auto

from llm_entropy.errors import ReportedError
from llm_entropy.measuring.lens import check_lens
from llm_entropy.models import families
from llm_entropy.models.attention import open_attention
from llm_entropy.models.attention.interface import READABLE, attention_implementation
from llm_entropy.models.families import ModelView, find_architecture, view_model
from llm_entropy.models.proofs import check_parts, check_size

TABLE = Path(__file__).parent.parent / "docs" / "families.md"
AGAIN = "write it anew by `python tests/families_table.py`"
MOST_WEIGHTS = 6e6
"""A model whose configuration cannot be made smaller is not tried."""
MORE_THAN_TEXT = ("pixel_values", "image_embeddings", "image_embeds", "inputs_embeds", "'state'", "language unknown")
"""What a model complains of that does not run on text alone."""
HEAD = """# Families of models

What a run can do with models of transformers {version}, by their `model_type`. Made by `python tests/families_table.py`
from tiny random models: each was found by tracing and had to prove itself, as a model does when it is loaded. Those of
the first table are held against a reference in float64, too, in the tests: every metric, standard and steered.

Kind: *unpadded* says that padding would change what the model computes, so that a batch holds sentences of one length.

Attention: *fused* is read beside transformers' fused attention; *eager* from the maps of eager attention, which takes
longer; *none* cannot be read, and is null in every table. "in 1 of 3" blocks: the others have none, or one that shows
neither scores nor weights. "sinks apart": a part of the attention goes to sinks, which are no tokens. `sink_mass` is
that part, and the entropy is that of the rest. "without sinks": there are sinks, but the maps do not show their part.
"""
COLUMNS = "| model_type | kind | lens | steering | attention |\n|---|---|---|---|---|"
REFUSED = """
## Refused

A model of these families is refused before any weight is read, or when it is loaded, with the reason.

| model_type | why |
|---|---|"""
UNTRIED = """
## Not tried

What a model of these families needs was missing where the page was made; nothing is known of them.

| model_type | what is missing |
|---|---|"""


class Row(NamedTuple):
    """What can be done with a family."""

    kind: str
    lens: str
    steering: str
    attention: str


def row_of(view: ModelView) -> Row:
    """Return the row of a model that was opened and proved."""
    read, num_blocks = sum(module is not None for module in view.attentions), len(view.blocks)
    way = "fused" if attention_implementation(view.model) == READABLE else "eager"
    attention = "none" if not read else way if read == num_blocks else f"{way}, in {read} of {num_blocks}"
    kind = view.kind if view.takes_padding else f"{view.kind}, unpadded"
    sinks = ", sinks apart" if view.shape.has_sinks else ", without sinks" if view.hides_sinks else ""
    return Row(kind, "yes", "yes", attention + sinks)


def table_of(text: str) -> dict[str, Row]:
    """Return the rows of the page, by `model_type`."""
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    return {cells[0]: Row(*cells[1:]) for cells in lines if len(cells) == 5 and cells[0] not in ("model_type", "---")}


def made_with() -> str | None:
    """Return the version of transformers that the page is of, if it is not the installed one."""
    version = TABLE.read_text().split("transformers ")[1].split(",")[0]
    return None if version == transformers.__version__ else version


def all_types() -> list[str]:
    """Return the `model_type` of everything that transformers makes a language model of."""
    mappings = ("CAUSAL_LM", "MASKED_LM", "IMAGE_TEXT_TO_TEXT")
    names = [name for one in mappings for name in getattr(modeling_auto, f"MODEL_FOR_{one}_MAPPING_NAMES")]
    return sorted(set(names) | {"t5"})


def _write() -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    rows: dict[str, Row] = {}
    refused: dict[str, str] = {}
    untried: dict[str, str] = {}
    for model_type in all_types():
        if model_type in families.REFUSED:
            refused[model_type] = families.REFUSED[model_type]
            continue
        try:
            with torch.device("meta"):
                size = _size(model_type)
            if size > MOST_WEIGHTS:
                raise ValueError(f"{size:.3g} weights")
            model = make_tiny(model_type)
        except ReportedError as error:
            refused[model_type] = str(error)
            continue
        except ImportError as error:
            untried[model_type] = str(error).strip().partition(". ")[0]
            continue
        except Exception as error:  # any: what is missing in `OTHERS` is to be seen
            untried[model_type] = f"a small configuration: {type(error).__name__} {error}"
            continue
        try:
            view = view_model(model)
            check_size(view, model_type)
            view = check_parts(view, model_type)
            check_lens(view, model_type)
            rows[model_type] = row_of(open_attention(view, model_type))
        except ReportedError as error:
            if "cannot be run" in str(error) and not any(word in str(error) for word in MORE_THAN_TEXT):
                untried[model_type] = f"a small configuration: {error}"
            else:
                refused[model_type] = str(error)
    TABLE.write_text("\n".join(_page(rows, refused, untried)) + "\n")


def _size(model_type: str) -> int:
    config = tiny_config(model_type)
    model = find_architecture(config, model_type).auto.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def _page(rows: dict[str, Row], refused: dict[str, str], untried: dict[str, str]) -> Iterator[str]:
    def lines(names: list[str]) -> Iterator[str]:
        yield COLUMNS
        yield from (f"| {name} | {' | '.join(rows[name])} |" for name in names)

    yield HEAD.format(version=transformers.__version__)
    yield from lines([name for name in sorted(FAMILIES) if name in rows])
    yield "\n## Proved on a tiny model, not held against the reference\n"
    yield from lines([name for name in rows if name not in FAMILIES])
    yield REFUSED
    for name, reason in refused.items():
        words = reason.split("cannot be measured: ")[-1].split("cannot be found: ")[-1].split("; found by")[0]
        words = words.removesuffix("; give a causal or masked language model")
        words = words.removesuffix("; such a model cannot be measured yet").removeprefix(f"{name}: ")
        yield f"| {name} | {words.replace('|', '/')} |"
    yield UNTRIED
    yield from (f"| {name} | {' '.join(reason.split()).replace('|', '/')} |" for name, reason in untried.items())


if __name__ == "__main__":
    _write()
