"""All tables of one model, in one pass over its shards."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Optional

import numpy as np
import numpy.typing as npt

from llm_entropy.merge.curves import CurveBuilder
from llm_entropy.merge.parts import Chunk, Count, check_keys, find_parts, id_ranges, read_range
from llm_entropy.merge.tables import Comparative, Condition, Target
from llm_entropy.schema import Comparison, ModelShape, ModelTables, shard_schema
from llm_entropy.settings import COMPARATIVE, CONTROL, STANDARD, AnalysisSettings, Kind

CHUNK_BYTES = 128 * 2**20
"""How much of the shards is in memory at once, unless asked otherwise."""

log = logging.getLogger("llm_entropy")


def merge_model(
    run_dir: Path,
    model: str,
    name: str,
    analysis: AnalysisSettings,
    shape: ModelShape,
    *,
    kind: Kind,
    parquet: bool,
    expected_ids: Optional[npt.NDArray[np.integer]] = None,
    expected_sentences: Optional[int] = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> ModelTables:
    """Make a model's tables from its shards.

    Every sentence is read once, in corpus order, some at a time. All files appear together at the end, or none does.
    NaN, infinities and numbers beyond float32 are `null` in the CSV files and left out of the curves, with a warning.

    Args:
        run_dir: The run's folder; the shards are in `shards/{model}` below it.
        model: The model's key.
        name: The model's hub name, folder or built-in name.
        analysis: What was measured.
        shape: The model's sizes.
        kind: Whether it is causal, so that a sentence's last record answers it, or masked, so that every mask does.
        parquet: Whether all records are written as Parquet beside the CSV files.
        expected_ids: Sentence ids that must be there, no more and no less; None: whatever is there.
        expected_sentences: How many sentences must be there, where their ids are not known any more.
        chunk_bytes: How much of the shards is in memory at once.

    Returns:
        What the plots and the table on the terminal show.

    Raises:
        ValueError: If a record is there twice, a sentence is missing or unknown, or shards do not fit `analysis`.
    """
    schema = shard_schema(analysis, shape, {})
    parts = find_parts(run_dir / "shards" / model, schema)
    ranges = id_ranges(parts, schema, chunk_bytes)
    total = check_keys(parts, ranges, expected_ids)
    if expected_sentences is not None and total.num_sentences != expected_sentences:
        raise ValueError(
            f"{run_dir / 'shards' / model}: holds {total.num_sentences} sentences; the run had {expected_sentences}, "
            "so that shards are missing or do not belong to it; run it again"
        )
    with _staged(run_dir) as folder, ExitStack() as files:
        target = Target(folder, model, schema, shape, total.num_sentences, parquet, files)
        conditions = [Condition(condition, target) for condition in analysis.conditions]
        comparatives = [Comparative(target, analysis.metrics)] if analysis.mode == COMPARATIVE else []
        for lowest, end in ranges:
            table = read_range(parts, lowest, end)
            if not len(table):
                continue
            chunk = Chunk(table, kind)
            done = [condition.add(chunk) for condition in conditions]
            for comparative in comparatives:
                (standard, before), (control, after) = done
                comparative.add(chunk, standard, control, [before, after])
    return _tables(model, name, shape, total, conditions, comparatives)


@contextmanager
def _staged(run_dir: Path) -> Iterator[Path]:
    """Give a hidden folder whose files move to their places in `run_dir` at the end, or vanish if something fails."""
    with tempfile.TemporaryDirectory(prefix=".merge-", dir=run_dir) as name:
        folder = Path(name)
        yield folder
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            place = run_dir / path.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)


def _tables(
    model: str,
    name: str,
    shape: ModelShape,
    total: Count,
    conditions: list[Condition],
    comparatives: list[Comparative],
) -> ModelTables:
    for condition in conditions:
        for metric, builder in condition.curves.items():
            _warn_if_missing(model, condition.name, metric, builder)
    curves = {
        condition.name: {metric: builder.curves() for metric, builder in condition.curves.items()}
        for condition in conditions
    }
    tables = ModelTables(
        model, name, shape, *total, curves, {condition.name: condition.tracks.tracks() for condition in conditions}
    )
    for comparative in comparatives:
        tables.comparisons = {
            metric: Comparison(curves[STANDARD][metric], curves[CONTROL][metric], builder.curves())
            for metric, builder in comparative.curves.items()
        }
        tables.kl_from_standard = comparative.kl_from_standard.curves()
    return tables


def _warn_if_missing(model: str, condition: str, metric: str, builder: CurveBuilder) -> None:
    if missing := builder.moments.missing:
        log.warning(
            "%s, %s: %d of the numbers of %s are not finite: null in the CSV file, left out of the mean curve",
            *(model, condition, missing, metric),
        )
