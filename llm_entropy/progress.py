"""The progress bar: sentences and tokens done, and tokens per second. It moves within a long batch too."""

from __future__ import annotations

import time
from typing import Any, Optional

import lightning as L
from tqdm import tqdm

from llm_entropy.schema import Batch, Records

REFRESH_SECONDS = 0.5
"""How often the bar moves within a batch."""


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
        now = time.perf_counter()
        if self._bar.disable or self._batch is None or now - self._moved < REFRESH_SECONDS:
            return
        self._moved = now
        share = num_tokens / int((self._batch.host or self._batch).attention_mask.sum())
        self._bar.n = self._num_done + round(share * len(self._batch.sentences), 1)
        self._say(self._num_tokens + num_tokens)
        self._bar.refresh()

    def _say(self, num_tokens: int) -> None:
        rate = num_tokens / (time.perf_counter() - self._start)
        self._bar.set_postfix_str(f"{num_tokens:,} tokens, {rate:,.0f}/s", refresh=False)

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
        self._say(self._num_tokens)
        self._bar.n = self._num_done
        self._num_done += outputs.num_sentences
        self._bar.update(outputs.num_sentences)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the bar."""
        self.seconds = time.perf_counter() - self._start
        self._bar.close()
