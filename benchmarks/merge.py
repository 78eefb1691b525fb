"""How long does the merge take, and how much memory, for many records?

    python -m benchmarks.merge --records 1000000,10000000 --save

The shards are made up, without a model: parts with markers, as processes write them. Each merge is a process of its
own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import report
from llm_entropy.outputs.merge import MergeOptions, MergeSource, merge_model
from llm_entropy.schema.batches import BatchKey, WindowNotes
from llm_entropy.schema.shape import ModelShape
from llm_entropy.schema.shards import shard_schema
from llm_entropy.settings import AnalysisSettings, ControlSettings
from llm_entropy.store.files import checksum
from llm_entropy.store.ledger import Marker, rank_folder, read_ledger
from llm_entropy.store.windows import WINDOW_ROWS, Task

SHAPE = ModelShape(num_blocks=2, num_heads=1, hidden_size=8, vocab_size=50_257)
ANALYSIS = AnalysisSettings(
    metrics=["entropy", "surprisal"],
    compare_control=True,
    top_k=2,
    tracked_tokens=1,
    control=ControlSettings(control_vector=[1.0]),
)
CONFIG_HASH = "made up"


def main() -> None:
    """Measure, print, and save if asked; with `--folder` merge what is there, which is what is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", default="1000000", help="numbers of records, with commas between")
    parser.add_argument("--save", action="store_true", help="write the table to benchmarks/results")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--csv", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.folder is not None:
        ledger = read_ledger(chosen.folder / "shards/made-up", CONFIG_HASH)
        source = MergeSource("made-up", "made up", "causal", SHAPE, ledger)
        merge_model(chosen.folder, source, ANALYSIS, MergeOptions(csv=chosen.csv))
        return
    rows = [row for records in chosen.records.split(",") for row in _measure(int(records))]
    header = ["records", "parts", "shards", "csv", "outputs", "seconds", "records/s", "peak memory"]
    text = (
        f"# Merge\n\n`python -m benchmarks.merge`: {report.conditions()}\nComparative; 2 metrics at 3 layers; one "
        "record to a sentence; Parquet always. Memory: resident, mapped files included.\n\n"
        + report.table(header, rows)
    )
    print(text)
    if chosen.save:
        print(f"written to {report.save('merge', text)}")


def _measure(num_records: int) -> list[Sequence[str]]:
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        num_parts = _write_shards(folder / "shards/made-up", num_records)
        shards = _size_of(folder / "shards")
        for has_csv in (True, False):
            command = [sys.executable, "-m", "benchmarks.merge", "--folder", name, *(["--csv"] if has_csv else [])]
            start = time.perf_counter()
            process = subprocess.Popen(command)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise SystemExit(f"the merge ended with {process.returncode}")
            seconds = time.perf_counter() - start
            outputs = _size_of(folder) - shards
            row = [f"{num_records:,}", str(num_parts), f"{shards / 2**20:,.0f} MiB", "yes" if has_csv else "no"]
            row += [f"{outputs / 2**20:,.0f} MiB", f"{seconds:.0f}", f"{num_records / seconds:,.0f}"]
            rows.append([*row, f"{usage.ru_maxrss / 2**10:,.0f} MiB"])
            print(json.dumps(row), file=sys.stderr, flush=True)
            for path in folder.rglob("data/*"):
                path.unlink()
    return rows


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _write_shards(folder: Path, num_records: int) -> int:
    """Write a part for each window, by two processes in turn, and return how many there are."""
    schema = shard_schema(ANALYSIS, SHAPE, {"model": "made up"})
    random = np.random.default_rng(0)
    columns = {field.name: _column(field, WINDOW_ROWS, random) for field in schema}
    num_windows = -(-num_records // WINDOW_ROWS)
    for window in range(num_windows):
        first, end = window * WINDOW_ROWS, min(num_records, (window + 1) * WINDOW_ROWS)
        ids = pa.array(np.arange(first, first + WINDOW_ROWS))
        sentences = pa.array([f"a sentence of some words, and its number {number}" for number in ids.to_pylist()])
        values = {**columns, "sentence_id": ids, "sentence": sentences}
        table = pa.table([values[field.name] for field in schema], schema=schema).slice(0, end - first)
        part = rank_folder(folder, Task(), window % 2) / f"part-{window // 2:06d}.parquet"
        part.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, part, compression="zstd", row_group_size=4096)
        Marker(
            part=part,
            checksum=checksum(part),
            num_bytes=part.stat().st_size,
            config_hash=CONFIG_HASH,
            num_records=end - first,
            first_id=first,
            end_id=end,
            batches=[(BatchKey(window, 0, 1), end - first)],
            notes={window: WindowNotes(first, end, end - first, window == num_windows - 1)},
            process={},
        ).write()
    return num_windows


def _column(field: pa.Field, num_rows: int, random: np.random.Generator) -> pa.Array:
    """Return a column of made-up values."""
    kind = field.type
    if pa.types.is_fixed_size_list(kind):
        inner = pa.field("inner", kind.value_type)
        return pa.FixedSizeListArray.from_arrays(_column(inner, num_rows * kind.list_size, random), kind.list_size)
    if pa.types.is_string(kind):
        return pa.array(random.choice([" the", " of", " water", " Paris"], num_rows).tolist(), kind)
    if pa.types.is_floating(kind):
        return pa.array(random.gamma(2, 2, num_rows).astype(np.float32), kind)
    return pa.array(random.integers(0, 1000, num_rows), kind)


if __name__ == "__main__":
    main()
