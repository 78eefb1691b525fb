"""Makes the built-in models: `python -m tools.builtin_models.train`.

A small GPT-2 and a small BERT, trained for real on WordNet and the King James Bible (`text.py`), so that every example
and every test of this package runs without a network on models whose layers mean something. Both models are trained
side by side, a core each. With the same seed, package versions and processor GPT-2's training repeats itself; BERT's
does so up to its vocabulary, in which WordPiece's trainer breaks ties at random. Needs torch 2.9 or newer (Muon).
"""

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from llm_entropy.builtin import FOLDER
from tools.builtin_models.quality import head, load, measure_all, write_card
from tools.builtin_models.recipe import RECIPES, Recipe
from tools.builtin_models.rows import (
    IGNORED,
    MAX_POSITIONS,
    make_batches,
    make_rows,
    mask_tokens,
    pad,
    train_bert_tokenizer,
    train_gpt2_tokenizer,
)
from tools.builtin_models.text import WORDNET_DIR, Texts, make_texts, read_verses, read_wordnet


def make_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Any:
    """The untrained model, without dropout: the text is seen too few times to be learnt by heart."""
    torch.manual_seed(recipe.seed)
    if recipe.is_causal:
        end = tokenizer.eos_token_id
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(tokenizer),
                n_positions=MAX_POSITIONS,
                n_embd=recipe.width,
                n_layer=recipe.num_blocks,
                n_head=recipe.num_heads,
                activation_function="gelu_pytorch_tanh",
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                bos_token_id=end,
                eos_token_id=end,
            )
        )
    model: Any = BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=MAX_POSITIONS,
            hidden_size=recipe.width,
            num_hidden_layers=recipe.num_blocks,
            num_attention_heads=recipe.num_heads,
            intermediate_size=4 * recipe.width,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=recipe.width**-0.5,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.bert.embeddings.position_embeddings.weight.data = sinusoids(recipe.width) * recipe.width**-0.5
    look_at_neighbours_(model.bert.encoder.layer[0].attention.self, num_heads=recipe.num_heads)
    return model


def position_rates(width: int) -> Tensor:
    """The angle by which each pair of a position's features turns from one position to the next, from pi downwards."""
    return math.pi * torch.exp(torch.arange(0, width, 2) * (-math.log(1000.0) / width))


def sinusoids(width: int) -> Tensor:
    """Where BERT's positions begin, `[position, hidden]`, of variance 1 (Vaswani et al. 2017, section 3.5)."""
    angles = torch.arange(MAX_POSITIONS)[:, None] * position_rates(width)
    return math.sqrt(2) * torch.cat([angles.sin(), angles.cos()], dim=1)


