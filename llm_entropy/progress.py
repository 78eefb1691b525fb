"""The progress bar: sentences done, sentences and tokens per second."""

from __future__ import annotations

import time
from typing import Any, Optional

import lightning as L
from tqdm import tqdm

from llm_entropy.schema import Records


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
        self._num_tokens = 0

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar."""
        self._start = time.perf_counter()
        hidden = self._quiet or not trainer.is_global_zero
        share = None if self._num_sentences is None else -(-self._num_sentences // trainer.world_size)
        self._bar = tqdm(total=share, desc=self._label, unit=" sentences", disable=hidden)

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
        self._num_tokens += outputs.num_tokens
        rate = self._num_tokens / (time.perf_counter() - self._start)
        self._bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
        self._bar.update(outputs.num_sentences)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the bar."""
        self.seconds = time.perf_counter() - self._start
        self._bar.close()
