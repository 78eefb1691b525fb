"""What do 16-bit weights and forward passes cost in accuracy?

    python -m benchmarks.precision --save

`trainer.precision` bf16-true and 16-true against 32-true, on the built-in models and sentences, every position of the
causal one: differences of each metric, record by record and layer by layer, and how often the most likely token of the
last layer is the same. About a minute.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks import report
from llm_entropy import METRICS, OutputSettings, TrainerSettings, run_analysis

MODELS = {"tiny-gpt2": "builtin:tiny-gpt2", "tiny-bert": "builtin:tiny-bert"}
BASE = "32-true"
PRECISIONS = ("bf16-true", "16-true")


def main() -> None:
    """Measure, print, and save if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, help="how many of the built-in ones; default: all")
    parser.add_argument("--save", action="store_true", help="write the tables to benchmarks/results")
    chosen = parser.parse_args()
    records = {precision: read_records(precision, chosen.sentences) for precision in (BASE, *PRECISIONS)}
    parts = [
        f"# Precision\n\n`python -m benchmarks.precision`: {report.conditions('weights as said, statistics float32')}\n"
        "Absolute differences from 32-true over all records and layers (attention entropy: blocks and heads), in the "
        "unit of the metric. Same prediction: share of records whose most likely token at the last layer is that of "
        "32-true; where it is not, surprisal and rank of a position without a true token are those of another token.\n"
    ]
    for model in MODELS:
        parts.append(f"\n## builtin:{model}, {len(records[BASE][model]):,} records\n\n")
        parts.append(compare(records[BASE][model], {name: records[name][model] for name in PRECISIONS}))
    report.show("precision", "".join(parts), saved=chosen.save)


def read_records(precision: str, num_sentences: int | None) -> dict[str, pd.DataFrame]:
    """Run the analysis with every metric, and return the records of each model.

    Args:
        precision: `trainer.precision`.
        num_sentences: None: all.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = run_analysis(
            MODELS,
            num_sentences=num_sentences,
            positions="all",
            metrics=list(METRICS),
            trainer=TrainerSettings(devices=1, precision=precision),  # type: ignore[arg-type]
            output=OutputSettings(dir=str(Path(folder)), plots=False, csv=False),
            quiet=True,
        )
        return {model: result[model]["standard"].records for model in MODELS}


def compare(base: pd.DataFrame, others: dict[str, pd.DataFrame]) -> str:
    """Return a table of the differences between the records of one model.

    Args:
        base: In float32.
        others: The same records, by precision.
    """
    rows = []
    for metric in METRICS:
        truth = _values(base, metric)
        row = [metric, METRICS[metric].unit, f"{np.abs(truth).mean():.3g}"]
        for other in others.values():
            difference = np.abs(_values(other, metric) - truth)
            numbers = [np.median(difference), np.quantile(difference, 0.99), difference.max()]
            row += [f"{number:.1e}" for number in numbers]
        rows.append(row)
    header = ["metric", "unit", f"mean at {BASE}"]
    header += [f"{name}: {part}" for name in others for part in ("median", "99 %", "largest")]
    same = [f"{(_predictions(base) == _predictions(other)).mean():.2%} ({name})" for name, other in others.items()]
    return f"{report.table(header, rows)}\nSame prediction: {', '.join(same)}.\n"


def _values(records: pd.DataFrame, metric: str) -> npt.NDArray[np.float64]:
    """Return [record, layer]."""
    return np.stack(records[metric].to_list()).astype(np.float64)


def _predictions(records: pd.DataFrame) -> npt.NDArray[np.str_]:
    """Return [record], the most likely token at the last layer."""
    return np.array([tokens[0] for tokens in records["top_tokens"]])


if __name__ == "__main__":
    main()
