"""Vectors from states: components against a full decomposition, splits and permutations, and what quality says."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from llm_entropy.outputs.extraction import contrast
from llm_entropy.outputs.extraction.contrast import (
    each_permuted,
    first_components,
    halves,
    permuted_differences,
    vectors,
)
from llm_entropy.outputs.extraction.quality import auroc, judge, split_half

METHODS = ("mean_difference", "pca_difference", "pca_center")


def random_rows(num_rows: int, width: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((num_rows, width)) * np.linspace(2, 1, width) + generator.standard_normal(width)


@pytest.mark.parametrize(("num_rows", "width"), [(50, 7), (9, 40), (400, 120), (2, 5)])
@pytest.mark.parametrize("is_centred", [True, False])
def test_first_components_are_those_of_a_full_decomposition(num_rows: int, width: int, is_centred: bool) -> None:
    rows = random_rows(num_rows, width)
    chosen = np.random.default_rng(1).random((num_rows, 6)) < 0.6
    chosen[:, 0] = True
    chosen[:2] = True
    weights = chosen.astype(float)
    means = weights.T @ rows / weights.sum(axis=0)[:, None]
    centre = means if is_centred else np.zeros_like(means)
    found = first_components(rows, weights, centre)
    for place in range(6):
        own = rows[chosen[:, place]] - centre[place]
        wanted = np.linalg.svd(own, full_matrices=False)[2][0]
        assert abs(found[place] @ wanted) == pytest.approx(1, abs=1e-9)
        assert np.linalg.norm(found[place]) == pytest.approx(1, abs=1e-12)


def test_choices_that_do_not_fit_into_memory_together_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, chosen = random_rows(60, 20), np.random.default_rng(2).random((60, 9)) < 0.5
    together = vectors("pca_difference", rows, chosen)
    monkeypatch.setattr(contrast, "BASIS_BYTES", 1)
    np.testing.assert_allclose(vectors("pca_difference", rows, chosen), together, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_positive_projects_above_negative_and_pairs_without_difference_give_zeros(method: str) -> None:
    everything = np.ones((30, 1), bool)
    rows = random_rows(30, 8, seed=3)
    (vector,) = vectors(method, rows, everything)
    assert rows.mean(axis=0) @ vector > 0
    assert not vectors(method, np.zeros((30, 8)), everything).any()


def test_what_is_drawn_for_a_pair_depends_on_the_seed_and_its_number_alone() -> None:
    pairs = np.arange(0, 300, 3)
    is_test = contrast.left_out_pairs(pairs, 0.2, seed=5)
    assert is_test.sum() == 20
    assert np.array_equal(is_test, contrast.left_out_pairs(pairs, 0.2, seed=5))
    assert not np.array_equal(is_test, contrast.left_out_pairs(pairs, 0.2, seed=6))
    fewer = contrast.left_out_pairs(np.delete(pairs, np.flatnonzero(~is_test)[:1]), 20 / 99, seed=5)
    assert np.array_equal(fewer, np.delete(is_test, np.flatnonzero(~is_test)[:1]))
    split = halves(pairs, 4, seed=5)
    assert split.sum(axis=0).tolist() == [50] * 4
    assert len({tuple(column) for column in split.T}) == 4


def test_permuted_labels_leave_nothing_of_what_tells_the_kinds_apart() -> None:
    generator = np.random.default_rng(4)
    direction = np.eye(6)[0]
    positive, negative = generator.standard_normal((2, 51, 6)) * (1 - direction)
    positive, negative = positive + 100 * direction, negative - 100 * direction
    for number in range(3):
        differences = permuted_differences(positive, negative, 0, number)
        assert differences.shape == (50, 6)
        assert np.abs(differences @ direction).max() == 0
    for method in METHODS:
        for vector in each_permuted(method, positive, negative, 0, 3):
            assert abs(vector @ direction) < 1e-9


def test_permuted_labels_tell_nothing_apart_on_average() -> None:
    generator = np.random.default_rng(7)
    found = []
    for seed in range(20):
        states = generator.standard_normal((2, 60, 12))
        states[0, :, 0] += 3
        own = each_permuted("mean_difference", states[0, :40], states[1, :40], seed, 10)
        found += [auroc(states[0, 40:] @ vector, states[1, 40:] @ vector) for vector in own]
    assert abs(np.mean(found) - 0.5) < 0.05


def test_auroc_is_mann_and_whitneys() -> None:
    generator = np.random.default_rng(8)
    above, below = generator.integers(0, 5, 30).astype(float), generator.integers(0, 4, 20).astype(float)
    wanted = stats.mannwhitneyu(above, below).statistic / 600
    assert auroc(above, below) == pytest.approx(wanted)


def test_reliability_is_one_without_noise_and_falls_with_it() -> None:
    generator = np.random.default_rng(9)
    split = halves(np.arange(80), 20, seed=0)
    clear = np.tile([1.0, 2.0, 0.0], (80, 1))
    assert split_half("mean_difference", clear, split) == pytest.approx(1)
    noisy = clear + 8 * generator.standard_normal(clear.shape)
    assert 0.2 < split_half("mean_difference", noisy, split) < 0.97
    assert np.isnan(split_half("mean_difference", clear, split[:, :0]))
    turned = np.concatenate([clear[:40], -clear[:40]])
    halved = np.repeat([[True], [False]], 40, axis=0)
    assert split_half("mean_difference", turned, halved) == pytest.approx(-1), "below 0 it is the cosine itself"


def test_a_vector_of_zeros_tells_nothing_apart() -> None:
    states = np.random.default_rng(10).standard_normal((2, 9, 4))
    quality = judge(3, np.zeros(4), np.zeros((0, 4)), states[0], states[1], np.ones(5), 0.5)
    assert (quality.block, quality.auroc, quality.mean_cosine, quality.norm) == (3, 0.5, 0.0, 0.0)
    assert np.isnan([quality.d_prime, quality.explained_variance, quality.shuffled_auroc]).all()
