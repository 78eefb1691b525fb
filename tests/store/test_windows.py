"""How the work is divided: every piece once, evenly, and the same whoever asks."""

import numpy as np
import pytest

from llm_entropy.store.windows import (
    MIN_BATCH_TOKENS,
    TAIL_PIECES,
    WINDOW_ROWS,
    Task,
    batches_of_task,
    count_windows,
    deal,
    owner,
    plan_batches,
    windows_of_task,
)


@pytest.mark.parametrize("budget", [1, 7, 64, 1000, 8192])
@pytest.mark.parametrize("count", [1, 10, 500, WINDOW_ROWS])
def test_every_example_is_in_one_batch_that_keeps_the_budget(budget: int, count: int):
    lengths = np.random.default_rng(0).integers(1, 90, count).tolist()
    plan = plan_batches(lengths, budget)
    assert sorted(index for batch in plan for index in batch) == list(range(count))
    assert plan == plan_batches(np.array(lengths), budget)
    for batch in plan:
        assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= budget


def test_a_window_without_examples_has_one_empty_batch():
    assert plan_batches([], 8192) == [[]]


def test_batches_are_full_and_waste_little_on_padding():
    lengths = np.random.default_rng(0).geometric(0.05, WINDOW_ROWS)
    plan = plan_batches(lengths, 2048)
    padded = sum(int(lengths[batch].max()) * len(batch) for batch in plan)
    assert padded < 1.05 * lengths.sum(), "fixed batches in corpus order take 3 times the tokens"
    assert len(plan) < 1.15 * lengths.sum() / 2048


def test_a_small_corpus_can_be_shared_but_its_batches_are_not_made_tiny():
    sizes = [20 * len(batch) for batch in plan_batches([20] * 1000, 8192)]
    assert max(sizes) <= MIN_BATCH_TOKENS, "a 32nd of these 20,000 tokens is less"
    assert len(sizes) <= 20_000 / MIN_BATCH_TOKENS + TAIL_PIECES + 2
    assert len(plan_batches([20] * 100, 8192)) == 2, "a corpus of two batches is not cut into pieces"


def test_equal_lengths_stay_in_corpus_order():
    assert plan_batches([5, 3, 5, 3, 5], 10) == [[1, 3], [0, 2], [4]]


@pytest.mark.parametrize("count", [3, 500, WINDOW_ROWS])
def test_nothing_is_padded_where_nothing_may_be(count: int):
    lengths = np.random.default_rng(0).integers(1, 90, count)
    plan = plan_batches(lengths, 8192, pads=False)
    assert sorted(index for batch in plan for index in batch) == list(range(count))
    assert all(len(set(lengths[batch])) == 1 for batch in plan)
    assert plan_batches([5, 3, 5, 3, 5], 100, pads=False) == [[1, 3], [0, 2, 4]]


@pytest.mark.parametrize(("num_ranks", "count"), [(2, 2000), (3, 2000), (2, 30_000), (3, 30_000), (8, 30_000)])
def test_the_tokens_of_the_processes_differ_by_less_than_five_percent(num_ranks: int, count: int):
    lengths = np.random.default_rng(1).lognormal(3, 1, count).astype(int) + 1
    loads = [0] * num_ranks
    tokens = np.zeros(num_ranks)
    for first in range(0, count, WINDOW_ROWS):
        window = lengths[first : first + WINDOW_ROWS]
        plan = plan_batches(window, 8192)
        hands = deal([int(window[batch].max()) * len(batch) for batch in plan], loads)
        tokens += [sum(window[plan[item]].sum() for item in hand) for hand in hands]
    assert tokens.max() <= 1.05 * tokens.min()


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8, 40])
def test_the_work_is_dealt_evenly_and_completely(num_ranks: int):
    weights = np.random.default_rng(num_ranks).integers(1, 8193, 30).tolist()
    loads = [0] * num_ranks
    hands = deal(weights, loads)
    assert sorted(item for hand in hands for item in hand) == list(range(30))
    assert all(hand == sorted(hand) for hand in hands)
    assert loads == [sum(weights[item] for item in hand) for hand in hands]
    assert max(loads) - min(loads) <= max(weights)
    assert hands == deal(weights, [0] * num_ranks)


def test_what_was_dealt_before_counts():
    loads = [10, 0]
    assert deal([4, 4, 4], loads) == [[], [0, 1, 2]]
    assert deal([4, 4], loads) == [[0], [1]]
    assert loads == [14, 16]


def test_the_heaviest_batch_goes_first():
    assert deal([1, 1, 1, 1, 4], [0, 0]) == [[4], [0, 1, 2, 3]]


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 7, 16, 100])
@pytest.mark.parametrize("sizes", [[1], [3], [5, 1, 19], [20] * 12])
def test_every_batch_belongs_to_one_task_which_reads_its_window(num_tasks: int, sizes: list[int]):
    seen = []
    for index in range(num_tasks):
        task = Task(index, num_tasks)
        mine = [
            (window, batch)
            for window in windows_of_task(len(sizes), task)
            for batch in batches_of_task(window, sizes[window], len(sizes), task)
        ]
        assert all(owner(*key, sizes[key[0]], len(sizes), num_tasks) == index for key in mine)
        seen += mine
    assert seen == [(window, batch) for window, size in enumerate(sizes) for batch in range(size)]


def test_tasks_get_equal_stretches_and_read_no_more_than_they_need():
    num_windows, num_tasks = 100, 16
    shares = [windows_of_task(num_windows, Task(index, num_tasks)) for index in range(num_tasks)]
    assert max(map(len, shares)) <= num_windows // num_tasks + 2
    owned = [sum(len(batches_of_task(w, 20, num_windows, Task(i, num_tasks))) for w in shares[i]) for i in range(16)]
    assert max(owned) - min(owned) <= 1


def test_a_corpus_ends_in_a_window_that_is_not_full():
    assert [count_windows(rows) for rows in (1, WINDOW_ROWS, WINDOW_ROWS + 1)] == [1, 1, 2]
