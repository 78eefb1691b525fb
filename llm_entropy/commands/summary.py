"""The short table at the end of a run, on the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from llm_entropy.outputs.results import ModelResult, RunResult
from llm_entropy.outputs.summaries import EffectRow, interval_text

MEANS = "Means over the sentences"
COMPARED = (
    "Means over the sentences, at the last layer. difference: condition minus standard. p (Holm): p-value of the "
    "difference, corrected over layers and conditions. placebos: how many of them change the mean at least as much."
)
MIN_KEY_WIDTH = 12
"""Letters to a line of a model's key, where a terminal is too narrow for the whole."""
ANY_WIDTH = 10_000


def print_summary(result: RunResult, *, quiet: bool = False) -> None:
    """Print what each condition changes, and how surely, or the means over the sentences; and where everything is.

    Args:
        result: A finished run, or the task of one.
        quiet: Whether the folder is printed alone, for a script to take.
    """
    if quiet or not result:  # a task of an array has nothing to show
        print(result.run_dir)
        return
    lines = {key: list(_lines(model)) for key, model in result.items()}
    columns = next(iter(lines.values()))[0]
    is_worded = {"model", "metric", "unit", "condition", "placebos"}
    shown = [name for name in columns if name != "condition" or len(_conditions(lines)) > 1]
    table = Table(box=SIMPLE, pad_edge=False)
    for name in shown:
        justify: Any = "left" if name in is_worded else "right"
        look: dict[str, Any] = {"overflow": "fold"} if name == "model" else {"no_wrap": True}
        table.add_column(name, justify=justify, **look)
    for own in lines.values():
        for line in own:
            table.add_row(*(line[name] for name in shown))
        table.add_section()
    console = wide_console(table, max(len(key) for key in result))
    about = COMPARED if "difference" in columns else MEANS
    console.print(about, table, sep="\n", markup=False, highlight=False)
    console.print(f"Tables and plots: {result.run_dir}", soft_wrap=True, markup=False, highlight=False)
    if result.report is not None:
        console.print(f"Report: {result.report.path}", soft_wrap=True, markup=False, highlight=False)


def _conditions(lines: Mapping[str, Sequence[Mapping[str, str]]]) -> set[str]:
    return {line["condition"] for own in lines.values() for line in own}


def _lines(model: ModelResult) -> Iterator[dict[str, str]]:
    """Yield the lines of a model, by column: each metric, and each condition that is compared."""
    effects = [effect for effect in model.effects if effect.at == "last" and effect.strength != 0]
    for row in model.overview:
        start = {"model": row.model, "metric": row.metric, "unit": row.unit}
        own = [effect for effect in effects if effect.columns["metric"] == row.metric]
        if not own:
            ends = {"first layer": _number(row.first_layer), "last layer": _number(row.last_layer)}
            yield {**start, "condition": row.condition, **ends}
        for effect in own:
            yield {
                **start,
                "condition": effect.columns["condition"],
                row.condition: _number(row.last_layer),
                **_said(effect),
            }


def _said(effect: EffectRow) -> dict[str, str]:
    """Return what is said of an effect, by column."""
    found = effect.columns
    low, high = found["ci_low"], found["ci_high"]
    return {
        "difference": _number(found["mean_difference"], "+.4g"),
        "95 % interval": "" if math.isnan(low) else interval_text(low, high),
        "p (Holm)": _p_value(found["p_holm"]),
        "placebos": _beside_placebos(found["placebo_p"], effect.num_placebos),
    }


def _number(value: float, form: str = ".4g") -> str:
    """Return a number in a few digits; nothing of what no sentence has, as the attention of a model without any."""
    return "" if math.isnan(value) else format(value, form)


def _p_value(value: float) -> str:
    if math.isnan(value):
        return "not tested"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _beside_placebos(p_value: float, num_placebos: int) -> str:
    """Say how many placebos change at least as much."""
    if num_placebos == 0 or math.isnan(p_value):
        return ""
    num_larger = round(p_value * (1 + num_placebos)) - 1
    return f"beyond all {num_placebos}" if num_larger == 0 else f"within ({num_larger} of {num_placebos})"


def wide_console(table: Table, key_width: int) -> Console:
    """Return a console in which no number is cut off: a file has no width, on a terminal keys are folded first."""
    console = Console()
    width = console.measure(table, options=console.options.update(width=ANY_WIDTH)).maximum
    if console.is_terminal:
        width -= max(0, key_width - MIN_KEY_WIDTH)
    # With a height, for otherwise rich takes a terminal that it calls dumb for one of 80 letters.
    return Console(width=max(console.width, width), height=console.height)
