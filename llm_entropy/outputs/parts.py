"""The parts of a model's shards, read in corpus order although they were not written so."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Optional

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from llm_entropy.errors import ReportedError
from llm_entropy.schema.batches import Slice, WindowNotes
from llm_entropy.schema.shards import POSITION, SENTENCE_ID
from llm_entropy.store.ledger import Ledger, Marker

Integers = npt.NDArray[np.int64]

NUM_NAMED = 5
"""How many sentence ids an error names."""
TOKEN_BYTES = 256
"""What the strings of a record's tokens are taken to need in memory."""
TEXT_COPIES = 8
"""How often a sentence's text is in memory while its lines are made."""


class Count(NamedTuple):
    """How much all parts hold together."""

    num_sentences: int
    num_records: int


class Span(NamedTuple):
    """A window of the corpus, as the merge sees it."""

    first_id: int
    """Lowest sentence id that it may hold."""
    end_id: int
    """One past the highest."""
    notes: WindowNotes
    """What it held."""
    slices: list[Slice]
    """Its sentences in pieces, ascending; the first begins at `first_id`."""

    @property
    def num_records(self) -> int:
        """How many records it has."""
        return sum(one.num_records for one in self.slices)


def spans_of(ledger: Ledger) -> list[Span]:
    """Return the windows of a model, by their sentence ids; windows share no id.

    Args:
        ledger: Of the model, complete.
    """
    spans = []
    for state in ledger.windows.values():
        assert state.is_complete, "only what is complete is merged"
        notes = state.notes
        assert notes is not None, "a window's first batch carries its notes"
        # The first slice begins where the window does: rows without text come before the first sentence.
        whole = Slice(notes.first_id, state.num_records, 0, 0)
        first, *others = notes.slices or [whole]
        spans.append(Span(notes.first_id, notes.end_id, notes, [first._replace(first_id=notes.first_id), *others]))
    return sorted(spans, key=lambda span: (span.first_id, span.end_id))


def check_parts(markers: Sequence[Marker], schema: pa.Schema) -> None:
    """Make sure that the parts are those that were written, and hold what is asked for.

    Args:
        markers: Of all parts.
        schema: What every part must hold.

    Raises:
        ReportedError: A part is corrupt, or has other columns.
    """
    for marker in markers:
        marker.check(content=True)
        _check_schema(marker.part, pq.read_schema(marker.part), schema)


def _check_schema(path: Path, found: pa.Schema, expected: pa.Schema) -> None:
    if found.equals(expected, check_metadata=False):
        return
    wrong = [
        f"{name} ({'missing' if name not in found.names else found.field(name).type})"
        for name in expected.names
        if name not in found.names or found.field(name).type != expected.field(name).type
    ]
    wrong += [f"{name} (not asked for)" for name in found.names if name not in expected.names]
    raise ReportedError(
        f"{path}: the columns do not fit the run's configuration: {', '.join(wrong) or 'their order differs'}; "
        "merge with the config.yaml that the shards were written with"
    )


def id_ranges(
    spans: Sequence[Span], schema: pa.Schema, chunk_bytes: int, *, lines_per_record: int = 0
) -> list[tuple[int, int]]:
    """Return ranges of sentence ids, in order, that take about `chunk_bytes` of memory each.

    They follow the windows of the corpus and their slices, and not the parts: so sums over the ranges, and all that is
    made of them, are the same to the last bit however many processes have written the parts.

    Args:
        spans: The windows.
        schema: The shards' columns, from whose sizes the bytes of a record follow.
        chunk_bytes: How much may be in memory at once; a slice that needs more is a range of its own.
        lines_per_record: Lines of CSV that repeat the sentence for every record.

    Returns:
        First id and one past the last id of each range; every record is in exactly one.
    """
    row_bytes = TOKEN_BYTES + sum(4 * field.type.list_size for field in schema if hasattr(field.type, "list_size"))
    starts: list[int] = []
    filled = 0
    for one in itertools.chain.from_iterable(span.slices for span in spans):
        size = one.num_records * row_bytes + one.text_bytes * TEXT_COPIES + one.repeated_bytes * lines_per_record
        if not starts or filled + size > chunk_bytes:
            starts.append(one.first_id)
            filled = 0
        filled += size
    return list(itertools.pairwise([*starts, spans[-1].end_id]))


