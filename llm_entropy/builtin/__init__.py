"""What comes with the package: two small trained models and a corpus of plain facts; nothing here needs a network."""

import json
from pathlib import Path

from llm_entropy.errors import ReportedError

BUILTIN_MODELS: tuple[str, ...] = ("tiny-gpt2", "tiny-bert")
"""A causal and a masked model; `train.py` makes them, their folders' model cards describe them."""

PREFIX = "builtin:"
"""Before the name of a model, of a vector or of data: it comes with the package."""
FOLDER = Path(__file__).parent
"""What `builtin:` stands for in the path of a control vector."""
PAIR_FAMILIES: tuple[str, ...] = ("pairs/tense", "pairs/number", "pairs/negation", "pairs/certainty")
"""Contrastive pairs, 200 each; `pairs.py` of the tools makes them from templates."""
CONTROL_VECTOR = "bible.safetensors"
"""In each model's folder: what verses of the Bible have and a dictionary's glosses have not; `contrast.py` makes it."""


def model_folder(name: str) -> Path:
    """The folder of a built-in model, as `from_pretrained` takes it.

    Args:
        name: One of `BUILTIN_MODELS`.

    Raises:
        ReportedError: If there is no such model.
    """
    if name not in BUILTIN_MODELS:
        raise ReportedError(f"no built-in model {name!r}: the built-in models are {', '.join(BUILTIN_MODELS)}")
    return FOLDER / name


def data_file(name: str) -> Path:
    """The file of built-in data, as `builtin:` in a data path names it.

    Args:
        name: One of `PAIR_FAMILIES`.

    Raises:
        ReportedError: If there is no such data.
    """
    if name not in PAIR_FAMILIES:
        known = ", ".join(PREFIX + family for family in PAIR_FAMILIES)
        raise ReportedError(f"data.path: no built-in data {PREFIX + name!r}: the built-in data are {known}")
    return FOLDER / f"{name}.csv"


def read_sentences() -> list[dict[str, str]]:
    """The built-in corpus, in the order of its file.

    Returns:
        Rows of `prompt` (an open sentence, for causal models), `masked` (a sentence with one `[MASK]`, for masked
        ones, about the same fact) and `topic`; where it has an answer also `target` and `foil`, a right and a wrong
        one to the prompt, and `masked_target` and `masked_foil`, to the masked form.
    """
    lines = (FOLDER / "sentences.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
