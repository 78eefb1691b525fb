"""How a text file is opened: what unpacks it, which encoding it has, and what is no text although it is named so."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, Optional

from llm_entropy.errors import ReportedError

try:
    import zstandard
except ImportError:  # `datasets` does without it, too
    zstandard = None

HEAD_BYTES = 1 << 18
"""How much of a file is looked at before it is read."""
_CHUNK = 1 << 16


def _open_zstandard(path: Path) -> Any:
    if zstandard is None:
        raise ReportedError(f"data.path: {path.name} needs a package to unpack it: pip install 'llm-entropy[zstd]'")
    return zstandard.open(path, "rb")


COMPRESSIONS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstandard,
}
"""What unpacks a file, by the end of its name."""
DAMAGED: tuple[type[Exception], ...] = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError)
"""What these raise where a file is cut off or damaged; for bz2 it is an OSError without a number."""
if zstandard is not None:
    DAMAGED = (*DAMAGED, zstandard.ZstdError)
_OPENING: tuple[type[Exception], ...] = (OSError, UnicodeError, *DAMAGED)

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Encodings by the byte order mark that a file begins with; the mark of UTF-32 begins with that of UTF-16."""
_NO_TEXT = {
    b"version https://git-lfs.github.com/spec/": "is a git-lfs pointer, not the file; fetch it with `git lfs pull`",
    b"<!doctype html": "is a web page, not the file; download the file itself",
    b"PK\x03\x04": "is a zip archive or an office document; unpack it, or save it as csv",
    b"\x1f\x8b": "is compressed by gzip; add .gz to its name",
    b"BZh": "is compressed by bzip2; add .bz2 to its name",
    b"\xfd7zXZ\x00": "is compressed by xz; add .xz to its name",
    b"(\xb5/\xfd": "is compressed by zstandard; add .zst to its name",
    b"PAR1": "is a parquet file; name it .parquet",
    b"%PDF-": "is a PDF, not text",
}
"""What a file is that begins so, whatever its name."""


Check = Callable[[Path, Optional[str]], Iterator[int]]
"""Reads a file row by row, yields how many lines each takes, and raises a ReportedError where one is not what the first
ones promise. Given are the file and the column of text; None: any, in search of the reason why it could not be read."""


class TextFiles(NamedTuple):
    """Text files that are read together."""

    paths: Sequence[Path]
    encoding: str
    check: Optional[Check] = None
    """Where there is something to hold rows against."""

    def checked(self, column: str) -> Iterator[int]:
        """Hold every row of every file against what the first ones promise."""
        for file in range(len(self.paths)):
            yield from self.checked_file(file, column)

    def checked_file(self, file: int, column: str) -> Iterator[int]:
        """Do so with one file, by its number."""
        return iter(()) if self.check is None else self.check(self.paths[file], column)


