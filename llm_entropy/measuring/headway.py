"""How much of a batch is done, while it is run: in operations, so that a long document moves the bar too."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from llm_entropy.schema.shape import ModelShape

BLOCK_PRODUCTS = 12
"""Products of a token with [hidden, hidden] in a block, about: attention 4, the two layers behind it 8."""


class Amount(NamedTuple):
    """What a batch takes."""

    num_tokens: int
    num_blocks: int
    """How often a block is run, all conditions together."""
    num_reads: int
    """How many states go through the lens: of each record those of all layers and conditions."""


class Headway:
    """Counts blocks and reads of one batch, and tells how many of its tokens that is worth.

    Args:
        amount: What there is to do.
        shape: The model's sizes.
        before: Tokens that were done before this batch.
        tell: Is told the tokens that are done.
    """

    def __init__(self, amount: Amount, shape: ModelShape, before: int, tell: Callable[[int], None]) -> None:
        self._block = BLOCK_PRODUCTS * shape.hidden_size * amount.num_tokens
        self._read = shape.vocab_size
        self._whole = self._block * amount.num_blocks + self._read * amount.num_reads
        self._num_tokens, self._before, self._tell = amount.num_tokens, before, tell
        self._done = 0

    def block(self) -> None:
        """Tell how much is done before a block is run."""
        self._say()
        self._done += self._block

    def read(self, num_states: int) -> None:
        """Tell how much is done after states have gone through the lens."""
        self._done += self._read * num_states
        self._say()

    def _say(self) -> None:
        self._tell(self._before + self._num_tokens * self._done // max(self._whole, 1))
