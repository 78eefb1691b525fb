"""What is done: markers, and what they say together."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm_entropy.errors import ReportedError
from llm_entropy.schema.batches import BatchKey, WindowNotes
from llm_entropy.store.files import checksum
from llm_entropy.store.ledger import (
    Done,
    Expected,
    Ledger,
    Marker,
    Missing,
    WindowState,
    find_missing,
    rank_folder,
    read_ledger,
    remove_leftovers,
)
from llm_entropy.store.windows import WINDOWS_PER_FILE, Task

CONFIG = "0123abcd"
NOTES = WindowNotes(0, 90, 90, True, skipped=[(3, "blank"), (4, "null")], unread=[7], num_cut=2, num_examples=88)


def write_part(folder: Path, number: int, batches: list[tuple[BatchKey, int]], **about: Any) -> Marker:
    """Write a part and its marker as a process of task 0 of 1, rank 0 would."""
    own = rank_folder(folder, Task(), 0)
    own.mkdir(parents=True, exist_ok=True)
    part = own / f"part-{number:06d}.parquet"
    part.write_bytes(b"records" * (number + 1))
    values: dict[str, Any] = {
        "part": part,
        "checksum": checksum(part),
        "num_bytes": part.stat().st_size,
        "config_hash": CONFIG,
        "num_records": sum(count for _, count in batches),
        "first_id": 0,
        "end_id": 90,
        "batches": batches,
        "notes": {},
        "process": {"launch": "aa"},
    }
    marker = Marker(**{**values, **about})
    marker.write()
    return marker


def test_a_marker_is_read_as_it_was_written(tmp_path: Path):
    written = write_part(tmp_path, 0, [(BatchKey(0, 0, 2), 5), (BatchKey(0, 1, 2), 6)], notes={0: NOTES})
    assert Marker.read(written.path) == written
    assert written.path.name == "part-000000.json"
    written.check(content=True)


def test_a_ledger_is_what_all_markers_say(tmp_path: Path):
    write_part(tmp_path, 0, [(BatchKey(0, 0, 2), 5), (BatchKey(2, 1, 3), 6)], notes={0: NOTES})
    write_part(tmp_path, 1, [(BatchKey(0, 1, 2), 0)])
    (rank_folder(tmp_path, Task(), 0) / "part-000002.parquet").write_bytes(b"half")
    ledger = read_ledger(tmp_path, CONFIG)
    assert [marker.part.name for marker in ledger.markers] == ["part-000000.parquet", "part-000001.parquet"]
    assert ledger.windows[0].is_complete
    assert ledger.windows[0].num_records == 5
    assert ledger.windows[0].notes == NOTES
    assert ledger.windows[0].notes.num_sentences == 87
    assert not ledger.windows[2].is_complete
    assert ledger.done == Done({0}, {2: {1}})
    assert ledger.done.left(0, [0, 1]) == []
    assert ledger.done.left(1, [0, 1]) == [0, 1]
    assert ledger.done.left(2, [0, 1, 2]) == [0, 2]


def test_nothing_is_done_where_there_is_no_folder(tmp_path: Path):
    assert read_ledger(tmp_path / "gpt2", CONFIG) == Ledger()


def test_a_batch_that_is_there_twice_is_an_error_with_ids_and_both_files(tmp_path: Path):
    write_part(tmp_path, 0, [(BatchKey(0, 0, 2), 5)])
    write_part(tmp_path, 1, [(BatchKey(0, 0, 2), 5)], first_id=12, end_id=17)
    with pytest.raises(ValueError, match=r"part-000001.*ids from 12 to 16 are there more than once.*part-000000"):
        read_ledger(tmp_path, CONFIG)


def test_a_window_of_another_plan_is_refused(tmp_path: Path):
    write_part(tmp_path, 0, [(BatchKey(0, 0, 2), 5)])
    write_part(tmp_path, 1, [(BatchKey(0, 1, 3), 5)])
    with pytest.raises(ValueError, match=r"part-000001.*window 0 has 3 batches here, and another number elsewhere"):
        read_ledger(tmp_path, CONFIG)


def test_a_part_of_another_configuration_is_refused(tmp_path: Path):
    write_part(tmp_path, 0, [(BatchKey(0, 0, 2), 5)], config_hash="feed")
    with pytest.raises(ValueError, match=r"part-000000.json: was written with another configuration"):
        read_ledger(tmp_path, CONFIG)


def test_a_part_that_is_gone_cut_or_changed_is_named(tmp_path: Path):
    marker = write_part(tmp_path, 0, [(BatchKey(0, 0, 2), 5)])
    content = marker.part.read_bytes()
    marker.part.write_bytes(content[:-1] + b"?")
    read_ledger(tmp_path, CONFIG)  # sizes alone: resuming does not read terabytes
    with pytest.raises(
        ValueError, match=r"part-000000.parquet: is corrupt, its checksum is not the one in part-000000.json"
    ):
        marker.check(content=True)
    marker.part.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"part-000000.parquet: is corrupt, 6 bytes instead of 7"):
        read_ledger(tmp_path, CONFIG)
    marker.part.unlink()
    with pytest.raises(ValueError, match=r"part-000000.parquet: is missing"):
        read_ledger(tmp_path, CONFIG)


def test_a_marker_of_an_older_run_is_checked_by_its_sha_256(tmp_path: Path):
    marker = write_part(tmp_path, 0, [(BatchKey(0, 0, 2), 5)])
    about = json.loads(marker.path.read_text())
    assert about.pop("checksum").startswith("xxh3_128:")
    marker.path.write_text(json.dumps({**about, "sha256": hashlib.sha256(marker.part.read_bytes()).hexdigest()}))
    old = Marker.read(marker.path)
    old.check(content=True)
    assert read_ledger(tmp_path, CONFIG).markers == [old]
    marker.part.write_bytes(b"Records")
    with pytest.raises(ReportedError, match=r"part-000000.parquet: is corrupt, its checksum"):
        old.check(content=True)


def test_a_checksum_of_another_kind_is_named(tmp_path: Path):
    marker = write_part(tmp_path, 0, [(BatchKey(0, 0, 2), 5)], checksum="md5:00")
    with pytest.raises(
        ReportedError, match=r"part-000000.json: the checksum 'md5:00' is of no known kind \(xxh3_128, "
    ):
        marker.check(content=True)


def test_a_marker_that_is_no_marker_is_named(tmp_path: Path):
    marker = write_part(tmp_path, 0, [(BatchKey(0, 0, 2), 5)])
    marker.path.write_text('{"part": ')
    with pytest.raises(ValueError, match=r"part-000000.json: is no marker"):
        read_ledger(tmp_path, CONFIG)


def test_only_what_no_marker_vouches_for_is_removed(tmp_path: Path):
    marker = write_part(tmp_path, 0, [(BatchKey(0, 0, 1), 5)])
    own = marker.part.parent
    (own / "part-000001.parquet").write_bytes(b"no marker")
    (own / ".part-000002.parquet.host-12.tmp").write_bytes(b"half")
    remove_leftovers(own.parent)
    assert sorted(path.name for path in own.iterdir()) == ["part-000000.json", "part-000000.parquet"]


def ledger_of(states: dict[int, WindowState]) -> Ledger:
    return Ledger(windows=states)


def test_what_is_missing_of_a_counted_corpus_are_windows_and_batches():
    states = {0: WindowState(2, {0: 5, 1: 5}), 2: WindowState(4, {1: 5, 3: 5})}
    missing = find_missing(ledger_of(states), Expected(4))
    assert missing == [Missing(1, None, None), Missing(2, [0, 2], 4), Missing(3, None, None)]
    assert not find_missing(ledger_of({0: states[0]}), Expected(1))


def test_a_stream_is_complete_when_each_file_has_its_last_window():
    ends, goes_on = replace(NOTES, is_last=True), replace(NOTES, is_last=False)
    whole = {
        0: WindowState(1, {0: 5}, goes_on),
        1: WindowState(1, {0: 5}, ends),
        WINDOWS_PER_FILE: WindowState(1, {0: 0}, ends),
    }
    assert not find_missing(ledger_of(whole), Expected(None, 2))
    unread = find_missing(ledger_of(whole), Expected(None, 3))
    assert unread == [Missing(2 * WINDOWS_PER_FILE, None, None, reaches_on=True)]
    without_end = {**whole, 1: WindowState(1, {0: 5}, goes_on)}
    assert find_missing(ledger_of(without_end), Expected(None, 2)) == [Missing(2, None, None, reaches_on=True)]
    without_first_batch = {**whole, 1: WindowState(2, {1: 5})}
    assert find_missing(ledger_of(without_first_batch), Expected(None, 2)) == [Missing(1, [0], 2)]
