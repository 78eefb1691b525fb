"""Placebos: directions that have the size of a vector at every block, and nothing of its meaning."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

KINDS = ("random", "orthogonal")
"""Those that are drawn. `random`: a Gaussian direction. `orthogonal`: the same, without its component along the vector.
"""
SHUFFLED = "shuffled"
"""The vector extracted again from permuted labels; `llm-entropy extract` keeps such vectors beside it."""


def placebo_directions(directions: Tensor, kind: str, *, is_one_direction: bool, seed: tuple[int, str, int]) -> Tensor:
    """Return other directions of the same norms.

    `orthogonal` rules out that the direction does not matter (arXiv 2602.06801).

    Args:
        directions: [L + 1, hidden], the vector's rows; a row of zeros stays one.
        kind: One of `KINDS`.
        is_one_direction: Whether the vector is the same at every block: then the placebo has one direction, too.
            Otherwise each row has its own.
        seed: Seed of the run, name of the vector, and number of the placebo: the same ones give the same directions.

    Returns:
        [L + 1, hidden], float32; each row has the norm of the vector's row.
    """
    rows = directions.double().cpu()
    norms = rows.norm(dim=1, keepdim=True)
    drawn = torch.from_numpy(
        _generator(kind, *seed).standard_normal((1 if is_one_direction else len(rows), rows.shape[1]))
    )
    drawn = drawn.expand_as(rows)
    if kind == "orthogonal":
        units = rows / norms.where(norms > 0, 1.0)
        for _ in range(2):  # once more, for what rounding has left
            drawn = drawn - (drawn * units).sum(dim=1, keepdim=True) * units
    placebo: Tensor = norms * drawn / drawn.norm(dim=1, keepdim=True)
    return placebo.float().to(directions.device)


def shuffled_directions(directions: Tensor, extracted: Tensor) -> Tensor:
    """Return a vector that was extracted from permuted labels as a placebo: at each block it has the vector's norm.

    Args:
        directions: [L + 1, hidden], the vector's rows.
        extracted: [L, hidden], by block.

    Returns:
        [L + 1, hidden], float32; row 0, for the embeddings, is zero.
    """
    norms = directions.double().norm(dim=1, keepdim=True)
    rows = torch.cat([torch.zeros(1, extracted.shape[1]), extracted]).double().to(directions.device)
    own = rows.norm(dim=1, keepdim=True)
    placebo: Tensor = norms * rows / own.where(own > 0, 1.0)
    return placebo.float()


def _generator(kind: str, seed: int, source: str, number: int) -> np.random.Generator:
    """Return a generator of its own for each placebo, so that none depends on how many others there are."""
    words = hashlib.sha256(f"{seed} {source} {kind} {number}".encode()).digest()
    return np.random.default_rng(np.frombuffer(words, np.uint32))
