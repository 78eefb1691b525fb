"""The entropy of attention rows from queries and keys: the maps are never made, or a tile at a time."""

from __future__ import annotations

import functools
import logging
from typing import Optional

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from llm_entropy.models.attention.interface import AttentionInputs

log = logging.getLogger("llm_entropy")

TILE = 2**20
"""Numbers in what is computed at once of scores, or of keys that were gathered: 4 MiB in float32."""
FUSED_LENGTH = 64
"""Sentences of at least so many tokens are quicker in the fused kernel than from their scores."""
PROBE_LENGTH = 37
"""Tokens with which the fused kernel proves itself."""
FUSIBLE = (torch.float32, torch.float16, torch.bfloat16)
"""Types of queries and keys that are given to the fused kernel."""
PROBE_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2}
"""Largest error in nats that is taken for rounding, by the type in which the kernel computes."""


class RowEntropies:
    """Computes -sum_j a_j ln a_j of the attention rows asked for, block after block of one forward pass.

    Args:
        rows: [record], the row of the batch of each record.
        positions: [record], the position in that row whose attention is read.
    """

    def __init__(self, rows: Tensor, positions: Tensor) -> None:
        self.rows, self.positions = rows, positions
        self._is_causal = WeakTensorKeyDictionary()

    def __call__(self, inputs: AttentionInputs) -> Tensor:
        """Return the entropies [record, head] of a block, in nats, float32."""
        batch, _, length, width = inputs.query.shape
        if len(self.rows) <= most_few(length) * batch:
            return few_from_scores(inputs, self.rows, self.positions)
        if length >= FUSED_LENGTH and _can_fuse(inputs) and _fused_is_right(inputs.key.device, inputs.key.dtype, width):
            entropies = all_fused(self._without_mask(inputs))
        else:
            entropies = all_from_scores(inputs)
        return entropies[self.rows, :, self.positions]

    def _without_mask(self, inputs: AttentionInputs) -> AttentionInputs:
        """Leave out a mask that is causal for the rows that are read: half of the work, and kernels that take no mask.

        So is that of sentences padded on the right: no token sees the padding behind it. Blocks share their masks.
        """
        mask = inputs.mask
        if mask is None or mask.shape[1] != 1:
            return inputs
        if mask not in self._is_causal:
            seen = mask.expand(len(inputs.query), -1, -1, -1)[self.rows, 0, self.positions]
            self._is_causal[mask] = torch.equal(seen, _causal(self.positions, mask.shape[-1]))
        return inputs._replace(mask=None, is_causal=True) if self._is_causal[mask] else inputs


def most_few(length: int) -> float:
    """Return up to how many rows of a sentence are read one by one: each costs a copy of the sentence's keys.

    A line through where both ways took equally long on a CPU, 12 heads of width 64: 1.6 rows of 16 tokens, 2.1 of 32,
    2.8 of 64, 6.2 of 256, 17 to 28 of 1,024.
    """
    return 1.5 + length / 50


