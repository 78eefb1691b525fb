"""The search for the strength that costs a given budget."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from llm_entropy.errors import ReportedError
from llm_entropy.measuring.target_kl import MOST_STEPS, TOLERANCE, Tried, find_strength

Curve = Callable[[float], float]


def search(curve: Curve, target: float, largest: float = math.inf) -> tuple[float, list[Tried]]:
    tried: list[Tried] = []
    found = find_strength(curve, target, where="here", largest=largest, tell=tried.append)
    return found, tried


CURVES: dict[str, Curve] = {
    "quadratic": lambda s: 0.3 * s**2,
    "of a tiny vector": lambda s: 1e-11 * s**2,
    "of a huge vector": lambda s: 12 * math.tanh(1e7 * s**2),
    "bends at once": lambda s: 6 * s**2 / (0.1 + s**2),
    "nearly flat above the target": lambda s: 3 * s**2 / (1 + s) ** 1.9,
    "a cliff": lambda s: 1e-3 * s**2 if s < 7 else 0.9 + 0.02 * (s - 7),
    "overflows": lambda s: 0.01 * s**2 if s < 20 else math.nan,
    "saturates, then falls far above the target": lambda s: 9 * s**2 / (1e-3 + s**2) - 0.5 * s,
}


@pytest.mark.parametrize("target", [0.01, 1.0])
@pytest.mark.parametrize("name", CURVES)
def test_the_strength_is_found_within_five_percent_in_twelve_steps(name: str, target: float) -> None:
    curve = CURVES[name]
    found, tried = search(curve, target)
    assert curve(found) == pytest.approx(target, rel=TOLERANCE)
    assert len(tried) <= MOST_STEPS
    assert tried[-1] == (found, curve(found))


def test_of_a_quadratic_curve_two_steps_are_enough() -> None:
    found, tried = search(CURVES["quadratic"], 1.0)
    assert found == pytest.approx(1 / math.sqrt(0.3), rel=1e-3)
    assert [step.strength for step in tried] == [1.0, found]


@pytest.mark.parametrize(
    ("curve", "why"),
    [
        (lambda s: 0.5 * math.tanh(s), r"no strength of the 12 that were tried comes within 5 % of it"),
        (lambda s: 0.5 * s**2 * math.exp(1 - s**2), r"KL does not rise with the strength: it is 0\.5 nats at 1 and"),
        (lambda s: 2.0 if s > 1.5 else 0.5, r"no strength of the \d+ that were tried comes within 5 % of it"),
    ],
)
def test_a_target_that_is_not_reached_is_refused_with_the_best_that_was_seen(curve: Curve, why: str) -> None:
    with pytest.raises(ReportedError, match=rf"^here: got 1 nats; {why}") as caught:
        search(curve, 1.0)
    assert "the best that was seen is 0.5 nats at strength" in str(caught.value)


def test_no_strength_beyond_the_largest_is_tried() -> None:
    tried: list[Tried] = []
    with pytest.raises(ReportedError, match=r"no strength of the 2 .*seen is 0\.04 nats at strength 2;"):
        find_strength(lambda s: 0.01 * s**2, 1.0, where="here", largest=2.0, tell=tried.append)
    assert [step.strength for step in tried] == [1.0, 2.0]
