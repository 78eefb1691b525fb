"""Which slots go through a program together, so that as many cross terms as can be cost nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple


class Launch(NamedTuple):
    """Slots that go through the same program."""

    first: tuple[int, ...]
    """The slots; of pairs, the one whose probabilities are taken."""
    second: tuple[int, ...]
    """Of pairs, the other one; empty where no slot is paired."""
    top: bool
    """Whether the largest logits are wanted of one of them."""

    @classmethod
    def of_pairs(cls, pairs: Sequence[tuple[int, int]], *, top: bool) -> Launch:
        """Return the launch of some pairs."""
        return cls(tuple(a for a, _ in pairs), tuple(b for _, b in pairs), top)

    @property
    def slots(self) -> tuple[int, ...]:
        """In the order in which its sums have them."""
        return self.first + self.second

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Those that go through a program together; empty where no slot is paired."""
        return list(zip(self.first, self.second, strict=False))


def plan_launches(num_slots: int, top_slots: Sequence[int], pairs: Sequence[tuple[int, int]]) -> list[Launch]:
    """Return launches that cover each slot once, with as many of the pairs as can be had that way."""
    # The pair whose first slot has no other pair goes first: (final, k) must not take k from (standard k, steered k).
    num_pairs = Counter(a for a, _ in pairs)
    free = set(range(num_slots))
    matched = []
    for a, b in sorted(pairs, key=lambda pair: num_pairs[pair[0]]):
        if a != b and a in free and b in free:
            free -= {a, b}
            matched.append((a, b))
    top = set(top_slots)
    launches = []
    for wanted in (False, True):
        of_pairs = [pair for pair in matched if bool(top & set(pair)) is wanted]
        alone = [slot for slot in sorted(free) if (slot in top) is wanted]
        if of_pairs:
            launches.append(Launch.of_pairs(of_pairs, top=wanted))
        if alone:
            launches.append(Launch(tuple(alone), (), wanted))
    return launches
