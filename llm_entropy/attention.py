"""The entropy of attention rows, without keeping attention maps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from llm_entropy.architectures import ModelView, hooks_on_applications


class AttentionEntropies:
    """What was read of the attention in one forward pass."""

    def __init__(self) -> None:
        self._entropies: list[Tensor] = []

    def append(self, entropies: Tensor) -> None:
        """Keep the entropies [record, head] of the next block."""
        self._entropies.append(entropies)

    def stack(self) -> Tensor:
        """Return [block, record, head] in nats, float32."""
        return torch.stack(self._entropies)


@contextmanager
def read_attention_entropy(view: ModelView, rows: Tensor, positions: Tensor) -> Iterator[AttentionEntropies]:
    """Read -sum_j a_j ln a_j of the attention rows asked for, in the forward pass that runs inside of the context.

    A row sums over the keys that the position may see: padding, and what a causal mask or a window hides, has weight
    0 and adds nothing. The map [batch, head, seq, seq] of a block is let go before the next block makes its own.

    Args:
        view: A model that was loaded with eager attention.
        rows: [record], the row of the batch of each record.
        positions: [record], the position in that row whose attention is read.
    """
    entropies = AttentionEntropies()

    def read(block: int, module: nn.Module, args: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> Any:
        attended, weights = output
        assert isinstance(weights, Tensor), "attention weights need a model loaded with attn_implementation='eager'"
        entropies.append(torch.special.entr(weights[rows, :, positions].float()).sum(dim=-1))
        return attended, None

    with hooks_on_applications(view.attentions, nn.Module.register_forward_hook, read):
        yield entropies
