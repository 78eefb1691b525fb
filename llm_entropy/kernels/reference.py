"""The kernel in plain torch: tiles of rows by chunks of the vocabulary, memory bounded whatever the sizes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial, reduce
from typing import NamedTuple, Optional

import torch
from torch import Tensor

from llm_entropy.kernels.wanted import Wanted
from llm_entropy.schema.batches import widest_float
from llm_entropy.schema.statistics import RowStatistics, Unembedding

VOCAB_CHUNK = 4096
"""Tokens of the vocabulary that are looked at together."""
TILE_LOGITS = 2**22
"""Logits of a tile of rows that are held together: 16 MiB, of which a handful of copies live at a time."""
GATHER_NUMBERS = 2**22
"""Numbers of decoder rows that `token_logits` gathers together."""
LOWEST = -1e30
"""Stands for minus infinity, a masked token: its product with a probability of 0 is 0 and not NaN."""


def logits_of(states: Tensor, unembedding: Unembedding, tokens: slice = slice(None)) -> Tensor:
    """Return softcap(scale * (states @ weight[tokens].T + bias[tokens])) / temperature, float32.

    Args:
        states: [..., width].
        unembedding: The decoder and what follows it.
        tokens: Which rows of the decoder.

    Returns:
        [..., tokens].
    """
    weight = unembedding.weight[tokens].float()
    bias = None if unembedding.bias is None else unembedding.bias[tokens].float()
    return _finish(torch.nn.functional.linear(states.float(), weight, bias), unembedding)


def _finish(logits: Tensor, unembedding: Unembedding) -> Tensor:
    """Apply what a model does to its logits, in its order, and the temperature."""
    if unembedding.scale != 1.0:
        logits = logits * unembedding.scale
    if unembedding.softcap is not None:
        logits = torch.tanh(logits / unembedding.softcap) * unembedding.softcap
    return logits if unembedding.temperature == 1.0 else logits / unembedding.temperature


def _vocabulary_chunks(unembedding: Unembedding) -> Iterator[slice]:
    vocab_size = unembedding.weight.shape[0]
    for start in range(0, vocab_size, VOCAB_CHUNK):
        yield slice(start, min(start + VOCAB_CHUNK, vocab_size))


def _tiles(num_rows: int, num_slots: int, unembedding: Unembedding) -> Iterator[slice]:
    """Yield parts of the rows, such that one chunk of the logits of all slots stays within `TILE_LOGITS`."""
    tile = max(1, TILE_LOGITS // (num_slots * min(VOCAB_CHUNK, unembedding.weight.shape[0])))
    for start in range(0, num_rows, tile):
        yield slice(start, start + tile)


def lens_statistics(states: Tensor, unembedding: Unembedding, wanted: Wanted) -> RowStatistics:
    """Return the statistics of each row; see `llm_entropy.kernels.lens_statistics`."""
    num_slots, num_rows, _ = states.shape
    tiles = [
        _tile_statistics(states[:, rows], unembedding, wanted) for rows in _tiles(num_rows, num_slots, unembedding)
    ]
    asked = [name for name in RowStatistics._fields if getattr(tiles[0], name) is not None]
    return RowStatistics(**{name: torch.cat([getattr(part, name) for part in tiles], dim=1) for name in asked})


class _Sums(NamedTuple):
    """Running sums over the vocabulary of a tile, shifted by the maximum so far; the widest float across chunks."""

    maximum: Tensor
    """m, [slot, row], float32."""
    second: Tensor
    """The second largest logit."""
    exp: Tensor
    """sum exp(z - m); 0 where all tokens are masked so far."""
    first_moment: Tensor
    """sum exp(z - m) (z - m)."""
    second_moment: Optional[Tensor]
    """sum exp(z - m) (z - m)^2."""
    power: Optional[Tensor]
    """sum exp(a (z - m))."""
    top1: Optional[Tensor]
    """The token with the largest logit."""
    log_mass: Optional[Tensor]
    """ln sum exp(z) over the members, relative to nothing."""
    cross: Optional[Tensor]
    """[pair, row], sum exp(z_a - m_a) (z_b - m_b); minus infinity where a token is masked in b and not in a."""
    top: Tensor
    """[top slot, row, k], the largest logits."""
    top_ids: Tensor
    """[top slot, row, k], their tokens."""


def _tile_statistics(states: Tensor, unembedding: Unembedding, wanted: Wanted) -> RowStatistics:
    chunks = (
        _chunk_sums(logits_of(states, unembedding, tokens), tokens.start, wanted)
        for tokens in _vocabulary_chunks(unembedding)
    )
    sums = reduce(partial(_add, wanted=wanted), chunks)
    return RowStatistics(
        maximum=sums.maximum,
        log_sum=sums.exp.log().float(),
        mean=(sums.first_moment / sums.exp).float(),
        runner_up=sums.second - sums.maximum,
        top_ids=sums.top_ids,
        top=sums.top - sums.maximum[list(wanted.top_slots)].unsqueeze(-1),
        square=None if sums.second_moment is None else (sums.second_moment / sums.exp).float(),
        log_power=None if sums.power is None else sums.power.log().float(),
        top1=sums.top1,
        log_mass=None if sums.log_mass is None else (sums.log_mass - sums.maximum).float(),
        cross=None if sums.cross is None else (sums.cross / sums.exp[[a for a, _ in wanted.pairs]]).float(),
    )


def _chunk_sums(logits: Tensor, first_token: int, wanted: Wanted) -> _Sums:
    """Return the sums over one chunk of logits [slot, row, token]."""
    wide = widest_float(logits.device)
    largest = logits.topk(min(2, logits.shape[-1]), dim=-1).values
    maximum = largest[..., 0]
    second = largest[..., 1] if largest.shape[-1] == 2 else torch.full_like(maximum, -torch.inf)
    top, top_ids = logits[list(wanted.top_slots)].topk(min(wanted.top_k, logits.shape[-1]), dim=-1)
    shifted = (logits - torch.where(maximum == -torch.inf, 0.0, maximum).unsqueeze(-1)).clamp_(min=LOWEST)
    exp = shifted.exp()
    weighted = exp * shifted
    cross = [torch.linalg.vecdot(exp[a], shifted[b]) for a, b in wanted.pairs]
    for sums, (a, b) in zip(cross, wanted.pairs, strict=True):
        sums.masked_fill_(((logits[b] == -torch.inf) & (logits[a] != -torch.inf)).any(-1), -torch.inf)
    return _Sums(
        maximum=maximum,
        second=second,
        exp=exp.sum(-1).to(wide),
        first_moment=weighted.sum(-1).to(wide),
        second_moment=(weighted * shifted).sum(-1).to(wide) if wanted.square else None,
        power=None if wanted.order is None else (wanted.order * shifted).exp().sum(-1).to(wide),
        top1=logits.argmax(-1) + first_token if wanted.top1 else None,
        log_mass=None if wanted.members is None else _log_mass(logits, wanted.members[first_token:]),
        cross=torch.stack(cross).to(wide) if cross else None,
        top=top,
        top_ids=top_ids + first_token,
    )


def _log_mass(logits: Tensor, members: Tensor) -> Tensor:
    """Return ln sum exp(z) [slot, row] over those of a chunk's logits [slot, row, token] that are members.

    Args:
        logits: Of a chunk.
        members: Of the chunk's tokens, and perhaps of more.
    """
    chosen = logits.masked_fill(~members[: logits.shape[-1]], -torch.inf)
    maximum = chosen.amax(-1)
    finite = torch.where(maximum == -torch.inf, 0.0, maximum)
    wide = widest_float(logits.device)
    return (chosen - finite.unsqueeze(-1)).exp().sum(-1).to(wide).log() + finite


def _add(a: _Sums, b: _Sums, wanted: Wanted) -> _Sums:
    """Return the sums over two parts of the vocabulary, of which `a` comes first."""
    maximum = torch.maximum(a.maximum, b.maximum)
    second = torch.maximum(torch.maximum(a.second, b.second), torch.minimum(a.maximum, b.maximum))
    top1 = None
    if a.top1 is not None and b.top1 is not None:
        top1 = torch.where(b.maximum > a.maximum, b.top1, a.top1)
    a, b = _shift(a, maximum, wanted), _shift(b, maximum, wanted)

    def plus(x: Optional[Tensor], y: Optional[Tensor]) -> Optional[Tensor]:
        return None if x is None or y is None else x + y

    top, order = torch.cat([a.top, b.top], -1).sort(dim=-1, descending=True, stable=True)
    top_ids = torch.cat([a.top_ids, b.top_ids], -1).gather(-1, order)
    return _Sums(
        maximum=maximum,
        second=second,
        exp=a.exp + b.exp,
        first_moment=a.first_moment + b.first_moment,
        second_moment=plus(a.second_moment, b.second_moment),
        power=plus(a.power, b.power),
        top1=top1,
        log_mass=None if a.log_mass is None or b.log_mass is None else torch.logaddexp(a.log_mass, b.log_mass),
        cross=plus(a.cross, b.cross),
        top=top[..., : wanted.top_k],
        top_ids=top_ids[..., : wanted.top_k],
    )


def _shift(sums: _Sums, maximum: Tensor, wanted: Wanted) -> _Sums:
    """Return the sums relative to another maximum."""
    # where all tokens are masked so far there is nothing to shift
    step = torch.where(sums.maximum == -torch.inf, 0.0, sums.maximum - maximum).to(sums.exp.dtype)
    factor = step.exp()
    first, second, power, cross = sums.first_moment, sums.second_moment, sums.power, sums.cross
    if power is not None:
        assert wanted.order is not None
        power = (wanted.order * step).exp() * power
    if cross is not None:
        # sum e_a (z_b - m_b) with e_a = exp(z_a - m_a): the maxima of both slots move
        weights, others = [a for a, _ in wanted.pairs], [b for _, b in wanted.pairs]
        shifted = factor[weights] * (cross + step[others] * sums.exp[weights])
        cross = torch.where(cross == -torch.inf, cross, shifted)
    return sums._replace(
        exp=factor * sums.exp,
        first_moment=factor * (first + step * sums.exp),
        second_moment=None if second is None else factor * (second + 2 * step * first + step.square() * sums.exp),
        power=power,
        cross=cross,
    )


def token_logits(states: Tensor, unembedding: Unembedding, tokens: Tensor) -> Tensor:
    """Return the logits of a few tokens of each row.

    Args:
        states: [slot, row, width].
        unembedding: The decoder and what follows it.
        tokens: [row, token].

    Returns:
        [slot, row, token], float32.
    """
    tile = max(1, GATHER_NUMBERS // max(1, tokens.shape[1] * states.shape[-1]))
    parts = []
    for start in range(0, tokens.shape[0], tile):
        chosen = tokens[start : start + tile]
        weight = unembedding.weight[chosen].float()
        logits = torch.einsum("srw,rtw->srt", states[:, start : start + tile].float(), weight)
        if unembedding.bias is not None:
            logits = logits + unembedding.bias[chosen].float()
        parts.append(_finish(logits, unembedding))
    return torch.cat(parts, dim=1)


def count_larger(states: Tensor, unembedding: Unembedding, targets: Tensor, target_logits: Tensor) -> Tensor:
    """Return how many tokens have a larger logit than the target's.

    Args:
        states: [slot, row, width].
        unembedding: The decoder and what follows it.
        targets: [row].
        target_logits: [slot, row].

    Returns:
        [slot, row], int64; 0 where the target is the most likely token.
    """
    num_slots, num_rows, _ = states.shape
    counts = torch.zeros_like(target_logits, dtype=torch.int64)
    for rows in _tiles(num_rows, num_slots, unembedding):
        for tokens in _vocabulary_chunks(unembedding):
            larger = logits_of(states[:, rows], unembedding, tokens) > target_logits[:, rows].unsqueeze(-1)
            ids = torch.arange(tokens.start, tokens.stop, device=states.device)
            # the target's own logit, which another product rounds otherwise, is not larger than itself
            larger &= ids != targets[rows].unsqueeze(-1)
            counts[:, rows] += larger.sum(-1)
    return counts


def sample_tokens(states: Tensor, unembedding: Unembedding, log_normalizer: Tensor, uniforms: Tensor) -> Tensor:
    """Draw a token from each row's softmax: the first one at which the cumulative probability exceeds the draw.

    The same draw at two conditions gives the same token wherever their distributions agree. Rounding can leave the last
    cumulative probability a little below a draw close to 1: the last token that has a probability is drawn then.

    Args:
        states: [slot, row, width].
        unembedding: The decoder and what follows it.
        log_normalizer: [slot, row], ln sum exp(z).
        uniforms: [row], in [0, 1), in the type in which probabilities are added up: the widest of the device.

    Returns:
        [slot, row], int64.
    """
    num_slots, num_rows, _ = states.shape
    sampled = torch.empty((num_slots, num_rows), dtype=torch.int64, device=states.device)
    for rows in _tiles(num_rows, num_slots, unembedding):
        below = torch.zeros_like(sampled[:, rows])
        last = torch.zeros_like(below)
        reached = torch.zeros_like(log_normalizer[:, rows], dtype=uniforms.dtype)
        for tokens in _vocabulary_chunks(unembedding):
            logits = logits_of(states[:, rows], unembedding, tokens)
            probabilities = (logits - log_normalizer[:, rows].unsqueeze(-1)).to(uniforms.dtype).exp()
            cumulative = reached.unsqueeze(-1) + probabilities.cumsum(-1)
            below += (cumulative <= uniforms[rows].unsqueeze(-1)).sum(-1)
            reached = cumulative[..., -1]
            ids = torch.arange(tokens.start, tokens.stop, device=states.device)
            last = torch.maximum(last, torch.where(probabilities > 0, ids, 0).amax(-1))
        sampled[:, rows] = torch.minimum(below, last)
    return sampled
