"""Random tokens, with which a model is watched and proved."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from llm_entropy.models.tracing.not_found import NotFound, kind_of

PROBE_SHAPE = (2, 7)
"""[batch, seq] of the random tokens that are watched."""


def probe_tokens(model: PreTrainedModel, shape: tuple[int, int], seed: int = 0) -> Tensor:
    """Return random tokens [batch, seq] on the model's device; of what the model takes for padding there is none."""
    embeddings = model.get_input_embeddings()
    weight = getattr(embeddings, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise NotFound(f"its tokens go into no table of embeddings (get_input_embeddings gives {kind_of(embeddings)})")
    input_ids = torch.randint(weight.shape[0], shape, generator=torch.Generator().manual_seed(seed))
    special = _special_ids(model.config, weight.shape[0])
    if special and len(special) < weight.shape[0]:
        other = next(token for token in range(weight.shape[0] - 1, -1, -1) if token not in special)
        input_ids[torch.isin(input_ids, torch.tensor(sorted(special)))] = other
    return input_ids.to(weight.device)


def _special_ids(config: PretrainedConfig, vocab_size: int) -> set[int]:
    """Return tokens that a model treats otherwise than words: padding, and what stands for images or sounds."""
    numbers = [
        value
        for own in (config, config.get_text_config())
        for name, value in vars(own).items()
        if name.endswith(("token_id", "token_index"))
    ]
    return {number for number in numbers if isinstance(number, int) and 0 <= number < vocab_size}
