"""How the work is divided: rows into windows, windows into batches, batches among tasks and among processes.

Arithmetic alone. The batches of a window depend on its rows and on the token budget, and on nothing else: not on who
works on them, nor on how many do, nor on what is done already. So a record has the same bits whatever the launch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

WINDOW_ROWS = 8192
"""Consecutive rows of the corpus that are planned together; a batch's sentences lie at most so far apart."""
ROWS_PER_FILE = 2**40
"""A stream counts the rows of each of its files from a multiple of this on."""
WINDOWS_PER_FILE = ROWS_PER_FILE // WINDOW_ROWS
BATCHES_PER_WINDOW = 32
"""A window has about so many batches at least, so that a small corpus can be shared too."""
TAIL_PIECES = 4
"""One batch of a window that has at least so many is cut into so many pieces: small change, with which the processes
come out even."""
MIN_BATCH_TOKENS = 1024
"""But no batch is made smaller than this for the sake of sharing: on a CPU, less would cost speed."""
MIN_PIECE_TOKENS = 256
"""Nor is a piece."""


VERSION = 1
"""Another number wherever `plan_batches` comes to make other batches of the same rows."""


def plan_scheme() -> dict[str, int]:
    """Return what decides which rows share a batch: only parts of the same scheme are parts of the same run."""
    return {
        "version": VERSION,
        "window_rows": WINDOW_ROWS,
        "rows_per_file": ROWS_PER_FILE,
        "batches_per_window": BATCHES_PER_WINDOW,
        "tail_pieces": TAIL_PIECES,
        "min_batch_tokens": MIN_BATCH_TOKENS,
        "min_piece_tokens": MIN_PIECE_TOKENS,
    }


@dataclass(frozen=True)
class Task:
    """A share of the corpus that runs by itself: one of the tasks of an array."""

    index: int = 0
    """From 0 on."""
    count: int = 1
    """How many tasks there are."""


def plan_batches(
    lengths: Sequence[int] | npt.NDArray[np.int64], tokens_per_batch: int, *, pads: bool = True
) -> list[list[int]]:
    """Group a window's examples by like length, so that a batch is filled by tokens and little of it is padding.

    They are sorted by length and taken in turn, as long as the longest times the count stays within the budget. A
    longer example makes a batch of its own. The budget is a 32nd of the window where that is less, but not below
    `MIN_BATCH_TOKENS`.

    Args:
        lengths: [example], in tokens, at least 1.
        tokens_per_batch: The budget, in tokens, padding included.
        pads: Whether examples of different lengths may share a batch.

    Returns:
        Indices of the examples of each batch, every index in exactly one; one empty batch where there is no example.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if not len(sizes):
        return [[]]
    assert (sizes > 0).all()
    total = int(sizes.sum())
    budget = min(tokens_per_batch, max(MIN_BATCH_TOKENS, -(-total // BATCHES_PER_WINDOW)))
    order = np.argsort(sizes, kind="stable")
    if total < TAIL_PIECES * budget:
        return _cut(_fill(order, sizes, budget), sizes, pads)
    # The shortest come last in the small pieces: what they pad is least.
    tail = int(np.searchsorted(np.cumsum(sizes[order]), budget, side="right"))
    small = min(budget, max(MIN_PIECE_TOKENS, budget // TAIL_PIECES))
    return _cut(_fill(order[:tail], sizes, small) + _fill(order[tail:], sizes, budget), sizes, pads)


def _cut(batches: list[list[int]], sizes: npt.NDArray[np.int64], pads: bool) -> list[list[int]]:
    """Cut batches that are sorted by length wherever the length changes, if nothing may be padded."""
    if pads:
        return batches
    return [list(alike) for batch in batches for _, alike in groupby(batch, key=lambda row: int(sizes[row]))]


def _fill(order: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], budget: int) -> list[list[int]]:
    """Cut examples that are sorted by length into batches."""
    batches: list[list[int]] = []
    ordered = sizes[order]
    start = 0
    while start < len(ordered):
        # Sizes only grow from here on, so that the shortest one bounds the count.
        reach = ordered[start : start + max(1, budget // int(ordered[start]))]
        fitting = np.searchsorted(reach * np.arange(1, len(reach) + 1), budget, side="right")
        stop = start + max(1, int(fitting))
        batches.append(order[start:stop].tolist())
        start = stop
    return batches


def deal(weights: Sequence[int], loads: list[int]) -> list[list[int]]:
    """Deal items to processes so that none has much more to do than another.

    The heaviest item goes first, each to the process with the least so far (Graham 1969): the difference between two
    processes is at most the weight of one item.

    Args:
        weights: [item].
        loads: [process], what each has been dealt before; brought up to date in place.

    Returns:
        For each process its items, ascending.
    """
    hands: list[list[int]] = [[] for _ in loads]
    for item in sorted(range(len(weights)), key=lambda item: -weights[item]):
        least = min(range(len(loads)), key=loads.__getitem__)
        hands[least].append(item)
        loads[least] += weights[item]
    return [sorted(hand) for hand in hands]


def count_windows(num_rows: int) -> int:
    """Return how many windows a corpus of so many rows has."""
    return -(-num_rows // WINDOW_ROWS)


def owner(window: int, index: int, num_batches: int, num_windows: int, num_tasks: int) -> int:
    """Return the task that a batch belongs to, in a corpus whose windows are counted.

    Every task gets an equal stretch of the windows laid end to end; a batch belongs to the task in whose stretch its
    middle lies.

    Args:
        window: The batch's window.
        index: Its number in the window.
        num_batches: How many batches the window has.
        num_windows: How many windows the corpus has.
        num_tasks: How many tasks there are.
    """
    return (2 * (window * num_batches + index) + 1) * num_tasks // (2 * num_batches * num_windows)


def windows_of_task(num_windows: int, task: Task) -> range:
    """Return the windows in which a task may own batches, `owner` says which."""
    return range(task.index * num_windows // task.count, -(-(task.index + 1) * num_windows // task.count))


def batches_of_task(window: int, num_batches: int, num_windows: int, task: Task) -> list[int]:
    """Return the batches of a window that belong to a task."""
    return [b for b in range(num_batches) if owner(window, b, num_batches, num_windows, task.count) == task.index]