class Parts:
    """The parts of a model, found by the sentences that they hold.

    Args:
        markers: Of all parts.
        schema: Their columns.
    """

    def __init__(self, markers: Sequence[Marker], schema: pa.Schema) -> None:
        self.markers = sorted((marker for marker in markers if marker.num_records), key=lambda marker: marker.first_id)
        self.schema = schema
        self._first_ids = np.array([marker.first_id for marker in self.markers], np.int64)
        # A search needs what ascends: the highest id of a part and of all before it.
        self._highest_ends = np.maximum.accumulate(np.array([marker.end_id for marker in self.markers], np.int64))

    def near(self, lowest: int, end: int) -> list[Path]:
        """Return the parts that may hold sentences with ids from `lowest` to `end` - 1."""
        start = int(np.searchsorted(self._highest_ends, lowest, side="right"))
        stop = int(np.searchsorted(self._first_ids, end))
        return [marker.part for marker in self.markers[start:stop] if marker.end_id > lowest]

    def read(self, lowest: int, end: int, columns: Optional[list[str]] = None) -> pa.Table:
        """Return the records of a range of sentences, in the order of the corpus and of the positions in a sentence.

        Args:
            lowest: The first sentence id.
            end: One past the last sentence id.
            columns: Which columns; None: all.

        Returns:
            One row per record.
        """
        near = list(map(str, self.near(lowest, end)))
        if not near:
            empty: pa.Table = self.schema.empty_table()
            return empty if columns is None else empty.select(columns)
        wanted = (ds.field(SENTENCE_ID) >= lowest) & (ds.field(SENTENCE_ID) < end)
        found = ds.dataset(near, schema=self.schema, format="parquet")
        # Without reading ahead: what is read is all that is wanted, and many parts must not be open at once.
        table = found.to_table(columns=columns, filter=wanted, batch_readahead=1, fragment_readahead=1)
        order = np.lexsort((table[POSITION].to_numpy(), table[SENTENCE_ID].to_numpy()))
        return table.take(pa.array(order)).combine_chunks()


def check_keys(parts: Parts, spans: Sequence[Span], ranges: Iterable[tuple[int, int]]) -> Count:
    """Count the sentences and records, after making sure that each is there exactly once.

    Args:
        parts: All of them.
        spans: The windows, and how many sentences each must have.
        ranges: Ranges of sentence ids that hold all windows.

    Returns:
        The numbers of sentences and of records.

    Raises:
        ReportedError: A record is there twice, a sentence is missing, or does not belong to the corpus.
    """
    first_ids = np.array([span.first_id for span in spans])
    found = np.zeros(len(spans), np.int64)
    doubles: list[Integers] = []
    num_records = 0
    for lowest, end in ranges:
        keys = parts.read(lowest, end, [SENTENCE_ID, POSITION])
        ids, positions = keys[SENTENCE_ID].to_numpy(), keys[POSITION].to_numpy()
        twice = (np.diff(ids) == 0) & (np.diff(positions) == 0)
        doubles.append(np.unique(ids[1:][twice]))
        num_records += len(ids)
        np.add.at(found, np.searchsorted(first_ids, np.unique(ids), side="right") - 1, 1)
    faults = [_name_ids("there more than once", np.concatenate(doubles))] if any(map(len, doubles)) else []
    for span, count in zip(spans, found.tolist(), strict=True):
        if count != span.notes.num_sentences:
            faults.append(_name_wrong(parts, span, count))
    expected_records = sum(marker.num_records for marker in parts.markers)
    if num_records != expected_records and not faults:
        faults.append(f"{expected_records - num_records} records lie outside of the corpus")
    if faults:
        more = f"; and {len(faults) - NUM_NAMED} windows more" if len(faults) > NUM_NAMED else ""
        folder = parts.markers[0].part.parents[2]
        raise ReportedError(
            f"shards in {folder}: {'; '.join(faults[:NUM_NAMED])}{more}; expected every sentence "
            "exactly once: remove the parts with these sentences and their markers, and resume the run"
        )
    return Count(int(found.sum()), num_records)


def _name_wrong(parts: Parts, span: Span, count: int) -> str:
    """Say which sentences of a window are missing, or are there though they should not be."""
    notes = span.notes
    if notes.num_rows != span.end_id - span.first_id:
        ids = f"ids from {span.first_id} to {span.end_id - 1}"
        return f"of the {notes.num_sentences} sentences with {ids} there are {count}"
    keys = parts.read(span.first_id, span.end_id, [SENTENCE_ID, POSITION])
    expected = np.setdiff1d(np.arange(span.first_id, span.end_id), [row for row, _ in notes.skipped])
    expected = np.setdiff1d(expected, notes.unread)
    seen = np.unique(keys[SENTENCE_ID].to_numpy())
    missing, foreign = np.setdiff1d(expected, seen), np.setdiff1d(seen, expected)
    return _name_ids("missing", missing) if len(missing) else _name_ids("not part of the corpus", foreign)


def _name_ids(what: str, ids: Integers) -> str:
    named = ", ".join(map(str, ids[:NUM_NAMED].tolist())) + (", ..." if len(ids) > NUM_NAMED else "")
    return f"{len(ids)} sentence{'s are' if len(ids) > 1 else ' is'} {what} (id {named})"
