"""The progress bar: sentences and tokens done, and tokens per second. It moves within a long batch too."""

from __future__ import annotations

import time
from typing import Any, Optional

import lightning as L
from tqdm import tqdm

from llm_entropy.schema.batches import NO_ANSWER, Batch
from llm_entropy.schema.records import Records

REFRESH_SECONDS = 0.5
"""How often the bar moves within a batch."""
FEW_ROWS = 10
"""Of a batch of fewer sentences, which are long, the bar shows tenths."""


class SentenceProgress(L.Callback):
    """Counts sentences, not batches, on the terminal of rank 0, and the seconds that predicting takes.

    Args:
        label: What stands before the bar.
        num_sentences: About how many sentences all processes together will read; None: nobody knows.
        quiet: Whether no bar is shown.
    """

    def __init__(self, label: str, num_sentences: Optional[int], quiet: bool = False) -> None:
        self.seconds = 0.0
        self._label, self._num_sentences, self._quiet = label, num_sentences, quiet
        self._num_tokens = self._num_done = 0
        self._batch: Optional[Batch] = None
        self._moved = 0.0
        self._bar: Optional[tqdm[Any]] = None

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar."""
        self._start = time.perf_counter()
        hidden = self._quiet or not trainer.is_global_zero
        share = None if self._num_sentences is None else -(-self._num_sentences // trainer.world_size)
        self._bar = tqdm(total=share, desc=self._label, unit=" sentences", disable=hidden)

    def on_predict_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Remember the batch at hand."""
        assert isinstance(batch, Batch)
        self._batch = batch

    def move(self, num_tokens: int) -> None:
        """Show how much of the batch at hand is done; one of `EntropyModule.listeners`.

        Args:
            num_tokens: Tokens of the batch that are done.
        """
        now, bar = time.perf_counter(), self._bar
        if bar is None or bar.disable or self._batch is None or now - self._moved < REFRESH_SECONDS:
            return
        self._moved = now
        batch = self._batch.host or self._batch
        num_sentences = _num_sentences(batch)
        share = num_tokens / int(batch.attention_mask.sum())
        bar.n = self._num_done + round(share * num_sentences, 1 if num_sentences < FEW_ROWS else None)
        bar.set_postfix_str(self._tokens_text(self._num_tokens + num_tokens), refresh=False)
        bar.refresh()

    def _tokens_text(self, num_tokens: int) -> str:
        return f"{num_tokens:,} tokens, {num_tokens / (time.perf_counter() - self._start):,.0f}/s"

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the sentences of a batch."""
        assert isinstance(outputs, Records)
        self._batch = None
        self._num_tokens += outputs.num_tokens
        assert self._bar is not None
        self._bar.set_postfix_str(self._tokens_text(self._num_tokens), refresh=False)
        self._bar.n = self._num_done
        num_sentences = _num_sentences(batch.host or batch)
        self._num_done += num_sentences
        self._bar.update(num_sentences)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the bar."""
        self.seconds = time.perf_counter() - self._start
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Close the bar too: what is printed next begins a line."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _num_sentences(batch: Batch) -> int:
    """Return how many sentences are read: neither their answers count, nor that one is masked in several ways."""
    ids = batch.sentence_ids if batch.answers is None else batch.sentence_ids[batch.answers == NO_ANSWER]
    return len(ids.unique())
