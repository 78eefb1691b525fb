"""Which tokens of a sentence are steered: all that are real, or some of them, whatever the sentence is batched with."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from llm_entropy.settings.control import as_slice, is_slice

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llm_entropy.settings import Kind


class SpecialTokens(NamedTuple):
    """The special tokens of a model's sentences."""

    ids: frozenset[int] = frozenset()
    """Those that stand for no word of a sentence; the unknown token and the mask do."""
    close_sentences: bool = False
    """Whether a sentence may end with one that is not its own, as BERT's with [SEP]; causal models read none."""


NO_SPECIAL = SpecialTokens()
"""Of sentences that are all words."""


def special_tokens_of(tokenizer: PreTrainedTokenizerBase, kind: Kind) -> SpecialTokens:
    """Return the special tokens of a tokenizer.

    Args:
        tokenizer: Of the model.
        kind: Of the model.
    """
    words = {tokenizer.unk_token_id, tokenizer.mask_token_id}
    # One token may have several roles: GPT-2's end of text is its unknown token, too.
    marks = {getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "sep", "pad", "cls")}
    return SpecialTokens(frozenset(tokenizer.all_special_ids) - (words - marks), kind == "masked")


def steered_tokens(
    tokens: str, attention_mask: Tensor, input_ids: Tensor | None = None, special: SpecialTokens = NO_SPECIAL
) -> Tensor:
    """Return which tokens are steered; padding never is.

    - `all`: every real token, special tokens included.
    - `last`: the last real token; in masked models the last that is no special one, as [SEP] is not the sentence's.
    - `prompt`: the text as it is given, the same as `all`; what a model writes behind it is not (`steers_new_tokens`).
    - `no_special`: every real token but the special ones; masks and unknown words stand for words, and count.
    - a slice: as Python counts the real tokens of the sentence from 0, special tokens included: `5:`, `:-1`, `::2`.

    Args:
        tokens: As `ControlSettings.tokens`.
        attention_mask: [batch, seq], 0 at padding, on whichever side.
        input_ids: [batch, seq]; only special tokens need it.
        special: Of the model.

    Returns:
        [batch, seq], bool, on the mask's device.
    """
    is_real = attention_mask != 0
    if tokens in ("all", "prompt"):
        return is_real
    if is_slice(tokens):
        return _sliced(is_real, as_slice(tokens))
    if tokens == "no_special":
        return is_real & ~_is_special(input_ids, special)
    assert tokens == "last", tokens
    own = is_real & ~_is_special(input_ids, special) if special.close_sentences else is_real
    return own & (own.flip(1).cumsum(1).flip(1) == 1)


def steers_new_tokens(
    tokens: str,
    numbers: Tensor,
    num_own: Tensor,
    input_ids: Tensor | None = None,
    special: SpecialTokens = NO_SPECIAL,
) -> Tensor:
    """Return which of the tokens that a model has written behind a sentence are steered.

    - `all`: every one. `last`: every one, too, for each is the last token when it is read.
    - `prompt`: none.
    - `no_special`: every one but special tokens.
    - a slice: one without an end, as `5:` and `::2`, continues over them; others concern the sentence alone.

    Args:
        tokens: As `ControlSettings.tokens`.
        numbers: [batch, seq], the number of each token in its text, from 0 on.
        num_own: [batch], how many tokens the sentence itself has.
        input_ids: [batch, seq]; only special tokens need it.
        special: Of the model.

    Returns:
        [batch, seq], bool.
    """
    if tokens in ("all", "last"):
        return torch.ones_like(numbers, dtype=torch.bool)
    if tokens == "no_special":
        return ~_is_special(input_ids, special)
    if tokens == "prompt":
        return torch.zeros_like(numbers, dtype=torch.bool)
    chosen = as_slice(tokens)
    start, step = chosen.start or 0, chosen.step or 1
    if chosen.stop is not None or step < 0:
        return torch.zeros_like(numbers, dtype=torch.bool)
    first = (num_own[:, None] + start).clamp(min=0) if start < 0 else start
    return (numbers >= first) & ((numbers - first) % step == 0)


def _is_special(input_ids: Tensor | None, special: SpecialTokens) -> Tensor:
    assert input_ids is not None, "special tokens are told from others by input_ids"
    return torch.isin(input_ids, torch.tensor(sorted(special.ids), dtype=input_ids.dtype, device=input_ids.device))


def _sliced(is_real: Tensor, chosen: slice) -> Tensor:
    """Return the real tokens whose numbers in their sentence are in a slice."""
    lengths, rows = is_real.sum(dim=1).unique(return_inverse=True)
    taken = torch.zeros(len(lengths), is_real.shape[1] + 1, dtype=torch.bool)
    for row, length in enumerate(lengths.tolist()):
        taken[row, list(range(length)[chosen])] = True
    numbers = is_real.cumsum(dim=1) - 1
    return is_real & taken.to(is_real.device)[rows].gather(1, numbers.clamp(min=0))
