"""The LightningModule of an extraction: a batch of texts in, the state of each text at the output of each block out."""

from __future__ import annotations

from collections.abc import Callable

import lightning as L
import torch
from torch import Tensor

from llm_entropy.models.families import ModelView, run_base
from llm_entropy.models.layers import read_block_means
from llm_entropy.schema.batches import Batch
from llm_entropy.schema.records import ConditionRecords, Records
from llm_entropy.schema.shards import STATE_NORMS, STATES, state_column


class StatesModule(L.LightningModule):
    """Reads the mean state of each text's positions at the output of each block.

    Args:
        view: The model.
    """

    def __init__(self, view: ModelView) -> None:
        super().__init__()
        self.model = view.model
        self.view = view
        self.listeners: list[Callable[[int], None]] = []
        """Called before each block, with 0: no token of the batch is done before all are. See `EntropyModule`."""

    @torch.inference_mode()
    def predict_step(self, batch: Batch, batch_idx: int = 0) -> Records:
        """Return the states of one batch, a record for each text, on the CPU.

        Args:
            batch: Padded texts and the positions to read.
            batch_idx: Not used.
        """
        host = batch.host or batch
        found = self._read(batch) if batch.sentences else {}
        # A text's positions are neighbours: where another text begins, its last one is before.
        last = torch.cat([host.rows.diff() != 0, torch.ones(min(1, len(host.rows)), dtype=torch.bool)])
        ids, positions = host.sentence_ids[last], host.positions[last]
        return Records(
            sentence_ids=ids,
            texts=dict(zip(ids.tolist(), host.sentences, strict=True)),
            positions=positions,
            token_ids=host.input_ids[host.rows[last], positions],
            starts=host.starts[last],
            ends=host.ends[last],
            conditions={STATES: ConditionRecords(found, None)} if found else {},
            num_tokens=int(host.attention_mask.sum()),
            num_sentences=len(host.sentences),
            key=host.key,
            notes=host.notes,
        )

    def _read(self, batch: Batch) -> dict[str, Tensor]:
        """Return states and norms by column; what the device has no memory for is run in halves.

        Raises:
            torch.OutOfMemoryError: There is no memory for a single text.
        """
        num_rows = len(batch.sentences)
        try:
            return self._read_at_once(batch)
        except torch.OutOfMemoryError:
            if num_rows == 1:
                raise
        halves = [self._read(batch.rows_between(*ends)) for ends in ((0, num_rows // 2), (num_rows // 2, num_rows))]
        return {name: torch.cat([half[name] for half in halves]) for name in halves[0]}

    def _read_at_once(self, batch: Batch) -> dict[str, Tensor]:
        with read_block_means(self.view, batch.rows, batch.positions, before=self._tell) as read:
            run_base(self.view, batch.input_ids, batch.attention_mask)
        found = {state_column(block): states.cpu() for block, (states, _) in enumerate(read)}
        return {**found, STATE_NORMS: torch.stack([norms for _, norms in read], dim=1).cpu()}

    def _tell(self) -> None:
        for listener in self.listeners:
            listener(0)
