"""What is missing belongs to tasks, and can be run."""

from pathlib import Path

import pytest

from llm_entropy.settings import OutputSettings, Settings
from llm_entropy.store.ledger import Expected, Ledger, Missing, WindowState
from llm_entropy.store.status import _tasks_of, how_to_go_on, missing_of_task, ranges_of, resume_command
from llm_entropy.store.windows import WINDOWS_PER_FILE, Task, owner


@pytest.mark.parametrize(
    ("numbers", "text"), [([], ""), ([4], "4"), ([7, 3, 8, 9], "3,7-9"), ([0, 1], "0-1"), ([0, 2, 4], "0,2,4")]
)
def test_tasks_are_listed_as_an_array_takes_them(numbers: list[int], text: str):
    assert ranges_of(numbers) == text


def test_a_single_batch_belongs_to_its_owner_and_an_unknown_window_to_all_who_may_have_some_of_it():
    expected = Expected(2)
    assert _tasks_of(Missing(1, [3], 8), expected, 4) == [owner(1, 3, 8, 2, 4)] == [2]
    assert _tasks_of(Missing(1, None, None), expected, 4) == [2, 3]
    assert _tasks_of(Missing(1, None, None), expected, 3) == [1, 2]
    assert _tasks_of(Missing(1, None, None), expected, 3, for_sure=True) == []
    assert _tasks_of(Missing(1, None, None), Expected(8), 2) == [0]


def test_what_one_task_misses_is_not_missing_to_another():
    ledger = Ledger(windows={0: WindowState(4, {0: 1, 1: 1, 3: 1})})
    expected = Expected(1)
    assert [len(missing_of_task(ledger, expected, Task(index, 4))) for index in range(4)] == [0, 0, 1, 0]
    assert missing_of_task(ledger, expected, Task()) == [Missing(0, [2], 4)]


def test_the_files_of_a_stream_belong_to_tasks_and_so_do_windows_where_files_are_few():
    beyond = Missing(5 * WINDOWS_PER_FILE + 3, None, None, reaches_on=True)
    assert _tasks_of(beyond, Expected(None, 6), 4) == [1]
    assert _tasks_of(beyond, Expected(None, 6), 7) == list(range(7))
    assert _tasks_of(beyond, Expected(None, 6), 7, for_sure=True) == [3]


def test_the_commands_can_be_pasted():
    settings = Settings(output=OutputSettings(dir="my runs"))
    run_dir = Path("my runs/a")
    single = resume_command(run_dir, settings, Task())
    assert single == (
        "llm-entropy predict --config 'my runs/a/config.yaml' --output.dir 'my runs' --output.run_name a --resume"
    )
    assert resume_command(run_dir, settings, Task(3, 16)).endswith("--data.num_shards 16 --data.shard_index 3")
    lines = how_to_go_on(run_dir, settings, 16, [3, 7, 8])
    assert lines[0].endswith("--array=3,7-8")
    assert lines[1].endswith("--resume --data.num_shards 16")
    assert how_to_go_on(run_dir, settings, 1, [0])[1].strip() == single
    assert how_to_go_on(run_dir, settings, 16, []) == []
