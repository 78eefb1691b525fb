"""Which sentences a report shows token by token: a seeded sample, collected in the one pass of the merge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llm_entropy.outputs.chunk import Chunk
from llm_entropy.outputs.tables import SentenceSample
from llm_entropy.schema.shards import CONTINUATION, LENS_TOKENS, SENTENCE, SENTENCE_ID, WORD_START, column
from llm_entropy.settings import LOG_BOUNDARY, Condition

MOST_SENTENCES = 200
MOST_RECORDS = 128
"""Of a sentence; the first ones."""
MOST_TEXT = 2_000
"""Bytes that a text is taken to need at most; what is longer is cut."""
NAME_BYTES = 24
"""What the names of a record's tokens are taken to need under a condition."""
LAYER_NAME_BYTES = 1.5
"""What the name of a layer's own token is taken to need: each is written once, and most occur often."""
CODE_BYTES = 8 / 3
"""Of a number: two bytes, in base64."""

Hashes = npt.NDArray[np.uint64]


class SentenceSampler:
    """Collects the records of the sentences with the lowest hashes, as many as there is room for."""

    def __init__(self, conditions: Sequence[Condition], schema: pa.Schema, seed: int, num_bytes: int) -> None:
        """Expect the sentences of a model.

        Args:
            conditions: Those that are shown.
            schema: The shards' columns.
            seed: Of the run: all models of a run show the same sentences of a corpus, if there is room.
            num_bytes: What the sample may need on the page; one sentence is shown in any case. 0: none is.
        """
        names = [name for name in schema.names if "/" not in name or name.split("/")[0] in {c.name for c in conditions}]
        self._columns = names
        self._written = [name for name in names if name.endswith(column("", CONTINUATION))]
        shown = [schema.field(name) for name in names]
        num_numbers = sum(map(_width, shown))
        self._has_words = WORD_START in names
        if self._has_words:  # at most as many as tokens; a third of their numbers has the room of what they are made of
            num_numbers += 2 * sum(_width(schema.field(column(one.name, LOG_BOUNDARY))) for one in conditions)
        self._record_bytes = CODE_BYTES * num_numbers + NAME_BYTES * len(conditions)
        self._record_bytes += (CODE_BYTES + LAYER_NAME_BYTES) * sum(map(_num_layer_tokens, shown))
        self._seed, self._room = seed, num_bytes
        self._limit = np.uint64(2**64 - 1)  # the lowest hash for which there was no room
        self._kept = pa.table({})
        self._hashes: Hashes = np.empty(0, np.uint64)
        self._costs: npt.NDArray[np.float64] = np.empty(0)
        self._counts: npt.NDArray[np.int64] = np.empty(0, np.int64)
        self._totals: npt.NDArray[np.int64] = np.empty(0, np.int64)

    def add(self, chunk: Chunk) -> None:
        """Take the next sentences."""
        if not self._room:
            return  # no report is made
        ids = chunk.table[SENTENCE_ID].to_numpy()[chunk.starts]
        hashes = sentence_hashes(ids, self._seed)
        wanted = np.sort(np.argsort(hashes, kind="stable")[:MOST_SENTENCES])
        wanted = wanted[hashes[wanted] < self._limit]
        counts = np.minimum(chunk.counts[wanted], MOST_RECORDS)
        rows = np.concatenate([np.arange(0), *map(np.arange, chunk.starts[wanted], chunk.starts[wanted] + counts)])
        # Lines of a CSV file need the text of a sentence in one record alone; here each has it.
        texts = chunk.sentences.take(pa.array(wanted))
        table = chunk.table.select(self._columns).take(pa.array(rows))
        owners = pa.array(np.repeat(np.arange(len(wanted)), counts))
        place = table.schema.get_field_index(SENTENCE)
        table = table.set_column(place, SENTENCE, texts.take(owners))
        lengths = np.array([len(text.as_buffer()) for text in texts], np.float64)
        costs = counts * self._record_bytes + np.minimum(lengths, MOST_TEXT) * (1 + self._has_words)
        firsts = pa.array(chunk.starts[wanted])
        for name in self._written:
            own = pc.binary_length(chunk.table[name].combine_chunks().take(firsts)).fill_null(0).to_numpy()
            costs += np.minimum(own, MOST_TEXT)
        self._join(table, hashes[wanted], costs, counts, chunk.counts[wanted])

    def _join(
        self,
        table: pa.Table,
        hashes: Hashes,
        costs: npt.NDArray[np.float64],
        counts: npt.NDArray[np.int64],
        totals: npt.NDArray[np.int64],
    ) -> None:
        """Keep those of the lowest hashes: of all sentences the same, however they are cut into chunks."""
        both = pa.concat_tables([self._kept, table]) if len(self._kept) else table
        hashes = np.concatenate([self._hashes, hashes])
        costs = np.concatenate([self._costs, costs])
        counts = np.concatenate([self._counts, counts])
        totals = np.concatenate([self._totals, totals])
        order = np.argsort(hashes, kind="stable")
        num_fitting = int(np.searchsorted(np.cumsum(costs[order]), self._room, side="right"))
        num_kept = min(max(num_fitting, 1), MOST_SENTENCES)
        if num_kept < len(order):
            self._limit = hashes[order[num_kept]]
        kept = np.sort(order[:num_kept])
        starts = np.cumsum(counts) - counts
        rows = np.concatenate([np.arange(0), *map(np.arange, starts[kept], (starts + counts)[kept])])
        self._kept = both.take(pa.array(rows)).combine_chunks()
        self._hashes, self._costs = hashes[kept], costs[kept]
        self._counts, self._totals = counts[kept], totals[kept]

    def sample(self) -> SentenceSample | None:
        """Return what was collected; None where nothing was asked for."""
        return SentenceSample(self._kept, self._totals.tolist()) if self._room else None


def sentence_hashes(ids: npt.NDArray[np.int64], seed: int) -> Hashes:
    """Return a random-looking number for each sentence id, by the seed: splitmix64 (Steele, Lea and Flood 2014).

    Args:
        ids: [sentence].
        seed: Of the run.
    """
    mixed = ids.astype(np.uint64) + np.uint64(seed % 2**32 << 32) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))


def _num_layer_tokens(field: pa.Field) -> int:
    """Return how many tokens of layers a column has of a record."""
    return field.type.list_size if field.name.endswith(column("", LENS_TOKENS)) else 0


def _width(field: pa.Field) -> int:
    """Return how many numbers of a column are shown of a record: attention is shown as the mean over heads."""
    if not pa.types.is_fixed_size_list(field.type) or not pa.types.is_floating(field.type.value_type):
        return 0
    about = field.metadata or {}
    is_per_head = about.get(b"axes", b"").endswith(b" head")
    return int(about[b"shape"].split()[0]) if is_per_head else int(field.type.list_size)
