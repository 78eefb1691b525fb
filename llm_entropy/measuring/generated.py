"""Measuring what a model writes: each condition goes on with the sentences, and its texts are read under it.

A text is read by a forward pass over all of it under its own condition, and under the standard one beside it. Both see
the same tokens, so that what compares conditions position by position compares them on one text.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from llm_entropy.measuring.asked import Asked
from llm_entropy.measuring.forwards import run_forwards
from llm_entropy.measuring.headway import Amount, Headway
from llm_entropy.measuring.lens import Lens
from llm_entropy.measuring.module import EntropyModule, to_host
from llm_entropy.measuring.writing import Writing, write_texts
from llm_entropy.models.families import ModelView
from llm_entropy.schema.batches import NO_TOKEN, Batch
from llm_entropy.schema.records import ConditionRecords, NamedTokens, Records
from llm_entropy.settings import STANDARD_SURPRISAL, compared, needs_of

SURPRISAL = "surprisal"


def measuring_module(view: ModelView, lens: Lens, asked: Asked) -> EntropyModule:
    """Return the module that measures what is asked for; see `EntropyModule` for the arguments."""
    kind = GeneratedTextModule if asked.analysis.is_generated else EntropyModule
    return kind(view, lens, asked)


class GeneratedTextModule(EntropyModule):
    """Measures a model at the tokens that it writes; see `EntropyModule` for the arguments."""

    def __init__(self, view: ModelView, lens: Lens, asked: Asked) -> None:
        super().__init__(view, lens, asked)
        self.compares = bool(compared(self.conditions))
        if self.compares and SURPRISAL not in self.names[0]:
            self.names[0].append(SURPRISAL)
        # What was written is there: the most likely tokens are listed beside it.
        self.wanted = self.wanted._replace(
            use_sampling=False, needs=needs_of(name for names in self.names for name in names)
        )
        self._batch_tokens, self._share_done = 0, 0.0
        self.writing = Writing.of(view, asked.analysis, lambda: self._tell(self._tokens_before))

    @torch.inference_mode()
    def predict_step(self, batch: Batch, batch_idx: int = 0) -> Records:
        """Return the records of one batch: a row for each position at which some condition writes a token.

        Args:
            batch: Padded sentences, and the positions at which a token may be written.
            batch_idx: Not used.
        """
        host = batch.host or batch
        found = self._measure_what_fits(batch) if batch.sentences else []
        is_written = torch.zeros(len(host.positions), dtype=torch.bool)
        for own in found:
            assert own.written is not None
            is_written |= own.written != NO_TOKEN
        places = is_written.nonzero()[:, 0]
        found = [own.changed(lambda values: values[places.to(values.device)]) for own in found]
        found, wait = to_host(found, batch.input_ids.device)
        rows, positions = host.rows[places], host.positions[places]
        # The first token is read where the sentence ends, the others where each condition has written another.
        is_own = positions < host.attention_mask.sum(dim=1)[rows]
        read = host.input_ids[rows, positions.clamp(max=host.input_ids.shape[1] - 1)]
        return Records(
            sentence_ids=host.sentence_ids[places],
            texts=dict(
                zip(host.sentence_ids.tolist(), (host.sentences[row] for row in host.rows.tolist()), strict=True)
            ),
            positions=positions,
            token_ids=read.where(is_own, NO_TOKEN),
            starts=host.starts[places],
            ends=host.ends[places],
            conditions={condition.name: own for condition, own in zip(self.conditions, found, strict=False)},
            num_tokens=int(host.attention_mask.sum()),
            num_sentences=len(host.sentences),
            key=host.key,
            notes=host.notes,
            kept=host.kept,
            wait=wait,
        )

    @property
    def _slots_together(self) -> int:
        """How many layers are kept for a record before it is read: of the standard condition and of one other."""
        others = [self._num_slots(c) for c in range(1, len(self.conditions))]
        return self.slots.num_layers + (max(others, default=0) if self.compares else 0)

    def _tell(self, num_tokens: int) -> None:
        """Tell how far the batch is by the conditions that are done, for each goes through tokens of its own."""
        super()._tell(self._tokens_before + int(self._share_done * self._batch_tokens))

    def _measure(self, batch: Batch) -> list[ConditionRecords]:
        """Let each condition write, and read what it wrote; a record for each token that might have been written."""
        self._move_plans(batch.attention_mask.device)
        found = []
        for c, plan in enumerate(self.plans):
            self._share_done = c / len(self.plans)
            self._batch_tokens = int((batch.host or batch).attention_mask.sum())
            written = write_texts(self.writing, batch, plan)
            found.append(_at_all_steps(self._read_texts(c, text_batch(batch, written)), written))
        return found

    def _read_texts(self, condition: int, texts: Batch) -> ConditionRecords:
        """Return the records of a condition on its own texts, with their surprisal under the standard condition."""
        together = [0, condition] if self.compares and condition else [condition]
        plans, shared = [self.plans[c] for c in together], [self.slots.shared[c] for c in together]
        headway = Headway(Amount(0, 0, 0), self.view.shape, 0, self._tell)  # `_tell` counts conditions instead
        forwards = list(run_forwards(self._reading(headway), texts, plans, shared))
        read = self._read(forwards, together, texts, headway)
        if self.compares:
            read[-1].metrics[STANDARD_SURPRISAL] = read[0].metrics[SURPRISAL]
        return read[-1]


def text_batch(batch: Batch, written: Tensor) -> Batch:
    """Return a batch of sentences with what was written behind them: every token is a record, at the one before it.

    Args:
        batch: Sentences, and as records the positions of every token that may be written, row by row.
        written: [batch, new], on the CPU, `NO_TOKEN` behind the end of a text.
    """
    host = batch.host or batch
    num_own, num_new = host.attention_mask.sum(dim=1), (written != NO_TOKEN).sum(dim=1)
    num_read = num_own + num_new - 1  # nothing is asked of the last token
    places = torch.arange(int(num_read.max()))
    own = host.input_ids[:, places.clamp(max=host.input_ids.shape[1] - 1)]
    new = written.gather(1, (places - num_own[:, None]).clamp(0, written.shape[1] - 1))
    ids = own.where(places < num_own[:, None], new)
    is_read = places < num_read[:, None]
    rows, steps = (written != NO_TOKEN).nonzero(as_tuple=True)
    records = rows * written.shape[1] + steps
    texts = replace(
        host,
        input_ids=ids.where(is_read, own[:, :1]),  # padding is any token
        attention_mask=is_read.long(),
        rows=rows,
        positions=host.positions[records],
        targets=written[rows, steps],
        uniforms=host.uniforms[records],
        sentence_ids=host.sentence_ids[records],
        starts=host.starts[records],
        ends=host.ends[records],
        num_own=num_own,
        host=None,
    )
    return texts if batch.host is None else texts.to(batch.input_ids.device)


def _at_all_steps(records: ConditionRecords, written: Tensor) -> ConditionRecords:
    """Return records of texts with places for tokens that were not written: `NO_TOKEN` there, and NaN."""
    places = (written.flatten() != NO_TOKEN).nonzero()[:, 0]

    def spread(values: Tensor) -> Tensor:
        gap = torch.nan if values.is_floating_point() else NO_TOKEN
        whole = values.new_full((written.numel(), *values.shape[1:]), gap)
        whole[places.to(values.device)] = values
        return whole

    metrics = {name: spread(values) for name, values in records.metrics.items()}
    tokens = None if records.tokens is None else NamedTokens(*map(spread, records.tokens))
    return ConditionRecords(metrics, tokens, written.flatten())
