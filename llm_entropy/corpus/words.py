"""Words: which white-space piece of a sentence each token belongs to, and which tokens begin a new one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from llm_entropy.schema.batches import CUT_WORD, NO_WORD

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PIECE = re.compile(r"\S+")
_PROBES = (("a", "."), ("I", ","), ("the", "."), ("x", "-"), ("1", "."))
"""A word, and what stands behind it, once with a space between and once without."""


class Words(NamedTuple):
    """The word of each token of a sentence."""

    starts: list[int]
    """[token], the first character of its word in the sentence, or `NO_WORD`, or `CUT_WORD`."""
    ends: list[int]
    """[token], one past the last character, likewise."""


def words_of(sentence: str, starts: Sequence[int], ends: Sequence[int], is_special: Sequence[bool]) -> Words:
    """Return the word of each token.

    Words are pieces between white space, and between special tokens that the text holds itself. White space that is a
    token of its own belongs to the word behind it, as the space does that begins a token; behind the last word it
    belongs to none. Pieces that share a token are one word.

    Args:
        sentence: The text.
        starts: [token], its first character in the text; below 0: it has no place there.
        ends: [token], one past its last character.
        is_special: [token], whether it is a special token.
    """
    places = list(zip(starts, ends, is_special, strict=True))
    blanked = sentence
    for start, end, special in places:
        if special and start >= 0:
            blanked = blanked[:start] + " " * (end - start) + blanked[end:]
    pieces = [match.span() for match in _PIECE.finditer(blanked)]
    piece_starts, piece_ends = np.array(pieces, np.int64).reshape(-1, 2).T
    firsts = np.searchsorted(piece_ends, starts, side="right")
    stops = np.searchsorted(piece_starts, ends, side="left")
    found = [
        (int(first), int(stop)) if start >= 0 and not special and first < stop else None
        for first, stop, (start, _, special) in zip(firsts, stops, places, strict=True)
    ]
    group = _groups(len(pieces), [pair for pair in found if pair is not None])
    words = Words([NO_WORD] * len(places), [NO_WORD] * len(places))
    blank: list[int] = []
    for token, (pair, (start, _, special)) in enumerate(zip(found, places, strict=True)):
        if pair is None:
            blank = [] if special or start < 0 else [*blank, token]
            continue
        members = group[pair[0]]
        for index in [*blank, token]:
            words.starts[index], words.ends[index] = pieces[members.start][0], pieces[members.stop - 1][1]
        blank = []
    return words


def _groups(num_pieces: int, spans: Collection[tuple[int, int]]) -> list[range]:
    """Return for each piece those that it shares a token with, itself included; a span is the pieces of a token."""
    joined = {piece for first, stop in spans for piece in range(first, stop - 1)}  # with the next one
    groups: list[range] = []
    start = 0
    for piece in range(num_pieces):
        if piece not in joined:
            groups += [range(start, piece + 1)] * (piece + 1 - start)
            start = piece + 1
    return groups


def without_cut(words: Words, whole: Words) -> Words:
    """Return the words of a sentence that was cut, with those marked of which tokens were left out.

    Args:
        words: Of the tokens that are left.
        whole: Of all tokens of the sentence.
    """
    left, all_of_it = Counter(words.starts), Counter(whole.starts)
    is_cut = [start >= 0 and left[start] != all_of_it[start] for start in words.starts]
    return Words(*([CUT_WORD if cut else place for cut, place in zip(is_cut, own, strict=True)] for own in words))


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the special tokens, but for one that stands for unknown words alone."""
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    return frozenset(tokenizer.all_special_ids) - ({tokenizer.unk_token_id} - ends)


def word_starts(tokenizer: PreTrainedTokenizerBase, vocab_size: int, ends: Collection[int]) -> Tensor | None:
    """Return which tokens begin a new word, with white space, or end the text.

    Each token is decoded behind a letter, so that it is the tokenizer that says what its marks mean.

    Args:
        tokenizer: Of the model.
        vocab_size: Number of the model's logits.
        ends: Tokens that end the text.

    Returns:
        [vocab], bool. None where tokens do not carry the space: word pieces (`##`) and tokens that end a word (`</w>`),
        in which `word.` and `word .` are the same.
    """
    letter = _letter(tokenizer)
    if letter is None:
        return None
    special = special_ids(tokenizer)
    before = _decoded(tokenizer, [[letter]])[0]
    ids = [token for token in range(min(len(tokenizer), vocab_size)) if token not in special]
    texts = _decoded(tokenizer, [[letter, token] for token in ids])
    begins = torch.zeros(vocab_size, dtype=torch.bool)
    for token, text in zip(ids, texts, strict=True):
        begins[token] = text.startswith(before) and text[len(before) :][:1].isspace()
    if not begins.any():
        return None
    begins[[token for token in ends if 0 <= token < vocab_size]] = True
    return begins


def _letter(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return a token behind which others are decoded; None if the tokens of a text do not say where its spaces are."""
    for word, mark in _PROBES:
        attached, apart = (
            tokenizer(text, add_special_tokens=False)["input_ids"] for text in (word + mark, f"{word} {mark}")
        )
        texts = [text.lstrip() for text in _decoded(tokenizer, [attached, apart])]
        if texts == [word + mark, f"{word} {mark}"] and len(attached) > 1:
            return int(attached[-2])
    return None


def _decoded(tokenizer: PreTrainedTokenizerBase, tokens: list[list[int]]) -> list[str]:
    return list(tokenizer.batch_decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))
