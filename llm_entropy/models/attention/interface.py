"""transformers' attention interface: how a model attends, and the queries and keys that it attends with.

Reading them is an implementation of attention like `sdpa`, with a name of its own; no code of a model is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, Optional

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from llm_entropy.models.tracing.attending import READER

EAGER = "eager"
READABLE = "sdpa_and_entropy"
"""transformers' `sdpa`, whose queries and keys can be read; for sdpa in its name, it is refused where sdpa would be."""


class AttentionInputs(NamedTuple):
    """What an attention module hands to `softmax(scale * query @ key + mask) @ value`."""

    query: Tensor
    """[batch, head, seq, width]."""
    key: Tensor
    """[batch, key head, seq, width]; a key head serves a number of heads in a row."""
    mask: Optional[Tensor]
    """[batch, 1 or head, seq, seq]: where a position may look, or what is added to its scores; None: everywhere."""
    is_causal: bool
    """Whether a position sees none behind it although there is no mask."""
    scale: float
    """What the scores are multiplied with."""


def _readable_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Optional[Tensor], **options: Any
) -> tuple[Tensor, None]:
    """Attend as `sdpa` does, and show the queries and keys to who reads this module."""
    reader = getattr(module, READER, None)
    if reader is not None:
        is_causal = options.get("is_causal")
        is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        scale = options.get("scaling")
        mask = attention_mask
        if mask is not None and mask.shape[2] != query.shape[2]:  # one row that serves all positions
            mask = mask.expand(-1, -1, query.shape[2], -1)
        reader(
            AttentionInputs(
                query=query,
                key=key,
                mask=mask,
                is_causal=is_causal and attention_mask is None,
                scale=query.shape[-1] ** -0.5 if scale is None else float(scale),
            )
        )
    attended, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return attended, None


AttentionInterface.register(READABLE, _readable_attention)
AttentionMaskInterface.register(READABLE, sdpa_mask)


def attention_implementation(model: PreTrainedModel) -> str:
    """Return how a model attends: `eager`, `sdpa`, `sdpa_and_entropy`."""
    return str(model.config._attn_implementation)


def in_language_model(config: PretrainedConfig, implementation: str) -> str | dict[str, str]:
    """Return what transformers is told so that the language model attends in a way.

    What reads images or sounds keeps its own: it is not run on text, and may know no other.

    Args:
        config: Of the whole model.
        implementation: `eager`, `sdpa`, `sdpa_and_entropy`.
    """
    text = config.get_text_config()
    part = next((name for name in config.sub_configs if getattr(config, name, None) is text), None)
    return implementation if part is None else {"": implementation, part: implementation}


@contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let a model that goes through transformers' interface attend eagerly inside of the context."""
    before = attention_implementation(model)
    model.set_attn_implementation(in_language_model(model.config, EAGER))
    try:
        yield
    finally:
        model.set_attn_implementation(in_language_model(model.config, before))


@contextmanager
def reading_attention(modules: Collection[nn.Module], reader: Callable[[AttentionInputs], None]) -> Iterator[None]:
    """Show `reader` what attention modules attend with, in the order in which they run.

    The reader stands on these modules, where no other model or thread finds it.

    Args:
        modules: Of a model that was loaded to read its attention; one that runs more than once may stand here as often.
        reader: Called each time that one of them runs.
    """
    read = set(modules)
    assert not any(hasattr(module, READER) for module in read), "the attention is being read already"
    with ExitStack() as marks:
        for module in read:
            setattr(module, READER, reader)
            marks.callback(delattr, module, READER)
        yield
