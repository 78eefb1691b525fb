"""What is measured: models of real sizes with random weights, and sentences of given lengths; no network is needed.

Speed and memory depend on the sizes alone. The weights are drawn wider than GPT-2's own initial ones, so that neither
the distributions over the vocabulary nor the attention are uniform: what is compared between programs is a number that
could come out wrong.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers

from llm_entropy.builtin import model_folder, read_sentences

SIZES: dict[str, dict[str, int]] = {
    "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 768, "vocab_size": 50_257},
    "gpt2-medium": {"n_layer": 24, "n_head": 16, "n_embd": 1024, "vocab_size": 50_257},
    "gpt2-xl": {"n_layer": 48, "n_head": 25, "n_embd": 1600, "vocab_size": 50_257},
    "tiny": {"n_layer": 2, "n_head": 2, "n_embd": 32, "vocab_size": 5000},
    "llama-1.5b": {"hidden_size": 2048, "num_hidden_layers": 20, "intermediate_size": 8192, "vocab_size": 128_256},
    "tiny-llama": {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96, "vocab_size": 5000},
}
"""Sizes of GPT-2 and of a llama by name; the tiny ones are for trying a benchmark out."""
LLAMA_HEADS = {"llama-1.5b": (32, 8), "tiny-llama": (4, 2)}
"""Heads of queries, and of keys and values; their head is tied to the embedding."""
MOST_TOKENS = 1024
LOGIT_DEVIATION = 2.0
"""About the standard deviation of the logits of a position; GPT-2's own initial weights would give 0.6."""
LENGTHS = {"short": 19.0, "long": 200.0}
"""Mean tokens of a sentence, by the name of a corpus."""
LENGTH_SPREAD = 0.5
"""Standard deviation of the logarithm of the lengths."""


def save_model(folder: Path, size: str, dtype: torch.dtype = torch.float32) -> str:
    """Save a model with random weights, and the built-in vocabulary as its tokenizer; return the folder.

    Args:
        folder: Where.
        size: A key of `SIZES`.
        dtype: Of the weights.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder("tiny-gpt2"))
    tokenizer.model_max_length = MOST_TOKENS
    config = make_config(size)
    config.bos_token_id = config.eos_token_id = tokenizer.eos_token_id
    config.initializer_range = LOGIT_DEVIATION / config.hidden_size**0.5
    config.dtype = dtype
    torch.manual_seed(0)
    is_large = size in LLAMA_HEADS  # a processor would draw its weights for a minute
    with torch.device("cuda" if is_large and torch.cuda.is_available() else "cpu"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def make_config(size: str) -> transformers.PretrainedConfig:
    """Return the configuration of a size.

    Args:
        size: A key of `SIZES`.
    """
    if size not in LLAMA_HEADS:
        return transformers.GPT2Config(**SIZES[size], n_positions=MOST_TOKENS)
    heads, key_heads = LLAMA_HEADS[size]
    return transformers.LlamaConfig(
        **SIZES[size],
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        max_position_embeddings=MOST_TOKENS,
        tie_word_embeddings=True,
    )


def read_config(folder: str) -> transformers.PretrainedConfig:
    """Return the configuration of a saved model.

    Args:
        folder: Where it is.
    """
    return transformers.AutoConfig.from_pretrained(folder)


def make_sentences(count: int, corpus: str = "short", seed: int = 0) -> list[str]:
    """Return sentences of the built-in words, their lengths in tokens lognormal.

    Args:
        count: How many.
        corpus: A key of `LENGTHS`.
        seed: Of lengths and words.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder("tiny-gpt2"))
    words = sorted({f" {word}" for row in read_sentences() for word in row["prompt"].split()})
    num_tokens = np.array([len(ids) for ids in tokenizer(words)["input_ids"]])
    random = np.random.default_rng(seed)
    # the mean of a lognormal is exp(mu + spread^2 / 2)
    logs = random.normal(np.log(LENGTHS[corpus]) - LENGTH_SPREAD**2 / 2, LENGTH_SPREAD, count)
    lengths = np.exp(logs).round().clip(2, MOST_TOKENS).astype(int)
    sentences = []
    for length in lengths:
        chosen = random.integers(0, len(words), length)
        kept = chosen[: max(1, int(np.searchsorted(np.cumsum(num_tokens[chosen]), length, side="right")))]
        sentences.append("".join(words[word] for word in kept).strip())
    return sentences
