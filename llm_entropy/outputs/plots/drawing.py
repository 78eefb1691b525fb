"""Figures that were chosen, drawn by several processes at once, or here where there is one processor."""

from __future__ import annotations

import itertools
import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Optional

from llm_entropy.outputs.plots.canvas import Drawing
from llm_entropy.outputs.plots.worker import Failure, Order, Sheet
from llm_entropy.outputs.tables import ModelTables
from llm_entropy.settings import OutputSettings

MOST_PROCESSES = 8
"""More draw no faster: each takes half a second to start, and all the figures of a run some seconds."""
BEGIN = "import sys; sys.path[:] = {path!r}; from llm_entropy.outputs.plots.worker import main; main()"
"""What a process runs. It imports no torch, and not the script that has started this one, as multiprocessing would."""


def num_processes() -> int:
    """Return how many processes draw."""
    if not sys.executable:
        return 1
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(processors, MOST_PROCESSES)


class Drawers:
    """Draws the figures of a run, while the next model is merged; at the end of the context all are there.

    Args:
        output: Which figures, and in which format.
        run_dir: The run's folder.
    """

    def __init__(self, output: OutputSettings, run_dir: Path) -> None:
        self._output, self._run_dir = output, run_dir
        self._numbers = itertools.count()
        self._futures: list[Future[None]] = []
        self._idle: deque[_Process] = deque()
        self._all: list[_Process] = []
        self._threads: Optional[ThreadPoolExecutor] = None

    def __enter__(self) -> Drawers:
        """Start the processes: they are ready when the first model is."""
        count = num_processes() if self._output.draws else 1
        if count > 1:
            self._all = [_Process() for _ in range(count)]
            self._idle = deque(self._all)
            self._threads = ThreadPoolExecutor(count, "draws")
        return self

    def draw_model(self, tables: ModelTables) -> None:
        """Draw the figures of a model."""
        self._draw([tables], is_side_by_side=False)

    def draw_side_by_side(self, tables: Sequence[ModelTables]) -> None:
        """Draw the models beside each other."""
        self._draw(tables, is_side_by_side=True)

    def _draw(self, tables: Sequence[ModelTables], *, is_side_by_side: bool) -> None:
        if not self._output.draws:
            return
        sheet = Sheet(next(self._numbers), tables, is_side_by_side, self._run_dir)
        figures = sheet.figures()
        chosen = [index for index, figure in enumerate(figures) if is_chosen(figure, self._output)]
        if self._threads is None:
            for index in chosen:
                figures[index].save(self._output.plot_format)
            return
        content = pickle.dumps(sheet)
        chosen.sort(key=lambda index: -figures[index].width * figures[index].height)  # what takes longest goes first
        for index in chosen:
            order = Order(sheet.number, index, self._output.plot_format)
            self._futures.append(self._threads.submit(self._give, order, content))

    def _give(self, order: Order, sheet: bytes) -> None:
        """Have a process that is idle draw a figure. There are as many threads as processes: one is idle."""
        process = self._idle.pop()
        try:
            process.draw(order, sheet)
        finally:
            self._idle.append(process)

    def __exit__(self, kind: Optional[type[BaseException]], error: Optional[BaseException], _: Any) -> None:
        """Wait until everything is drawn, unless something has failed, and end the processes.

        Raises:
            Exception: What a process has raised; no other figure is begun then.
        """
        try:
            if error is None:
                for future in self._futures:
                    future.result()
        finally:
            for process in self._all:
                process.end()
            if self._threads is not None:
                self._threads.shutdown(cancel_futures=True)


def is_chosen(figure: Drawing, output: OutputSettings) -> bool:
    """Whether a figure is one of those that are drawn."""
    return output.plots is True or (output.plots is not False and not set(figure.names).isdisjoint(output.plots))


class _Process:
    """A process that draws."""

    def __init__(self) -> None:
        path = [os.path.abspath(entry) for entry in sys.path]
        # A session of its own: Ctrl-C is for the program, which ends it.
        self._process = subprocess.Popen(
            [sys.executable, "-c", BEGIN.format(path=path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._sheets: set[int] = set()

    def draw(self, order: Order, sheet: bytes) -> None:
        """Have a figure drawn, and wait for it.

        Args:
            order: Which.
            sheet: The pickled `Sheet` that it is on.

        Raises:
            Exception: What it has raised, with its traceback as the cause.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            if order.sheet not in self._sheets:
                self._process.stdin.write(sheet)
                self._sheets.add(order.sheet)
            pickle.dump(order, self._process.stdin)
            self._process.stdin.flush()
            answer: Optional[Failure] = pickle.load(self._process.stdout)
        except (EOFError, BrokenPipeError) as error:
            raise RuntimeError(f"a process that draws has ended, with status {self._process.wait()}") from error
        if answer is not None:
            raise answer.error from RuntimeError(answer.traceback)

    def end(self) -> None:
        """End it: when all is drawn it waits for nothing but this."""
        self._process.kill()
        self._process.wait()
        for pipe in filter(None, (self._process.stdin, self._process.stdout)):
            with suppress(BrokenPipeError):  # of an order that it did not come to read
                pipe.close()
