"""The examples of a window of sentences, in little memory, and the slices that the merge reads them by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain
from typing import Optional

import numpy as np
import numpy.typing as npt

from llm_entropy.corpus.answers import Answers, answer_examples
from llm_entropy.corpus.encoding import Encoded, Encoder
from llm_entropy.schema.batches import NO_ANSWER, Example, Slice

SENTENCES_AT_ONCE = 512
"""Most sentences that are tokenised together."""
CHARACTERS_AT_ONCE = 2**20
"""Most characters that are tokenised together, unless one sentence has more."""
SLICE_RECORDS, SLICE_TEXT_BYTES, SLICE_REPEATED_BYTES = 4096, 2**20, 2**24
"""About how much a slice of a window holds at most."""


class EncodedSentences:
    """The examples of many sentences, as flat arrays: Python's lists would take ten times the memory.

    Of examples of the same sentence the tokens are kept once, and of each example where it differs.
    """

    def __init__(
        self,
        encoder: Encoder,
        sentence_ids: Sequence[int],
        sentences: Sequence[str],
        answers: Optional[Sequence[Answers]] = None,
        delimiter: str = " ",
    ) -> None:
        """Encode sentences, some at a time.

        Args:
            encoder: Makes the examples.
            sentence_ids: [sentence].
            sentences: [sentence], the texts.
            answers: [sentence], what is read behind them as well; None: nothing.
            delimiter: Stands between a sentence and its answer.
        """
        owners: list[int] = []
        which: list[int] = []
        cut: set[int] = set()
        own_start: set[int] = set()
        numbers = {name: _Lists() for name in _NUMBERS}
        texts = list(sentences)
        place = {sentence_id: index for index, sentence_id in enumerate(sentence_ids)}
        for some in _groups(sentences):
            own = None if answers is None else answers[some]
            for example, was_cut, has_own_start in _examples(
                encoder, sentence_ids[some], sentences[some], own, delimiter
            ):
                owner = place[example.sentence_id]
                if not owners or (owner, example.answer) != (owners[-1], which[-1]):
                    numbers["input_ids"].add(example.input_ids)
                    first = np.array(example.input_ids, np.int32)
                changes = np.flatnonzero(first != np.array(example.input_ids, np.int32))
                numbers["changes"].add(changes)
                numbers["changed_ids"].add([example.input_ids[change] for change in changes.tolist()])
                for name in _OF_POSITIONS:
                    numbers[name].add(getattr(example, name))
                owners.append(owner)
                if example.answer == NO_ANSWER:
                    texts[owner] = example.sentence  # as it was read: of a chat, what the template writes
                which.append(example.answer)
                if was_cut:
                    cut.add(example.sentence_id)
                if has_own_start:
                    own_start.add(example.sentence_id)
            for lists in numbers.values():
                lists.pack()
        self._ids, self._sentences, self._owners = sentence_ids, texts, np.array(owners, np.int64)
        self._numbers = numbers
        self._answers = np.array(which, np.int64)
        self._bases = np.cumsum((np.diff(self._owners, prepend=-1) != 0) | (np.diff(self._answers, prepend=0) != 0)) - 1
        num_fed = max(0, encoder.num_new_tokens - 1)  # nothing is read behind the last token that a model writes
        self.lengths: npt.NDArray[np.int64] = numbers["input_ids"].lengths[self._bases] + num_fed
        """[example], most tokens that go through a model."""
        self.num_cut = len(cut)
        """Number of sentences of which an example was cut."""
        self.num_own_start = len(own_start)
        """Number of sentences that begin with what the tokenizer would have put before them."""

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self._owners)

    def __getitem__(self, index: int) -> Example:
        """Return one example."""
        owner, numbers = int(self._owners[index]), self._numbers
        input_ids = numbers["input_ids"][int(self._bases[index])].copy()
        input_ids[numbers["changes"][index]] = numbers["changed_ids"][index]
        of_positions = {name: numbers[name][index].tolist() for name in _OF_POSITIONS}
        answer = int(self._answers[index])
        return Example(self._ids[owner], self._sentences[owner], input_ids.tolist(), **of_positions, answer=answer)

    @property
    def unread(self) -> list[int]:
        """Ids of the sentences that gave no example."""
        read = set(self._owners.tolist())
        return [sentence_id for index, sentence_id in enumerate(self._ids) if index not in read]

    @property
    def slices(self) -> list[Slice]:
        """The sentences in pieces, ascending; cut by their sizes alone, so that every process cuts alike."""
        num_sentences = len(self._ids)
        if not num_sentences:
            return []
        # An answer has one record, whatever its tokens.
        counts = np.where(self._answers == NO_ANSWER, self._numbers["positions"].lengths, 1)
        records = np.bincount(self._owners, counts, num_sentences).astype(np.int64)
        text = np.array([len(sentence.encode()) for sentence in self._sentences], np.int64)
        sizes = np.stack([records, text, records * text])
        shares = sizes / np.array([[SLICE_RECORDS], [SLICE_TEXT_BYTES], [SLICE_REPEATED_BYTES]])
        starts = np.flatnonzero(np.diff(np.floor(np.cumsum(shares.max(axis=0))), prepend=-1))
        sums = np.add.reduceat(sizes, starts, axis=1).T.tolist()
        return [Slice(self._ids[start], *some) for start, some in zip(starts.tolist(), sums, strict=True)]


_OF_POSITIONS = ("positions", "targets", "starts", "ends", "word_starts", "word_ends")
"""The fields of an example that have a number for each position, in their order; of words, where they are asked for."""
_NUMBERS = ("input_ids", "changes", "changed_ids", *_OF_POSITIONS)


class _Lists:
    """Many lists of numbers, as one array."""

    def __init__(self) -> None:
        self._latest: list[Sequence[int] | npt.NDArray[np.int64]] = []
        self._packed: list[npt.NDArray[np.int32]] = []
        self._counts: list[npt.NDArray[np.int64]] = []

    def add(self, numbers: Sequence[int] | npt.NDArray[np.int64]) -> None:
        """Take a list."""
        self._latest.append(numbers)

    def pack(self) -> None:
        """Turn what was taken into arrays."""
        self._packed.append(np.fromiter(chain.from_iterable(self._latest), np.int32))
        self._counts.append(np.array([len(numbers) for numbers in self._latest], np.int64))
        self._latest = []

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """How many numbers each list has."""
        return np.concatenate([np.empty(0, np.int64), *self._counts])

    @cached_property
    def _ends(self) -> npt.NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum(self.lengths)])

    @cached_property
    def _whole(self) -> npt.NDArray[np.int32]:
        whole = np.concatenate([np.empty(0, np.int32), *self._packed])
        self._packed = []
        return whole

    def __getitem__(self, index: int) -> npt.NDArray[np.int32]:
        """Return a list."""
        return self._whole[self._ends[index] : self._ends[index + 1]]


def _examples(
    encoder: Encoder,
    sentence_ids: Sequence[int],
    sentences: Sequence[str],
    answers: Optional[Sequence[Answers]],
    delimiter: str,
) -> Iterator[Encoded]:
    """Yield the examples of some sentences, then those of their answers; what is not read itself has no answers."""
    if answers is None:
        yield from encoder.examples(sentence_ids, sentences)
        return
    read = set()
    for encoded in encoder.examples(sentence_ids, sentences, reads_empty=True):
        read.add(encoded.example.sentence_id)
        yield encoded
    own = [one if number in read else (None, None) for number, one in zip(sentence_ids, answers, strict=True)]
    yield from answer_examples(encoder, delimiter, sentence_ids, sentences, own)


def _groups(sentences: Sequence[str]) -> Iterator[slice]:
    """Cut sentences into groups that are tokenised together."""
    start = characters = 0
    for stop, sentence in enumerate(sentences):
        is_full = stop - start == SENTENCES_AT_ONCE or characters + len(sentence) > CHARACTERS_AT_ONCE
        if is_full and stop > start:
            yield slice(start, stop)
            start, characters = stop, 0
        characters += len(sentence)
    if start < len(sentences):
        yield slice(start, len(sentences))
