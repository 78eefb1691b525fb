"""Files that are whole or absent, even after the power fails; and locks that do not outlive whoever holds them."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Optional, TextIO

import xxhash

READ = 2**20
"""Bytes that are read at a time."""
LOCKS = ".locks"
"""The folder of a run in which its locks are."""
ATTEMPTS = 5
PATIENCE = 0.05
"""Seconds between two looks at a lock that another process holds."""
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_NO_LINKS = {errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EMLINK}
"""What file systems say that know no hard links: exFAT, SMB, many of those that run in user space."""


def temporary_name(path: Path) -> Path:
    """Return a hidden name beside `path` that no other process uses, on this machine or another."""
    return path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")


def temporaries(folder: Path) -> list[Path]:
    """Return what processes that were killed have left half-written in a folder."""
    return sorted(folder.glob(".*.tmp"))


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; at the end it is on the disk and has its name, or it is gone.

    Args:
        path: What the file is to be called; one that is there is replaced.
    """
    temporary = temporary_name(path)
    try:
        yield temporary
        publish(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise


def publish(temporary: Path, path: Path) -> None:
    """Give a finished file its name, once its bytes are on the disk, and make the name last.

    Args:
        temporary: What was written.
        path: Its name, on the same file system.
    """
    _sync(temporary)
    os.replace(temporary, path)
    _sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def create_text(path: Path, text: str) -> bool:
    """Write a text file unless there is one of that name, and return whether it was written.

    Of several processes that try at once one succeeds; the others find the whole file.
    """
    temporary = temporary_name(path)
    try:
        temporary.write_text(text, encoding="utf-8")
        _sync(temporary)
        created = _name_first(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    if created:
        _sync(path.parent)
    return created


def _name_first(temporary: Path, path: Path) -> bool:
    """Give a finished file a name unless that is taken, and return whether it was free.

    A hard link never replaces a file. Without links a rename does it, under a lock: it would replace one.
    """
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    else:
        return True
    with held(path.with_name(f".{path.name}.lock")):
        if path.exists():
            return False
        os.replace(temporary, path)
        return True


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- checksums ---------------------------------------------------------------------------------------------------


ALGORITHMS: dict[str, Callable[[], Any]] = {"xxh3_128": xxhash.xxh3_128, "sha256": hashlib.sha256}
"""How a file may be checked. New checksums are the first; older runs have SHA-256."""


def checksum(path: Path, algorithm: str = "xxh3_128") -> str:
    """Return a file's checksum behind the algorithm's name: `xxh3_128:99aa06d3014798d86001c324468d497f`.

    The digits are those that `xxh128sum` prints, or `sha256sum`.

    Args:
        path: The file.
        algorithm: A key of `ALGORITHMS`.
    """
    digest = ALGORITHMS[algorithm]()
    feed(digest, path)
    return f"{algorithm}:{digest.hexdigest()}"


def feed(digest: Any, path: Path, start: int = 0, size: int = sys.maxsize) -> None:
    """Bring a checksum up to date with the bytes of a file.

    Args:
        digest: The checksum, of `hashlib` or `xxhash`.
        path: The file.
        start: The first of its bytes.
        size: How many of them, at most.
    """
    buffer = memoryview(bytearray(READ))
    with path.open("rb", buffering=0) as stream:
        stream.seek(start)
        while size and (num_read := stream.readinto(buffer[:size])):
            digest.update(buffer[:num_read])
            size -= num_read


# --- locks -------------------------------------------------------------------------------------------------------


# Not `filelock`, tried in 3.10, 3.16, 3.30, 4.1 and 4.3. Where the file system knows no locks, its `FileLock` raises,
# waits for ever, or makes do with marker files: that depends on the version and the error. Whoever asks whether it is
# held must acquire it. That makes the file, and up to 4.1, the last for Python 3.10, empties it: what a process told
# before it ended is lost. Its `lock_descriptor`, since 3.30, would replace `_try_flock` alone.
class Lock:
    """A file that one process at a time can hold; the system lets go of it when the process ends, however it ends.

    Args:
        path: The file; it stays when the lock is released, and says who held it last.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_real = True
        """Whether the file system knows locks; told once it was acquired."""
        self._stream: Optional[TextIO] = None

    def acquire(self, about: dict[str, Any]) -> bool:
        """Take the lock, unless another process holds it, and return whether it is ours.

        Where the file system knows no locks it is ours at once: that each record is there once is checked at the end.

        Args:
            about: What others should know of the holder, beside host, process and time.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        stream = self.path.open("a+", encoding="utf-8")
        for _ in range(ATTEMPTS):  # whoever only asks whether it is held holds it for a moment
            locked = _try_flock(stream)
            if locked is not False:
                break
            time.sleep(PATIENCE)
        else:
            stream.close()
            return False
        self.is_real = locked is True
        self._stream = stream
        self._since = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self.tell(about)
        return True

    def tell(self, about: dict[str, Any]) -> None:
        """Let others know something else of the holder.

        Args:
            about: What they should know, beside host, process and time.
        """
        assert self._stream is not None
        held_by = {"host": socket.gethostname(), "pid": os.getpid(), "since": self._since}
        self._stream.truncate(0)
        self._stream.write(json.dumps({**held_by, **about}))
        self._stream.flush()
        os.fsync(self._stream.fileno())  # or other machines would not see it as long as the lock is held

    def release(self) -> None:
        """Let go of the lock."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    @property
    def is_held(self) -> bool:
        """Whether any process, this one included, holds it."""
        if self._stream is not None:
            return True
        try:
            stream = self.path.open("r+", encoding="utf-8")
        except (FileNotFoundError, PermissionError):  # nobody ever, or nobody that this user could disturb
            return False
        with stream:
            return _try_flock(stream) is False

    @property
    def told(self) -> dict[str, Any]:
        """What the holder, or the last one, has told; empty where it is just writing it."""
        try:
            about = json.loads(self.path.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        assert isinstance(about, dict)
        return about

    @property
    def holder(self) -> str:
        """Who holds it, or held it last, in words."""
        about = self.told
        if not about:
            return "another process"
        return f"process {about['pid']} on {about['host']} since {about['since']}"


@contextmanager
def held(path: Path) -> Iterator[Lock]:
    """Hold a lock, and wait for whoever holds it before.

    Args:
        path: The lock's file.
    """
    lock = Lock(path)
    while not lock.acquire({}):
        time.sleep(PATIENCE)
    try:
        yield lock
    finally:
        lock.release()


def _try_flock(stream: TextIO) -> Optional[bool]:
    """Return whether the lock is now held through this stream; None where the file system knows no locks."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return None
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True
