"""Each layer's own most likely token at a few positions, for the figure of the lens grid."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from llm_entropy.errors import ReportedError
from llm_entropy.outputs.comparison import evenly_spaced
from llm_entropy.outputs.places import place_of_condition
from llm_entropy.outputs.tables import LensGrid
from llm_entropy.outputs.views import View
from llm_entropy.schema.shards import LENS_PROBABILITIES, LENS_TOKENS, SENTENCE, SENTENCE_ID, TARGET, TOKEN, column
from llm_entropy.settings import Condition
from llm_entropy.settings.plots import LENS_GRID

MOST_COLUMNS = 12
"""Most positions, or sentences, that a figure shows."""
GRID_COLUMNS = (TARGET, LENS_TOKENS, LENS_PROBABILITIES)
"""What a grid is made from, of the columns of a condition; beside the token that is read, and the entropy if known."""
ENTROPY = "entropy"

Integers = npt.NDArray[np.int64]


def first_read_at_several(counts: Integers) -> Optional[int]:
    """Return the first sentence that has several records, by `counts` [sentence]; None where none has."""
    several = np.flatnonzero(counts > 1)
    return int(several[0]) if len(several) else None


class GridBuilder:
    """Collects the grid of one condition: of the first sentence that is read at several positions, else of several."""

    def __init__(self, num_sentences: int, *, has_entropy: bool) -> None:
        """Expect `num_sentences` sentences, in the order of the corpus."""
        self._wanted = evenly_spaced(num_sentences, MOST_COLUMNS)
        self._has_entropy = has_entropy
        self._num_seen, self._num_sentences = 0, num_sentences
        self._of_one: Optional[LensGrid] = None
        self._of_several: list[pa.Table] = []

    def add(self, view: View) -> None:
        """Take the next sentences."""
        if self._of_one is not None:
            return
        chunk = view.chunk
        if (place := first_read_at_several(chunk.counts)) is not None:
            rows = np.arange(chunk.counts[place]) + chunk.starts[place]
            self._of_one = grid_of_sentence(self._records(view, rows), chunk.sentences[place].as_py())
            return
        low, high = np.searchsorted(self._wanted, [self._num_seen, self._num_seen + len(chunk.counts)])
        places = self._wanted[low:high] - self._num_seen
        records = self._records(view, chunk.starts[places])
        self._of_several.append(records.append_column(SENTENCE, chunk.sentences.take(pa.array(places))))
        self._num_seen += len(chunk.counts)

    def _records(self, view: View, rows: Integers) -> pa.Table:
        names = [*GRID_COLUMNS, *([ENTROPY] if self._has_entropy else [])]
        own = {column(view.condition.name, name): name for name in names}
        table = view.chunk.table.select([TOKEN, *own]).take(pa.array(rows))
        return table.rename_columns([TOKEN, *names])

    def grid(self) -> LensGrid:
        """Return what was collected."""
        return self._of_one or grid_of_sentences(pa.concat_tables(self._of_several), self._num_sentences)


def read_lens_grid(run_dir: Path, model: str, condition: Condition, sentence: Optional[int] = None) -> LensGrid:
    """Return each layer's own most likely token, at the positions of a sentence, from the records.

    Args:
        run_dir: The run's folder.
        model: The model's key.
        condition: One that keeps tokens.
        sentence: Its row in the tables, from 0 on; None: the first that is read at several positions, or where none
            is, several sentences.

    Raises:
        FileNotFoundError: The run wrote no records.
        KeyError: They have no tokens of layers.
        ReportedError: There is no such sentence.
    """
    path = place_of_condition(run_dir, condition, model).records
    if not path.is_file():
        raise FileNotFoundError(f"{path}: the run wrote no Parquet; set output.parquet to true")
    with pq.ParquetFile(path) as file:
        if LENS_TOKENS not in file.schema_arrow.names:
            raise KeyError(f"{LENS_GRID!r}: the run did not record it; set analysis.lens_tokens to true")
        ids = file.read([SENTENCE_ID])[SENTENCE_ID].to_numpy()
        starts = np.flatnonzero(np.diff(ids, prepend=-1))
        counts = np.diff(starts, append=len(ids))
        place = first_read_at_several(counts)
        if sentence is not None:
            if not 0 <= sentence < len(starts):
                raise ReportedError(f"sentence: got {sentence}; {model} has sentences 0 to {len(starts) - 1}")
            place = sentence
        if place is None:
            rows = starts[evenly_spaced(len(starts), MOST_COLUMNS)]
            return grid_of_sentences(_rows_at(file, rows), len(starts))
        records = _rows_at(file, starts[place] + np.arange(counts[place]))
        return grid_of_sentence(records, records[SENTENCE][0].as_py())


def _rows_at(file: pq.ParquetFile, rows: Integers) -> pa.Table:
    """Return what a lens grid needs of some rows, ascending, from the row groups that hold them."""
    names = [SENTENCE, TOKEN, *GRID_COLUMNS, *({ENTROPY} & {*file.schema_arrow.names})]
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    ends = np.cumsum(sizes)
    groups = np.searchsorted(ends, rows, side="right")
    return pa.concat_tables(
        file.read_row_group(group, columns=names).take(pa.array(rows[groups == group] - (ends - sizes)[group]))
        for group in np.unique(groups).tolist()
    )


def grid_of_sentence(records: pa.Table, sentence: str) -> LensGrid:
    """Return the grid of the first positions of a sentence.

    Where the model wrote the token that it reads, it is what was the target one position before.

    Args:
        records: All of a sentence, of one condition, by the names of `GRID_COLUMNS`; a text may end before others do.
        sentence: The text.
    """
    records = records.filter(records[TARGET].is_valid())
    targets = records[TARGET].to_pylist()
    read = [token or before for token, before in zip(records[TOKEN].to_pylist(), ["", *targets], strict=False)]
    return _grid(records.slice(0, MOST_COLUMNS), read, sentence, len(records))


def grid_of_sentences(records: pa.Table, num_sentences: int) -> LensGrid:
    """Return the grid of several sentences at one position each.

    Args:
        records: One for each sentence that is shown, as in `grid_of_sentence`, with the sentences.
        num_sentences: How many there are.
    """
    return _grid(records, records[SENTENCE].to_pylist(), None, num_sentences)


def _grid(records: pa.Table, read: list[str], sentence: Optional[str], num_columns: int) -> LensGrid:
    return LensGrid(
        sentence=sentence,
        read=read[: len(records)],
        targets=records[TARGET].to_pylist(),
        tokens=[[token or "" for token in own] for own in records[LENS_TOKENS].to_pylist()],
        probabilities=_numbers(records, LENS_PROBABILITIES),
        entropy=_numbers(records, ENTROPY) if ENTROPY in records.schema.names else None,
        num_columns=num_columns,
    )


def _numbers(records: pa.Table, name: str) -> npt.NDArray[np.float32]:
    return np.array(records[name].to_pylist(), np.float32).reshape(len(records), -1)
