"""All tables of one model, from its shards: one pass over the keys of the records, one over the records."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from llm_entropy.errors import ReportedError
from llm_entropy.outputs.curves import CurveBuilder
from llm_entropy.outputs.parts import Chunk, Count, Parts, check_keys, check_parts, id_ranges, spans_of
from llm_entropy.outputs.tables import Comparative, Condition, Target
from llm_entropy.schema import Comparison, ModelShape, ModelTables, shard_schema
from llm_entropy.settings import COMPARATIVE, CONTROL, STANDARD, AnalysisSettings, Kind
from llm_entropy.store.files import publish
from llm_entropy.store.ledger import Ledger

CHUNK_BYTES = 128 * 2**20
"""How much of the shards is in memory at once, unless asked otherwise."""

STAGED = ".merge-"
"""What the name of the folder begins with in which a merge works."""

log = logging.getLogger("llm_entropy")


def merge_model(
    run_dir: Path,
    model: str,
    name: str,
    analysis: AnalysisSettings,
    shape: ModelShape,
    *,
    kind: Kind,
    ledger: Ledger,
    csv: bool,
    parquet: bool,
    chunk_bytes: int = CHUNK_BYTES,
) -> ModelTables:
    """Make a model's tables from its shards.

    A first pass counts: it reads sentence ids and positions alone. The second reads every record once, in corpus order,
    some sentences at a time. The files are made in a hidden folder and moved to their places at the end, one after the
    other: each is whole or absent, and a merge that fails before that changes nothing.
    NaN, infinities and numbers beyond float32 are `null` in the CSV files and left out of the curves, with a warning.

    Args:
        run_dir: The run's folder. Nobody else may be merging it.
        model: The model's key.
        name: The model's hub name, folder or built-in name.
        analysis: What was measured.
        shape: The model's sizes.
        kind: Whether it is causal, so that a sentence's last record answers it, or masked, so that every mask does.
        ledger: What is done of the model; complete.
        csv: Whether metrics, token probabilities and predictions are written as CSV.
        parquet: Whether all records are written as Parquet.
        chunk_bytes: How much of the shards is in memory at once.

    Returns:
        What the plots and the table on the terminal show.

    Raises:
        ReportedError: If a part is corrupt or does not fit `analysis`, a record is there twice, a sentence is missing
            or unknown, or there is no record at all.
    """
    schema, markers = shard_schema(analysis, shape, {}), ledger.markers
    spans = spans_of(ledger)
    if not any(span.num_records for span in spans):
        raise ReportedError(
            f"{model}: none of the {sum(span.notes.num_rows for span in spans)} rows holds a token to read"
        )
    check_parts(markers, schema)
    lines = analysis.top_k + analysis.tracked_tokens if csv and kind == "masked" else 0
    ranges = id_ranges(spans, schema, chunk_bytes, lines_per_record=lines * len(analysis.conditions))
    parts = Parts(markers, schema)
    total = check_keys(parts, spans, ranges)
    with _staged(run_dir) as folder, ExitStack() as files:
        target = Target(folder, model, schema, shape, total.num_sentences, csv, parquet, files)
        conditions = [Condition(condition, target) for condition in analysis.conditions]
        comparatives = [Comparative(target, analysis.metrics)] if analysis.mode == COMPARATIVE else []
        for lowest, end in ranges:
            table = parts.read(lowest, end)
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
    for left in run_dir.glob(f"{STAGED}*"):  # by a merge that was killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=STAGED, dir=run_dir) as name:
        folder = Path(name)
        yield folder
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            place = run_dir / path.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            publish(path, place)


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
