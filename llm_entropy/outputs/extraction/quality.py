"""What a vector is worth, on pairs that are left out of it; one number for each of the columns of the table."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from llm_entropy.outputs.extraction.contrast import Flags, Numbers, vectors


class Quality(NamedTuple):
    """The quality of the vector of a block: a row of the table."""

    block: int
    """It is the output of this block to which the vector belongs."""
    auroc: float
    """Chance that a positive text projects higher than a negative one, ties half; left-out pairs."""
    d_prime: float
    """(mean positive - mean negative) / root of the mean variance of the projections; left-out pairs."""
    mean_cosine: float
    """Mean cosine of the pair differences with the vector (Braun et al. 2025, arXiv 2505.22637); left-out pairs."""
    split_half: float
    """Mean cosine between the vectors of two halves of the other pairs, by Spearman and Brown for their whole."""
    explained_variance: float
    """Share of the squares of the pair differences that lies along the vector; left-out pairs."""
    norm: float
    """Of the vector."""
    relative_norm: float
    """The same over the mean norm of the residual stream there."""
    residual_norm: float
    """That mean, over the positions that were read of all texts."""
    shuffled_auroc: float
    """Mean `auroc` of the vectors from permuted labels; NaN where there are none."""


def judge(
    block: int,
    vector: Numbers,
    shuffled: Numbers,
    positive: Numbers,
    negative: Numbers,
    norms: Numbers,
    reliable: float,
) -> Quality:
    """Return the quality of a vector.

    Args:
        block: Its block.
        vector: [hidden].
        shuffled: [number, hidden], those from permuted labels.
        positive: [pair, hidden], of the pairs that are left out.
        negative: [pair, hidden].
        norms: [text], mean norms of the stream.
        reliable: As `split_half` returns it.
    """
    above, below = positive @ vector, negative @ vector
    differences, norm = positive - negative, float(np.linalg.norm(vector))
    inner, lengths = above - below, np.linalg.norm(differences, axis=1)
    spread = np.sqrt((above.var(ddof=1) + below.var(ddof=1)) / 2)
    residual = float(norms.mean())
    permuted = [auroc(positive @ one, negative @ one) for one in shuffled]
    return Quality(
        block=block,
        auroc=auroc(above, below),
        d_prime=_ratio(above.mean() - below.mean(), spread),
        mean_cosine=float(
            np.mean(np.divide(inner, norm * lengths, out=np.zeros_like(inner), where=lengths * norm > 0))
        ),
        split_half=reliable,
        explained_variance=_ratio((inner**2).sum(), norm**2 * (lengths**2).sum()),
        norm=norm,
        relative_norm=_ratio(norm, residual),
        residual_norm=residual,
        shuffled_auroc=float(np.mean(permuted)) if permuted else float("nan"),
    )


def auroc(above: Numbers, below: Numbers) -> float:
    """Return the chance that one of `above` is larger than one of `below`, ties half (Mann and Whitney's U)."""
    ranks = rankdata(np.concatenate([above, below]))[: len(above)]
    return float((ranks.sum() - len(above) * (len(above) + 1) / 2) / (len(above) * len(below)))


def split_half(method: str, differences: Numbers, halves: Flags) -> float:
    """Return how reliable a vector is: the mean cosine r of two halves' vectors, as 2 r / (1 + r), unless r is below 0.

    Args:
        method: How vectors are made.
        differences: [pair, hidden].
        halves: [pair, split]; NaN is returned where there is no split.
    """
    if not halves.shape[1]:
        return float("nan")
    one, other = (vectors(method, differences, side) for side in (halves, ~halves))
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    cosines = np.divide((one * other).sum(axis=1), lengths, out=np.zeros(len(one)), where=lengths > 0)
    mean = float(cosines.mean())
    return 2 * mean / (1 + mean) if mean > 0 else mean


def best_of(rows: list[Quality]) -> Quality:
    """Return the best block: the one with the largest `auroc`, of several the one with the largest `d_prime`."""
    return max(rows, key=lambda row: (row.auroc, np.nan_to_num(row.d_prime, nan=-np.inf)))


def _ratio(above: float, below: float) -> float:
    return float(above / below) if below else float("nan")
