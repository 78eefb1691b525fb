"""The prediction writer: records of a process into parts of shards, each whole or absent, each with a marker."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Optional

import lightning as L
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lightning.pytorch.callbacks import BasePredictionWriter
from transformers import PreTrainedTokenizerBase

from llm_entropy.runs.carried import with_kept
from llm_entropy.runs.rows import records_table
from llm_entropy.runs.token_texts import TokenTexts
from llm_entropy.schema.batches import Batch, BatchKey, WindowNotes
from llm_entropy.schema.records import Records
from llm_entropy.schema.shards import POSITION, SENTENCE, SENTENCE_ID
from llm_entropy.store.files import checksum, written_whole
from llm_entropy.store.ledger import PART_SUFFIX, Marker
from llm_entropy.store.session import Session

ROW_GROUP = 4096
"""Records of a part that are read together: the merge reads ranges of sentences."""
BATCHES_TOGETHER = 4
"""So many batches are copied into one table: what waits must not lie scattered among what comes and goes, or the memory
between is never given back."""
MOST_WAITING = 2
"""Batches that may wait for the thread that writes."""


class ShardWriter(BasePredictionWriter):
    """Writes each process's records as Parquet parts below a model's folder of shards, each with its marker.

    A thread of its own does that, beside the next batch; it is never more than `MOST_WAITING` batches behind.

    Args:
        schema: `shards.shard_schema` of the model.
        tokenizer: Of the model, for the texts of tokens.
        model: The model's key.
        session: This process's part in the run.
        part_bytes: How many bytes of records make a part.
        part_seconds: A part is written after so many seconds at the latest.
    """

    def __init__(
        self,
        schema: pa.Schema,
        tokenizer: PreTrainedTokenizerBase,
        model: str,
        session: Session,
        *,
        part_bytes: float = 16 * 2**20,
        part_seconds: float = 60.0,
    ) -> None:
        super().__init__(write_interval="batch")
        self.schema = schema
        self.num_parts = 0
        self._model, self._session = model, session
        self._texts = TokenTexts(tokenizer)
        self._part_bytes, self._part_seconds = part_bytes, part_seconds
        self._waiting = _Waiting()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="llm_entropy-writer")
        self._submitted: deque[Future[None]] = deque()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Agree with the other processes on the run, and find the first free number for a part."""
        self._session.join(trainer.strategy, trainer.global_rank, trainer.world_size)
        self._folder = self._session.folder(self._model)
        self._folder.mkdir(parents=True, exist_ok=True)
        numbers = [int(path.stem.removeprefix("part-")) for path in self._folder.glob(f"part-*{PART_SUFFIX}")]
        self.num_parts = max(numbers, default=-1) + 1

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._waiting = _Waiting()

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: Any,
        batch_indices: Optional[Sequence[int]],
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Hand the records of a batch to the thread; what has gone wrong with those before is raised here."""
        assert isinstance(prediction, Records)
        self._submitted.append(self._thread.submit(self._take, prediction))
        self._wait(MOST_WAITING)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the last part."""
        self._finish()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Keep the batches that are done, whatever has gone wrong with the next one."""
        cannot_write = isinstance(exception, OSError)
        if cannot_write or getattr(exception, "at_once", False):
            self._thread.shutdown(cancel_futures=True)
        else:
            self._finish()

    def _finish(self) -> None:
        self._wait(0)
        self._thread.shutdown()
        self._write_part()

    def _wait(self, most: int) -> None:
        """Wait until at most so many batches are left to the thread."""
        while len(self._submitted) > most:
            self._submitted.popleft().result()

    def _take(self, records: Records) -> None:
        """Take the records of a batch, and write a part when there are enough."""
        if records.wait is not None:
            records.wait()
        self._waiting.add(records_table(records, self.schema, self._texts), records)
        if self._waiting.num_bytes >= self._part_bytes or self._waiting.seconds >= self._part_seconds:
            self._write_part()

    def _write_part(self) -> None:
        waiting, self._waiting = self._waiting, _Waiting()
        if not waiting.batches:
            return
        path = self._folder / f"part-{self.num_parts:06d}{PART_SUFFIX}"
        self.num_parts += 1
        table = waiting.table()
        with written_whole(path) as temporary:
            pq.write_table(table, temporary, compression="zstd", row_group_size=ROW_GROUP)
            digest, num_bytes = checksum(temporary), temporary.stat().st_size
        ids = table[SENTENCE_ID]
        Marker(
            part=path,
            checksum=digest,
            num_bytes=num_bytes,
            config_hash=self._session.config_hash,
            num_records=len(table),
            first_id=ids[0].as_py() if len(table) else 0,
            end_id=ids[-1].as_py() + 1 if len(table) else 0,
            batches=waiting.batches,
            notes=waiting.notes,
            process={**self._session.describe(), **waiting.describe()},
        ).write()


class _Waiting:
    """The records that have not been written yet."""

    def __init__(self) -> None:
        self._tables: list[pa.Table] = []
        self._latest: list[pa.Table] = []
        self._texts: dict[int, str] = {}
        self._kept: list[pa.Table] = []
        self.batches: list[tuple[BatchKey, int]] = []
        self.notes: dict[int, WindowNotes] = {}
        self.num_bytes = 0
        self._num_sentences = self._num_tokens = 0
        self._start = time.perf_counter()

    def add(self, table: pa.Table, records: Records) -> None:
        """Take the records of a batch."""
        self._latest.append(table)
        if len(self._latest) == BATCHES_TOGETHER:
            self._copy_latest()
        self.batches.append((records.key, len(table)))
        if records.notes is not None:
            self.notes[records.key.window] = records.notes
        new = {number: text for number, text in records.texts.items() if number not in self._texts}
        self._texts |= new
        if records.kept is not None:
            self._kept.append(records.kept)
        self.num_bytes += table.nbytes + sum(map(len, new.values()))
        self._num_sentences += records.num_sentences
        self._num_tokens += records.num_tokens

    def _copy_latest(self) -> None:
        self._tables.append(pa.concat_tables(self._latest).combine_chunks())
        self._latest = []

    def table(self) -> pa.Table:
        """Return all records, in the order of the corpus and of the positions in a sentence.

        Each text stands in the first record of its sentence that belongs to no answer, and so does what goes with it.
        """
        whole = pa.concat_tables([*self._tables, *self._latest])
        whole = whole.sort_by([(SENTENCE_ID, "ascending"), (POSITION, "ascending")])
        ids = whole[SENTENCE_ID].to_numpy()
        is_first = np.zeros(len(ids), bool)
        ordinary = np.flatnonzero(whole[POSITION].to_numpy() >= 0)
        is_first[ordinary] = np.diff(ids[ordinary], prepend=-1) != 0
        texts = [self._texts[number] if first else None for number, first in zip(ids, is_first, strict=True)]
        place = whole.schema.get_field_index(SENTENCE)
        whole = whole.set_column(place, whole.schema.field(place), pa.array(texts, pa.string()))
        return with_kept(whole, self._kept, ids, is_first) if self._kept else whole

    @property
    def seconds(self) -> float:
        """Seconds since the last part."""
        return time.perf_counter() - self._start

    def describe(self) -> dict[str, Any]:
        """Return how much it is and what it took, for the part's marker."""
        return {
            "num_examples": self._num_sentences,
            "num_tokens": self._num_tokens,
            "seconds": round(self.seconds, 3),
        }
