"""All outputs of one model, from its shards: one pass over the keys of the records, one over the records."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from llm_entropy.errors import ReportedError
from llm_entropy.outputs.chunk import chunk_of
from llm_entropy.outputs.effects import SteeringFacts
from llm_entropy.outputs.parts import Count, Parts, check_keys, check_parts, id_ranges, spans_of
from llm_entropy.outputs.sinks import ModelSinks, Target
from llm_entropy.outputs.tables import ModelTables
from llm_entropy.schema.shape import ModelShape, measured_of
from llm_entropy.schema.shards import kept_column, shard_schema
from llm_entropy.settings import TEXT_METRICS, AnalysisSettings, DataSettings, Kind
from llm_entropy.store.files import publish
from llm_entropy.store.ledger import Ledger

CHUNK_BYTES = 128 * 2**20
"""How much of the shards is in memory at once, unless asked otherwise."""

STAGED = ".merge-"
"""What the name of the folder begins with in which a merge works."""


@dataclass(frozen=True)
class MergeSource:
    """The model whose shards are merged."""

    key: str
    """The model's key, the first part of every file name."""
    name: str
    """Its hub name, folder or built-in name."""
    kind: Kind
    """Causal: a sentence's last record answers it; masked: every mask does."""
    shape: ModelShape
    """Its sizes."""
    ledger: Ledger
    """What is done of it; complete."""
    facts: Mapping[str, SteeringFacts] = field(default_factory=dict)
    """How the conditions steer it, by name."""
    seed: int = 0
    """Of the run."""
    data: DataSettings = field(default_factory=DataSettings)
    """Of the run: which columns of the corpus go with the sentences, and what for."""


@dataclass(frozen=True)
class MergeOptions:
    """What a merge makes, beside the numbers for plots and the table of placebos, and in how much memory."""

    csv: bool = True
    """Whether metrics, token probabilities and predictions are written as CSV."""
    parquet: bool = True
    """Whether all records are written as Parquet."""
    chunk_bytes: int = CHUNK_BYTES
    """How much of the shards is in memory at once."""
    report_bytes: int = 0
    """What sentences may need in the report; 0: none is kept for it."""


def merge_model(run_dir: Path, source: MergeSource, analysis: AnalysisSettings, options: MergeOptions) -> ModelTables:
    """Make a model's tables from its shards.

    A first pass counts: it reads sentence ids and positions alone. The second reads every record once, in corpus order,
    some sentences at a time. The files are made in a hidden folder and moved to their places at the end, one after the
    other: each is whole or absent, and a merge that fails before that changes nothing.
    NaN, infinities and numbers beyond float32 are `null` in the CSV files and left out of the curves, with a warning.

    Args:
        run_dir: The run's folder. Nobody else may be merging it.
        source: The model.
        analysis: What was measured, under which conditions.
        options: What is made.

    Returns:
        What the plots and the table on the terminal show.

    Raises:
        ReportedError: If a part is corrupt or does not fit `analysis`, a record is there twice, a sentence is missing
            or unknown, or there is no record at all.
    """
    with _staged(run_dir) as folder:
        return _filled(folder, source, analysis, options)


def collect_model(source: MergeSource, analysis: AnalysisSettings, report_bytes: int) -> ModelTables:
    """Return what `merge_model` returns, and leave no file.

    Args:
        source: The model.
        analysis: What was measured, under which conditions.
        report_bytes: What sentences may need in the report.

    Raises:
        ReportedError: As `merge_model`.
    """
    with tempfile.TemporaryDirectory(prefix="llm-entropy-") as name:
        options = MergeOptions(csv=False, parquet=False, report_bytes=report_bytes)
        return _filled(Path(name), source, analysis, options)


def _filled(folder: Path, source: MergeSource, analysis: AnalysisSettings, options: MergeOptions) -> ModelTables:
    """Make a model's tables in a folder."""
    schema = _schema_of(source, analysis)
    parts, ranges, total = _checked(source, analysis, schema, options)
    with ExitStack() as files:
        target = Target(
            folder,
            source.key,
            schema,
            source.shape,
            measured_of(analysis, source.shape),
            list(TEXT_METRICS) if analysis.is_generated else [],
            total.num_sentences,
            source.seed,
            source.facts,
            options.csv,
            options.parquet,
            files,
            options.report_bytes,
            source.data,
        )
        sinks = ModelSinks(analysis.run_conditions, target)
        for lowest, end in ranges:
            table = parts.read(lowest, end)
            if len(table):
                sinks.add(chunk_of(table, source.kind, source.shape, source.data, analysis.is_generated))
        sinks.finish()
    return sinks.tables(source.name, total.num_records)


def _schema_of(source: MergeSource, analysis: AnalysisSettings) -> pa.Schema:
    """Return what every part must hold; the types of columns of the corpus are those of the first part."""
    kept = []
    if source.data.carried_columns and source.ledger.markers:
        found = pq.read_schema(source.ledger.markers[0].part)
        wanted = {kept_column(name): name for name in source.data.carried_columns}
        kept = [found.field(name).with_name(own) for name, own in wanted.items() if name in found.names]
    return shard_schema(analysis, source.shape, {}, kept=kept, answers=source.data.target_column is not None)


def _checked(
    source: MergeSource, analysis: AnalysisSettings, schema: pa.Schema, options: MergeOptions
) -> tuple[Parts, list[tuple[int, int]], Count]:
    """Return the parts, the ranges of sentences to read them in, and their counts, if every record is there once."""
    markers, spans = source.ledger.markers, spans_of(source.ledger)
    if not any(span.num_records for span in spans):
        raise ReportedError(
            f"{source.key}: none of the {sum(span.notes.num_rows for span in spans)} rows holds a token to read"
        )
    check_parts(markers, schema)
    lines = analysis.top_k + analysis.tracked_tokens if options.csv and source.kind == "masked" else 0
    # The lines of a baseline are in memory, and those of one condition that is compared with it.
    num_conditions = min(2, sum(condition.keeps_tokens for condition in analysis.run_conditions))
    ranges = id_ranges(spans, schema, options.chunk_bytes, lines_per_record=lines * num_conditions)
    parts = Parts(markers, schema)
    return parts, ranges, check_keys(parts, spans, ranges)


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
