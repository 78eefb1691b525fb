"""The tokens of a sentence, and where in its text they stand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from llm_entropy.corpus.words import Words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MASK_MARK = "[MASK]"
"""How a corpus writes the mask, whatever the tokenizer's own mask token is."""
UNKNOWN = -1
"""As an offset: the token has no known place in the sentence."""


class Tokens(NamedTuple):
    """A sentence as the tokenizer gives it."""

    ids: list[int]
    """[token], with the special tokens that the tokenizer adds."""
    added: list[bool]
    """[token], whether the tokenizer added it."""
    starts: list[int]
    """[token], in characters of the text, or `UNKNOWN`."""
    ends: list[int]
    """[token], in characters of the text, or `UNKNOWN`."""
    was_cut: bool = False
    """Whether tokens were left out at `max_length`."""
    num_doubled: int = 0
    """How many tokens the text begins with that the tokenizer adds as well; they stand once."""
    pieces: Sequence[int | None] = ()
    """[token], the tokenizer's own number of the word that it is a piece of; empty where nobody asks."""
    words: Words = Words([], [])
    """The words of the tokens, without lists where nobody asks."""

    def last(self, most: int) -> Tokens:
        """Return the last tokens, at most so many."""
        if len(self.ids) <= most:
            return self
        kept = slice(-most, None)
        return Tokens(
            self.ids[kept],
            self.added[kept],
            self.starts[kept],
            self.ends[kept],
            was_cut=True,
            pieces=self.pieces[kept],
            words=Words(*(own[kept] for own in self.words)),
        )

    def without_doubled(self) -> Tokens:
        """Return the tokens without those that were added before, and behind, a text that has them itself."""
        before = next((i for i, flag in enumerate(self.added) if not flag), 0)
        if not before or self.ids[before : 2 * before] != self.ids[:before]:
            return self
        behind = next((i for i, flag in enumerate(reversed(self.added)) if not flag), 0)
        end = len(self.ids) - behind
        if self.ids[end - behind : end] != self.ids[end:] or end - behind < 2 * before:
            end = len(self.ids)
        kept = slice(before, end)
        return Tokens(
            self.ids[kept],
            self.added[kept],
            self.starts[kept],
            self.ends[kept],
            self.was_cut,
            num_doubled=before,
            pieces=self.pieces[kept],
        )


def _describe(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a text that is the same for tokenizers that tokenise alike, wherever they were loaded from."""
    common = [type(tokenizer).__name__, sorted(tokenizer.all_special_ids), tokenizer.unk_token_id]
    common += [tokenizer.mask_token, tokenizer.truncation_side]
    if not tokenizer.is_fast:
        from datasets.fingerprint import Hasher

        return json.dumps([*common, Hasher.hash(tokenizer)])
    backend: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    # These two hold what the last call asked for, not what the tokenizer is.
    backend.update(truncation=None, padding=None)
    return json.dumps([*common, backend])
