"""How full do `auto` batches make a GPU; is too little memory survived; do two processes on a card give one's bytes?

    python -m benchmarks.auto_batches --save

Models with random weights, all six default metrics. Without a GPU all of it runs too, to try it out: there the size of
a batch does not depend on the memory, and that there is too little of it is pretended.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Optional, Union
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch

from benchmarks import report, subjects
from llm_entropy import DataSettings, OutputSettings, TrainerSettings, run_analysis
from llm_entropy.measuring.module import EntropyModule
from llm_entropy.schema.batches import Batch
from llm_entropy.schema.records import ConditionRecords
from llm_entropy.settings import CONTROL, STANDARD

CASES = {"last, standard": ("last", False), "all, comparative": ("all", True)}
"""The lightest and the heaviest: positions, and whether two conditions are compared."""
SHARE = 0.6
"""Of the memory that a run took, what it gets when it gets too little."""
MOST_SENTENCES = 3
"""Without a GPU: more together are said to be too much."""
DID_NOT_FIT = "out of memory with a batch"
"""How a warning of the program begins."""


def main() -> None:
    """Measure, print, and save if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = ", ".join(subjects.SIZES)
    parser.add_argument("--size", default="gpt2,llama-1.5b", help=f"of the models, with commas between: {sizes}")
    parser.add_argument("--sentences", type=int, default=700, help="of about 200 tokens, in each run")
    parser.add_argument("--save", action="store_true", help="write the tables to benchmarks/results")
    chosen = parser.parse_args()
    dtype = torch.bfloat16 if report.device().type == "cuda" else torch.float32
    sentences = subjects.make_sentences(chosen.sentences, "long")
    tables = report.Report("auto-batches", saved=chosen.save)
    tables.add(
        f"# Auto batches\n\n`python -m benchmarks.auto_batches --size {chosen.size} --sentences {chosen.sentences}`: "
        f"{report.conditions(str(dtype).removeprefix('torch.'))}\n{chosen.sentences} sentences of about "
        f"{subjects.LENGTHS['long']:.0f} tokens.\n"
    )
    for number, size in enumerate(chosen.size.split(",")):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            model = subjects.save_model(folder / "model", size, dtype)
            run = partial(run_model, model, sentences, dtype=dtype)
            tables.add(f"\n## How full the memory gets: {size}\n\n{measure_fill(run, folder)}")
            if number == 0:
                tables.add(f"\n## Too little memory: {size}\n\n{measure_little_memory(run, folder)}")
                corpus = folder / "corpus.csv"
                pd.DataFrame({"text": sentences}).to_csv(corpus, index=False)
                both = compare_processes(model, corpus, folder, dtype)
                tables.add(f"\n## Two processes on one card: {size}\n\n{both}")


def run_model(
    model: str,
    sentences: Sequence[str],
    where: Path,
    positions: str,
    compares: bool,
    *,
    dtype: torch.dtype,
    tokens: Union[int, str] = "auto",
) -> Path:
    """Run a model over sentences, and return the folder of the run.

    Args:
        model: Its folder.
        sentences: The corpus.
        where: Folder of the run, which is not there yet.
        positions: Where sentences are read.
        compares: Whether a second condition is steered, from the first block on.
        dtype: Of the weights.
        tokens: Of a batch.
    """
    options: dict[str, Any] = {"tokens_per_batch": tokens}
    result = run_analysis(
        {"model": model},
        sentences=sentences,
        positions=positions,
        compare_control=compares,
        control_vector=random_vector(model) if compares else None,
        data=DataSettings(**options),
        trainer=TrainerSettings(devices=1, precision=precision(dtype)),  # type: ignore[arg-type]
        output=OutputSettings(dir=str(where.parent), run_name=where.name, plots=False),
        quiet=True,
    )
    return Path(result.run_dir)


def precision(dtype: torch.dtype) -> str:
    """Return what the settings call a type of weights."""
    return "bf16-true" if dtype == torch.bfloat16 else "32-true"


def random_vector(model: str) -> list[float]:
    """Return a vector that steers every block.

    Args:
        model: Its folder.
    """
    return np.random.default_rng(0).normal(size=subjects.read_config(model).hidden_size).tolist()


def batch_tokens(run_dir: Path) -> int:
    """Return how many tokens fill a batch of a run."""
    return int(json.loads((run_dir / "shards/model/model.json").read_text(encoding="utf-8"))["tokens_per_batch"])


# --- how full the memory gets ------------------------------------------------------------------------------------


def measure_fill(run: Callable[..., Path], folder: Path) -> str:
    """Run every case with batches that are chosen by the memory, and return a table.

    Args:
        run: `run_model`, of a model.
        folder: Of the runs.
    """
    total = device_memory()
    rows = []
    for case, (positions, compares) in CASES.items():
        where = folder / f"fill {case}"
        let_go()
        peak = report.resident_peak(partial(run, where, positions, compares))
        reserved = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else peak
        row = [case, f"{batch_tokens(where):,}", report.megabytes(peak), f"{peak / total:.0%}"]
        rows.append([*row, f"{reserved / total:.0%}", str(len(out_of_memory_warnings(where)))])
    header = ["case", "tokens of a batch", "peak", f"of {report.megabytes(total)}", "reserved", "out of memory"]
    return report.table(header, rows)


