"""Standard output and error that never stop the program: closed, without a reader, or without the letters it needs."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Optional, TextIO

_NOBODY_READS = {errno.EPIPE, errno.EIO}
"""A pipe whose reader has ended, as `head` does, and a terminal that was closed."""


@contextmanager
def patient_terminal() -> Iterator[None]:
    """Let standard output and error take everything, as long as the context lasts.

    What nobody reads any more is dropped; letters that the encoding lacks are written as their numbers. Streams that
    are not the process's own, as those of a notebook or a test, are left as they are.
    """
    _open_closed()
    before = sys.stdout, sys.stderr
    try:
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            stream = getattr(sys, name)
            if stream is getattr(sys, f"__{name}__"):
                setattr(sys, name, _patient(descriptor, stream))
        yield
    finally:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        sys.stdout, sys.stderr = before


def _open_closed() -> None:
    """Give closed streams to nobody: the next file that is opened would become the standard output."""
    if None in (sys.__stdin__, sys.__stdout__, sys.__stderr__):
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # takes the lowest that is free
            os.set_inheritable(descriptor, True)
        os.close(descriptor)


def _patient(descriptor: int, stream: Optional[TextIO]) -> TextIO:
    if stream is not None:
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Patient(descriptor, "wb", closefd=False)),
        encoding=getattr(stream, "encoding", "utf-8"),
        errors="backslashreplace",
        line_buffering=getattr(stream, "line_buffering", True),
        write_through=getattr(stream, "write_through", False),
    )


class _Patient(io.FileIO):
    def write(self, content: Any) -> int:
        """Write, or drop what nobody reads; so does, from then on, everybody else who writes there."""
        try:
            return super().write(content)
        except OSError as error:
            if error.errno not in _NOBODY_READS:
                raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        return memoryview(content).nbytes
