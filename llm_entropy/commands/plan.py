"""`llm-entropy plan`: what a run will take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from jsonargparse import Namespace
from rich.box import SIMPLE
from rich.table import Table

from llm_entropy.commands.predict import check_ranks
from llm_entropy.commands.summary import wide_console
from llm_entropy.commands.table import DONE
from llm_entropy.settings import Condition
from llm_entropy.settings.configuration import SettingsParser, settings_parser, to_settings

LEGEND = (
    "tokens, positions: estimated from a sample; forwards: passes through the model per sentence; lenses: layers that "
    "go through the decoder per position; at least: the time of the operations alone, at the speed of this device"
)
MEASURE = "Read the weights, and time a batch of the corpus under all conditions."


def parser(program: str) -> SettingsParser:
    """Return the parser of the command's arguments."""
    plan = settings_parser(
        prog=program,
        description="Estimate the cost of `predict` with the same arguments: conditions, forward passes, lens "
        "products, seconds and bytes. It opens the corpus and tokenises a sample of it, but reads no weights.",
    )
    plan.add_argument("--measure", action="store_true", help=MEASURE)
    return plan


def run(chosen: Namespace) -> int:
    """Do what was chosen, and return the exit status."""
    settings = to_settings(chosen)
    check_ranks()
    from llm_entropy.runs.estimate import forecast_run
    from llm_entropy.runs.strengths import describe_searches
    from llm_entropy.store.log import run_log

    with run_log(quiet=False):
        found = forecast_run(settings, measures=chosen.measure)
    rows = [one.row() for one in found]
    table = Table(box=SIMPLE, pad_edge=False)
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "model" else "right", no_wrap=name != "model", overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    console = wide_console(table, max(len(row["model"]) for row in rows))
    look: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}
    console.print(_conditions_in_words(settings.analysis.run_conditions), **look)
    console.print(table)
    console.print(LEGEND, **look)
    for line in describe_searches(settings):
        console.print(line, **look)
    return DONE


def _conditions_in_words(conditions: Sequence[Condition]) -> str:
    """Name the conditions; placebos are counted by what they stand in for."""
    names = [condition.name for condition in conditions if condition.keeps_tokens]
    kinds = Counter(
        (steering.source, steering.placebo.kind)
        for condition in conditions
        if (steering := condition.steering) is not None and steering.placebo is not None
    )
    placebos = [f"{count} {kind} placebos of {source}" for (source, kind), count in kinds.items()]
    return f"{len(conditions)} conditions: {', '.join([*names, *placebos])}"
