"""The short table at the end of a run, on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from llm_entropy.outputs.results import RunResult
from llm_entropy.outputs.summaries import SummaryRow

MIN_KEY_WIDTH = 12
"""Letters to a line of a model's key, where a terminal is too narrow for the whole."""
ANY_WIDTH = 10_000
MOST_COLUMNS = 5
"""Most conditions that have a column of their own."""


def print_summary(result: RunResult, *, quiet: bool = False) -> None:
    """Print the means over the sentences, model by metric, and where everything is.

    Args:
        result: A finished run, or the task of one.
        quiet: Whether the folder is printed alone, for a script to take.
    """
    if quiet or not result:  # a task of an array has nothing to show
        print(result.run_dir)
        return
    layout = _layout([row for model in result.values() for row in model.summary])
    table = Table(box=SIMPLE, pad_edge=False)
    table.add_column("model", overflow="fold")
    for name in ("metric", "unit", *layout.names):
        table.add_column(name, no_wrap=True)
    for name in layout.numbers:
        table.add_column(name, justify="right", no_wrap=True)
    for model in result.values():
        for row in model.summary:
            for cells in _lines(row, layout):
                table.add_row(*cells)
        table.add_section()
    console = wide_console(table, max(len(key) for key in result))
    console.print(layout.about, table, sep="\n", markup=False, highlight=False)
    console.print(f"Tables and plots: {result.run_dir}", soft_wrap=True, markup=False, highlight=False)


class _Layout(NamedTuple):
    """How the table looks."""

    about: str
    """The line above it."""
    names: list[str]
    """Heads of columns of words after the metric's unit."""
    numbers: list[str]
    """Heads of columns of numbers."""
    is_long: bool = False
    """Whether each condition that is compared has a row of its own."""


def _layout(rows: Sequence[SummaryRow]) -> _Layout:
    """Return how the rows of a run are shown: by how many conditions are compared."""
    about, ends = "Means over the sentences", ["first layer", "last layer"]
    baselines = list(dict.fromkeys(row.condition for row in rows))
    others = list(dict.fromkeys(name for row in rows for name in row.mean_differences))
    if not others:
        return _Layout(about, ["condition"] if len(baselines) > 1 else [], ends)
    (baseline,) = baselines  # all others are compared with the same
    if len(others) > MOST_COLUMNS:
        about += f" ({baseline}); difference: condition - {baseline} at the last layer"
        return _Layout(about, ["condition"], [*ends, "difference"], is_long=True)
    if len(others) > 1:
        about += f" ({baseline}); below other conditions: difference from {baseline} at the last layer"
        return _Layout(about, [], [*ends, *others])
    (other,) = others
    return _Layout(f"{about}; difference: {other} - {baseline} at the last layer", [], [*ends, "difference"])


def _lines(row: SummaryRow, layout: _Layout) -> Iterator[list[str]]:
    """Return the lines of the table that show a metric."""
    start, ends = [row.model, row.metric, row.unit], [f"{row.first_layer:.4g}", f"{row.last_layer:.4g}"]
    changes = {name: f"{change:+.4g}" for name, change in row.mean_differences.items()}
    if layout.is_long:
        yield from ([*start, name, *ends, change] for name, change in changes.items())
    else:
        yield [*start, *([row.condition] if layout.names else []), *ends, *changes.values()]


def wide_console(table: Table, key_width: int) -> Console:
    """Return a console in which no number is cut off: a file has no width, on a terminal keys are folded first."""
    console = Console()
    width = console.measure(table, options=console.options.update(width=ANY_WIDTH)).maximum
    if console.is_terminal:
        width -= max(0, key_width - MIN_KEY_WIDTH)
    return Console(width=max(console.width, width))