def compression_of(path: Path) -> str:
    """Return the key of `COMPRESSIONS` that a file's name ends in, or an empty string."""
    return path.suffix.lower() if path.suffix.lower() in COMPRESSIONS else ""


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file, unpacked.

    Raises:
        ReportedError: What unpacks it is not installed.
    """
    compression = compression_of(path)
    opened: IO[bytes] = COMPRESSIONS[compression](path) if compression else path.open("rb")
    return opened


@contextmanager
def open_text(path: Path, encoding: str) -> Iterator[IO[str]]:
    """Open a file as text, with its line ends as they are; a damaged or wrongly decoded file is a ReportedError."""
    with (
        reported(TextFiles([path], encoding)),
        open_bytes(path) as file,
        io.TextIOWrapper(file, encoding=encoding, newline="") as text,
    ):
        yield text


@contextmanager
def reported(files: TextFiles) -> Iterator[None]:
    """Turn what a damaged file, or one of another encoding, raises into a ReportedError that names it."""
    try:
        yield
    except _OPENING as error:
        reason = reason_of(error, files)
        if reason is None:
            raise
        raise ReportedError(reason) from error


def reason_of(error: BaseException, files: TextFiles) -> str | None:
    """Return what is wrong with files whose reading ended in an error; None: nothing that is known here."""
    is_of_encoding = _is_of_encoding(error)
    if is_of_encoding or isinstance(error, DAMAGED) or (isinstance(error, OSError) and error.errno is None):
        # A damaged block may come out as any bytes, before the sum over it is found to be wrong.
        damage = next(filter(None, map(_damage, files.paths)), None)
        if damage or not is_of_encoding:
            return damage
        return next(filter(None, (_undecodable(path, files.encoding) for path in files.paths)), None)
    if files.check is not None and isinstance(error, (ValueError, TypeError)):
        try:
            for path in files.paths:
                deque(files.check(path, None), maxlen=0)
        except ReportedError as found:
            return str(found)
    return None


def encoding_of(path: Path, asked: str | None) -> str:
    """Return the encoding of a file: the one asked for, or what its byte order mark says, or UTF-8.

    Raises:
        ReportedError: It is no text, or not UTF-8: other encodings cannot be told from each other.
    """
    with reported(TextFiles([path], asked or "utf-8")), open_bytes(path) as file:
        head = file.read(HEAD_BYTES)
    for start, what in _NO_TEXT.items():
        if head[: len(start)].lower() == start.lower():
            raise ReportedError(f"data.path: {path.name} {what}")
    encoding = asked or next((name for mark, name in _MARKS.items() if head.startswith(mark)), "utf-8")
    if asked is None and encoding == "utf-8" and b"\0" in head:
        raise ReportedError(
            _damage(path)
            or f"data.encoding: {path.name} holds NUL bytes; if it is UTF-16 without a byte order mark, "
            "say so: data.encoding utf-16-le or utf-16-be"
        )
    try:
        codecs.getincrementaldecoder(encoding)().decode(head, final=len(head) < HEAD_BYTES)
    except UnicodeError as error:
        raise ReportedError(reason_of(error, TextFiles([path], encoding)) or str(error)) from error
    return encoding


def read_head(path: Path, encoding: str) -> tuple[str, bool]:
    """Return the first whole lines of a file, and whether that is all of it."""
    with open_text(path, encoding) as text:
        head, more = text.read(HEAD_BYTES), text.read(1)
    if not more:
        return head, True
    return head[: head.rfind("\n") + 1] or head, False


def _is_of_encoding(error: BaseException) -> bool:
    # Arrow's errors are ValueErrors, told by their words alone.
    return isinstance(error, UnicodeError) or "utf8" in str(error).lower().replace("-", "")


def _undecodable(path: Path, encoding: str) -> str | None:
    """Say where a file is not in an encoding; None: nowhere."""
    decoder, num_lines = codecs.getincrementaldecoder(encoding)(), 1
    with open_bytes(path) as file:
        while True:
            chunk, state = file.read(_CHUNK), decoder.getstate()
            try:
                num_lines += decoder.decode(chunk, final=not chunk).count("\n")
            except UnicodeDecodeError as error:
                good = len(chunk) - (len(error.object) - error.start)
                decoder.setstate(state)
                num_lines += decoder.decode(chunk[: max(good, 0)]).count("\n")
                return _not_decoded(path, encoding, num_lines, error)
            if not chunk:
                return None


def _not_decoded(path: Path, encoding: str, line: int, error: UnicodeDecodeError) -> str:
    around = error.object[max(0, error.start - 20) : error.start + 20].decode("cp1252", "replace")
    words = " ".join("".join(c if c.isprintable() else " " for c in around).split())
    return (
        f"data.encoding: line {line} of {path.name} is not {encoding.upper().removesuffix('-SIG')} "
        f"(byte 0x{error.object[error.start]:02x}; in cp1252 it would be {words!r}); "
        "name the encoding, for instance data.encoding cp1252"
    )


def _damage(path: Path) -> str | None:
    """Say what is wrong with a compressed file; None: it can be unpacked to its end."""
    if not compression_of(path):
        return None
    try:
        with open_bytes(path) as file:
            while file.read(_CHUNK):
                pass
    except _OPENING as error:
        what = "is cut off" if isinstance(error, EOFError) else "is damaged, or not compressed as its name says"
        return f"data.path: {path.name} {what} ({error}); fetch it again"
    return None
