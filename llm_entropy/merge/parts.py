"""The parts of a model's shards, read in corpus order although they were not written so."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Optional

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from llm_entropy.schema import POSITION, SENTENCE, SENTENCE_ID
from llm_entropy.settings import Kind

Integers = npt.NDArray[np.int64]

NUM_NAMED = 5
"""How many sentence ids an error names."""
TEXT_BYTES = 512
"""What a record's strings are taken to need in memory."""


class Part(NamedTuple):
    """One file of records."""

    path: Path
    """Where it is."""
    first: int
    """Its lowest sentence id."""
    end: int
    """One past its highest sentence id."""
    num_rows: int
    """How many records it holds."""


class Count(NamedTuple):
    """How much all parts hold together."""

    num_sentences: int
    num_records: int


def find_parts(folder: Path, schema: pa.Schema) -> list[Part]:
    """Return the parts below a folder, by name, without those that are empty or still being written.

    Args:
        folder: `RUN_DIR/shards/{model}`.
        schema: What every part must hold.

    Returns:
        The parts, with the sentence ids that their Parquet statistics tell.

    Raises:
        ValueError: If a part has other columns, or there is no record at all.
    """
    parts = []
    for path in sorted(folder.rglob("*.parquet")):
        if any(piece.startswith(".") or piece.endswith(".tmp") for piece in path.relative_to(folder).parts):
            continue
        with pq.ParquetFile(path) as file:
            _check_schema(path, file.schema_arrow, schema)
            about = file.metadata
            if about.num_rows:
                column = about.schema.names.index(SENTENCE_ID)
                groups = [about.row_group(index).column(column).statistics for index in range(about.num_row_groups)]
                first, end = min(group.min for group in groups), max(group.max for group in groups) + 1
                parts.append(Part(path, first, end, about.num_rows))
    if not parts:
        raise ValueError(
            f"no records in {folder}; expected the .parquet files of a run: run it again, or name its folder"
        )
    return parts


def _check_schema(path: Path, found: pa.Schema, expected: pa.Schema) -> None:
    if found.equals(expected, check_metadata=False):
        return
    wrong = [
        f"{name} ({'missing' if name not in found.names else found.field(name).type})"
        for name in expected.names
        if name not in found.names or found.field(name).type != expected.field(name).type
    ]
    wrong += [f"{name} (not asked for)" for name in found.names if name not in expected.names]
    raise ValueError(
        f"{path}: the columns do not fit the run's configuration: {', '.join(wrong) or 'their order differs'}; "
        "merge with the config.yaml that the shards were written with"
    )


