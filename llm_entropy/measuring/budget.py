"""How much goes through a model and its lens together: by the number of conditions, and by the memory there is."""

from __future__ import annotations

from collections.abc import Sequence

from llm_entropy.schema.shape import ModelShape

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
STATES_BYTES = 2**28
"""States of all conditions that are kept together in any case: 256 MiB."""


CONDITIONS_TOGETHER = 3
"""So many conditions are kept together whatever their states take: two doses and the standard run."""


def most_states(num_layers: int, slot_bytes: int) -> int:
    """Return how many bytes the states of all conditions may take: what three conditions take, or `STATES_BYTES`.

    Args:
        num_layers: L + 1.
        slot_bytes: Bytes of the states of all records of a batch at one layer.
    """
    return max(STATES_BYTES, CONDITIONS_TOGETHER * num_layers * slot_bytes)


def rows_together(num_rows: int, num_slots: int, num_layers: int, slot_bytes: int) -> int:
    """Return how many rows of a batch all conditions run on before the next rows: all, unless the states are too many.

    Args:
        num_rows: Of the batch.
        num_slots: Layers of all conditions that are looked at.
        num_layers: Layers of one condition.
        slot_bytes: Bytes of the states of all records at one layer.

    Returns:
        At least 1.
    """
    most = most_states(num_layers, slot_bytes)
    return max(1, min(num_rows, num_rows * most // max(1, num_slots * slot_bytes)))


def conditions_together(sizes: Sequence[int], num_layers: int, slot_bytes: int) -> list[int]:
    """Return how many conditions at a time are looked at beside the first one.

    All of them, unless the states of a single long sentence are too many: then the first condition, to which each of
    them is compared, goes through the lens again for each group.

    Args:
        sizes: Of each condition but the first, how many of its layers are looked at.
        num_layers: Layers of the first one.
        slot_bytes: Bytes of the states of all records at one layer.

    Returns:
        Sizes of the groups; [0] where there is no other condition.
    """
    most = most_states(num_layers, slot_bytes) - num_layers * slot_bytes
    groups, filled = [0], 0
    for size in sizes:
        if groups[-1] and filled + size * slot_bytes > most:
            groups.append(0)
            filled = 0
        groups[-1] += 1
        filled += size * slot_bytes
    return groups


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
        num_conditions: How many are run; the states of more than three are never kept at once.
        reads_all: Whether every position is read, and not one of each sentence.
        map_length: Most tokens of a sentence, where attention maps are made, otherwise None.
    """
    stream = shape.hidden_size * bytes_per_number
    kept = COPIES_OF_STATES * shape.num_layers * min(num_conditions, CONDITIONS_TOGETHER) * stream if reads_all else 0
    maps = 3 * shape.num_heads * map_length * 4 if map_length is not None else 0
    fitting = int(SHARE * free_bytes / (STREAMS_OF_BLOCK * stream + kept + maps))
    tokens = 1 << (max(1, fitting).bit_length() - 1)
    return max(FEWEST_TOKENS, min(MOST_TOKENS, tokens))
