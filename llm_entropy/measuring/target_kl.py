"""Equal budget: the strength at which steering changes the last layer's distribution by a given number of nats."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Optional

import torch
from torch import Tensor

from llm_entropy.errors import ReportedError
from llm_entropy.measuring.forwards import Reading, run_forwards, shared_layers
from llm_entropy.measuring.lens import Lens
from llm_entropy.measuring.metrics import kl_from_standard
from llm_entropy.measuring.readout import Slots, Wanted, decode
from llm_entropy.outputs.inference.positions import PositionNumbers
from llm_entropy.schema.batches import Batch
from llm_entropy.steering.plan import SteeringPlan

SENTENCES = 64
"""How many sentences of the corpus the search looks at."""
PERCENT = 95
"""Which percentile over the positions is to be the target."""
MOST_STEPS = 12
"""How many strengths are tried."""
TOLERANCE = 0.05
"""How far from the target the percentile may be, as a share of it."""
LARGEST_FACTOR = 100.0
"""A step outwards multiplies or divides the strength by this at most."""
SLOPES = (0.5, 4.0)
"""Between these the slope of log KL over log strength is believed; of small strengths it is 2."""
INSIDE = 0.1
"""A step between two strengths leaves this share of their distance, in logarithms, on either side."""
SPEAKS = 0.01
"""Of the target: below this share KL may be rounding, and says nothing about whether it rises."""
DIGITS = 4
"""Of a strength that is tried, so that the log, the configuration and the run have the same number."""


class Tried(NamedTuple):
    """One step of a search."""

    strength: float
    kl: float
    """95th percentile over positions, in nats; infinite where the numbers have overflowed."""


class LastLayerKL:
    """KL(standard, steered) at the last layer, over the positions of some batches.

    Args:
        lens: Of the model, which is on its device.
        temperature: What the logits are divided by.
        batches: On the model's device.
    """

    def __init__(self, lens: Lens, temperature: float, batches: Sequence[Batch]) -> None:
        self._lens, self._view, self._batches = lens, lens.view, batches
        self._unembedding = lens.view.unembedding(temperature)
        self.num_positions = sum(len(batch.rows) for batch in batches)

    def percentile(self, plan: SteeringPlan) -> float:
        """Return the 95th percentile over the positions, in nats; infinite where KL is no number at one of them.

        Args:
            plan: How the model is steered.
        """
        values = torch.cat([self._of_batch(batch, plan) for batch in self._batches])
        if not values.isfinite().all():
            return math.inf
        numbers = PositionNumbers()  # the percentile is that of the table of doses
        numbers.add(values.cpu().numpy())
        return numbers.percentile(PERCENT)

    @torch.inference_mode()
    def _of_batch(self, batch: Batch, plan: SteeringPlan) -> Tensor:
        """Return KL at each position of a batch, [record]."""
        num_layers = self._view.shape.num_layers
        plans = [None, plan.to(batch.attention_mask.device)]
        reading = Reading(self._view, attention=False, attended=False, sinks=False, before_block=lambda: None)
        standard, steered = run_forwards(reading, batch, plans, shared_layers(plans, num_layers))
        if not len(steered.states):  # so small a strength that nothing is added
            return torch.zeros(len(batch.rows))
        states = torch.stack([standard.states[-1], steered.states[-1]])
        inputs = self._lens.project(states, [num_layers - 1] * 2)
        wanted = Wanted(top_k=1, num_tracked=1, use_sampling=False, needs={"standard_cross"}, order=2.0)
        slots = Slots(num_layers=1, shared=(0, 0))
        found, _ = decode(
            inputs, slots, self._unembedding, batch.targets, batch.uniforms, wanted, names_tokens=[False, False]
        )
        last: Tensor = kl_from_standard(found, self._view.shape.vocab_size)[1, 0]
        return last


def find_strength(
    percentile: Callable[[float], float],
    target: float,
    *,
    where: str,
    largest: float = math.inf,
    tell: Callable[[Tried], None] = lambda _: None,
) -> float:
    """Return the strength at which KL is the target, within 5 %.

    KL of small strengths grows as their square, so the search follows straight lines in log strength and log KL:
    outwards until the target lies between two strengths, then by regula falsi between them (the Illinois variant: the
    end that stays loses half of its weight each time, so that it moves in the end).

    Args:
        percentile: KL at a strength above 0, in nats.
        target: In nats.
        where: The key and the model, for the message.
        largest: The largest strength that may be tried.
        tell: Is told of each step.

    Raises:
        ReportedError: The target is not reached, or KL does not rise with the strength.
    """
    tried: list[Tried] = []
    strength = _rounded(min(1.0, largest))
    while len(tried) < MOST_STEPS and strength not in [one.strength for one in tried]:
        kl = percentile(strength)
        tried.append(Tried(strength, kl if math.isfinite(kl) else math.inf))
        tell(tried[-1])
        if abs(tried[-1].kl / target - 1.0) <= TOLERANCE:
            return strength
        if (turn := _turn(tried, target)) is not None:
            lower, upper = turn
            why = (
                f"KL does not rise with the strength: it is {lower.kl:.3g} nats at {lower.strength:g} and "
                f"{upper.kl:.3g} at {upper.strength:g}"
            )
            raise _not_found(where, target, why, tried)
        strength = _rounded(min(_next_strength(tried, target), largest))
    raise _not_found(where, target, f"no strength of the {len(tried)} that were tried comes within 5 % of it", tried)


def _not_found(where: str, target: float, why: str, tried: Sequence[Tried]) -> ReportedError:
    best = min(tried, key=lambda one: abs(_log(one.kl / target)))
    return ReportedError(
        f"{where}: got {target:g} nats; {why}; the best that was seen is {best.kl:.3g} nats at strength "
        f"{best.strength:g}; expected what this vector can reach: give another target, or a strength of your own"
    )


def _turn(tried: Sequence[Tried], target: float) -> Optional[tuple[Tried, Tried]]:
    """Return two strengths of which the larger gives less KL, and less than the target; None where there are none.

    Far above the target it matters to nobody whether KL still rises.
    """
    steps = sorted(tried)
    for place, upper in enumerate(steps):
        lower = max(steps[:place], key=lambda one: one.kl, default=upper)
        if lower.kl > max(upper.kl, SPEAKS * target) and upper.kl < target:
            return lower, upper
    return None


def _next_strength(tried: Sequence[Tried], target: float) -> float:
    """Return the strength to try next."""
    below, above = [one for one in tried if one.kl < target], [one for one in tried if one.kl >= target]
    last = tried[-1]
    if not below or not above:
        return last.strength * min(max(_factor(tried, target), 1 / LARGEST_FACTOR), LARGEST_FACTOR)
    low, high = max(below), min(above)
    of_low, of_high = -_log(low.kl / target), _log(high.kl / target)
    streak = 1
    while streak < len(tried) and (tried[-1 - streak].kl < target) == (last.kl < target):
        streak += 1
    weight = 0.5 ** (streak - 1)
    of_low, of_high = (of_low, of_high * weight) if last.kl < target else (of_low * weight, of_high)
    share = 0.5 if math.isinf(of_low + of_high) else of_low / (of_low + of_high)
    share = min(max(share, INSIDE), 1 - INSIDE)
    return float(low.strength * (high.strength / low.strength) ** share)


def _factor(tried: Sequence[Tried], target: float) -> float:
    """Return by what the last strength has to be multiplied, as far as the last steps tell."""
    last, slope = tried[-1], 2.0
    if last.kl in (0.0, math.inf):
        return LARGEST_FACTOR if last.kl == 0.0 else 1 / LARGEST_FACTOR
    before = tried[-2] if len(tried) > 1 else last
    if before is not last and before.kl not in (0.0, math.inf):
        slope = _log(last.kl / before.kl) / _log(last.strength / before.strength)
    return float((target / last.kl) ** (1 / min(max(slope, SLOPES[0]), SLOPES[1])))


def _log(number: float) -> float:
    return math.log(number) if number > 0 else -math.inf


def _rounded(strength: float) -> float:
    return float(f"{strength:.{DIGITS}g}")
