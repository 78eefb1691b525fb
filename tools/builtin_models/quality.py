"""What a trained model is worth: its quality on held-out text, layer by layer, and the model card that says it."""

import math
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, BertForMaskedLM, GPT2LMHeadModel, PreTrainedTokenizerFast

from llm_entropy.builtin import CONTROL_VECTOR
from tools.builtin_models.recipe import RECIPES, Recipe
from tools.builtin_models.rows import IGNORED, MAX_POSITIONS, make_batches, mask_one, mask_tokens, pad
from tools.builtin_models.text import Texts

SAMPLES = {
    "tiny-gpt2": (
        "The capital of France is",
        "The opposite of hot is",
        "The opposite of war is",
        "A poodle is a kind of",
        "A carrot is a kind of",
        "A finger is a part of a",
        "And God said unto",
        "In the beginning God created the heaven and the",
    ),
    "tiny-bert": (
        "The capital of France is [MASK].",
        "The opposite of [MASK] is cold.",
        "The opposite of war is [MASK].",
        "A poodle is a kind of [MASK].",
        "A carrot is a [MASK].",
        "A [MASK] is a part of a hand.",
        "And God [MASK] unto Moses.",
        "In the beginning God created the [MASK] and the earth.",
    ),
}


def layers(model: Any, ids: Tensor, pad_token_id: int | None) -> tuple[Tensor, ...]:
    """The residual stream before each block and after the last, each `[batch, seq, hidden]`, ready for the head.

    GPT-2's final norm is applied to every layer; BERT's norm is a part of its head.
    """
    if isinstance(model, BertForMaskedLM):
        states = model.bert(ids, attention_mask=ids != pad_token_id, output_hidden_states=True).hidden_states
        return tuple(states)
    states = model.transformer(ids, output_hidden_states=True).hidden_states
    return (*(model.transformer.ln_f(state) for state in states[:-1]), states[-1])


def head(model: Any) -> Callable[[Tensor], Tensor]:
    """What turns a final state into logits."""
    decode: Callable[[Tensor], Tensor] = model.cls if isinstance(model, BertForMaskedLM) else model.lm_head
    return decode


class Quality(NamedTuple):
    """How well a model guesses text that it never saw."""

    surprisal: list[float]
    """Mean surprisal of the true token at each layer (logit lens), in nats."""
    num_tokens: int
    """Tokens that were guessed."""

    @property
    def perplexity(self) -> float:
        """The exponential of the final layer's mean surprisal."""
        return math.exp(self.surprisal[-1])


@torch.inference_mode()
def measure(model: Any, batches: Iterator[tuple[Tensor, Tensor]], pad_token_id: int | None) -> Quality:
    """The quality of a model on batches of ids and labels, each `[batch, seq]`."""
    totals: list[float] = []
    num_tokens = 0
    for ids, labels in batches:
        wanted = labels != IGNORED
        if wanted.any():
            logits = (head(model)(state[wanted]) for state in layers(model, ids, pad_token_id))
            sums = [float(cross_entropy(z, labels[wanted], reduction="sum")) for z in logits]
            totals = [a + b for a, b in zip(totals or [0.0] * len(sums), sums, strict=True)]
            num_tokens += int(wanted.sum())
    return Quality([total / num_tokens for total in totals], num_tokens)


def single_rows(texts: list[str], tokenizer: PreTrainedTokenizerFast, *, causal: bool) -> list[list[int]]:
    """Each text as the row that a user's sentence would be; texts of one token are left out."""
    rows = tokenizer(texts, add_special_tokens=not causal, truncation=True, max_length=MAX_POSITIONS)["input_ids"]
    return [row for row in rows if len(row) > (1 if causal else 3)]


