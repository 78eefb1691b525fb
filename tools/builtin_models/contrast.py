"""Makes the control vectors of the built-in models: `python -m tools.builtin_models.contrast`.

What the King James Bible has and a dictionary has not: at each block, the mean of what the block hands on over tokens
of verses, minus the mean over tokens of WordNet's glosses (difference in means: Marks and Tegmark 2023; activation
addition: Turner et al. 2023). The same texts and packages as in training give the same vectors.
"""

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from llm_entropy.builtin import BUILTIN_MODELS, CONTROL_VECTOR, model_folder
from tools.builtin_models.quality import load, single_rows
from tools.builtin_models.rows import pad
from tools.builtin_models.text import WORDNET_DIR, make_texts, read_verses, read_wordnet

NUM_TEXTS = 4000
"""Documents of each kind."""
ROWS_AT_ONCE = 64
"""Documents in a forward pass."""


def block_outputs(model: Any, ids: Tensor, real: Tensor) -> list[Tensor]:
    """What each block hands on, before any final norm, each `[batch, seq, hidden]`."""
    base = model.base_model
    blocks = base.encoder.layer if model.config.model_type == "bert" else base.h
    outputs: list[Tensor] = []

    def keep(block: Any, args: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    with ExitStack() as hooks:
        for block in blocks:
            hooks.callback(block.register_forward_hook(keep).remove)
        base(ids, attention_mask=real.long())
    return outputs


@torch.inference_mode()
def mean_states(model_name: str, texts: list[str]) -> Tensor:
    """The mean over all tokens but the first of each document, `[block, hidden]`."""
    model, tokenizer = load(model_folder(model_name))
    filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    rows = single_rows(texts, tokenizer, causal=tokenizer.mask_token_id is None)
    total, count = torch.zeros(()), 0
    for start in range(0, len(rows), ROWS_AT_ONCE):
        some = rows[start : start + ROWS_AT_ONCE]
        ids = pad(some, filler)
        real = torch.arange(ids.shape[1])[None] < torch.tensor([len(row) for row in some])[:, None]
        wanted = real & (torch.arange(ids.shape[1]) > 0)
        states = torch.stack([state[wanted] for state in block_outputs(model, ids, real)])
        total, count = total + states.double().sum(dim=1), count + states.shape[1]
    return total / count


def spread(texts: list[str]) -> list[str]:
    """`NUM_TEXTS` of the texts, evenly spaced."""
    return [texts[index * len(texts) // NUM_TEXTS] for index in range(NUM_TEXTS)]


def make(model_name: str, wordnet: Path) -> None:
    """Writes a model's vectors, `[block, hidden]`, into its folder."""
    texts, _ = make_texts(read_wordnet(wordnet), read_verses())
    verses, glosses = (spread(texts.natural[kind]) for kind in ("verses", "glosses"))
    difference = mean_states(model_name, verses) - mean_states(model_name, glosses)
    save_file({"control_vector": difference.float().contiguous()}, model_folder(model_name) / CONTROL_VECTOR)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wordnet", type=Path, default=WORDNET_DIR, help="folder of WordNet's database")
    wordnet = parser.parse_args().wordnet
    for model_name in BUILTIN_MODELS:
        make(model_name, wordnet)


if __name__ == "__main__":
    main()