def look_at_neighbours_(attention: Any, *, num_heads: int, sharpness: float = 2.2) -> None:
    """Lets the heads of an attention begin with the tokens 1, 2, 3 ... places before and after each token.

    Each head's queries are its keys, turned by the angles of that distance. A masked model that begins at random first
    has to find out that neighbours matter, and until then, for the first millions of tokens, guesses common words.
    """
    width = attention.query.weight.shape[1]
    pairs = torch.arange(width // num_heads // 2)
    rates = position_rates(width)[pairs]
    for h in range(num_heads):
        angles = rates * (h // 2 + 1) * (1 if h % 2 else -1)
        sines, cosines = h * width // num_heads + 2 * pairs, h * width // num_heads + 2 * pairs + 1
        for matrix, turn in ((attention.key, torch.zeros_like(angles)), (attention.query, angles)):
            matrix.weight.data[h * width // num_heads : (h + 1) * width // num_heads] = 0.0
            matrix.weight.data[sines, pairs] = sharpness * turn.cos()
            matrix.weight.data[sines, width // 2 + pairs] = sharpness * turn.sin()
            matrix.weight.data[cosines, pairs] = -sharpness * turn.sin()
            matrix.weight.data[cosines, width // 2 + pairs] = sharpness * turn.cos()


def epochs(
    recipe: Recipe, documents: list[list[int]], tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without an end: the ids to read and the labels, both `[batch, seq]`.

    A causal label is the *next* token.
    """
    rng = random.Random(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    while True:
        rows = make_rows(documents, tokenizer, recipe.is_causal, rng)
        for batch in make_batches(rows, recipe.tokens_per_step // recipe.micro_batches, rng):
            if recipe.is_causal:
                yield pad([row[:-1] for row in batch], tokenizer.eos_token_id), pad([row[1:] for row in batch], IGNORED)
            else:
                yield mask_tokens(pad(batch, tokenizer.pad_token_id), tokenizer, recipe.mask_share, generator)


def loss_of(model: Any, ids: Tensor, labels: Tensor, pad_token_id: int | None) -> Tensor:
    """The mean surprisal of the labels, in nats; logits are made where there is a label alone."""
    if isinstance(model, BertForMaskedLM):
        states = model.bert(ids, attention_mask=ids != pad_token_id).last_hidden_state
    else:
        states = model.transformer(ids).last_hidden_state
    wanted = labels != IGNORED
    return cross_entropy(head(model)(states[wanted]).float(), labels[wanted])


def make_optimizers(model: Any, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for all else; weights decay, norms and biases do not."""
    matrices = [
        p
        for name, p in model.named_parameters()
        if p.ndim == 2 and "embed" not in name and "wte" not in name and "wpe" not in name
    ]
    known = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in known]
    return [
        torch.optim.Muon(
            matrices, lr=recipe.matrix_rate, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(
            [
                {"params": [p for p in others if p.ndim == 2], "weight_decay": recipe.weight_decay},
                {"params": [p for p in others if p.ndim == 1], "weight_decay": 0.0},
            ],
            lr=recipe.other_rate,
            betas=(0.9, 0.98),
            fused=True,
        ),
    ]


def rate_at(step: int, num_steps: int, warmup_steps: int) -> float:
    """The share of the learning rate at a step: up linearly, at its peak, and linearly down in the second half."""
    return min(1.0, (step + 1) / warmup_steps, 2 * (num_steps - step) / num_steps)


def train(model: Any, recipe: Recipe, batches: Iterator[tuple[Tensor, Tensor]], pad_token_id: int | None) -> None:
    """Trains the model where it stands, in bfloat16 with float32 weights."""
    optimizers = make_optimizers(model, recipe)
    peaks = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    num_steps = max(1, recipe.num_tokens // recipe.tokens_per_step)
    warmup_steps = min(recipe.warmup_steps, num_steps // 2 + 1)
    model.train()
    start, seen, mean_loss = time.monotonic(), 0, 0.0
    for step in range(num_steps):
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * rate_at(step, num_steps, warmup_steps)
        for ids, labels in islice(batches, recipe.micro_batches):
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(model, ids, labels, pad_token_id)
            (loss / recipe.micro_batches).backward()
            seen += ids.numel()
            mean_loss += (float(loss.detach()) - mean_loss) * (0.02 if step > 50 else 0.2)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % 50 == 0:
            seconds = time.monotonic() - start
            progress = f"step {step}/{num_steps} loss {mean_loss:.3f} {seconds:.0f} s {seen / seconds:.0f} tokens/s"
            print(recipe.name, progress, flush=True)
    model.eval()


def finish(
    recipe: Recipe,
    trained: Any,
    tokenizer: PreTrainedTokenizerFast,
    texts: tuple[Texts, Texts],
    seconds: float,
    folder: Path,
) -> None:
    """Saves a trained model in half precision, measures what was saved, and writes its card."""
    trained.half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # written for its owner alone
    tokenizer.save_pretrained(folder)
    learnt, held_out = texts
    model, tokenizer = load(folder)
    qualities = measure_all(model, tokenizer, recipe, held_out)
    write_card(folder, recipe, qualities, seconds, (len(learnt.everything()), len(held_out.everything())))
    print(
        recipe.name, json.dumps({name: round(quality.perplexity, 2) for name, quality in qualities.items()}), flush=True
    )


def make(recipe: Recipe, wordnet: Path, out: Path) -> None:
    """Makes one model, from the text to its card, on one core."""
    torch.set_num_threads(1)
    start = time.monotonic()
    texts = make_texts(read_wordnet(wordnet), read_verses(), seed=recipe.seed)
    learnt = texts[0].everything()
    train_tokenizer = train_gpt2_tokenizer if recipe.is_causal else train_bert_tokenizer
    tokenizer = train_tokenizer(learnt, recipe.vocab_size)
    documents = tokenizer(learnt, add_special_tokens=False)["input_ids"]
    model = make_model(recipe, tokenizer)
    train(model, recipe, epochs(recipe, documents, tokenizer), tokenizer.pad_token_id)
    finish(recipe, model, tokenizer, texts, time.monotonic() - start, out / recipe.name)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.builtin_models.train", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=[*RECIPES, "both"], default="both", help="which model to make")
    parser.add_argument("--out", type=Path, default=FOLDER, help="where the models' folders go")
    parser.add_argument("--wordnet", type=Path, default=WORDNET_DIR, help="the WordNet 3.0 database")
    parser.add_argument("--tokens", type=int, help="train on so many tokens instead of the recipe's number, for a try")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    chosen = list(RECIPES.values()) if options.model == "both" else [RECIPES[options.model]]
    with ProcessPoolExecutor(len(chosen), get_context("spawn")) as processes:
        tasks = []
        for recipe in chosen:
            num_tokens = options.tokens or recipe.num_tokens
            recipe = replace(recipe, seed=options.seed, num_tokens=num_tokens)
            tasks.append(processes.submit(make, recipe, options.wordnet, options.out))
        for task in tasks:
            task.result()


if __name__ == "__main__":
    main()
