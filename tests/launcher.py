"""Starts the command line again and again from a process that has imported everything once: `Launcher` is its face.

A launch is a fork, so that it takes the program's own time, not that of its imports, and can be killed at any moment.
"""

from __future__ import annotations

import glob
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple


class Ended(NamedTuple):
    """How a launch ended."""

    status: int
    """Exit status, or minus the signal that ended it."""
    seconds: float
    said: str
    """Standard output and error."""
    num_signals: int
    """How many signals it lived to get."""


class Launcher:
    """Launches command lines in a working directory."""

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(
        self,
        arguments: list[str],
        signals: list[tuple[float, int]] | None = None,
        *,
        after: tuple[str, int] = ("", 0),
        endless_batch: int | None = None,
    ) -> Ended:
        """Run the program.

        Args:
            arguments: Of the command line.
            signals: Sent to it, each so many seconds after the start; none once it has ended.
            after: The start, for the signals, is when there are so many files of this pattern.
            endless_batch: The batch of this number, from 0 on, never comes to its end.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([arguments, signals or [], after, endless_batch]) + "\n")
        self._process.stdin.flush()
        return Ended(*json.loads(self._process.stdout.readline()))

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)
        assert self._process.stdout is not None
        self._process.stdout.close()


def _launch(
    arguments: list[str], signals: list[tuple[float, int]], after: tuple[str, int], endless_batch: int | None
) -> Ended:
    with tempfile.TemporaryFile() as said:
        start = time.monotonic()
        child = os.fork()
        if not child:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            if endless_batch is not None:
                _make_endless(endless_batch)
            _run(arguments)
        status: int | None = None

        def wait_until(is_time: Callable[[], bool]) -> None:
            nonlocal status
            while status is None and not is_time():
                time.sleep(0.002)
                found, code = os.waitpid(child, os.WNOHANG)
                status = os.waitstatus_to_exitcode(code) if found else None

        pattern, count = after
        wait_until(lambda: len(glob.glob(pattern)) >= count)
        zero, num_signals = time.monotonic() if count else start, 0
        for moment, signum in signals:
            wait_until(lambda moment=moment: time.monotonic() - zero >= moment)
            if status is None:
                os.kill(child, signum)
                num_signals += 1
        if status is None:
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        seconds = time.monotonic() - start
        said.seek(0)
        return Ended(status, seconds, said.read().decode(errors="replace"), num_signals)


def _make_endless(number: int) -> None:
    """Let a model work on the batch of this number for ever."""
    from llm_entropy.module import EntropyModule

    predict_step, numbers = EntropyModule.predict_step, itertools.count()

    def predict_step_or_not(*arguments: Any) -> Any:
        while next(numbers) == number:
            time.sleep(3600)
        return predict_step(*arguments)

    EntropyModule.predict_step = predict_step_or_not


def _run(arguments: list[str]) -> None:
    """Run the command line, and end this process as it ends."""
    from llm_entropy.cli import main

    status = 0
    try:
        main(arguments)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        status = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _serve() -> None:
    import llm_entropy.run  # noqa: F401, imported for those that are forked

    for line in sys.stdin:
        print(json.dumps(_launch(*json.loads(line))), flush=True)


if __name__ == "__main__":
    _serve()
