"""The LightningModule: a batch of sentences in, the records of every condition out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple, Optional

import lightning as L
import torch
from torch import Tensor

from llm_entropy.measure.lens import Lens
from llm_entropy.measure.metrics import FROM_STATISTICS
from llm_entropy.measure.readout import Slots, Tokens, Wanted, decode
from llm_entropy.models.attention import read_attention_entropy
from llm_entropy.models.families import ModelView, run_base
from llm_entropy.models.layers import read_layers
from llm_entropy.models.shared_blocks import BlockOutput, keep_output, start_behind
from llm_entropy.schema import Batch, ConditionRecords, LayerStatistics, Records
from llm_entropy.settings import ATTENTION_ENTROPY, CONTROL, KL_FROM_STANDARD, AnalysisSettings
from llm_entropy.steering.hooks import SteeringPlan, steer

log = logging.getLogger("llm_entropy")

TILE_STATES = 2**22
"""Numbers of the residual stream, over slots and records, that go through the lens together: 16 MiB in float32."""


class _Forward(NamedTuple):
    """What one forward pass gives."""

    states: Tensor
    """[layer, record, hidden]."""
    attention: Optional[Tensor]
    """[block, record, head], in nats; None if it was not asked for."""


class EntropyModule(L.LightningModule):
    """Measures what a model believes at every layer, as it is and steered.

    Args:
        view: The model.
        lens: How a layer becomes logits.
        analysis: What is measured, under which conditions.
        plan: How the control condition is steered; needed where `analysis.conditions` has it.
    """

    def __init__(self, view: ModelView, lens: Lens, analysis: AnalysisSettings, plan: Optional[SteeringPlan]) -> None:
        super().__init__()
        assert plan is not None or CONTROL not in analysis.conditions, "a control condition without a plan"
        self.model = view.model
        self.lens = lens
        self.view = view
        self.analysis = analysis
        self.plan = plan
        num_layers, first = view.shape.num_layers, None if plan is None else plan.first_layer
        self.slots = Slots(len(analysis.conditions), num_layers, num_layers if first is None else first)
        self.names = [name for name in analysis.metrics if name != ATTENTION_ENTROPY]
        self.wanted = Wanted(
            top_k=analysis.top_k,
            num_tracked=analysis.tracked_tokens,
            use_sampling=analysis.use_sampling,
            square="varentropy" in self.names,
            final_cross="kl_to_final" in self.names,
            standard_cross=len(analysis.conditions) > 1,
            target_rank="target_rank" in self.names,
        )
        self._most_rows: Optional[int] = None
        self.listeners: list[Callable[[int], None]] = []
        """Called before each block and after each tile of records, with the tokens of the batch that are done.

        One that raises breaks the batch off."""

    @torch.inference_mode()
    def predict_step(self, batch: Batch, batch_idx: int = 0) -> Records:
        """Return the records of one batch, on the CPU or on their way there.

        The conditions run on the same batch, one after the other; their layers go through the lens together, so that
        what compares them needs no second pass over the vocabulary.

        Args:
            batch: Padded sentences and the positions to read.
            batch_idx: Not used.
        """
        host = batch.host or batch
        owners = zip(host.sentence_ids.tolist(), host.rows.tolist(), strict=True)
        conditions = self._measure_what_fits(batch) if batch.sentences else {}
        conditions, wait = _to_host(conditions, batch.input_ids.device)
        return Records(
            sentence_ids=host.sentence_ids,
            texts={number: host.sentences[row] for number, row in owners},
            positions=host.positions,
            token_ids=host.input_ids[host.rows, host.positions],
            starts=host.starts,
            ends=host.ends,
            conditions=conditions,
            num_tokens=int(host.attention_mask.sum()),
            num_sentences=len(host.sentences),
            key=host.key,
            notes=host.notes,
            wait=wait,
        )

    def _measure_what_fits(self, batch: Batch) -> dict[str, ConditionRecords]:
        """Run every condition on a batch; one that the device has no memory for is run in halves, and so is the next.

        Raises:
            torch.OutOfMemoryError: There is no memory for a single sentence.
        """
        num_rows = len(batch.sentences)
        size = min(num_rows, self._most_rows or num_rows)
        parts: list[dict[str, ConditionRecords]] = []
        start = 0
        while start < num_rows:
            stop = min(start + size, num_rows)
            part = batch if (start, stop) == (0, num_rows) else batch.rows_between(start, stop)
            try:
                parts.append(self._measure(part))
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                size = self._most_rows = size // 2
                log.warning(
                    "out of memory with a batch of %d sentences: %d at a time from here on; "
                    "a smaller data.tokens_per_batch does without this",
                    stop - start,
                    size,
                )
            else:
                start = stop
        if len(parts) == 1:
            return parts[0]
        return {name: ConditionRecords.join([part[name] for part in parts]) for name in parts[0]}

    def _measure(self, batch: Batch) -> dict[str, ConditionRecords]:
        """Run every condition on a batch."""
        forwards = self._forwards(batch)
        metrics, tokens = self._decode(torch.cat([forward.states for forward in forwards]), batch)
        return {
            condition: self._condition_records(index, condition, forwards[index].attention, metrics, tokens)
            for index, condition in enumerate(self.analysis.conditions)
        }

    def _forwards(self, batch: Batch) -> list[_Forward]:
        """Run the model under each condition; a second one starts behind the blocks that it shares with the first.

        Returns:
            For each condition its attention, and its states, of a second condition those of the layers that differ.
        """
        first, *others = self.analysis.conditions
        if not others:
            return [self._forward(batch, first)]
        num_shared, num_blocks = self.slots.num_shared, self.view.shape.num_blocks
        if num_shared == 0:
            return [self._forward(batch, condition) for condition in self.analysis.conditions]
        if num_shared > num_blocks:  # nothing is steered
            one = self._forward(batch, first)
            return [one, one._replace(states=one.states[:0])]
        common = num_shared - 1  # the block whose output is steered first: up to there both conditions are alike
        with keep_output(self.view, common) as kept:
            one = self._forward(batch, first)
        other = self._forward(batch, others[0], behind=(common, kept))
        attention = one.attention
        if attention is not None and other.attention is not None:
            attention = torch.cat([attention[:num_shared], other.attention])
        return [one, _Forward(other.states[num_shared:], attention)]

    def _forward(self, batch: Batch, condition: str, behind: Optional[tuple[int, BlockOutput]] = None) -> _Forward:
        """Run the model under one condition and read it at the batch's positions.

        Args:
            batch: What it runs on.
            condition: Which one.
            behind: A block that does not run again, nor do those before it, and what it returned.
        """
        with ExitStack() as hooks:
            for block in dict.fromkeys(self.view.blocks):
                hooks.callback(block.register_forward_pre_hook(lambda *_: self._tell(0)).remove)
            if condition == CONTROL:
                assert self.plan is not None
                self.plan = self.plan.to(batch.attention_mask.device)
                hooks.enter_context(steer(self.view.blocks, self.plan, (batch.host or batch).attention_mask))
            if behind is not None:
                hooks.enter_context(start_behind(self.view, *behind))
            states = hooks.enter_context(read_layers(self.view, batch.rows, batch.positions))
            attention = None
            runs_blocks = behind is None or behind[0] < self.view.shape.num_blocks - 1
            if ATTENTION_ENTROPY in self.analysis.metrics and runs_blocks:
                attention = hooks.enter_context(read_attention_entropy(self.view, batch.rows, batch.positions))
            run_base(self.view, batch.input_ids, batch.attention_mask)
        return _Forward(states.stack(), None if attention is None else attention.stack())

    def _decode(self, states: Tensor, batch: Batch) -> tuple[dict[str, Tensor], Tokens]:
        """Turn states [slot, record, hidden] into metrics [condition, layer, record] and named tokens.

        Some records at a time: what a lens makes of the states must not take a multiple of their memory.
        """
        size = max(1, TILE_STATES // states[:, 0].numel())
        unembedding = self.view.unembedding(self.analysis.temperature)
        num_tokens = int((batch.host or batch).attention_mask.sum())
        parts = []
        for start in range(0, states.shape[1], size):
            tile = slice(start, start + size)
            inputs = self.lens.project(states[:, tile], self.slots.layers)
            statistics, tokens = decode(
                inputs, self.slots, unembedding, batch.targets[tile], batch.uniforms[tile], self.wanted
            )
            parts.append((self._metrics(statistics), tokens))
            self._tell(num_tokens * min(start + size, states.shape[1]) // states.shape[1])
        metrics = {name: torch.cat([part[name] for part, _ in parts], dim=2) for name in parts[0][0]}
        return metrics, Tokens.join([tokens for _, tokens in parts])

    def _tell(self, num_tokens: int) -> None:
        for listener in self.listeners:
            listener(num_tokens)

    def _metrics(self, statistics: LayerStatistics) -> dict[str, Tensor]:
        """Return every metric that is made from statistics, [condition, layer, record]."""
        names = [*self.names, KL_FROM_STANDARD] if len(self.analysis.conditions) > 1 else self.names
        return {name: FROM_STATISTICS[name](statistics, self.view.shape.vocab_size) for name in names}

    def _condition_records(
        self, index: int, condition: str, attention: Optional[Tensor], metrics: dict[str, Tensor], tokens: Tokens
    ) -> ConditionRecords:
        """Return the part of one condition, the record's axis first."""
        own = {name: values[index].T for name, values in metrics.items()}
        if condition != CONTROL:
            own.pop(KL_FROM_STANDARD, None)
        if attention is not None:
            own[ATTENTION_ENTROPY] = attention.transpose(0, 1)
        return ConditionRecords(
            target_ids=tokens.targets[index],
            metrics={name: values.contiguous() for name, values in own.items()},
            top_ids=tokens.listed[index],
            top_probabilities=tokens.listed_probabilities[index],
            tracked_ids=tokens.tracked[index],
            tracked_probabilities=tokens.tracked_probabilities[index].contiguous(),
        )


def _to_host(
    conditions: dict[str, ConditionRecords], device: torch.device
) -> tuple[dict[str, ConditionRecords], Optional[Callable[[], None]]]:
    """Send records to the CPU, and return them and what waits until they are there; None if they are."""
    if device.type != "cuda":
        return {name: own.changed(Tensor.cpu) for name, own in conditions.items()}, None

    def send(values: Tensor) -> Tensor:
        place = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        return place.copy_(values, non_blocking=True)

    sent = {name: own.changed(send) for name, own in conditions.items()}
    arrived = torch.cuda.Event()
    arrived.record()
    return sent, arrived.synchronize
