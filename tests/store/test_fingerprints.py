"""The name of a folder's content: every byte counts, nothing else does, and a large file is read once."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import pytest

from llm_entropy.errors import ReportedError
from llm_entropy.store import files, fingerprints
from llm_entropy.store.fingerprints import fingerprint

HOUR = 3600 * 10**9


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, which takes small files and thinks that all are old."""
    home = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    monkeypatch.setattr(fingerprints, "LARGE", 1000)
    monkeypatch.setattr(fingerprints, "YOUNG", -1.0)
    return home / "llm_entropy" / "fingerprints"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were really read."""
    names: list[str] = []
    read = fingerprints._read_and_hash

    def count(path: Path, pool: object) -> str:
        names.append(path.name)
        return read(path, pool)  # type: ignore[arg-type]

    monkeypatch.setattr(fingerprints, "_read_and_hash", count)
    return names


def make_folder(path: Path, size: int = 5000) -> Path:
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(random.Random(0).randbytes(size))
    return path


def edit(path: Path, place: int, *, keep_times: bool = False) -> None:
    """Flip a bit of a file, in place."""
    about = path.stat()
    with path.open("r+b") as stream:
        stream.seek(place)
        byte = stream.read(1)[0]
        stream.seek(place)
        stream.write(bytes([byte ^ 1]))
    if keep_times:
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def test_a_single_bit_anywhere_gives_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fingerprints, "BLOCK", 2**16)
    monkeypatch.setattr(files, "READ", 2**12)
    size = 10 * 2**16 + 777
    weights = make_folder(tmp_path / "model", size) / "model.safetensors"
    places = [0, 2**16 - 1, 2**16, size - 1, *(random.Random(1).randrange(size) for _ in range(200))]
    seen = {fingerprint(tmp_path / "model")}
    for number, place in enumerate(dict.fromkeys(places), start=2):
        edit(weights, place, keep_times=number % 2 == 0)
        seen.add(fingerprint(tmp_path / "model"))
        assert len(seen) == number, f"the byte at {place}, times kept: {number % 2 == 0}"


def test_blocks_that_change_places_give_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fingerprints, "BLOCK", 2**12)
    first, second = random.Random(0).randbytes(2**12), random.Random(1).randbytes(2**12)
    weights = make_folder(tmp_path / "model") / "model.safetensors"
    names = set()
    for content in (first + second, second + first, first, first + second[:-1]):
        weights.write_bytes(content)
        names.add(fingerprint(tmp_path / "model"))
    assert len(names) == 4


def test_a_file_that_is_read_in_pieces_of_any_size_has_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = make_folder(tmp_path / "model", 300_000)
    names = set()
    for read in (7_001, 2**16, 2**20):
        monkeypatch.setattr(files, "READ", read)
        monkeypatch.setattr(fingerprints, "LARGE", 10**9)
        names.add(fingerprint(folder))
    assert len(names) == 1


def test_a_copy_has_the_same_name_and_another_name_of_a_file_counts(tmp_path: Path):
    folder, copy = make_folder(tmp_path / "model"), make_folder(tmp_path / "copy")
    os.utime(copy / "model.safetensors", ns=(HOUR, HOUR))
    assert fingerprint(folder) == fingerprint(copy)
    (copy / "model.safetensors").rename(copy / "other.safetensors")
    assert fingerprint(folder) != fingerprint(copy)


def test_what_decides_nothing_does_not_count(tmp_path: Path):
    folder = make_folder(tmp_path / "model")
    before = fingerprint(folder)
    (folder / "README.md").write_text("a note")
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs")
    (folder / "checkpoint-500").mkdir()
    shard = folder / "checkpoint-500" / "model.safetensors"
    shard.write_bytes(b"a stage of the training")
    assert fingerprint(folder) == before
    (folder / "modeling_mine.py").write_text("pass")
    assert fingerprint(folder) != before, "code may be run"


def test_a_file_of_a_subfolder_counts_where_it_is_named(tmp_path: Path):
    folder = make_folder(tmp_path / "model")
    shard = folder / "shards" / "a.safetensors"
    shard.parent.mkdir()
    shard.write_bytes(b"one")
    before = fingerprint(folder, [shard])
    shard.write_bytes(b"two")
    assert len({before, fingerprint(folder, [shard]), fingerprint(folder)}) == 3


# --- the cache ---------------------------------------------------------------------------------------------------


def test_a_large_file_is_read_once(tmp_path: Path, reads: list[str]):
    folder = make_folder(tmp_path / "model")
    first = fingerprint(folder)
    assert fingerprint(folder) == first
    assert sorted(reads) == ["config.json", "config.json", "model.safetensors"]


@pytest.mark.parametrize("content", [b"", b"half", b"\xff\n\xff", b"67108864 5000"])
def test_an_entry_that_is_not_whole_is_none(tmp_path: Path, cache: Path, reads: list[str], content: bytes):
    folder = make_folder(tmp_path / "model")
    first = fingerprint(folder)
    (entry,) = cache.iterdir()
    whole = entry.read_bytes()
    for broken in (content, whole[:-1], whole + b"0"):
        entry.write_bytes(broken)
        assert fingerprint(folder) == first
        assert entry.read_bytes() == whole
    assert reads.count("model.safetensors") == 4


def test_a_young_file_is_not_cached(tmp_path: Path, cache: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch):
    folder = make_folder(tmp_path / "model")
    monkeypatch.setattr(fingerprints, "YOUNG", 10.0)
    os.utime(folder / "model.safetensors", ns=(HOUR, HOUR))  # as rsync leaves it: the change itself is new
    assert fingerprint(folder) == fingerprint(folder)
    assert reads.count("model.safetensors") == 2
    assert not cache.exists()


def test_a_file_that_is_written_while_it_is_read_is_not_cached(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
):
    folder = make_folder(tmp_path / "model")
    hash_block = fingerprints._hash_block

    def change(path: Path, start: int) -> bytes:
        digest = hash_block(path, start)
        edit(path, 0)
        return digest

    with monkeypatch.context() as patch:
        patch.setattr(fingerprints, "_hash_block", change)
        wrong = fingerprint(folder)
    assert fingerprint(folder) != wrong
    assert reads.count("model.safetensors") == 2


@pytest.mark.parametrize("how", ["a file in the way", "no locks", "no home"])
def test_without_a_cache_the_name_is_the_same(
    tmp_path: Path, cache: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch, how: str
):
    folder = make_folder(tmp_path / "model")
    expected = fingerprint(folder)
    if how == "a file in the way":
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "config.json"))
    elif how == "no locks":
        monkeypatch.setattr(fingerprints.fcntl, "flock", _fail(OSError))
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(fingerprints.Path, "home", _fail(RuntimeError))
    assert fingerprint(folder) == expected
    assert reads.count("model.safetensors") == 2


def _fail(kind: type[Exception]):
    def fail(*args: object) -> None:
        raise kind

    return fail


def test_of_those_that_start_together_one_reads(tmp_path: Path, reads: list[str]):
    folder = make_folder(tmp_path / "model", 3_000_000)
    names: list[str] = []
    threads = [threading.Thread(target=lambda: names.append(fingerprint(folder))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names) == 6
    assert len(set(names)) == 1
    assert reads.count("model.safetensors") == 1


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = make_folder(tmp_path / "model")

    def refuse(path: Path, start: int) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(fingerprints, "_hash_block", refuse)
    with pytest.raises(ReportedError, match=r"config\.json: cannot be read"):
        fingerprint(folder)