def device_memory() -> int:
    """Return the bytes of the GPU's memory; of the machine's, where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(report.device()).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def let_go() -> None:
    """Give back the memory of what is not used any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def out_of_memory_warnings(run_dir: Path) -> list[str]:
    """Return what a run's log has of batches that did not fit.

    Args:
        run_dir: Of the run.
    """
    lines = (run_dir / "run.log").read_text(encoding="utf-8").splitlines()
    return [line[line.index(DID_NOT_FIT) :] for line in lines if DID_NOT_FIT in line]


# --- too little memory -------------------------------------------------------------------------------------------


def measure_little_memory(run: Callable[..., Path], folder: Path) -> str:
    """Run the heaviest case with all memory and with too little, and return how the numbers differ.

    Args:
        run: `run_model`, of a model.
        folder: Of the runs.
    """
    *_, (positions, compares) = CASES.values()
    plenty, little = folder / "plenty", folder / "little"
    let_go()
    peak = report.resident_peak(partial(run, plenty, positions, compares))
    tokens = batch_tokens(plenty)
    let_go()
    with little_memory(int(SHARE * peak)):
        run(little, positions, compares, tokens=tokens)
    let_go()
    told = (
        "\n".join(f"- {warning}" for warning in out_of_memory_warnings(little))
        or "- nothing: the memory was enough, so nothing was tried"
    )
    limit = report.megabytes(SHARE * peak) if torch.cuda.is_available() else f"{MOST_SENTENCES} sentences (pretended)"
    difference = largest_difference(plenty, little)
    return (
        f"Batches of {tokens:,} tokens took {report.megabytes(peak)}; with at most {limit} the run said:\n\n{told}\n\n"
        f"and ended with all its tables. The entropies differ by at most {difference:.1e} nats.\n"
    )


@contextmanager
def little_memory(most_bytes: int) -> Iterator[None]:
    """Let there be too little memory: a limit of this process on a GPU, and a pretended error without one.

    Args:
        most_bytes: What this process may take of the GPU's memory.
    """
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(most_bytes / device_memory())
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return
    measure = EntropyModule._measure

    def refuse_many(module: EntropyModule, batch: Batch) -> list[ConditionRecords]:
        if len(batch.sentences) > MOST_SENTENCES:
            raise torch.OutOfMemoryError("pretended")
        return measure(module, batch)

    with patch.object(EntropyModule, "_measure", refuse_many):
        yield


def largest_difference(a: Path, b: Path) -> float:
    """Return the largest difference between the entropies of two runs, in nats.

    Args:
        a: Folder of a run.
        b: Folder of another, of the same sentences.
    """
    differences = []
    for path in (a / condition / "data/model.parquet" for condition in (STANDARD, CONTROL)):
        mine, other = (np.stack(pd.read_parquet(each)["entropy"]) for each in (path, b / path.relative_to(a)))
        assert mine.shape == other.shape
        differences.append(float(np.abs(mine - other).max()))
    return max(differences)


# --- two processes on one card -----------------------------------------------------------------------------------


def compare_processes(model: str, corpus: Path, folder: Path, dtype: torch.dtype) -> str:
    """Run a corpus by one process, and by two tasks of an array at the same time; return whether the bytes agree.

    Args:
        model: Its folder.
        corpus: A file of sentences.
        folder: Of the runs.
        dtype: Of the weights.
    """
    options = {
        "models": {"model": model},
        "data": {"path": str(corpus)},
        "analysis": {
            "num_sentences": None,
            "positions": "all",
            "compare_control": True,
            "control": {"control_vector": random_vector(model)},
        },
        "trainer": {"devices": 1, "precision": precision(dtype)},
        "output": {"dir": str(folder), "plots": False},
    }
    config = folder / "config.yaml"
    config.write_text(json.dumps(options), encoding="utf-8")
    predict = ["predict", f"--config={config}"]
    start([[*predict, "--output.run_name=one"]])
    two = ["--output.run_name=two", "--data.num_shards=2"]
    start([[*predict, *two, f"--data.shard_index={task}"] for task in range(2)])
    start([["merge", str(folder / "two")]])
    one, both = (tables_of(folder / name) for name in ("one", "two"))
    other = sorted(path for path in one.keys() | both.keys() if one.get(path) != both.get(path))
    sizes = " and ".join(f"{batch_tokens(folder / name):,}" for name in ("one", "two"))
    if not other:
        return f"All {len(one)} tables are the same, byte for byte; batches of {sizes} tokens.\n"
    difference = largest_difference(folder / "one", folder / "two")
    return (
        f"{len(other)} of {len(one)} tables are not the same; batches of {sizes} tokens; the entropies differ by at "
        f"most {difference:.1e} nats:\n\n" + "\n".join(f"- {path}" for path in other) + "\n"
    )


def start(commands: Sequence[Sequence[str]], timeout: Optional[float] = 300) -> None:
    """Run commands of the program at the same time, each in a process of its own, until all have ended.

    Args:
        commands: What stands behind `llm-entropy`.
        timeout: Of each, in seconds.
    """
    program = [sys.executable, "-m", "llm_entropy"]
    processes = [
        subprocess.Popen([*program, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for words in commands
    ]
    try:
        for process, words in zip(processes, commands, strict=True):
            said, _ = process.communicate(timeout=timeout)
            if process.returncode:
                raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}:\n{said[-2000:]}")
    finally:
        for process in processes:
            process.kill()


def tables_of(run_dir: Path) -> dict[str, str]:
    """Return a hash of every table of a run, by its path.

    Args:
        run_dir: Of the run.
    """
    paths = [path for end in ("csv", "parquet") for path in run_dir.rglob(f"*.{end}") if "shards" not in path.parts]
    return {str(path.relative_to(run_dir)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


if __name__ == "__main__":
    main()
