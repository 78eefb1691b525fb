"""The examples that read an answer: a given continuation of a sentence, or what is put at the masks of one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Optional

from llm_entropy.corpus.chats import render
from llm_entropy.corpus.encoding import Encoded, Encoder
from llm_entropy.corpus.tokens import MASK_MARK, UNKNOWN, Tokens
from llm_entropy.errors import ReportedError
from llm_entropy.schema.batches import FOIL_ANSWER, TARGET_ANSWER, Example

Answers = tuple[Optional[str], Optional[str]]
"""The right and the wrong answer to a sentence, as far as it has them."""
SHOWN = 40
"""How many characters of an answer an error shows."""
NAMES = {TARGET_ANSWER: "right", FOIL_ANSWER: "wrong"}


class _Asked(NamedTuple):
    """One answer to one sentence."""

    sentence_id: int
    sentence: str
    answer: str
    which: int
    """`TARGET_ANSWER` or `FOIL_ANSWER`."""

    @property
    def where(self) -> str:
        shown = self.answer if len(self.answer) <= SHOWN else f"{self.answer[:SHOWN]}..."
        return f"the {NAMES[self.which]} answer {shown!r} to sentence {self.sentence_id}"


def answer_examples(
    encoder: Encoder, delimiter: str, sentence_ids: Sequence[int], sentences: Sequence[str], answers: Sequence[Answers]
) -> Iterator[Encoded]:
    """Make the examples that read the answers to some sentences, in order, the right one before the wrong one.

    Causal models read the sentence and the answer behind it in one piece, teacher-forced: the answer's tokens are those
    behind the tokens of the sentence alone; white space at its end belongs to the answer, as in the
    lm-evaluation-harness. Behind an empty sentence it begins after the BOS token (or, without one, the EOS token).
    Masked models read it at as many masks as it has tokens: those of the sentence, which stand at one place, or behind
    its end; all masks are read together.

    Args:
        encoder: Of the model.
        delimiter: Stands between a sentence and an answer where neither has white space there.
        sentence_ids: [sentence], row numbers in the corpus.
        sentences: [sentence], the texts; they may be empty.
        answers: [sentence].

    Raises:
        ReportedError: An answer has no token of its own, has tokens that the model does not know, or does not fit into
            the longest text that the model takes; a sentence has masks at several places.
    """
    asked = [
        _Asked(sentence_id, sentence, answer, which)
        for sentence_id, sentence, own in zip(sentence_ids, sentences, answers, strict=True)
        for which, answer in zip((TARGET_ANSWER, FOIL_ANSWER), own, strict=True)
        if answer is not None
    ]
    make = _at_masks if encoder.kind == "masked" else _behind
    read = make(encoder, delimiter, asked)
    for one, (ids, positions, targets, was_cut) in zip(asked, read, strict=True):
        if not targets:
            raise ReportedError(f"data.target_column: {one.where} has no token of its own; give it more text")
        encoder.refuse_unknown([*ids, *targets], f" in {one.where}")
        unknown = [UNKNOWN] * len(positions)
        example = Example(one.sentence_id, one.sentence, ids, positions, targets, unknown, unknown, answer=one.which)
        yield Encoded(example, was_cut, has_own_start=False)


_Read = tuple[list[int], list[int], list[int], bool]
"""Tokens, positions, the answer's tokens there, and whether the sentence was cut."""


def _behind(encoder: Encoder, delimiter: str, asked: Sequence[_Asked]) -> Iterator[_Read]:
    """Read answers behind their sentences."""
    if encoder.reads_chats:  # the template says what stands before an answer
        asked = [one._replace(sentence=render(encoder.tokenizer, one.sentence, one.sentence_id).text) for one in asked]
    contexts = [one.sentence if encoder.reads_chats else one.sentence.rstrip() for one in asked]
    delimiter = "" if encoder.reads_chats else delimiter
    wholes = [joined(one.sentence, one.answer, delimiter) for one in asked]
    for one, alone, whole in zip(asked, encoder.reader.whole(contexts), encoder.reader.whole(wholes), strict=True):
        start, ids = _without_end(alone), _without_end(whole)
        if not start:
            start, ids = _with_start(encoder, whole, ids, one)
        num_before = len(start)
        targets = ids[num_before:]
        surplus = len(ids) - (encoder.max_length or len(ids))
        if surplus > 0:
            # The answer stays whole: the sentence loses its beginning, save what the tokenizer puts there.
            num_added = next((i for i, flag in enumerate(whole.added) if not flag), 0)
            _check_room(encoder, num_before - num_added - 1, surplus, one)
            ids = ids[:num_added] + ids[num_added + surplus :]
        first = len(ids) - len(targets) - 1
        yield ids, list(range(first, len(ids) - 1)), targets, surplus > 0


