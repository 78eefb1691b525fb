"""The short table at the end of a run, on the terminal."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from llm_entropy.outputs.results import RunResult
from llm_entropy.settings import COMPARATIVE

MIN_KEY_WIDTH = 12
"""Letters to a line of a model's key, where a terminal is too narrow for the whole."""
ANY_WIDTH = 10_000


def print_summary(result: RunResult, *, quiet: bool = False) -> None:
    """Print the means over the sentences, model by metric, and where everything is.

    Args:
        result: A finished run, or the task of one.
        quiet: Whether the folder is printed alone, for a script to take.
    """
    if quiet or not result:  # a task of an array has nothing to show
        print(result.run_dir)
        return
    compares = result.mode == COMPARATIVE
    table = Table(box=SIMPLE, pad_edge=False)
    table.add_column("model", overflow="fold")
    for name in ("metric", "unit"):
        table.add_column(name, no_wrap=True)
    for name in ("first layer", "last layer", *(["difference"] if compares else [])):
        table.add_column(name, justify="right", no_wrap=True)
    for model in result.values():
        for row in model.summary:
            change = [] if row.mean_difference is None else [f"{row.mean_difference:+.4g}"]
            table.add_row(row.model, row.metric, row.unit, f"{row.first_layer:.4g}", f"{row.last_layer:.4g}", *change)
        table.add_section()
    console = _console(table, max(len(key) for key in result))
    about = "Means over the sentences"
    if compares:
        about += "; difference: control - standard at the last layer"
    console.print(about, table, sep="\n", markup=False, highlight=False)
    console.print(f"Tables and plots: {result.run_dir}", soft_wrap=True, markup=False, highlight=False)


def _console(table: Table, key_width: int) -> Console:
    """Return a console in which no number is cut off: a file has no width, on a terminal keys are folded first."""
    console = Console()
    width = console.measure(table, options=console.options.update(width=ANY_WIDTH)).maximum
    if console.is_terminal:
        width -= max(0, key_width - MIN_KEY_WIDTH)
    return Console(width=max(console.width, width))
