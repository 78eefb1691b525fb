"""What can be counted in the tokens of a text that a model wrote: how long it is, and how it repeats itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from llm_entropy.outputs.comparison import Floats

Tokens = npt.NDArray[np.int64]
"""[token], the ids of a text; the token that ends it counts as one."""


def distinct(text: Tokens, size: int) -> float:
    """Return distinct-n: different sequences of n tokens / sequences of n tokens (Li et al. 2016, section 5.3).

    Args:
        text: The tokens.
        size: n.

    Returns:
        In (0, 1]; NaN where the text is shorter than n.
    """
    num_sequences = len(text) - size + 1
    return _num_different(text, size) / num_sequences if num_sequences > 0 else float("nan")


def longest_repetition(text: Tokens) -> int:
    """Return how many tokens the longest sequence has that is there at least twice; the two may overlap."""
    low, high = 0, len(text) - 1
    while low < high:  # what a longer sequence repeats, its beginning repeats
        middle = (low + high + 1) // 2
        if _num_different(text, middle) < len(text) - middle + 1:
            low = middle
        else:
            high = middle - 1
    return low


def _num_different(text: Tokens, size: int) -> int:
    tokens = text.tolist()
    return len({tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)})


FROM_TEXTS: dict[str, Callable[[Tokens], float]] = {
    "text_length": len,
    "distinct_1": lambda text: distinct(text, 1),
    "distinct_2": lambda text: distinct(text, 2),
    "longest_repetition": longest_repetition,
}
"""Every metric of `settings.TEXT_METRICS` that is counted in the tokens."""


def text_rows(texts: Sequence[Tokens], metric: str) -> Floats:
    """Return a metric of texts, [text, 1]."""
    return np.array([[FROM_TEXTS[metric](text)] for text in texts], np.float64).reshape(-1, 1)