def held_out_batches(
    texts: list[str], tokenizer: PreTrainedTokenizerFast, recipe: Recipe, *, one_mask: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Held-out texts, each on its own, never packed.

    A causal model is measured at every token but the first, which nothing precedes; a masked one at 15 % of the
    tokens, or at one token of each text.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    rows = single_rows(texts, tokenizer, causal=recipe.is_causal)
    for batch in make_batches(rows, 4096, random.Random(recipe.seed)):
        if recipe.is_causal:
            yield pad([row[:-1] for row in batch], tokenizer.eos_token_id), pad([row[1:] for row in batch], IGNORED)
        elif one_mask:
            yield mask_one(pad(batch, tokenizer.pad_token_id), tokenizer, generator)
        else:
            yield mask_tokens(pad(batch, tokenizer.pad_token_id), tokenizer, 0.15, generator)


def measure_all(model: Any, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, held_out: Texts) -> dict[str, Quality]:
    """The quality on all natural text, on each kind of it, and on the relations."""
    natural = [text for texts in held_out.natural.values() for text in texts]
    sets = {"natural text": natural, **held_out.natural, "relations": held_out.relations}
    qualities = {}
    for name, texts in sets.items():
        qualities[name] = measure(model, held_out_batches(texts, tokenizer, recipe), tokenizer.pad_token_id)
    if not recipe.is_causal:
        batches = held_out_batches(natural, tokenizer, recipe, one_mask=True)
        qualities["natural text, one mask"] = measure(model, batches, tokenizer.pad_token_id)
    return qualities


@torch.inference_mode()
def most_likely(model: Any, tokenizer: PreTrainedTokenizerFast, prompt: str, num: int = 3) -> list[str]:
    """The likeliest tokens after a prompt, or at its mask, with their probabilities."""
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    place = int((ids[0] == tokenizer.mask_token_id).nonzero()[0]) if tokenizer.mask_token else -1
    probabilities, tokens = model(ids).logits[0, place].softmax(-1).topk(num)
    return [
        f"{str(tokenizer.decode([int(token)])).strip()} ({float(p):.2f})"
        for p, token in zip(probabilities, tokens, strict=True)
    ]


def load(folder: Path) -> tuple[Any, PreTrainedTokenizerFast]:
    """The model of a folder in float32, ready to be measured, and its tokenizer."""
    kind = GPT2LMHeadModel if "gpt2" in folder.name else BertForMaskedLM
    model: Any = kind.from_pretrained(folder, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    return model.eval(), tokenizer


def package_version(package: str) -> str:
    """The installed version of a Debian package, or `unknown`."""
    try:
        asked = subprocess.run(["dpkg-query", "-W", "-f=${Version}", package], capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    return asked.stdout.strip() or "unknown"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def describe_data(num_train: int, num_held_out: int) -> str:
    """What the model learnt from, and under which licences."""
    return f"""## Data
{num_train:,} documents, {num_held_out:,} more held out (split by synset and by verse, before anything else):

- WordNet 3.0, Debian package `wordnet-base` {package_version("wordnet-base")}: glosses, examples, and relations told
  as sentences ("A poodle is a kind of dog."). WordNet 3.0 licence: free use for any purpose with its notice;
  WordNet 3.0 Copyright 2006 by Princeton University. All rights reserved.
- King James Bible, Debian package `bible-kjv-text` {package_version("bible-kjv-text")} (printed by `bible-kjv`
  {package_version("bible-kjv")}): verses. Public domain.

The text itself is no part of this folder; `tools/builtin_models/text.py` makes it again."""


def describe_quality(qualities: dict[str, Quality], recipe: Recipe) -> str:
    """The tables of the held-out quality."""
    at = "every token but the first of each document" if recipe.is_causal else "15 % of the tokens, masked"
    rows = [[name, str(q.num_tokens), f"{q.surprisal[-1]:.3f}", f"{q.perplexity:.1f}"] for name, q in qualities.items()]
    layer_rows = [[name, *(f"{value:.2f}" for value in q.surprisal)] for name, q in qualities.items()]
    layer_names = [f"layer {layer}" for layer in range(recipe.num_blocks + 1)]
    return f"""## Held-out quality
Of the half-precision weights in this folder, computed in float32; each document alone in its row; at {at}.
Perplexity is per token of this model's own vocabulary. A held-out relation may be known from its other side.

{table(["held-out text", "tokens", "mean surprisal (nats)", "perplexity"], rows)}

Mean surprisal of the true token in nats at each layer, by the logit lens (the model's own final norm and head):

{table(["held-out text", *layer_names], layer_rows)}"""


def describe_model(folder: Path, model: Any, vocab_size: int, recipe: Recipe) -> str:
    """What the model is, and how large."""
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    size = sum(path.stat().st_size for path in folder.iterdir() if path.name != "README.md")
    text = "byte-level BPE, `<|endoftext|>`" if recipe.is_causal else "WordPiece, lower-cased, `[CLS]` text `[SEP]`"
    return f"""- Architecture: `{type(model).__name__}`, {recipe.num_blocks} blocks, width {recipe.width},
  {recipe.num_heads} heads, {MAX_POSITIONS} positions, tied embeddings
- Vocabulary: {vocab_size:,} ({text})
- Parameters: {num_parameters:,}
- On disk: {size / 1e6:.2f} MB (half-precision safetensors and tokenizer); to be loaded as float32"""


def describe_training(recipe: Recipe, seconds: float) -> str:
    """How the model was made."""
    short = next(key for key, known in RECIPES.items() if known.name == recipe.name)
    masks = ""
    if not recipe.is_causal:
        masks = f""", {recipe.mask_share:.0%} of the tokens masked;
  the heads of the first block begin with the neighbours of each token (`train.py`)"""
    return f"""- Made by: `python -m tools.builtin_models.train --model {short} --seed {recipe.seed}`
- With: torch {torch.__version__}, transformers {transformers.__version__}, {recipe.num_tokens / 1e6:.1f} M tokens,
  {seconds / 60:.0f} minutes of wall clock, one thread
- Recipe: Muon for the matrices of the blocks (peak rate {recipe.matrix_rate:g}), AdamW for the rest
  (peak rate {recipe.other_rate:g}), {recipe.tokens_per_step} tokens a step, {recipe.warmup_steps} warm-up steps,
  linear decay in the second half, no dropout, bfloat16 autocast{masks}"""


def write_card(
    folder: Path, recipe: Recipe, qualities: dict[str, Quality], seconds: float, num_documents: tuple[int, int]
) -> None:
    """Writes the model card from what is in the folder and what was measured."""
    model, tokenizer = load(folder)
    samples = [[f"`{prompt}`", ", ".join(most_likely(model, tokenizer, prompt))] for prompt in SAMPLES[recipe.name]]
    card = f"""# builtin:{recipe.name}
A small {"causal" if recipe.is_causal else "masked"} language model for demonstrations and tests of `llm_entropy`.

{describe_model(folder, model, len(tokenizer), recipe)}

{describe_training(recipe, seconds)}

{describe_data(*num_documents)}

{describe_quality(qualities, recipe)}

## What it says
{table(["prompt", "likeliest tokens (probability)"], samples)}

## Control vector
`{CONTROL_VECTOR}`, made by `python -m tools.builtin_models.contrast`: the mean of what each block hands on over verses
of the Bible, minus the mean over WordNet's glosses. It turns the dictionary's English into the Bible's, and with a
negative strength the other way round.

## Intended use and limits
For demonstrations, documentation and tests: its layers carry real beliefs about everyday words, and it runs anywhere in
milliseconds. It knows short dictionary sentences and the Bible's English, no more; its facts are those of WordNet 3.0
(2006) as far as three million parameters hold them, many of its statements are wrong, and it repeats the views and the
words of its sources, a dictionary's coarse ones among them. Do not use it to inform or to decide anything.
"""
    (folder / "README.md").write_text(card, encoding="utf-8")