def few_from_scores(inputs: AttentionInputs, rows: Tensor, positions: Tensor) -> Tensor:
    """Return the entropies [record, head] of single rows, from the scores of these rows alone."""
    query, key, mask, is_causal, scale = inputs
    num_batch, num_heads, length, _ = query.shape
    size = max(1, TILE // (key[0].numel() + num_heads * length))
    parts = []
    for start in range(0, len(rows), size):
        row, position = rows[start : start + size], positions[start : start + size]
        seen: Optional[Tensor]
        if mask is not None:
            seen = mask.expand(num_batch, -1, -1, -1)[row, :, position].unsqueeze(2)
        else:
            seen = _causal(position, length)[:, None, None] if is_causal else None
        parts.append(_entropies(query[row, :, position].unsqueeze(2), key[row], seen, scale).squeeze(2))
    return torch.cat(parts) if parts else query.new_empty(0, num_heads, dtype=torch.float32)


def all_from_scores(inputs: AttentionInputs) -> Tensor:
    """Return the entropies [batch, head, seq] of all rows, from a tile of scores at a time."""
    query, key, mask, is_causal, scale = inputs
    num_batch, num_heads, length, _ = query.shape
    num_rows = max(1, min(length, TILE // (num_heads * length)))
    num_sentences = max(1, TILE // (num_heads * length * num_rows))
    entropies = query.new_empty(num_batch, num_heads, length, dtype=torch.float32)
    steps = torch.arange(length, device=query.device)
    for first in range(0, num_batch, num_sentences):
        some = slice(first, first + num_sentences)
        for start in range(0, length, num_rows):
            tile = slice(start, start + num_rows)
            keys = key[some, :, : start + num_rows] if is_causal else key[some]
            seen: Optional[Tensor]
            if mask is not None:
                seen = mask.expand(num_batch, -1, -1, -1)[some, :, tile]
            else:
                seen = _causal(steps[tile], keys.shape[2]) if is_causal else None
            entropies[some, :, tile] = _entropies(query[some, :, tile], keys, seen, scale)
    return entropies


def _causal(positions: Tensor, length: int) -> Tensor:
    """Return which of the first `length` tokens each position sees, [position, length]."""
    return torch.arange(length, device=positions.device) <= positions[:, None]


def _entropies(query: Tensor, key: Tensor, mask: Optional[Tensor], scale: float) -> Tensor:
    """Return -sum_j a_j ln a_j, [batch, head, row], with a = softmax(scale * query @ key + mask) in float32.

    Args:
        query: [batch, head, row, width].
        key: [batch, key head, key, width].
        mask: As in `AttentionInputs`, of these rows, or what can be broadcast to it.
        scale: As in `AttentionInputs`.
    """
    num_batch, num_heads, num_rows, width = query.shape
    # The heads that share a key head are rows of one product.
    shared = (query.float() * scale).reshape(num_batch, key.shape[1], -1, width)
    scores = (shared @ key.float().mT).view(num_batch, num_heads, num_rows, -1)
    if mask is not None:
        scores = scores.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else scores.add_(mask)
    surprise: Tensor = torch.special.entr(scores.softmax(dim=-1))
    return surprise.sum(dim=-1)


def all_fused(inputs: AttentionInputs) -> Tensor:
    """Return the entropies [batch, head, seq] of all rows, from fused attention with keys in the place of values.

    H = lse - sum_j a_j s_j, and sum_j a_j s_j = scale * query . (sum_j a_j k_j). What all keys have in common is taken
    out of the values and put back in float32: some models have keys whose common part outweighs what tells them apart,
    and the rounding of the kernel's output would be that of the whole.
    """
    query, key, mask, is_causal, scale = inputs
    dtype = _fused_dtype(query.device.type, query.dtype)
    query, key = query.to(dtype), key.to(dtype).repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    common = key.mean(dim=2, keepdim=True)
    attended, log_normalizer = _fused_attention(query, key, key - common, mask, is_causal, scale)
    expected: Tensor = torch.linalg.vecdot(query.float(), attended.float() + common.float()) * scale
    return (log_normalizer.float() - expected).clamp_(min=0.0)


def _fused_dtype(device_type: str, dtype: torch.dtype) -> torch.dtype:
    """Return the type for the kernel, which rounds its weights and its output to it.

    What is a bfloat16 fits into a float16, which rounds eight times more finely; a CPU is as quick in float32.
    """
    return torch.float16 if device_type == "cuda" and dtype != torch.float32 else torch.float32


def _can_fuse(inputs: AttentionInputs) -> bool:
    """Whether the algebra holds, and there is a kernel: what a mask adds to the scores is not in the values."""
    is_plain = inputs.mask is None or inputs.mask.dtype == torch.bool
    return is_plain and inputs.key.device.type in ("cpu", "cuda") and inputs.key.dtype in FUSIBLE


def _fused_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Optional[Tensor], is_causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Return softmax(scale * query @ key) @ value, and the log-sum-exp [batch, head, seq] of the scores.

    The operators behind `scaled_dot_product_attention`; they are private, so that they are used nowhere else, and not
    before `_fused_is_right`.
    """
    bias = None
    length = query.shape[2]
    if mask is not None:
        # A row's end is padded to what the CUDA kernel wants of its strides.
        bias = torch.zeros(*mask.shape[:3], length + -length % 16, dtype=query.dtype, device=query.device)
        bias = bias[..., :length].masked_fill_(~mask, -torch.inf)
    operators = torch.ops.aten
    if query.device.type == "cpu":
        attended, log_normalizer = operators._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, is_causal, attn_mask=bias, scale=scale
        )
    elif bias is None and query.dtype != torch.float32:
        attended, log_normalizer, *_ = operators._scaled_dot_product_flash_attention(
            query, key, value, 0.0, is_causal, False, scale=scale
        )
    else:
        if bias is not None:
            bias = bias.expand(len(query), query.shape[1], -1, -1)
        attended, log_normalizer, *_ = operators._scaled_dot_product_efficient_attention(
            query, key, value, bias, True, 0.0, is_causal, scale=scale
        )
    return attended, log_normalizer[..., :length]


@functools.cache
def _fused_is_right(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Compare the fused kernel with the scores, once for each device, type and width of heads."""
    generator = torch.Generator().manual_seed(0)
    query, key = (2 * torch.randn(2, 2, PROBE_LENGTH, width, generator=generator) for _ in range(2))
    query, key = query.to(device, dtype), (key + 3).to(device, dtype)
    steps = torch.arange(PROBE_LENGTH, device=device)
    window = ((steps - steps[:, None]).abs() < 9).repeat(2, 1, 1, 1)
    window[1, :, :, -5:] = False
    window[1, :, -5:, -5:] = True  # no row sees nothing: these would be compared as NaN
    plain = AttentionInputs(query, key, None, False, scale=width**-0.5)
    probes = [plain, plain._replace(is_causal=True), plain._replace(mask=window)]
    try:
        errors = [float((all_fused(probe) - all_from_scores(probe)).abs().max()) for probe in probes]
    except (AttributeError, RuntimeError, TypeError) as error:
        log.info("no fused attention entropy for %s of width %d on %s: %s", dtype, width, device, error)
        return False
    if not max(errors) <= PROBE_TOLERANCE[_fused_dtype(device.type, dtype)]:
        log.info("fused attention of %s, width %d, on %s is off by %s nats: not used", dtype, width, device, errors)
        return False
    return True
