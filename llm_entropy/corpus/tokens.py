"""The tokens of a sentence, and where in its text they stand."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from llm_entropy.corpus.words import Words, special_ids, without_cut, words_of
from llm_entropy.schema.batches import NO_WORD

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


@dataclass(frozen=True)
class TokenReader:
    """Reads sentences as tokens."""

    tokenizer: PreTrainedTokenizerBase
    """Fast or slow; a slow one gives no offsets."""
    has_masks: bool
    """Whether `[MASK]` in a sentence stands for the tokenizer's mask token."""
    max_length: int | None = None
    """Most tokens of a sentence, special tokens included; None: no limit."""
    words: bool = False
    """Whether tokens say to which word each belongs."""
    pieces: bool = False
    """Whether tokens have the tokenizer's own numbers of words."""
    reads_chats: bool = False
    """Whether a chat template wrote the sentences, special tokens and all; what is too long loses its beginning."""

    def __call__(self, sentences: Sequence[str]) -> list[Tokens]:
        """Return the tokens of sentences, cut at `max_length`."""
        encoded = self.whole(sentences)
        if self.max_length is None:
            return encoded
        if self.reads_chats:
            return [tokens.last(self.max_length) for tokens in encoded]
        limits = {
            # What is left out again takes no room; a cut at the left removes the text's own.
            i: self.max_length + (tokens.num_doubled if self.tokenizer.truncation_side == "right" else 0)
            for i, tokens in enumerate(encoded)
            if len(tokens.ids) > self.max_length
        }
        for limit in set(limits.values()):
            long = [i for i in limits if limits[i] == limit]
            for i, tokens in zip(long, self._up_to(limit, [sentences[i] for i in long]), strict=True):
                words = without_cut(tokens.words, encoded[i].words) if self.words else tokens.words
                encoded[i] = tokens._replace(was_cut=True, words=words)
        return encoded

    def whole(self, sentences: Sequence[str]) -> list[Tokens]:
        """Return the tokens of sentences, none of them cut."""
        return self._up_to(None, sentences)

    def _up_to(self, max_length: int | None, sentences: Sequence[str]) -> list[Tokens]:
        if not sentences:
            return []
        # The tokenizer's own warning about long sentences would repeat what `was_cut` counts.
        encoded = self.tokenizer(
            [self.with_own_mask(sentence) for sentence in sentences],
            add_special_tokens=not self.reads_chats,
            truncation=max_length is not None,
            max_length=max_length,
            return_special_tokens_mask=True,
            return_offsets_mapping=self.tokenizer.is_fast,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        result = []
        for i, sentence in enumerate(sentences):
            ids, added = list(encoded["input_ids"][i]), [bool(flag) for flag in encoded["special_tokens_mask"][i]]
            offsets = encoded["offset_mapping"][i] if self.tokenizer.is_fast else [(UNKNOWN, UNKNOWN)] * len(ids)
            places = [(UNKNOWN, UNKNOWN) if flag else place for flag, place in zip(added, offsets, strict=True)]
            places = self._in_given_text(places, sentence)
            tokens = Tokens(ids, added, [start for start, _ in places], [end for _, end in places])
            if self.pieces and self.tokenizer.is_fast:
                tokens = tokens._replace(pieces=encoded.word_ids(i))
            tokens = tokens.without_doubled()
            result.append(tokens._replace(words=self._words(sentence, tokens)) if self.words else tokens)
        return result

    def _in_given_text(self, places: list[tuple[int, int]], sentence: str) -> list[tuple[int, int]]:
        """Move offsets back to the sentence as it was given, where the mask token is not as long as `[MASK]`."""
        surplus = len(str(self.tokenizer.mask_token)) - len(MASK_MARK)
        if not self.has_masks or surplus == 0 or MASK_MARK not in sentence:
            return places
        marks = re.finditer(re.escape(MASK_MARK), sentence)
        mask_ends = [mark.end() + count * surplus for count, mark in enumerate(marks, start=1)]
        moved = np.array(places) - surplus * np.searchsorted(mask_ends, np.array(places), side="right")
        return [(int(start), int(end)) for start, end in moved]

    def with_own_mask(self, sentence: str) -> str:
        """Return a sentence as the tokenizer reads it, with its own mask token."""
        return sentence.replace(MASK_MARK, str(self.tokenizer.mask_token)) if self.has_masks else sentence

    @cached_property
    def _no_words(self) -> frozenset[int]:
        return special_ids(self.tokenizer)

    def _words(self, sentence: str, tokens: Tokens) -> Words:
        """Return the words of a sentence's tokens; one that holds masks has none: their truth is unknown."""
        if self.has_masks and self.tokenizer.mask_token_id in tokens.ids:
            return Words([NO_WORD] * len(tokens.ids), [NO_WORD] * len(tokens.ids))
        is_special = [token in self._no_words for token in tokens.ids]
        return words_of(sentence, tokens.starts, tokens.ends, is_special)


def describe_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
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
