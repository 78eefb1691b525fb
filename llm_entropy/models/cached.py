"""Running a model token after token: what it has read is kept, and not computed again."""

from __future__ import annotations

import inspect
from typing import Any, Optional

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from llm_entropy.errors import ReportedError
from llm_entropy.models.families import ModelView

CACHE_NAMES = ("cache", "past_key_values")
"""What models call the argument of the cache: of transformers from 5.24 on, and before."""


def check_cache(view: ModelView, name: str) -> None:
    """Make sure that a model can go on with a text token after token.

    Args:
        view: The model.
        name: The model, for the message.

    Raises:
        ReportedError: Its code takes no cache of what it has read.
    """
    if _cache_name(view) is None:
        raise ReportedError(
            f"{name}: {type(view.base).__name__} takes no {' or '.join(CACHE_NAMES)}, so that it cannot go on with a "
            "text token after token; set analysis.positions to last or all"
        )


def _cache_name(view: ModelView) -> Optional[str]:
    known = inspect.signature(view.base.forward).parameters
    return next((name for name in CACHE_NAMES if name in known), None)


def new_cache(view: ModelView) -> DynamicCache:
    """Return an empty cache of keys and values for a causal model."""
    return DynamicCache(config=view.model.config)


def run_cached(
    view: ModelView, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: DynamicCache
) -> None:
    """Run a causal model without its head on the next tokens of texts; hooks read and change what it computes.

    Args:
        view: The model.
        input_ids: [batch, new], the next tokens; padding stands on the left, and in the first call alone.
        attention_mask: [batch, seq], 1 at real tokens: of those in the cache, then of the new ones.
        position_ids: [batch, new], the place of each token in its text, from 0 on.
        cache: Of the tokens before; the new ones are added.
    """
    known, cache_name = inspect.signature(view.base.forward).parameters, _cache_name(view)
    assert cache_name is not None
    options: dict[str, Any] = {cache_name: cache}
    if "position_ids" in known:  # BLOOM, which has none, counts the tokens of the mask
        options["position_ids"] = position_ids
    view.base(input_ids=input_ids, attention_mask=attention_mask, use_cache=True, **options)


def end_tokens(model: PreTrainedModel) -> list[int]:
    """Return the tokens with which a model ends a text, as its `generate` has them; none where it does not say."""
    given: Any = model.generation_config.eos_token_id
    return [] if given is None else [given] if isinstance(given, int) else list(given)
