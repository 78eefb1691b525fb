"""Files that are whole or absent, and locks that end with their holder."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import xxhash

from llm_entropy.store import files
from llm_entropy.store.files import Lock, checksum, create_text, held, write_text, written_whole


def test_a_file_has_its_name_only_once_it_is_whole(tmp_path: Path):
    path = tmp_path / "table.csv"
    with written_whole(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.name.startswith("."), "hidden from every glob for finished files"
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert [entry.name for entry in tmp_path.iterdir()] == ["table.csv"]


def test_a_failed_write_leaves_what_was_there_and_nothing_else(tmp_path: Path):
    path = tmp_path / "table.csv"
    path.write_text("before")

    def fail_halfway() -> None:
        with written_whole(path) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["table.csv"]


def test_a_file_is_on_the_disk_before_it_has_its_name_and_the_name_is_on_the_disk_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calls = []
    sync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        calls.append(f"fsync {os.path.basename(os.readlink(f'/proc/self/fd/{descriptor}'))}")
        sync(descriptor)

    def replaced(source: Path, target: Path) -> None:
        calls.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    write_text(tmp_path / "run.json", "{}")
    assert [call.split(" .run.json")[0] for call in calls] == ["fsync", "replace", f"fsync {tmp_path.name}"]


def test_the_first_to_create_a_file_wins(tmp_path: Path):
    assert create_text(tmp_path / "run.json", "first")
    assert not create_text(tmp_path / "run.json", "second")
    assert (tmp_path / "run.json").read_text() == "first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]


@pytest.fixture(params=[errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def no_links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that knows no hard links, as exFAT or SMB."""

    def refuse(source: Path, target: Path) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(os, "link", refuse)


@pytest.mark.usefixtures("no_links")
def test_without_hard_links_too_the_first_to_create_a_file_wins(tmp_path: Path):
    assert create_text(tmp_path / "run.json", "first")
    assert not create_text(tmp_path / "run.json", "second")
    assert (tmp_path / "run.json").read_text() == "first"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".run.json.lock", "run.json"]


@pytest.mark.usefixtures("no_links")
def test_without_hard_links_whoever_creates_a_file_waits_for_another_who_does(tmp_path: Path):
    path = tmp_path / "run.json"
    with ThreadPoolExecutor(1) as thread:
        with held(tmp_path / ".run.json.lock"):
            creating = thread.submit(create_text, path, "late")
            path.write_text("early")
        assert not creating.result()
    assert path.read_text() == "early"


def test_a_disk_without_room_is_not_taken_for_one_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(OSError, match="No space left"):
        create_text(tmp_path / "run.json", "{}")
    assert not list(tmp_path.iterdir())


def test_the_checksum_is_that_of_xxh128sum(tmp_path: Path):
    path, content = tmp_path / "part", bytes(range(256)) * 10_000
    path.touch()
    assert checksum(path) == "xxh3_128:99aa06d3014798d86001c324468d497f"
    path.write_bytes(content)
    assert checksum(path) == f"xxh3_128:{xxhash.xxh3_128_hexdigest(content)}"
    assert checksum(path, "sha256") == f"sha256:{hashlib.sha256(content).hexdigest()}"


HOLD = """
import sys, time
from pathlib import Path
from llm_entropy.store import files
from llm_entropy.store.files import Lock
lock = Lock(Path(sys.argv[1]))
assert lock.acquire({})
print("held", flush=True)
time.sleep(60)
"""


def test_a_lock_keeps_others_out_and_ends_with_a_kill(tmp_path: Path):
    path = tmp_path / "locks" / "task.lock"
    path.parent.mkdir()
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        lock = Lock(path)
        assert lock.is_held
        assert not lock.acquire({})
        assert f"process {other.pid} on " in lock.holder
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert not lock.is_held
    assert lock.acquire({"launch": "abc"})
    assert lock.is_held
    assert f"process {os.getpid()} on " in lock.holder
    assert not Lock(path).acquire({}), "not even twice in one process"
    lock.release()
    assert not lock.is_held


def test_a_lock_that_somebody_elsewhere_left_behind_is_free(tmp_path: Path):
    path = tmp_path / "task.lock"
    path.write_text('{"host": "another", "pid": 1, "since": "yesterday"}')
    lock = Lock(path)
    assert not lock.is_held, "what is written in it is for people; the system knows who holds it"
    assert lock.acquire({})
    assert "another" not in lock.holder
    lock.release()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_the_file_system_knows_no_locks_everybody_gets_one_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
):
    def refuse(stream: object, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    first, second = Lock(tmp_path / "task.lock"), Lock(tmp_path / "task.lock")
    assert first.acquire({})
    assert second.acquire({})
    assert not first.is_real
    assert not Lock(tmp_path / "task.lock").is_held
    first.release()
    second.release()


def test_asking_for_a_lock_that_nobody_ever_took_makes_no_file(tmp_path: Path):
    assert not Lock(tmp_path / "task.lock").is_held
    assert not list(tmp_path.iterdir())
