"""What results look like at a prompt and in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_entropy.outputs.summaries import EffectRow, SummaryRow, interval_text

if TYPE_CHECKING:
    import pandas as pd

MOST_NAMES = 8
"""Most names that a line lists."""


def listed(names: Iterable[str]) -> str:
    """Return names with commas, the last of many left out."""
    every = list(names)
    more = f", ... ({len(every)} in all)" if len(every) > MOST_NAMES else ""
    return ", ".join(every[:MOST_NAMES]) + more


def html_of_model(overview: Sequence[SummaryRow], effects: Sequence[EffectRow]) -> str:
    """Return the means of a model, and what each condition changes at the last layer, as HTML tables.

    Args:
        overview: Its rows, as `ModelResult.overview`.
        effects: As `ModelResult.effects`.
    """
    means = [
        (row.metric, row.unit, row.condition, _number(row.first_layer), _number(row.last_layer)) for row in overview
    ]
    tables = _table(("metric", "unit", "condition", "mean, first layer", "mean, last layer"), means)
    changes = [_change(row.columns) for row in effects if row.at == "last" and row.strength != 0]
    if changes:
        tables += _table(("condition", "metric", "difference, last layer", "95 % interval", "p (Holm)"), changes)
    return tables


def html_of_run(mode: str, run_dir: Path, models: Iterable[tuple[str, str]]) -> str:
    """Return a run as HTML.

    Args:
        mode: What was written.
        run_dir: The run's folder.
        models: Keys, and what `html_of_model` made of each.
    """
    parts = [f"<p>Run ({escape(mode)}) in <code>{escape(str(run_dir))}</code></p>"]
    parts += [f"<h4>{escape(key)}</h4>{tables}" for key, tables in models]
    return "".join(parts)


def html_of_line(text: str) -> str:
    """Return a line of text as HTML."""
    return f"<code>{escape(text)}</code>"


def tidy(frame: pd.DataFrame, **about: str) -> pd.DataFrame:
    """Return a table of a row per sentence and a column per layer as one of a row per sentence and layer.

    Args:
        frame: As `read_metric` or `read_comparison` return it.
        about: Columns that stand first, the same in each row.

    Returns:
        Columns: those of `about`, `row` (number of the sentence, in corpus order), `sentence`, `quantity` in a
        comparison, `layer` (or block, counted from 0), `value`.
    """
    long = frame.reset_index()
    names = [str(name) for name in frame.index.names]
    quantities = long["quantity"].nunique() if "quantity" in names else 1
    long.insert(0, "row", long.index // max(quantities, 1))
    long = long.melt(id_vars=["row", *names], var_name="layer", value_name="value").astype({"layer": int})
    long = long.sort_values(["row", *names[1:], "layer"], kind="stable", ignore_index=True)
    for place, (name, value) in enumerate(about.items()):
        long.insert(place, name, value)
    return long


def _change(columns: dict[str, Any]) -> tuple[str, ...]:
    interval = interval_text(columns["ci_low"], columns["ci_high"])
    return (
        *(columns["condition"], columns["metric"], f"{columns['mean_difference']:+.4g}", interval),
        "not tested" if isnan(columns["p_holm"]) else f"{columns['p_holm']:.3g}",
    )


def _number(value: float) -> str:
    return "" if isnan(value) else f"{value:.4g}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
