"""The LightningModule: a batch of sentences in, the records of every condition out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Optional

import lightning as L
import torch
from torch import Tensor

from llm_entropy.measuring.asked import Asked
from llm_entropy.measuring.budget import conditions_together, rows_together
from llm_entropy.measuring.forwards import Forward, Reading, run_forwards, shared_layers
from llm_entropy.measuring.headway import Amount, Headway
from llm_entropy.measuring.lens import Lens
from llm_entropy.measuring.metrics import FROM_ATTENTION, FROM_STATISTICS, FROM_STREAM, over_heads
from llm_entropy.measuring.readout import Slots, Wanted, decode
from llm_entropy.models.families import ModelView
from llm_entropy.schema.batches import Batch
from llm_entropy.schema.records import ConditionRecords, Records
from llm_entropy.schema.shape import measured_of
from llm_entropy.schema.statistics import AttentionStatistics
from llm_entropy.settings import BASELINE_METRICS, COMPARISON_METRICS, WORD_METRICS, compared, needs_of
from llm_entropy.steering.plan import SteeringPlan

log = logging.getLogger("llm_entropy")

TILE_STATES = 2**22
"""Numbers of the residual stream, over slots and records, that go through the lens together: 16 MiB in float32."""


OF_ANSWERS = ("surprisal", "target_rank")
"""The metrics that an answer is made of."""


class EntropyModule(L.LightningModule):
    """Measures what a model believes at every layer, as it is and steered.

    Args:
        view: The model.
        lens: How a layer becomes logits.
        asked: What is measured, under which conditions.
    """

    _word_starts: Optional[Tensor]

    def __init__(self, view: ModelView, lens: Lens, asked: Asked) -> None:
        super().__init__()
        analysis = asked.analysis
        self.model = view.model
        self.lens = lens
        self.view = view
        self.analysis = analysis
        self.conditions = analysis.run_conditions
        self.steer_by(asked.plans)
        metrics = measured_of(analysis, view.shape)
        measured = dict.fromkeys([*metrics, *(OF_ANSWERS if asked.reads_answers else ())])
        self.names = [[*measured] for _ in self.conditions]
        for comparison in compared(self.conditions):
            self.names[self.conditions.index(comparison.other)] += COMPARISON_METRICS
            baseline = self.names[self.conditions.index(comparison.baseline)]
            baseline += [name for name in BASELINE_METRICS if name not in baseline]
        for condition, names in zip(self.conditions, self.names, strict=True):
            if analysis.words and condition.keeps_tokens:
                names += [name for name in WORD_METRICS if name not in names]
        self.register_buffer("_word_starts", asked.word_starts, persistent=False)
        needs = needs_of(name for names in self.names for name in names)
        if analysis.lens_tokens:
            needs.add("top1")
        self.wanted = Wanted(
            top_k=analysis.top_k,
            num_tracked=analysis.tracked_tokens,
            use_sampling=analysis.use_sampling,
            needs=needs,
            order=analysis.renyi_order,
            lens_tokens=analysis.lens_tokens,
        )
        self._most_rows: Optional[int] = None
        self._tokens_before = 0
        self.listeners: list[Callable[[int], None]] = []
        """Called before each block and after each tile of records, with the tokens of the batch that are done.

        One that raises breaks the batch off."""

    def steer_by(self, plans: Mapping[str, SteeringPlan]) -> None:
        """Steer from here on as plans say, by the conditions' names."""
        self.plans = [None if condition.steering is None else plans[condition.name] for condition in self.conditions]
        self.slots = Slots(self.view.shape.num_layers, tuple(shared_layers(self.plans, self.view.shape.num_layers)))

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
        found = self._measure_what_fits(batch) if batch.sentences else []
        found, wait = to_host(found, batch.input_ids.device)
        return Records(
            sentence_ids=host.sentence_ids,
            texts={number: host.sentences[row] for number, row in owners},
            positions=host.positions,
            token_ids=host.input_ids[host.rows, host.positions],
            starts=host.starts,
            ends=host.ends,
            word_starts=host.word_starts,
            word_ends=host.word_ends,
            # A batch without sentences, which only carries a window's notes, has records of no condition.
            conditions={condition.name: own for condition, own in zip(self.conditions, found, strict=False)},
            num_tokens=int(host.attention_mask.sum()),
            num_sentences=len(host.sentences),
            key=host.key,
            notes=host.notes,
            kept=host.kept,
            answers=host.answers,
            wait=wait,
        )

    def _measure_what_fits(self, batch: Batch) -> list[ConditionRecords]:
        """Run every condition on a batch, some rows at a time where the states of all conditions take too much memory.

        What the device has no memory for is run in halves, and so is the next.

        Raises:
            torch.OutOfMemoryError: There is no memory for a single sentence.
        """
        num_rows = len(batch.sentences)
        size = rows_together(num_rows, self._slots_together, self.slots.num_layers, len(batch.rows) * self._state_bytes)
        size = min(size, self._most_rows or num_rows)
        parts: list[list[ConditionRecords]] = []
        start = self._tokens_before = 0
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
                    "a smaller data.tokens_per_batch avoids this",
                    stop - start,
                    size,
                )
            else:
                start = stop
                self._tokens_before += _num_tokens(part)
        if len(parts) == 1:
            return parts[0]
        return [ConditionRecords.join(own) for own in zip(*parts, strict=True)]

    @property
    def _state_bytes(self) -> int:
        """Bytes of a record's state at one layer."""
        return self.view.shape.hidden_size * self.view.decoder.weight.element_size()

    @property
    def _slots_together(self) -> int:
        """How many layers, of all conditions, are kept for a record before it is read."""
        return sum(self._num_slots(c) for c in range(len(self.conditions)))

    def _num_slots(self, condition: int) -> int:
        return self.slots.num_layers - (self.slots.shared[condition] if condition else 0)

    def _measure(self, batch: Batch) -> list[ConditionRecords]:
        """Run every condition on a batch, and read them together, or in groups where a long sentence takes too much."""
        self._move_plans(batch.attention_mask.device)
        sizes = [self._num_slots(c) for c in range(1, len(self.conditions))]
        groups = list(conditions_together(sizes, self.slots.num_layers, len(batch.rows) * self._state_bytes))
        headway = self._headway(batch, sizes, len(groups))
        forwards = run_forwards(self._reading(headway), batch, self.plans, self.slots.shared)
        first = next(forwards)
        found: list[ConditionRecords] = []
        others = iter(range(1, len(self.conditions)))
        for count in groups:
            together = [0, *islice(others, count)]
            read = self._read([first, *islice(forwards, count)], together, batch, headway)
            found += read[bool(found) :]  # the first condition is there once
        return found

    def _move_plans(self, device: torch.device) -> None:
        self.plans = [None if plan is None else plan.to(device) for plan in self.plans]

    def _reading(self, headway: Headway) -> Reading:
        needs = self.wanted.needs
        return Reading(self.view, "attention" in needs, "attended" in needs, "sinks" in needs, headway.block)

    def _headway(self, batch: Batch, sizes: Sequence[int], num_groups: int) -> Headway:
        """Return what tells how much of a batch is done; the first condition is read with each group of the others."""
        num_blocks = self.view.shape.num_blocks
        num_slots = self.slots.num_layers * num_groups + sum(sizes)
        run = [num_blocks, *(max(0, num_blocks - shared) for shared in self.slots.shared[1:])]
        amount = Amount(_num_tokens(batch), sum(run), num_slots * len(batch.rows))
        return Headway(amount, self.view.shape, self._tokens_before, self._tell)

    def _read(
        self, forwards: Sequence[Forward], together: Sequence[int], batch: Batch, headway: Headway
    ) -> list[ConditionRecords]:
        """Return the records of some conditions, the first one included, whose layers go through the lens together.

        Some records at a time: what a lens makes of the states must not take a multiple of their memory.
        """
        states = torch.cat([forward.states for forward in forwards])  # [slot, record, hidden]
        slots = Slots(self.slots.num_layers, tuple(self.slots.shared[c] for c in together))
        size, num_records = max(1, TILE_STATES // states[:, 0].numel()), states.shape[1]
        tiles = []
        for start in range(0, num_records, size):
            tile = slice(start, start + size)
            tiles.append(self._read_tile(states[:, tile], slots, together, batch.targets[tile], batch.uniforms[tile]))
            headway.read(len(states) * (min(start + size, num_records) - start))
        found = [ConditionRecords.join(own) for own in zip(*tiles, strict=True)]
        for c, forward, own in zip(together, forwards, found, strict=True):
            if forward.attention is not None:
                own.metrics.update(self._attention_metrics(c, forward.attention))
        return found

    def _read_tile(
        self, states: Tensor, slots: Slots, together: Sequence[int], targets: Tensor, uniforms: Tensor
    ) -> list[ConditionRecords]:
        """Turn states [slot, record, hidden] of some conditions into their records, without those of the attention."""
        unembedding = self.view.unembedding(self.analysis.temperature)
        inputs = self.lens.project(states, slots.layers)
        names_tokens = [self.conditions[c].keeps_tokens for c in together]
        wanted = self.wanted._replace(members=self._word_starts)
        statistics, tokens = decode(inputs, slots, unembedding, targets, uniforms, wanted, names_tokens)
        vocab_size = self.view.shape.vocab_size
        names = {name for c in together for name in self.names[c]}
        metrics = {name: make(statistics, vocab_size) for name, make in FROM_STATISTICS.items() if name in names}
        metrics |= {name: slots.spread(make(states)) for name, make in FROM_STREAM.items() if name in names}
        return [
            ConditionRecords({name: metrics[name][place].T for name in self.names[c] if name in metrics}, tokens[place])
            for place, c in enumerate(together)
        ]

    def _attention_metrics(self, condition: int, statistics: AttentionStatistics) -> Iterator[tuple[str, Tensor]]:
        """Yield what a condition's attention gives, [record, block, head]; of a placebo the mean over the heads."""
        for name in self.names[condition]:
            if name in FROM_ATTENTION:
                values = FROM_ATTENTION[name](statistics).transpose(0, 1)
                keeps_heads = self.conditions[condition].keeps_tokens
                yield name, values if keeps_heads else over_heads(values, self.view.shape.heads)

    def _tell(self, num_tokens: int) -> None:
        for listener in self.listeners:
            listener(num_tokens)


def _num_tokens(batch: Batch) -> int:
    return int((batch.host or batch).attention_mask.sum())


def to_host(
    found: list[ConditionRecords], device: torch.device
) -> tuple[list[ConditionRecords], Optional[Callable[[], None]]]:
    """Send records to the CPU, and return them and what waits until they are there; None if they are."""
    if device.type != "cuda":
        return [own.changed(lambda values: values.cpu().contiguous()) for own in found], None

    def send(values: Tensor) -> Tensor:
        place = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        return place.copy_(values, non_blocking=True)

    sent = [own.changed(send) for own in found]
    arrived = torch.cuda.Event()
    arrived.record()
    return sent, arrived.synchronize
