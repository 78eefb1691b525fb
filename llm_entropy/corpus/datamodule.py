"""The batches of a run, made window by window, each given to one process, their tokens nearly equal."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Optional

import lightning
import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from llm_entropy.corpus.batching import collate
from llm_entropy.corpus.corpus import Corpus, Window
from llm_entropy.corpus.encoded import EncodedSentences
from llm_entropy.corpus.encoding import Encoder
from llm_entropy.schema.batches import Batch, BatchKey, WindowNotes
from llm_entropy.schema.shards import SENTENCE_ID, kept_column
from llm_entropy.store.ledger import Done
from llm_entropy.store.windows import Task, batches_of_task, deal, plan_batches


class WindowBatches(IterableDataset[Batch]):
    """The batches of one process, made when they are asked for: a window is read, encoded, planned and shared."""

    def __init__(self, data: SentenceDataModule, rank: int, world_size: int) -> None:
        """Keep what is needed; nothing is read.

        Args:
            data: Whose batches.
            rank: Of the process.
            world_size: How many processes share them.
        """
        self.corpus, self.encoder, self.task, self.done = data.corpus, data.encoder, data.task, data.done
        self.pad_token_id, self.tokens_per_batch, self.seed = data.pad_token_id, data.tokens_per_batch, data.seed
        self.answer_delimiter, self.pads = data.answer_delimiter, data.pads
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over the batches; with several workers over those of the windows that are this worker's turn."""
        worker = get_worker_info()
        number, count = (0, 1) if worker is None else (worker.id, worker.num_workers)
        loads = [0] * self.world_size
        for window in self.corpus.windows(self.task, self.done.complete, number, count):
            yield from self._batches(window, loads)

    def _batches(self, window: Window, loads: list[int]) -> Iterator[Batch]:
        """Iterate over a window's batches that are missing and fall to this process; every process deals alike."""
        encoded = EncodedSentences(
            self.encoder, window.sentence_ids, window.sentences, window.answers, self.answer_delimiter
        )
        plan = plan_batches(encoded.lengths, self.tokens_per_batch, pads=self.pads)
        own = list(range(len(plan)))
        if self.corpus.num_windows is not None:
            own = batches_of_task(window.number, len(plan), self.corpus.num_windows, self.task)
        left = self.done.left(window.number, own)
        # Padding is worked on as well: a batch weighs its longest row times its rows.
        weights = [int(encoded.lengths[plan[index]].max(initial=0)) * len(plan[index]) for index in left]
        for item in deal(weights, loads)[self.rank]:
            index = left[item]
            batch = collate([encoded[row] for row in plan[index]], self.pad_token_id, self.seed)
            notes = _notes(window, encoded) if index == 0 else None
            kept = _kept(window, batch)
            yield replace(batch, key=BatchKey(window.number, index, len(plan)), notes=notes, kept=kept)


class SentenceDataModule(lightning.LightningDataModule):
    """Gives each process its share of the batches, whole, each batch exactly once.

    For a Trainer with `use_distributed_sampler=False`: the sharing is done here, where Lightning cannot repeat it. A
    process may get no batch at all.
    """

    def __init__(
        self,
        corpus: Corpus,
        encoder: Encoder,
        *,
        pad_token_id: int,
        tokens_per_batch: int,
        seed: int,
        task: Optional[Task] = None,
        done: Optional[Done] = None,
        num_workers: int = 0,
        answer_delimiter: str = " ",
        pads: bool = True,
    ) -> None:
        """Keep what is to be read; the same everywhere.

        Args:
            corpus: As the model's kind reads it.
            encoder: Makes examples of sentences.
            pad_token_id: Fills the batches.
            tokens_per_batch: What a batch holds at most, padding included; a longer example is a batch of its own. What
                the first process says counts.
            seed: Of the random numbers with which tokens are sampled.
            task: Which share of the corpus; None: all of it.
            done: What need not be done again; what the first process says counts.
            num_workers: Processes that make batches beside this one.
            answer_delimiter: Stands between a sentence and its answer.
            pads: Whether sentences of different lengths may share a batch.
        """
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.corpus, self.encoder = corpus, encoder
        self.pad_token_id, self.tokens_per_batch, self.seed = pad_token_id, tokens_per_batch, seed
        self.task, self.done = task or Task(), done or Done()
        self.num_workers = num_workers
        self.answer_delimiter, self.pads = answer_delimiter, pads

    @property
    def num_sentences(self) -> Optional[int]:
        """About how many sentences all processes of the task will read together; None: nobody knows."""
        num_windows, num_sentences = self.corpus.num_windows, self.corpus.num_sentences
        if num_windows is None or num_sentences is None:
            return None
        done = len(self.done.complete) / max(1, num_windows)
        return round(num_sentences * max(0.0, 1 / self.task.count - done))

    def setup(self, stage: str) -> None:
        """Agree with the other processes on what is done and what fills a batch: they must deal the same batches."""
        assert self.trainer is not None
        self.done, self.tokens_per_batch = self.trainer.strategy.broadcast((self.done, self.tokens_per_batch))

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Return the batch on the device, copied while a GPU still works on the one before."""
        if device.type == "cuda":
            return batch.pin_memory().to(device, non_blocking=True)
        return batch.to(device)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Return the batches of this process."""
        assert self.trainer is not None
        batches = WindowBatches(self, self.trainer.global_rank, self.trainer.world_size)
        # The batches are made already; without batch_size=None Lightning would put its own sampler in.
        return DataLoader(
            batches, batch_size=None, collate_fn=_as_it_is, num_workers=self.num_workers, worker_init_fn=_start_worker
        )


def _kept(window: Window, batch: Batch) -> Optional[pa.Table]:
    """Return what goes with the sentences of a batch, a row for each, their ids first."""
    if window.kept is None:
        return None
    places = np.unique(np.searchsorted(window.sentence_ids, batch.sentence_ids.numpy()))
    ids = pa.array(np.asarray(window.sentence_ids, np.int64)[places])
    # Without names that a column of the corpus may have, too.
    rows = window.kept.take(pa.array(places))
    return rows.rename_columns([kept_column(name) for name in rows.column_names]).add_column(0, SENTENCE_ID, ids)


def _notes(window: Window, encoded: EncodedSentences) -> WindowNotes:
    return WindowNotes(
        first_id=window.first_id,
        end_id=window.end_id,
        num_rows=window.num_rows,
        is_last=window.is_last,
        skipped=window.skipped,
        unread=encoded.unread,
        num_cut=encoded.num_cut,
        num_own_start=encoded.num_own_start,
        num_examples=len(encoded),
        slices=encoded.slices,
    )


def _start_worker(worker_id: int) -> None:
    # A tokenizer that has used threads must not do so again after a fork, and warns unless it is told.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _as_it_is(batch: Any) -> Any:
    return batch