def joined(sentence: str, answer: str, delimiter: str) -> str:
    """Return a sentence with an answer behind it; an empty one gets no delimiter."""
    is_apart = not sentence or sentence[-1].isspace() or answer[:1].isspace()
    return sentence + ("" if is_apart else delimiter) + answer


def _without_end(tokens: Tokens) -> list[int]:
    """Return the tokens without those that the tokenizer appends."""
    end = len(tokens.ids)
    while end and tokens.added[end - 1]:
        end -= 1
    return tokens.ids[:end]


def _with_start(encoder: Encoder, whole: Tokens, ids: list[int], one: _Asked) -> tuple[list[int], list[int]]:
    """Return what stands before an answer without a sentence, and this with the answer behind it."""
    if whole.added[:1] == [True]:
        num_added = next((i for i, flag in enumerate(whole.added) if not flag), len(ids))
        return ids[:num_added], ids
    start = encoder.start_id
    if start is None:
        raise ReportedError(
            f"data.target_column: sentence {one.sentence_id} is empty, and the tokenizer of "
            f"{encoder.tokenizer.name_or_path!r} has neither a BOS nor an EOS token to begin with; give it some text"
        )
    return [start], (ids if ids[:1] == [start] else [start, *ids])


def _at_masks(encoder: Encoder, delimiter: str, asked: Sequence[_Asked]) -> Iterator[_Read]:
    """Read answers at the masks of their sentences, or at masks behind them."""
    places = [_mask_place(encoder, delimiter, one) for one in asked]
    masked = encoder.reader.whole([f"{left}{MASK_MARK}{right}" for left, right in places])
    filled = encoder.reader.whole(
        [f"{left}{one.answer}{right}" for one, (left, right) in zip(asked, places, strict=True)]
    )
    mask_id = encoder.tokenizer.mask_token_id
    for one, with_mask, whole in zip(asked, masked, filled, strict=True):
        place = with_mask.ids.index(mask_id)
        left, right = with_mask.ids[:place], with_mask.ids[place + 1 :]
        targets = whole.ids[place : len(whole.ids) - len(right)]
        if whole.ids[:place] != left or whole.ids[len(whole.ids) - len(right) :] != right:
            # The answer's tokens run into its neighbours': what it is by itself can be told.
            targets = encoder.tokenizer(one.answer, add_special_tokens=False)["input_ids"]
        surplus = len(left) + len(targets) + len(right) - (encoder.max_length or 2**62)
        if surplus > 0:
            left, right = _shortened(encoder, with_mask, left, right, surplus, one)
        ids = [*left, *[mask_id] * len(targets), *right]
        yield ids, list(range(len(left), len(left) + len(targets))), targets, surplus > 0


def _mask_place(encoder: Encoder, delimiter: str, one: _Asked) -> tuple[str, str]:
    """Return what stands before and behind the masks of a sentence; behind all of it, where it has none."""
    sentence = one.sentence.replace(str(encoder.tokenizer.mask_token), MASK_MARK)
    mark = re.escape(MASK_MARK)
    runs = list(re.finditer(rf"{mark}(?:\s*{mark})*", sentence))
    if len(runs) > 1:
        raise ReportedError(
            f"data.target_column: sentence {one.sentence_id} has masks at {len(runs)} places, and an answer goes "
            "to one; mask one place, with any number of masks"
        )
    if not runs:
        return joined(sentence, one.answer, delimiter)[: -len(one.answer)], ""
    return sentence[: runs[0].start()], sentence[runs[0].end() :]


def _shortened(
    encoder: Encoder, tokens: Tokens, left: list[int], right: list[int], surplus: int, one: _Asked
) -> tuple[list[int], list[int]]:
    """Return the tokens on both sides of an answer, cut where they are farthest from it, save the special ones."""
    before = next((i for i, flag in enumerate(tokens.added) if not flag), 0)
    behind = next((i for i, flag in enumerate(reversed(tokens.added)) if not flag), 0)
    _check_room(encoder, len(left) - before + len(right) - behind, surplus, one)
    cut_right = min(surplus, max(0, len(right) - behind))
    cut_left = surplus - cut_right
    end = len(right) - behind
    return left[:before] + left[before + cut_left :], right[: end - cut_right] + right[end:]


def _check_room(encoder: Encoder, num_free: int, surplus: int, one: _Asked) -> None:
    if surplus > num_free:
        raise ReportedError(
            f"data.max_length: {one.where} does not fit into {encoder.max_length} tokens; expected a shorter one, or a "
            "larger data.max_length"
        )
