"""A process that draws: it is sent what there is to draw, then which figures of it, until nothing more comes."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, Union

from llm_entropy.outputs.plots import figures_of_model, figures_side_by_side
from llm_entropy.outputs.plots.canvas import Drawing
from llm_entropy.outputs.tables import ModelTables

FIGURES_UNTIL_TIDY = 20
"""Figures between two collections of what matplotlib leaves: circles of objects, megabytes to a figure."""


class Sheet(NamedTuple):
    """Figures that are drawn of the same tables."""

    number: int
    tables: Sequence[ModelTables]
    is_side_by_side: bool
    """Whether the models are drawn beside each other, or each by itself."""
    run_dir: Path

    def figures(self) -> list[Drawing]:
        """Return all figures, in the same order in every process."""
        if self.is_side_by_side:
            return figures_side_by_side(self.tables, self.run_dir)
        return [figure for one in self.tables for figure in figures_of_model(one, self.run_dir)]


class Order(NamedTuple):
    """One figure."""

    sheet: int
    place: int
    """In `Sheet.figures`."""
    plot_format: str


class Failure(NamedTuple):
    """Why a figure could not be drawn."""

    error: Exception
    traceback: str


def serve(orders: BinaryIO, answers: BinaryIO) -> None:
    """Draw what comes, and answer each order: None, or a `Failure`.

    Args:
        orders: Pickled: a `Sheet`, which is not answered, or an `Order`.
        answers: Where to.
    """
    figures: dict[int, list[Drawing]] = {}
    num_drawn = 0
    gc.disable()  # matplotlib makes many objects and no work for it within a figure
    gc.freeze()  # what was imported stays: there is no need to look through it
    while True:
        try:
            message: Union[Sheet, Order] = pickle.load(orders)
        except EOFError:
            return
        if isinstance(message, Sheet):
            figures[message.number] = message.figures()
            continue
        pickle.dump(_drawn(figures[message.sheet][message.place], message.plot_format), answers)
        answers.flush()
        num_drawn += 1
        if num_drawn % FIGURES_UNTIL_TIDY == 0:
            gc.collect()


def _drawn(figure: Drawing, plot_format: str) -> Union[Failure, None]:
    try:
        figure.save(plot_format)
    except Exception as error:  # goes to the process that has ordered it, whose it is
        return Failure(error, traceback.format_exc())
    return None


def main() -> None:
    """Serve the process that has started this one; standard output is the way back, and nothing else goes there."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # who started it decides when it ends
        signal.signal(signum, signal.SIG_IGN)
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)
        try:
            serve(sys.stdin.buffer, answers)
        except BrokenPipeError:  # nobody waits for the answer
            os._exit(0)
