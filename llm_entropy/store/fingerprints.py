"""Names for the content of folders: every byte counts, and a large file that has not changed is read once."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from io import FileIO
from pathlib import Path
from typing import NamedTuple, Optional

import xxhash

from llm_entropy.errors import ReportedError
from llm_entropy.store.files import feed

BLOCK = 2**26
"""Bytes that one thread hashes at a time; the name of a file's content depends on it."""
MOST_THREADS = 8
LARGE = 2**24
"""Bytes from which on the cache is asked; a smaller file is read as fast."""
YOUNG = 10.0
"""Seconds in which a file might still change without a new time stamp: so young a file is not cached."""
NOT_CONTENT = (".md", ".gguf", ".h5", ".msgpack", ".onnx", ".ot")
"""Endings of files that transformers does not read beside a model's weights: notes, and weights for other programs."""


def fingerprint(folder: Path, also: Iterable[Path] = ()) -> str:
    """Return a name for the content of a folder's files.

    Every byte counts; a copy of the folder has the same name. Hidden files, subfolders and what transformers does not
    read (`NOT_CONTENT`) are left out.

    Args:
        folder: Of a model, or of a lens.
        also: Files elsewhere that count as well.

    Returns:
        32 hexadecimal digits.

    Raises:
        ReportedError: A file cannot be read.
    """
    try:
        files = {path for path in folder.iterdir() if not path.name.startswith(".") and path.suffix not in NOT_CONTENT}
    except PermissionError as error:
        raise _unreadable(error) from error
    return fingerprint_files(folder, files | set(also))


def fingerprint_files(folder: Path, files: Iterable[Path]) -> str:
    """Return a name for the content of some files, as `fingerprint` does for those of a folder.

    Args:
        folder: Where they lie; the name depends on their paths from here.
        files: What counts.

    Returns:
        32 hexadecimal digits.

    Raises:
        ReportedError: A file cannot be read.
    """
    try:
        with ExitStack() as stack:
            pool = ThreadPoolExecutor(_num_threads())
            stack.callback(pool.shutdown, cancel_futures=True)  # a signal does not wait for the rest of the file
            content = [[os.path.relpath(path, folder), _digest(path, pool)] for path in sorted(files) if path.is_file()]
    except PermissionError as error:
        raise _unreadable(error) from error
    return str(xxhash.xxh3_128_hexdigest(json.dumps(content).encode()))


def _unreadable(error: PermissionError) -> ReportedError:
    return ReportedError(f"{error.filename}: cannot be read; whoever runs this needs the right to read it")


def _num_threads() -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_THREADS, usable)


def _digest(path: Path, pool: ThreadPoolExecutor) -> str:
    """Return the name of a file's content, from the cache where it is known."""
    stamp = _stamp(path)
    if stamp.size < LARGE or stamp.is_young:
        return _read_and_hash(path, pool)
    with _cache_entry(path) as entry:
        if entry is None:
            return _read_and_hash(path, pool)
        about = " ".join(map(str, (BLOCK, *stamp))).encode()
        said, _, known = entry.read().partition(b"\n")
        if said == about and len(known) == 32:
            return known.decode()
        digest = _read_and_hash(path, pool)
        if _stamp(path) == stamp:
            with suppress(OSError):  # a full disk; half an entry is none
                entry.truncate(0)
                entry.write(about + b"\n" + digest.encode())
        return digest


def _read_and_hash(path: Path, pool: ThreadPoolExecutor) -> str:
    starts = range(0, path.stat().st_size, BLOCK)
    return str(xxhash.xxh3_128_hexdigest(b"".join(pool.map(partial(_hash_block, path), starts))))


def _hash_block(path: Path, start: int) -> bytes:
    digest = xxhash.xxh3_128()
    feed(digest, path, start, BLOCK)
    return digest.digest()


# --- the cache ---------------------------------------------------------------------------------------------------


class _Stamp(NamedTuple):
    """What changes with a file's content. The time of the last change cannot be set back, as the others can."""

    size: int
    inode: int
    modified: int
    """In nanoseconds; `rsync` and `cp -p` keep it."""
    changed: int
    """In nanoseconds, of content, name or rights."""

    @property
    def is_young(self) -> bool:
        """Whether the file was changed just now, or, by another machine's clock, in the future."""
        return time.time_ns() - max(self.modified, self.changed) < YOUNG * 1e9


def _stamp(path: Path) -> _Stamp:
    about = path.stat()
    return _Stamp(about.st_size, about.st_ino, about.st_mtime_ns, about.st_ctime_ns)


@contextmanager
def _cache_entry(path: Path) -> Iterator[Optional[FileIO]]:
    """Open what the cache says of a file, for one process at a time: of those that start together only one reads.

    Yields None where nothing can be written or locked; then there is no cache.
    """
    with ExitStack() as stack:
        entry = None
        with suppress(OSError, RuntimeError):  # RuntimeError: the user has no home
            folder = _cache_folder()
            folder.mkdir(parents=True, exist_ok=True)
            name = xxhash.xxh3_128_hexdigest(os.fsencode(path.resolve()))
            opened = stack.enter_context((folder / name).open("a+b", buffering=0))
            fcntl.flock(opened, fcntl.LOCK_EX)
            opened.seek(0)
            entry = opened
        yield entry


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llm_entropy" / "fingerprints"
