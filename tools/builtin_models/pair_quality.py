"""Records in the cards how well the built-in pairs are told apart: `python -m tools.builtin_models.pair_quality`.

Runs `llm_entropy.extract` on every family of pairs. To be run after `train`, which writes the cards anew.
"""

import re
import tempfile
from pathlib import Path

import pandas as pd

from llm_entropy import extract
from llm_entropy.builtin import BUILTIN_MODELS, PAIR_FAMILIES, model_folder
from tools.builtin_models.quality import table

HEADING, NEXT = "## Contrastive pairs", "## Intended use and limits"
POSITIONS = ("last", "mean")


def measure(folder: Path) -> dict[str, dict[tuple[str, str], pd.DataFrame]]:
    """The quality of the mean difference by block, for each model by family and position."""
    found: dict[str, dict[tuple[str, str], pd.DataFrame]] = {name: {} for name in BUILTIN_MODELS}
    for family in PAIR_FAMILIES:
        for position in POSITIONS:
            result = extract(
                {name: f"builtin:{name}" for name in BUILTIN_MODELS},
                data=f"builtin:{family}",
                position=position,
                trainer={"accelerator": "cpu", "devices": 1},
                output={"dir": str(folder), "plots": False},
                quiet=True,
            )
            for name in BUILTIN_MODELS:
                found[name][family, position] = result[name].quality
    return found


def describe(qualities: dict[tuple[str, str], pd.DataFrame]) -> str:
    """The section of a model's card."""
    blocks = [f"block {block}" for block in next(iter(qualities.values()))["block"]]
    rows = [
        [f"`{family}`", position, *(f"{value:.2f}" for value in quality["auroc"]), f"{quality['split_half'].min():.2f}"]
        for (family, position), quality in qualities.items()
    ]
    return f"""{HEADING}
How well vectors of `llm-entropy extract` (`mean_difference`, seed 0) tell the built-in pairs apart: AUROC on the 40 of
200 pairs that are left out, by block, with the state at the last token or the mean over all tokens; and the lowest
`split_half` of the blocks. The pairs come from templates, whose frames and fillings the other pairs share. Made by
`python -m tools.builtin_models.pair_quality`.

{table(["pairs", "position", *blocks, "split_half"], rows)}

"""


def main() -> None:
    """Run from the command line."""
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    for name, qualities in found.items():
        card = model_folder(name) / "README.md"
        text = card.read_text(encoding="utf-8")
        text = re.sub(rf"{HEADING}\n.*?(?={NEXT})", "", text, flags=re.DOTALL)
        card.write_text(text.replace(NEXT, describe(qualities) + NEXT), encoding="utf-8")


if __name__ == "__main__":
    main()