def id_ranges(parts: Sequence[Part], schema: pa.Schema, chunk_bytes: int) -> list[tuple[int, int]]:
    """Return ranges of sentence ids, in order, that hold about `chunk_bytes` of records each.

    A part's records are taken to lie evenly between its first and its last sentence. Together the ranges hold every id.

    Args:
        parts: What is to be read.
        schema: Its columns, from whose sizes the bytes of a record follow.
        chunk_bytes: How much of the shards may be in memory at once.

    Returns:
        First id and one past the last id of each range.
    """
    row_bytes = TEXT_BYTES + sum(4 * field.type.list_size for field in schema if hasattr(field.type, "list_size"))
    first, end, rows = (np.array([part[index] for part in parts]) for index in (1, 2, 3))
    marks, place = np.unique(np.concatenate([first, end]), return_inverse=True)
    density = np.zeros(len(marks))
    np.add.at(density, place, np.concatenate([rows, -rows]) / np.tile(end - first, 2))
    rows_before = np.concatenate([[0.0], np.cumsum(np.cumsum(density)[:-1] * np.diff(marks))])
    wanted = np.arange(0, rows.sum(), max(1, chunk_bytes // row_bytes))[1:]
    inner = np.interp(wanted, rows_before, marks).round().astype(np.int64)
    edges = np.unique(np.concatenate([[0], inner, [np.iinfo(np.int64).max]])).tolist()
    return list(itertools.pairwise(edges))


def check_keys(
    parts: Sequence[Part], ranges: Iterable[tuple[int, int]], expected_ids: Optional[npt.NDArray[np.integer]]
) -> Count:
    """Count the sentences and records, after making sure that each is there exactly once.

    Args:
        parts: What is to be read.
        ranges: Ranges of sentence ids that hold every id.
        expected_ids: The ids of all sentences that must be there; None: whatever there is.

    Returns:
        The numbers of sentences and of records.

    Raises:
        ValueError: If a record is there twice, or a sentence is missing or was not asked for.
    """
    expected = None if expected_ids is None else np.unique(expected_ids)
    wrong: dict[str, list[Integers]] = {"missing": [], "there more than once": [], "not part of the corpus": []}
    num_sentences = num_records = 0
    for lowest, end in ranges:
        keys = read_range(parts, lowest, end, [SENTENCE_ID, POSITION])
        ids, positions = keys[SENTENCE_ID].to_numpy(), keys[POSITION].to_numpy()
        twice = (np.diff(ids) == 0) & (np.diff(positions) == 0)
        seen = np.unique(ids)
        num_sentences, num_records = num_sentences + len(seen), num_records + len(ids)
        wrong["there more than once"].append(np.unique(ids[1:][twice]))
        if expected is not None:
            here = expected[np.searchsorted(expected, lowest) : np.searchsorted(expected, end)]
            wrong["missing"].append(np.setdiff1d(here, seen))
            wrong["not part of the corpus"].append(np.setdiff1d(seen, here))
    faults = [_name_ids(what, np.concatenate(ids)) for what, ids in wrong.items() if sum(map(len, ids))]
    if faults:
        folder = parts[0].path.parent
        raise ValueError(f"shards in {folder}: {'; '.join(faults)}; expected every sentence exactly once: run it again")
    return Count(num_sentences, num_records)


def _name_ids(what: str, ids: Integers) -> str:
    named = ", ".join(map(str, ids[:NUM_NAMED].tolist())) + (", ..." if len(ids) > NUM_NAMED else "")
    return f"{len(ids)} sentence{'s are' if len(ids) > 1 else ' is'} {what} (id {named})"


def read_range(parts: Sequence[Part], lowest: int, end: int, columns: Optional[list[str]] = None) -> pa.Table:
    """Return the records of a range of sentences, in the order of the corpus and of the positions in a sentence.

    Args:
        parts: Where to look.
        lowest: The first sentence id.
        end: One past the last sentence id.
        columns: Which columns; None: all.

    Returns:
        One row per record.
    """
    near = [part for part in parts if part.first < end and part.end > lowest]
    schema = pq.read_schema(parts[0].path)
    if not near:
        empty: pa.Table = schema.empty_table()
        return empty if columns is None else empty.select(columns)
    wanted = (ds.field(SENTENCE_ID) >= lowest) & (ds.field(SENTENCE_ID) < end)
    found = ds.dataset([str(part.path) for part in near], schema=schema, format="parquet")
    table = found.to_table(columns=columns, filter=wanted)
    order = np.lexsort((table[POSITION].to_numpy(), table[SENTENCE_ID].to_numpy()))
    return table.take(pa.array(order)).combine_chunks()


@dataclass(frozen=True)
class Chunk:
    """The records of some whole sentences, in corpus order."""

    table: pa.Table
    """One row per record."""
    kind: Kind
    """Whether the model is causal or masked."""

    @cached_property
    def starts(self) -> Integers:
        """[sentence], the first record of each sentence."""
        ids = self.table[SENTENCE_ID].to_numpy()
        return np.flatnonzero(np.concatenate([[True], np.diff(ids) != 0]))

    @cached_property
    def counts(self) -> Integers:
        """[sentence], how many records each sentence has."""
        return np.diff(self.starts, append=len(self.table))

    @cached_property
    def answers(self) -> Integers:
        """[answer], the records that answer the sentence: a causal model's last one, each mask of a masked model."""
        return self.starts + self.counts - 1 if self.kind == "causal" else np.arange(len(self.table))

    @cached_property
    def answer_counts(self) -> Integers:
        """[sentence], how many answers each sentence has."""
        return np.ones_like(self.counts) if self.kind == "causal" else self.counts

    @cached_property
    def sentences(self) -> pa.StringArray:
        """[sentence], the texts."""
        return self.strings(SENTENCE).take(pa.array(self.starts))

    def strings(self, name: str) -> pa.StringArray:
        """Return a column of strings.

        Args:
            name: A column of strings, or of fixed-size lists of them.

        Returns:
            [record], or [record * size].
        """
        values = self.table[name].combine_chunks()
        return values.flatten() if pa.types.is_fixed_size_list(values.type) else values

    def numbers(self, name: str) -> npt.NDArray[np.float32]:
        """Return a column of fixed-size lists of numbers.

        Args:
            name: The column.

        Returns:
            [record, size], a view.
        """
        values = self.table[name].combine_chunks()
        flat: npt.NDArray[np.float32] = values.flatten().to_numpy()
        return flat.reshape(len(self.table), values.type.list_size)


def mean_by_group(values: npt.NDArray[np.float32], counts: Integers) -> npt.NDArray[np.float64]:
    """Return the mean of each group of consecutive rows, in float64.

    Args:
        values: [row, ...].
        counts: [group], how many rows each group has.

    Returns:
        [group, ...].
    """
    starts = np.cumsum(counts) - counts
    sums = np.add.reduceat(values.astype(np.float64), starts, axis=0)
    return np.asarray(sums / counts.reshape(-1, *[1] * (values.ndim - 1)))
