"""A vector from pairs of states: the methods, the splits of the pairs, and permuted labels. In float64.

`mean_difference`: the mean of positive minus negative (contrastive activation addition, Rimsky et al. 2024).
`pca_difference`: the first principal component of the centred differences. `pca_center`: the first component of the
states minus the mean of their pair, which is that of the differences without centring. Components are scaled to the
mean difference's projection on them, which gives them the sign that puts positive above negative.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

TEST, HALVES, LABELS = 1, 2, 3
"""What is drawn; each has random numbers of its own."""
FEWEST_TEST, FEWEST_TRAIN = 2, 4
"""Pairs to judge by, for a deviation; and to learn from, for halves of two."""
BASIS_BYTES = 2**30
"""Memory for the bases in which components are sought."""
MOST_STEPS = 150
FIRST_CHECK = 10
"""Steps after which convergence is looked at; then each time after twice as many."""
TOLERANCE = 1e-9
"""Largest residual of a component, as a share of its eigenvalue."""


def left_out_pairs(pairs: npt.NDArray[np.int64], share: float, seed: int) -> Flags:
    """Return which pairs are left out, [pair]; what is drawn for a pair depends on the seed and its number alone.

    Args:
        pairs: [pair], their numbers, ascending.
        share: Of the pairs that are left out.
        seed: Of the run.
    """
    count = int(np.clip(round(share * len(pairs)), FEWEST_TEST, len(pairs) - FEWEST_TRAIN))
    return _lowest(pairs, count, seed, TEST)


def halves(pairs: npt.NDArray[np.int64], num_splits: int, seed: int) -> Flags:
    """Return a half of the pairs for each split, [pair, split]."""
    split = [_lowest(pairs, len(pairs) // 2, seed, HALVES, number) for number in range(num_splits)]
    return np.array(split, bool).reshape(num_splits, len(pairs)).T


def _lowest(pairs: npt.NDArray[np.int64], count: int, *seed: int) -> Flags:
    """Return the `count` pairs for which the lowest numbers are drawn, [pair]."""
    draws = np.random.default_rng(seed).random(int(pairs[-1]) + 1)[pairs]
    chosen = np.zeros(len(pairs), bool)
    chosen[np.argsort(draws, kind="stable")[:count]] = True
    return chosen


def permuted_differences(positive: Numbers, negative: Numbers, seed: int, number: int) -> Numbers:
    """Return differences of pairs whose labels were permuted, [pair, hidden].

    The labels are permuted over all texts so that both labels get as many texts of the one kind as of the other, and
    the two texts of a new pair are of one kind. So no part of what tells the kinds apart is left: a swap inside of the
    pairs would leave a component of their differences what it is.

    Args:
        positive: [pair, hidden].
        negative: [pair, hidden].
        seed: Of the run.
        number: Of the permutation.
    """
    generator = np.random.default_rng((seed, LABELS, number))
    parts = []
    for states in (positive, negative):
        order = generator.permutation(len(states))
        half = len(states) // 2
        parts.append(states[order[:half]] - states[order[half : 2 * half]])
    return np.concatenate(parts)


def vectors(method: str, differences: Numbers, chosen: Flags) -> Numbers:
    """Return the vector of each choice of pairs, [choice, hidden].

    Args:
        method: A `settings.extraction.Method`.
        differences: [pair, hidden], positive minus negative.
        chosen: [pair, choice].
    """
    weights = chosen.astype(np.float64)
    means: Numbers = weights.T @ differences / weights.sum(axis=0)[:, None]
    if method == "mean_difference":
        return means
    centre = means if method == "pca_difference" else np.zeros_like(means)
    size = max(1, BASIS_BYTES // (8 * differences.shape[1] * min(MOST_STEPS, differences.shape[1])))
    found = np.concatenate(
        [
            first_components(differences, weights[:, start : start + size], centre[start : start + size])
            for start in range(0, len(means), size)
        ]
    )
    scaled: Numbers = (means * found).sum(axis=1, keepdims=True) * found
    return scaled


def first_components(rows: Numbers, weights: Numbers, centre: Numbers) -> Numbers:
    """Return the first principal component of each choice of rows, [choice, hidden], of length 1.

    Lanczos' method for all choices together, whose products with the rows are one matrix product; every new direction
    is made orthogonal to all before it.

    Args:
        rows: [row, hidden].
        weights: [row, choice], 1 for the chosen ones, else 0.
        centre: [choice, hidden], what is taken off the rows: their mean, or 0.
    """
    counts = weights.sum(axis=0)

    def scatter(directions: Numbers) -> Numbers:
        inner = (directions * centre).sum(axis=1, keepdims=True)
        image: Numbers = (weights * (rows @ directions.T)).T @ rows - counts[:, None] * inner * centre
        return image

    num_choices, width = centre.shape
    steps = min(MOST_STEPS, width)
    basis = np.zeros((num_choices, steps, width))
    basis[:, 0] = np.random.default_rng(0).standard_normal(width)
    basis[:, 0] /= np.linalg.norm(basis[:, 0], axis=1, keepdims=True)
    small = np.zeros((num_choices, steps, steps))
    check = FIRST_CHECK
    for step in range(steps):
        image = scatter(basis[:, step])
        for _ in range(2):  # once more, for what rounding has left
            parts = (basis[:, : step + 1] @ image[:, :, None])[:, :, 0]
            small[:, : step + 1, step] += parts
            image -= (parts[:, None] @ basis[:, : step + 1])[:, 0]
        rest = np.linalg.norm(image, axis=1)
        is_last = step + 1 == steps
        if is_last or step + 1 == check or not rest.any():
            check *= 2
            inner = small[:, : step + 1, : step + 1]
            values, mixtures = np.linalg.eigh((inner + inner.transpose(0, 2, 1)) / 2)
            largest = values[:, -1]
            if is_last or (rest * np.abs(mixtures[:, -1, -1]) <= TOLERANCE * largest).all():
                break
        # Where the directions span all that the rows do, what is left is rounding.
        scale = np.abs(small[:, 0, 0])
        usable = rest > 1e-13 * scale
        basis[usable, step + 1] = image[usable] / rest[usable, None]
        small[usable, step + 1, step] = rest[usable]
    found = (mixtures[:, None, :, -1] @ basis[:, : mixtures.shape[1]])[:, 0]
    norms = np.linalg.norm(found, axis=1, keepdims=True)
    components: Numbers = found / np.where(norms > 0, norms, 1.0)
    return components


def each_permuted(method: str, positive: Numbers, negative: Numbers, seed: int, count: int) -> Iterator[Numbers]:
    """Yield vectors of permuted labels, [hidden] each; see `permuted_differences`."""
    for number in range(count):
        differences = permuted_differences(positive, negative, seed, number)
        yield vectors(method, differences, np.ones((len(differences), 1), bool))[0]
