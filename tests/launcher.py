"""Starts programs again and again from a process that has imported everything once: `Launcher` is its face.

A start is a fork, so that it takes the program's own time, not that of its imports, and can be killed at any moment.
The copies of itself that Lightning or torchrun would start for the other devices are forked as well: before the program
begins, and they wait until they are wanted.
"""

from __future__ import annotations

import copy
import glob
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, NamedTuple

COMMAND_LINE = "from llm_entropy.commands.cli import main; main(sys.argv[1:])"
TORCHRUN = f"""
import os
if "LOCAL_RANK" in os.environ:
    {COMMAND_LINE}
else:
    import torch.distributed.run
    torch.distributed.run.main(sys.argv[1:])
"""
"""torchrun, and the program as torchrun starts it."""
ENDLESS_BATCH = """
import itertools, time
from llm_entropy.measuring.module import EntropyModule
predict_step, numbers = EntropyModule.predict_step, itertools.count()
def predict_step_or_not(*arguments):
    while next(numbers) == {number}:
        time.sleep(3600)
    return predict_step(*arguments)
EntropyModule.predict_step = predict_step_or_not
"""
"""To stand before a program: a model works on the batch of this number for ever."""
PATIENCE = 0.005
"""Seconds between two looks at a process."""


class Ended(NamedTuple):
    """How a process ended."""

    status: int
    """Exit status, or minus the signal that ended it."""
    seconds: float
    said: str
    """Standard output and error."""
    num_signals: int
    """How many signals it lived to get."""


class Process:
    """A program that was started, the leader of a session of its own, as a shell would make it."""

    def __init__(self, ask: Callable[..., Any], pid: int, output: Path) -> None:
        self.pid = pid
        self.status: int | None = None
        self._ask, self._output = ask, output
        self._start = time.monotonic()

    @property
    def said(self) -> str:
        """Standard output and error, up to now."""
        return self._output.read_text(encoding="utf-8", errors="replace")

    def has_ended(self) -> bool:
        """Whether it has ended; if so, `status` says how."""
        if self.status is None:
            self.status = self._ask("status", self.pid)
        return self.status is not None

    def wait(self, seconds: float = 240) -> Ended:
        """Wait for its end."""
        end = time.monotonic() + seconds
        while not self.has_ended():
            assert time.monotonic() < end, f"not at its end after {seconds} s: {self.said}"
            time.sleep(PATIENCE)
        assert self.status is not None
        return Ended(self.status, time.monotonic() - self._start, self.said, 0)

    def follow(self, signals: list[tuple[float, int]], after: tuple[str, int]) -> Ended:
        """Send signals, each so many seconds after there are so many files of a pattern, and wait for its end."""
        pattern, count = after
        while count and not self.has_ended() and len(glob.glob(pattern)) < count:
            time.sleep(PATIENCE)
        zero, num_signals = time.monotonic() if count else self._start, 0
        for moment, signum in signals:
            while not self.has_ended() and time.monotonic() - zero < moment:
                time.sleep(PATIENCE)
            if not self.has_ended():
                os.kill(self.pid, signum)
                num_signals += 1
        return self.wait()._replace(num_signals=num_signals)


