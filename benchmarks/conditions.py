"""What conditions cost: the standard run, and 1, 3, 9 and 30 steered ones beside it.

    python -m benchmarks.conditions --save

All of them steer from the first block on, so that each condition runs all blocks but one again, and looks at all layers
but one again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks import report, subjects
from benchmarks.end_to_end import Positions, Subject, count_work, load_bare, typical_batch
from benchmarks.products import best_rate
from llm_entropy.measuring.asked import Asked
from llm_entropy.measuring.module import EntropyModule
from llm_entropy.runs.opening import open_model
from llm_entropy.runs.plan import plan_model
from llm_entropy.schema.batches import Batch
from llm_entropy.settings import AnalysisSettings, ControlSettings, Settings

COUNTS = (0, 1, 3, 9, 30)
"""Steered conditions beside the standard one."""


def main() -> None:
    """Measure, print, and save if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="gpt2", choices=subjects.SIZES, help="of the model")
    parser.add_argument("--tokens", type=int, default=1200, help="of the batch that is timed")
    parser.add_argument("--seconds", type=float, default=60.0, help="about how long each choice of positions is timed")
    parser.add_argument("--save", action="store_true", help="write the table to benchmarks/results")
    chosen = parser.parse_args()
    sizes = subjects.make_config(chosen.size)
    rows: list[Sequence[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        rate = best_rate(sizes.hidden_size, sizes.vocab_size, torch.float32, seconds=10)
        subject = Subject(subjects.save_model(Path(folder), chosen.size), torch.float32, rate)
        for positions in ("last", "all"):
            rows += measure(subject, positions, chosen.tokens, seconds=chosen.seconds)
    command = f"python -m benchmarks.conditions --size {chosen.size} --tokens {chosen.tokens}"
    header = ["positions", "steered conditions", "ms/sentence", "against standard", "aim", "of the floor", "memory"]
    report.show(
        "conditions",
        f"# Conditions\n\n`{command}`: {report.conditions()}\nThe floor: operations of the blocks that run and of the "
        f"layers that are looked at, at {rate / 1e9:,.0f} GFLOP/s, the rate of the fastest bare product. Aim: 1.05 "
        "times the standard run and what each condition must add to it. Memory: of the process at the highest, weights "
        "included.\n\n" + report.table(header, rows),
        saved=chosen.save,
    )


def measure(subject: Subject, positions: Positions, num_tokens: int, *, seconds: float) -> list[Sequence[str]]:
    """Time a batch under every number of conditions, in turn; return a row of the table for each.

    Args:
        subject: What is measured.
        positions: Where it is read.
        num_tokens: Of the batch.
        seconds: About how long it may take.
    """
    modules = make_modules(subject, positions)
    batch = _cut(typical_batch(subject, "short", positions), num_tokens).to(report.device())
    work = count_work(load_bare(subject), modules[0], batch)
    num_blocks = modules[0].view.shape.num_blocks
    standard = work.forward + (num_blocks + 1) * work.lens
    again = work.forward * (num_blocks - 1) / num_blocks + num_blocks * work.lens
    ways: dict[str, Callable[[], object]] = {
        str(count): partial(module.predict_step, batch) for count, module in modules.items()
    }
    took = report.medians(ways, seconds=seconds)
    rows = []
    for count in COUNTS:
        median, operations = took[str(count)], standard + count * again
        rows.append(
            [
                positions,
                str(count),
                f"{1000 * median / len(batch.sentences):,.2f}",
                f"{median / took['0']:.2f}x",
                f"{1.05 * operations / standard:.2f}x",
                f"{operations / subject.rate / median:.0%}",
                report.megabytes(report.resident_peak(ways[str(count)])),
            ]
        )
        print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)
    return rows


def make_modules(subject: Subject, positions: Positions) -> dict[int, EntropyModule]:
    """Return a module for each number of steered conditions, all of one model; they begin at the first block.

    Args:
        subject: What is measured.
        positions: Where it is read.
    """
    settings = {count: _settings(subject, positions, count) for count in COUNTS}
    plans = {count: plan_model("model", subject.folder, each) for count, each in settings.items()}
    opened = open_model(plans[0], settings[0].analysis, precision=subject.trainer.precision)
    modules = {
        count: EntropyModule(opened.view, opened.lens, Asked(settings[count].analysis, plan.steering))
        for count, plan in plans.items()
    }
    return {count: module.to(report.device()) for count, module in modules.items()}


def _settings(subject: Subject, positions: Positions, count: int) -> Settings:
    control = ControlSettings()
    if count:
        vector = np.random.default_rng(0).normal(size=subjects.read_config(subject.folder).hidden_size).tolist()
        control = ControlSettings(control_vector=vector, strengths=np.linspace(0.05, 1.0, count).tolist())
    analysis = AnalysisSettings(positions=positions, compare_control=count > 0, control=control)
    return Settings(analysis=analysis, models={"model": subject.folder}, trainer=subject.trainer)


def _cut(batch: Batch, num_tokens: int) -> Batch:
    """Return the first rows of a batch that have so many tokens."""
    lengths = batch.attention_mask.sum(1).cumsum(0)
    return batch.rows_between(0, max(1, int((lengths <= num_tokens).sum())))


if __name__ == "__main__":
    main()
