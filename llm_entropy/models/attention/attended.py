"""How many tokens attention rows may see: what the masks of the blocks allow, whatever weight it is given."""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

TILE = 2**22
"""Numbers of a mask that are looked at together."""


class AttendedTokens:
    """Counts the tokens that the attention rows asked for may see, block after block of one forward pass.

    Args:
        rows: [record], the row of the batch of each record.
        positions: [record], the position in that row whose attention is read.
    """

    def __init__(self, rows: Tensor, positions: Tensor) -> None:
        self.rows, self.positions = rows, positions
        self._counts = WeakTensorKeyDictionary()

    def __call__(
        self, mask: Optional[Tensor], length: int, *, is_causal: bool, own_mask: Optional[Tensor] = None
    ) -> Tensor:
        """Return the counts [record, head] of a block, int64; heads that see the same are counted once.

        Args:
            mask: As in `AttentionInputs`.
            length: Tokens of the batch, padding included.
            is_causal: Whether without a mask a position sees none behind it.
            own_mask: [1, 1, position, position], what the block allows beside its mask, whatever the batch is.
        """
        if own_mask is not None:
            return self._count(mask, own_mask[0, 0, :length, :length])
        if mask is None:
            count = self.positions + 1 if is_causal else torch.full_like(self.positions, length)
            return count.unsqueeze(-1)
        if mask not in self._counts:  # blocks share their masks
            self._counts[mask] = self._count(mask, None)
        counts: Tensor = self._counts[mask]
        return counts

    def _count(self, mask: Optional[Tensor], own_mask: Optional[Tensor]) -> Tensor:
        width = 1 if mask is None else mask[0, :, 0].numel()
        size = max(1, TILE // max(width, 1 if own_mask is None else own_mask.shape[1]))
        counts = []
        for rows, positions in zip(self.rows.split(size), self.positions.split(size), strict=True):
            seen = None if own_mask is None else own_mask[positions].unsqueeze(1)
            if mask is not None:
                own_row = rows if len(mask) > 1 else torch.zeros_like(rows)  # one mask may serve the whole batch
                allowed = _allowed(mask[own_row, :, positions])
                seen = allowed if seen is None else allowed & seen
            assert seen is not None
            counts.append(seen.sum(-1))
        return torch.cat(counts)


def _allowed(mask: Tensor) -> Tensor:
    """Return where a mask allows to look; one that is added to scores holds the lowest number where it does not."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
