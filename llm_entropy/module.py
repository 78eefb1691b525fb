"""The LightningModule: a batch of sentences in, the records of every condition out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple, Optional

import lightning as L
import torch
from torch import Tensor

from llm_entropy import kernels
from llm_entropy.architectures import ModelView, run_base
from llm_entropy.attention import read_attention_entropy
from llm_entropy.layers import read_layers
from llm_entropy.lens import Lens
from llm_entropy.metrics import FROM_STATISTICS
from llm_entropy.schema import PREDICTED, Batch, ConditionRecords, Records, RowStatistics
from llm_entropy.settings import ATTENTION_ENTROPY, CONTROL, KL_FROM_STANDARD, AnalysisSettings
from llm_entropy.steering import SteeringPlan, steer

TILE_STATES = 2**24
"""Numbers of the residual stream, over conditions, layers and records, that go through the lens together: 64 MiB."""


class _Forward(NamedTuple):
    """What one forward pass gives."""

    states: Tensor
    """[layer, record, hidden]."""
    attention: Optional[Tensor]
    """[block, record, head], in nats; None if it was not asked for."""


class _Tokens(NamedTuple):
    """The tokens that a batch names, and what the layers think of them."""

    targets: Tensor
    """[condition, record], the token whose probability is read."""
    listed: Tensor
    """[condition, record, top_k], the predictions of the last layer, or [condition, record, 1], the sampled token."""
    listed_probabilities: Tensor
    """As `listed`, at the last layer."""
    tracked: Tensor
    """[condition, record, tracked], the likeliest tokens of the last layer."""
    tracked_probabilities: Tensor
    """[condition, record, tracked, layer]."""

    @classmethod
    def join(cls, parts: Sequence[_Tokens]) -> _Tokens:
        """Return the tokens of several tiles of records, in order."""
        return cls(*(torch.cat(values, dim=1) for values in zip(*parts, strict=True)))


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

    @torch.inference_mode()
    def predict_step(self, batch: Batch, batch_idx: int = 0) -> Records:
        """Return the records of one batch, on the CPU.

        The conditions run on the same batch, one after the other; their layers go through the lens together, so that
        what compares them needs no second pass over the vocabulary.

        Args:
            batch: Padded sentences and the positions to read.
            batch_idx: Not used.
        """
        return Records(
            sentence_ids=batch.sentence_ids.cpu(),
            sentences=[batch.sentences[row] for row in batch.rows.tolist()],
            positions=batch.positions.cpu(),
            token_ids=batch.input_ids[batch.rows, batch.positions].cpu(),
            starts=batch.starts.cpu(),
            ends=batch.ends.cpu(),
            conditions=self._measure(batch) if batch.sentences else {},
            num_tokens=int(batch.attention_mask.sum()),
            num_sentences=len(batch.sentences),
            key=batch.key,
            notes=batch.notes,
        )

    def _measure(self, batch: Batch) -> dict[str, ConditionRecords]:
        """Run every condition on a batch."""
        forwards = [self._forward(batch, condition) for condition in self.analysis.conditions]
        metrics, tokens = self._decode(torch.stack([forward.states for forward in forwards]), batch)
        return {
            condition: self._condition_records(index, condition, forwards[index].attention, metrics, tokens)
            for index, condition in enumerate(self.analysis.conditions)
        }

    def _forward(self, batch: Batch, condition: str) -> _Forward:
        """Run the model under one condition and read it at the batch's positions."""
        with ExitStack() as hooks:
            if condition == CONTROL:
                assert self.plan is not None
                hooks.enter_context(steer(self.view.blocks, self.plan, batch.attention_mask))
            states = hooks.enter_context(read_layers(self.view, batch.rows, batch.positions))
            attention = None
            if ATTENTION_ENTROPY in self.analysis.metrics:
                attention = hooks.enter_context(read_attention_entropy(self.view, batch.rows, batch.positions))
            run_base(self.view, batch.input_ids, batch.attention_mask)
        return _Forward(states.stack(), None if attention is None else attention.stack())

    def _decode(self, states: Tensor, batch: Batch) -> tuple[dict[str, Tensor], _Tokens]:
        """Turn states [condition, layer, record, hidden] into metrics [condition, layer, record] and named tokens.

        Some records at a time: what a lens makes of the states must not take a multiple of their memory.
        """
        size = max(1, TILE_STATES // states[:, :, 0].numel())
        parts = [
            self._decode_tile(states[:, :, tile], batch.targets[tile], batch.uniforms[tile])
            for tile in (slice(start, start + size) for start in range(0, states.shape[2], size))
        ]
        metrics = {name: torch.cat([part[name] for part, _ in parts], dim=2) for name in parts[0][0]}
        return metrics, _Tokens.join([tokens for _, tokens in parts])

    def _decode_tile(self, states: Tensor, targets: Tensor, uniforms: Tensor) -> tuple[dict[str, Tensor], _Tokens]:
        """Decode a tile of records; `targets` and `uniforms` are [record]."""
        analysis, wanted = self.analysis, self.analysis.metrics
        inputs = self.lens.project(states)
        unembedding = self.view.unembedding(analysis.temperature)
        statistics = kernels.lens_statistics(
            inputs,
            unembedding,
            top_k=max(analysis.top_k, analysis.tracked_tokens),
            square="varentropy" in wanted,
            final_cross="kl_to_final" in wanted,
            standard_cross=len(analysis.conditions) > 1,
        )
        log_sum = statistics.log_sum.unsqueeze(-1)
        listed = statistics.top_ids[..., : analysis.top_k]
        listed_probabilities = (statistics.top[..., : analysis.top_k] - log_sum[:, -1]).exp()
        predicted = statistics.top_ids[..., 0]
        if analysis.use_sampling:
            log_normalizer = statistics.maximum[:, -1] + statistics.log_sum[:, -1]
            predicted = kernels.sample_tokens(inputs[:, -1], unembedding, log_normalizer, uniforms)
        targets = torch.where(targets == PREDICTED, predicted, targets)
        tracked = statistics.top_ids[..., : analysis.tracked_tokens]
        named = torch.cat([targets.unsqueeze(-1), predicted.unsqueeze(-1), tracked], dim=-1)
        logits = kernels.token_logits(inputs, unembedding, named)
        shifted = logits - statistics.maximum.unsqueeze(-1)
        if analysis.use_sampling:
            listed, listed_probabilities = predicted.unsqueeze(-1), (shifted[:, -1, :, 1:2] - log_sum[:, -1]).exp()
        statistics = statistics._replace(target=shifted[..., 0])
        if "target_rank" in wanted:
            ranks = kernels.count_larger(inputs, unembedding, targets, logits[..., 0])
            statistics = statistics._replace(target_rank=ranks)
        tracked_probabilities = (shifted[..., 2:] - log_sum).exp().permute(0, 2, 3, 1)
        tokens = _Tokens(targets, listed, listed_probabilities, tracked, tracked_probabilities)
        return self._metrics(statistics), tokens

    def _metrics(self, statistics: RowStatistics) -> dict[str, Tensor]:
        """Return every metric that is made from statistics, [condition, layer, record]."""
        names = [name for name in self.analysis.metrics if name != ATTENTION_ENTROPY]
        if len(self.analysis.conditions) > 1:
            names.append(KL_FROM_STANDARD)
        return {name: FROM_STATISTICS[name](statistics, self.view.shape.vocab_size) for name in names}

    def _condition_records(
        self, index: int, condition: str, attention: Optional[Tensor], metrics: dict[str, Tensor], tokens: _Tokens
    ) -> ConditionRecords:
        """Return the part of one condition, the record's axis first, on the CPU."""
        own = {name: values[index].T for name, values in metrics.items()}
        if condition != CONTROL:
            own.pop(KL_FROM_STANDARD, None)
        if attention is not None:
            own[ATTENTION_ENTROPY] = attention.transpose(0, 1)
        return ConditionRecords(
            target_ids=tokens.targets[index].cpu(),
            metrics={name: values.contiguous().cpu() for name, values in own.items()},
            top_ids=tokens.listed[index].cpu(),
            top_probabilities=tokens.listed_probabilities[index].cpu(),
            tracked_ids=tokens.tracked[index].cpu(),
            tracked_probabilities=tokens.tracked_probabilities[index].contiguous().cpu(),
        )
