"""How many tokens make a batch, where nobody says so."""

from __future__ import annotations

from llm_entropy.schema import ModelShape

CPU_TOKENS = 2048
"""Enough rows for full speed of a CPU's products, few enough for the states of a batch to stay near its cache."""
FEWEST_TOKENS, MOST_TOKENS = 512, 65536
"""Fewer keep a GPU waiting; more make it no faster."""
SHARE = 0.4
"""Of the free memory of a GPU that a batch may take by this estimate."""
STREAMS_OF_BLOCK = 24
"""The memory of a block at work, as a multiple of the residual stream: four times its width in the feed-forward part,
again behind the activation, queries, keys and values, and what lies between."""
COPIES_OF_STATES = 3
"""Read layers are gathered, put together, and normed."""


def gpu_tokens(
    free_bytes: int,
    shape: ModelShape,
    *,
    bytes_per_number: int,
    num_conditions: int,
    reads_all: bool,
    map_length: int | None,
) -> int:
    """Return how many tokens of a batch a GPU has room for, a power of two.

    The same for cards that differ little, and for a card that another process has taken a little of.

    Args:
        free_bytes: Memory that is free once the model is loaded.
        shape: Of the model.
        bytes_per_number: Of the model's type.
        num_conditions: How many are compared.
        reads_all: Whether every position is read, and not one of each sentence.
        map_length: Most tokens of a sentence, where attention maps are made, otherwise None.
    """
    stream = shape.hidden_size * bytes_per_number
    kept = COPIES_OF_STATES * shape.num_layers * num_conditions * stream if reads_all else 0
    maps = 3 * shape.num_heads * map_length * 4 if map_length is not None else 0
    fitting = int(SHARE * free_bytes / (STREAMS_OF_BLOCK * stream + kept + maps))
    tokens = 1 << (max(1, fitting).bit_length() - 1)
    return max(FEWEST_TOKENS, min(MOST_TOKENS, tokens))
