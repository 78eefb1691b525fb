"""Texts that a model writes behind sentences under a condition, token after token, steered at every step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

from llm_entropy import kernels
from llm_entropy.measuring.lens import Lens
from llm_entropy.models.cached import end_tokens, new_cache, run_cached
from llm_entropy.models.families import ModelView
from llm_entropy.models.layers import read_layers
from llm_entropy.schema.batches import NO_TOKEN, Batch
from llm_entropy.schema.statistics import Unembedding
from llm_entropy.settings import AnalysisSettings
from llm_entropy.steering.hooks import steer_by
from llm_entropy.steering.plan import SteeringPlan
from llm_entropy.steering.token_weights import new_token_weights, token_weights_for

NUCLEUS_LOGITS = 2**24
"""Numbers of logits that are sorted at once: 64 MiB."""


@dataclass(frozen=True)
class Writing:
    """How a model writes."""

    view: ModelView
    head: Lens
    """What makes the model's own logits of its last layer, whatever lens the layers are read by."""
    temperature: float
    """What the logits are divided by."""
    num_new_tokens: int
    """Most tokens of a text."""
    use_sampling: bool
    """Whether tokens are sampled; otherwise the most likely one is taken."""
    top_p: Optional[float]
    """The most likely tokens of this probability are sampled; None: all."""
    end_tokens: Tensor
    """[token], with one of these a text ends."""
    before_step: Callable[[], None]
    """Called before each step."""

    @classmethod
    def of(cls, view: ModelView, analysis: AnalysisSettings, before_step: Callable[[], None]) -> Writing:
        """Return how a model writes by the settings of a run."""
        return cls(
            view,
            Lens(view),
            analysis.temperature,
            analysis.num_new_tokens,
            analysis.use_sampling,
            analysis.top_p,
            torch.tensor(end_tokens(view.model), dtype=torch.int64),
            before_step,
        )


def write_texts(writing: Writing, batch: Batch, plan: Optional[SteeringPlan]) -> Tensor:
    """Let a model continue the sentences of a batch.

    Sentences are padded on the left here, so that all go on at the same place of the cache: windows of attention, which
    count places in the cache, then count tokens of the text. A text ends behind a token that ends it, which belongs to
    it, or when it has as many tokens as it may.

    Args:
        writing: How.
        batch: Sentences, and as records the positions of every token that may be written, row by row.
        plan: What steers, on the model's device: the sentence's tokens by their weights, new ones by the last.

    Returns:
        [batch, new], int64, on the CPU: the tokens, `NO_TOKEN` behind the end of a text.
    """
    host, device = batch.host or batch, batch.input_ids.device
    num_own = host.attention_mask.sum(dim=1)
    ids, mask, positions = _padded_on_the_left(host.input_ids, num_own)
    rows = torch.arange(len(ids), device=device)
    uniforms = batch.uniforms.view(len(ids), writing.num_new_tokens)
    cache, written = new_cache(writing.view), torch.full(uniforms.shape, NO_TOKEN)
    has_ended = torch.zeros(len(ids), dtype=torch.bool)
    for step in range(writing.num_new_tokens):
        writing.before_step()
        with ExitStack() as hooks:
            if plan is not None:
                new = (positions, num_own, ids)
                weights = new_token_weights(plan, *new) if step else token_weights_for(plan, mask, ids)
                hooks.enter_context(steer_by(writing.view.blocks, plan, weights))
            last = torch.full_like(rows, ids.shape[1] - 1)
            states = hooks.enter_context(read_layers(writing.view, rows, last))
            run_cached(writing.view, ids.to(device), mask.to(device), positions.to(device), cache)
        chosen = _choose(writing, states.stack()[-1:], uniforms[:, step]).cpu()
        written[:, step] = chosen.where(~has_ended, NO_TOKEN)
        has_ended |= torch.isin(chosen, writing.end_tokens)
        if has_ended.all():
            break
        ids, positions = chosen[:, None], (num_own + step)[:, None]
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
    return written


def _padded_on_the_left(input_ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens, mask and positions, [batch, seq] each, of rows that are padded on the right; padding is any."""
    places = torch.arange(input_ids.shape[1]) - (input_ids.shape[1] - lengths)[:, None]
    positions = places.clamp(min=0)
    return input_ids.gather(1, positions), (places >= 0).long(), positions


def _choose(writing: Writing, states: Tensor, uniforms: Tensor) -> Tensor:
    """Return the next token of each row, [row], from the last layer's states [1, row, hidden]."""
    view = writing.view
    inputs, unembedding = writing.head.project(states, [view.shape.num_blocks]), view.unembedding(writing.temperature)
    if writing.top_p is not None:
        return sample_nucleus(inputs[0], unembedding, uniforms, writing.top_p)
    found = kernels.lens_statistics(inputs, unembedding, top_slots=[0], top_k=1)
    if not writing.use_sampling:
        return found.top_ids[0, :, 0]
    return kernels.sample_tokens(inputs, unembedding, found.maximum + found.log_sum, uniforms)[0]


def sample_nucleus(inputs: Tensor, unembedding: Unembedding, uniforms: Tensor, top_p: float) -> Tensor:
    """Draw from the nucleus of each row: the fewest most likely tokens that have a probability of `top_p` together.

    Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", section 3.1. The draw is that of
    `kernels.sample_tokens`: the first token of the nucleus, by its id, at which its cumulative probability exceeds it.

    Args:
        inputs: [row, width], what goes into the decoder.
        unembedding: The decoder and what follows it.
        uniforms: [row], in [0, 1), in the type in which probabilities are added up.
        top_p: Above 0, up to 1.

    Returns:
        [row], int64.
    """
    size = max(1, NUCLEUS_LOGITS // unembedding.weight.shape[0])
    return torch.cat(
        [
            _draw(kernels.logits_of(inputs[start : start + size], unembedding), uniforms[start : start + size], top_p)
            for start in range(0, len(inputs), size)
        ]
    )


def _draw(logits: Tensor, uniforms: Tensor, top_p: float) -> Tensor:
    probabilities = logits.to(uniforms.dtype).softmax(dim=-1)
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    is_in = torch.zeros_like(probabilities, dtype=torch.bool).scatter(1, order, before < top_p)
    cumulative = probabilities.where(is_in, 0.0).cumsum(dim=-1)
    # The draw is scaled, not the probabilities; where rounding makes it their sum, the last of the nucleus is drawn.
    below = (cumulative <= uniforms[:, None] * cumulative[:, -1:]).sum(dim=-1)
    last = torch.where(is_in & (probabilities > 0), torch.arange(logits.shape[1], device=logits.device), 0).amax(dim=-1)
    return torch.minimum(below, last)