class Launcher:
    """Starts programs in a working directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._server = subprocess.Popen([sys.executable, __file__], env=self.environment, **pipes)

    def at(self, folder: Path) -> Launcher:
        """Return the same launcher in another working directory."""
        other = copy.copy(self)
        other._folder = folder
        return other

    def start(
        self,
        arguments: list[str],
        *,
        program: str = COMMAND_LINE,
        num_copies: int = 0,
        environment: dict[str, str] | None = None,
    ) -> Process:
        """Start a program.

        Args:
            arguments: What it finds in `sys.argv`, behind its name.
            program: Its source.
            num_copies: How many copies of itself it may start.
            environment: Variables that it sees besides those of this process.
        """
        handle, output = tempfile.mkstemp(prefix="said-", dir=self._folder)
        os.close(handle)
        how = [str(self._folder), output, arguments, program, num_copies, environment or {}]
        return Process(self._ask, self._ask("start", *how), Path(output))

    def __call__(
        self,
        arguments: list[str],
        signals: list[tuple[float, int]] | None = None,
        *,
        after: tuple[str, int] = ("", 0),
        **how: Any,
    ) -> Ended:
        """Run a program to its end.

        Args:
            arguments: As for `start`.
            signals: Sent to it, each so many seconds after the start; none once it has ended.
            after: The start, for the signals, is when there are so many files of this pattern in the working directory.
            how: As for `start`.
        """
        pattern, count = after
        return self.start(arguments, **how).follow(signals or [], (str(self._folder / pattern), count))

    def _ask(self, *question: Any) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(question) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(60)
        assert self._server.stdout is not None
        self._server.stdout.close()


# --- the process that has imported everything ----------------------------------------------------------------------


def _serve() -> None:
    _import_everything()
    pids: set[int] = set()
    try:
        for line in sys.stdin:
            what, *how = json.loads(line)
            if what == "start":
                pids.add(answer := _start(*how))
            else:
                found, code = os.waitpid(how[0], os.WNOHANG)
                answer = os.waitstatus_to_exitcode(code) if found else None
                pids -= {found}
            print(json.dumps(answer), flush=True)
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


def _import_everything() -> None:
    """Import what runs of the tests import sooner or later, and compile the loops."""
    import torch
    import torch.distributed.run
    import transformers.models.bert.modeling_bert
    import transformers.models.gpt2.modeling_gpt2  # noqa: F401

    from llm_entropy.kernels import lens_statistics
    from llm_entropy.schema.statistics import Unembedding

    lens_statistics(torch.ones(2, 1, 4), Unembedding(torch.ones(8, 4)), top_slots=[1], square=True, pairs=[(0, 1)])
    assert threading.active_count() == 1, "a fork keeps one thread alone, and the locks of all"


def _start(folder: str, output: str, arguments: list[str], program: str, num_copies: int, environment: Any) -> int:
    child = os.fork()
    if child:
        return child
    os.setsid()
    os.chdir(folder)
    for descriptor, path, flags in ((0, os.devnull, os.O_RDONLY), (1, output, os.O_WRONLY | os.O_APPEND)):
        os.dup2(os.open(path, flags), descriptor)
    os.dup2(1, 2)
    os.environ.update(environment)
    for _ in range(num_copies):
        Copy.waiting.append(WaitingCopy(program))
    _run(program, arguments)
    return 0


def _run(program: str, arguments: list[str]) -> None:
    """Run a program in this process, and end it as the program ends."""
    from lightning.fabric.utilities.rank_zero import _get_rank, rank_zero_only
    from lightning.pytorch.strategies.launchers import subprocess_script
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    rank_zero_only.rank = _get_rank() or 0  # as Lightning reads it when it is imported
    # the two places from which the program's copies are started
    subprocess_script.subprocess = SimpleNamespace(Popen=Copy)
    subprocess_handler.Popen = Copy
    sys.argv = ["llm_entropy", *arguments]
    status = 0
    try:
        exec(program, {"__name__": "__main__", "sys": sys})
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


class WaitingCopy:
    """A child of this process that does nothing until it is told arguments and environment, or is not wanted."""

    def __init__(self, program: str) -> None:
        wanted, self._want = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(wanted)
            return
        os.close(self._want)
        for other in Copy.waiting:
            os.close(other._want)
        with os.fdopen(wanted) as stream:
            said = stream.read()
        if not said:
            os._exit(0)
        arguments, environment, new_session = json.loads(said)
        if new_session:
            os.setsid()
        os.environ.clear()
        os.environ.update(environment)
        Copy.waiting = []
        _run(program, arguments)

    def begin(self, arguments: list[str], environment: dict[str, str], new_session: bool) -> None:
        """Let it run the program."""
        with os.fdopen(self._want, "w") as stream:
            json.dump([arguments, environment, new_session], stream)


class Copy(subprocess.Popen):
    """In place of a Popen of the Python command that would start this program once more: one of those that wait."""

    waiting: list[WaitingCopy] = []  # noqa: RUF012, of the process, as `subprocess._active` is

    def __init__(self, args: Any, env: Any = None, start_new_session: bool = False, **how: Any) -> None:
        assert args[0] == sys.executable
        assert not any(how.values())
        self._how = env, start_new_session
        super().__init__(args)

    def _execute_child(self, args: Any, *_: Any) -> None:
        """Begin, where Popen would fork and execute."""
        chosen = Copy.waiting.pop(0)
        first = args.index("-m") + 2 if "-m" in args else 2
        chosen.begin(list(args[first:]), *self._how)
        self.pid = chosen.pid
        self._child_created = True


if __name__ == "__main__":
    try:
        _serve()
    finally:
        os._exit(0)  # what all these imports would do at the end takes seconds
