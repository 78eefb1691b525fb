"""The floor: how fast the bare products of states with a decoder are, by the fastest way that there is.

Nothing that computes every logit can be faster than the product that makes them. On a CPU the logits go, chunk by
chunk of the vocabulary, into one buffer that the cache holds; on a GPU cuBLAS is asked for as many rows at once as the
memory allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import report

TILE_ROWS, VOCAB_CHUNK = 3328, 1024
"""On a CPU: 13 MiB of float32 logits at a time."""
GPU_LOGITS = 2**32
"""On a GPU: logits of a product, at most."""

Way = Callable[[], object]


def bare_products(states: Tensor, weight: Tensor) -> dict[str, Way]:
    """Return ways to compute states @ weight.T and to forget it.

    Args:
        states: [row, width].
        weight: [vocab, width].
    """
    if states.is_cuda:
        return {"product, cuBLAS": _cublas(states, weight)}
    ways = {"product, MKL": _chunked(states, weight)}
    if torch.backends.mkldnn.is_available():
        ways["product, oneDNN"] = _converted(states, weight)
        ways["product, oneDNN packed"] = _packed(states, weight)
    return ways


def operations(states: Tensor, weight: Tensor) -> float:
    """Return how many floating-point operations the product takes."""
    return 2.0 * states.numel() * weight.shape[0]


def best_rate(hidden: int, vocab: int, dtype: torch.dtype, *, seconds: float) -> float:
    """Return the operations per second of the fastest bare product, of some that fill the device well.

    Args:
        hidden: Width of the states.
        vocab: Rows of the decoder.
        dtype: Of both.
        seconds: About how long the probe may take.
    """
    device = report.device()
    weight = torch.randn(vocab, hidden, device=device, dtype=dtype)
    rates = []
    sizes = (4096, 16384) if device.type == "cuda" else (208, TILE_ROWS)
    for num_rows in sizes:
        states = torch.randn(num_rows, hidden, device=device, dtype=dtype)
        took = report.medians(bare_products(states, weight), seconds=seconds / len(sizes))
        rates.append(operations(states, weight) / min(took.values()))
    return max(rates)


def _tiles(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def _cublas(states: Tensor, weight: Tensor) -> Way:
    rows = max(1, min(len(states), GPU_LOGITS // len(weight)))
    buffer = torch.empty(rows, len(weight), device=states.device, dtype=states.dtype)

    def run() -> None:
        for tile in _tiles(len(states), rows):
            torch.mm(states[tile], weight.T, out=buffer[: tile.stop - tile.start])

    return run


def _chunked(states: Tensor, weight: Tensor) -> Way:
    buffer = torch.empty(min(TILE_ROWS, len(states)) * VOCAB_CHUNK, dtype=states.dtype)

    def run() -> None:
        for tile in _tiles(len(states), TILE_ROWS):
            for tokens in _tiles(len(weight), VOCAB_CHUNK):
                shape = tile.stop - tile.start, tokens.stop - tokens.start
                torch.mm(states[tile], weight[tokens].T, out=buffer[: shape[0] * shape[1]].view(shape))

    return run


def _converted(states: Tensor, weight: Tensor) -> Way:
    parts = [weight[tokens].to_mkldnn() for tokens in _tiles(len(weight), VOCAB_CHUNK)]

    def run() -> None:
        for tile in _tiles(len(states), TILE_ROWS):
            converted = states[tile].to_mkldnn()
            for part in parts:
                F.linear(converted, part)

    return run


def _packed(states: Tensor, weight: Tensor) -> Way:
    """Return the way of inductor's frozen graphs; its operators are private to torch."""
    packed = torch.ops.mkldnn._reorder_linear_weight
    rows = min(TILE_ROWS, len(states))
    parts = [packed(weight[tokens].contiguous(), rows) for tokens in _tiles(len(weight), VOCAB_CHUNK)]

    def run() -> None:
        for tile in _tiles(len(states), TILE_ROWS):
            for part in parts:
                torch.ops.mkldnn._linear_pointwise(states[tile], part, None, "none", [], "")

    return run
