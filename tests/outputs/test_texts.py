"""What is counted in the tokens of a text, against its definition."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from llm_entropy.outputs.texts import FROM_TEXTS, distinct, longest_repetition, text_rows
from llm_entropy.settings import STANDARD_SURPRISAL, TEXT_METRICS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", (1, 1.0, math.nan, 0)),
        ("ab", (2, 1.0, 1.0, 0)),
        ("aaaa", (4, 0.25, 1 / 3, 3)),
        ("abcabd", (6, 4 / 6, 4 / 5, 2)),
        ("abcxabcyabc", (11, 5 / 11, 6 / 10, 3)),
    ],
)
def test_counts_are_those_of_the_definitions(text: str, expected: tuple[float, ...]) -> None:
    tokens = [np.array([ord(letter) for letter in text])]
    found = [text_rows(tokens, metric)[0, 0] for metric in FROM_TEXTS]
    np.testing.assert_allclose(found, expected)
    assert [*FROM_TEXTS] == [name for name in TEXT_METRICS if name != STANDARD_SURPRISAL]


def test_the_longest_repetition_is_found_in_any_text() -> None:
    random = np.random.default_rng(0)
    for size in (3, 20, 60):
        text = random.integers(0, 3, size)
        pieces = [
            length
            for length in range(1, size)
            for start in range(size - length + 1)
            for other in range(start)
            if np.array_equal(text[start : start + length], text[other : other + length])
        ]
        assert longest_repetition(text) == max(pieces, default=0)
        assert distinct(text, 2) == len(set(itertools.pairwise(text))) / (size - 1)
