"""A corpus as a model reads it: examples, batches of them, and what a window of the corpus held."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from torch import Tensor

PREDICTED = -1
"""As a target id: the truth is unknown, the target is the token that the final layer predicts."""
NO_TOKEN = -1
"""As a token's id: there is none, the text has ended before."""
WITHOUT_FLOAT64 = frozenset({"mps"})
"""Types of devices that know no float64: Apple silicon."""
NO_WORD = -1
"""Where a token's word begins: it belongs to none, as a special token, or white space behind the last word."""
CUT_WORD = -2
"""Where a token's word begins: the sentence was cut within that word."""
MOST_GROUPS = 12
"""Into how many groups sentences may fall: more cannot be told apart in a plot."""
NO_ANSWER, TARGET_ANSWER, FOIL_ANSWER = 0, 1, 2
"""What an example reads: the sentence, its right answer, or its wrong one."""


class Example(NamedTuple):
    """One sentence as a model reads it: its tokens, and where it is read. A masked model may make several of one."""

    sentence_id: int
    """Number of the sentence's row in the corpus."""
    sentence: str
    """The text as it was given."""
    input_ids: list[int]
    """Tokens, special tokens included, mask put in, no padding."""
    positions: list[int]
    """Where the metrics are read, as indices into `input_ids`; with generated text on beyond them, where it will be."""
    targets: list[int]
    """For each position, the true token, or `PREDICTED`."""
    starts: list[int]
    """For each position, where its token begins in `sentence`, in characters; -1 if unknown."""
    ends: list[int]
    """For each position, where its token ends in `sentence`, in characters; -1 if unknown."""
    word_starts: Sequence[int] = ()
    """For each position, where its token's word begins in `sentence`, or `NO_WORD`, or `CUT_WORD`; empty: not asked."""
    word_ends: Sequence[int] = ()
    """For each position, where its token's word ends, likewise."""
    answer: int = NO_ANSWER
    """Which answer it reads: `TARGET_ANSWER`, `FOIL_ANSWER`, or none, as an ordinary example."""


@dataclass(frozen=True)
class BatchKey:
    """Which batch of the corpus it is, whoever works on it, and whenever."""

    window: int
    """Number of the window of rows that it was planned in."""
    index: int
    """Number of the batch in its window."""
    num_batches: int
    """How many batches the window has; one that holds nothing to read has one, without sentences."""


ONLY_BATCH = BatchKey(0, 0, 1)
"""The key of a batch that is all there is."""


class Slice(NamedTuple):
    """Consecutive sentences of a window, and what they take in memory."""

    first_id: int
    """Lowest sentence id."""
    num_records: int
    text_bytes: int
    """Bytes of their texts."""
    repeated_bytes: int
    """Bytes of their texts if every record had its own copy."""


@dataclass(frozen=True)
class WindowNotes:
    """What a window of the corpus held; its first batch carries them."""

    first_id: int
    """Lowest sentence id that its rows may have."""
    end_id: int
    """One past the highest."""
    num_rows: int
    """How many rows were taken from it, those included that are skipped or unread."""
    is_last: bool
    """Whether the corpus, or the file of a stream, ends here."""
    skipped: list[tuple[int, str]] = field(default_factory=list)
    """Row and reason of those of `num_rows` that hold no text."""
    unread: list[int] = field(default_factory=list)
    """Ids of sentences without a token to read."""
    num_cut: int = 0
    """Number of sentences of which an example was cut."""
    num_own_start: int = 0
    """Number of sentences that begin with what the tokenizer would have put before them (a BOS)."""
    num_examples: int = 0
    """Rows that the model reads; a masked model may make several of a sentence."""
    slices: list[Slice] = field(default_factory=list)
    """The window in pieces that are small in memory, ascending; empty if it was written before there were any."""

    @property
    def num_sentences(self) -> int:
        """How many sentences have records."""
        return self.num_rows - len(self.skipped) - len(self.unread)


def widest_float(device: torch.device) -> torch.dtype:
    """Return the type in which a device adds up what float32 would round: float64, where there is one."""
    import torch

    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def narrowed(uniforms: Tensor, dtype: torch.dtype) -> Tensor:
    """Return random numbers in [0, 1) in another type: cut, not rounded, for 1 is none of them.

    Args:
        uniforms: float64, on the CPU.
        dtype: float64 or float32; a float32 has 24 of their 53 bits.
    """
    return uniforms if dtype == uniforms.dtype else ((uniforms * 2.0**24).floor() * 2.0**-24).to(dtype)


@dataclass
class Batch:
    """Sentences padded on the right, and the records to take from them."""

    input_ids: Tensor
    """[batch, seq]."""
    attention_mask: Tensor
    """[batch, seq], 1 at real tokens, 0 at padding."""
    rows: Tensor
    """[record], the row of the batch that holds the record."""
    positions: Tensor
    """[record], the position in that row."""
    targets: Tensor
    """[record], the true token, or `PREDICTED`."""
    uniforms: Tensor
    """[record], in [0, 1), the widest float of the device: the random number with which a token is sampled, the same in
    every condition."""
    sentence_ids: Tensor
    """[record], the number of the sentence in the corpus."""
    starts: Tensor
    """[record], first character of the position's token in the sentence, or -1."""
    ends: Tensor
    """[record], one past the last character, or -1."""
    sentences: list[str]
    """[batch], the texts."""
    word_starts: Optional[Tensor] = None
    """[record], first character of the word of the position's token, or `NO_WORD`, or `CUT_WORD`; None: not asked."""
    word_ends: Optional[Tensor] = None
    """[record], one past its last character, likewise."""
    key: BatchKey = ONLY_BATCH
    """Which batch of the corpus it is."""
    notes: Optional[WindowNotes] = None
    """Of its window, where it is the window's first batch."""
    num_own: Optional[Tensor] = None
    """[batch], on the CPU: how many tokens of a row are the sentence's own; behind them stand those that a model wrote.
    None: all are its own."""

    kept: Optional[pa.Table] = None
    """A row for each sentence: its id, and the columns of the corpus that go with it. None: there are none."""
    answers: Optional[Tensor] = None
    """[record], on the CPU: which answer it belongs to, as `Example.answer`; None: none of them does. Those of a batch
    that was moved, or cut, are its host's."""

    host: Optional[Batch] = None
    """The batch that this one was moved from: what the CPU needs to know is asked there, without waiting."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return the batch with its tensors on a device; Lightning calls it."""
        import torch

        known = replace(self, uniforms=narrowed(self.uniforms, widest_float(torch.device(device))))
        return replace(known, host=self, **known._each(lambda tensor: tensor.to(device, non_blocking=non_blocking)))

    def pin_memory(self) -> Batch:
        """Return the batch in memory from which a GPU copies while others compute."""
        return replace(self, **self._each(lambda tensor: tensor.pin_memory()))

    def rows_between(self, start: int, stop: int) -> Batch:
        """Return some rows of the batch, with their records, as a batch without padding that they do not need."""
        own = (self.rows >= start) & (self.rows < stop)
        width = int(self.attention_mask[start:stop].sum(dim=1).max())
        return replace(
            self,
            **{name: values[own] for name in _OF_RECORDS if (values := getattr(self, name)) is not None},
            rows=self.rows[own] - start,
            input_ids=self.input_ids[start:stop, :width],
            attention_mask=self.attention_mask[start:stop, :width],
            sentences=self.sentences[start:stop],
            num_own=None if self.num_own is None else self.num_own[start:stop],
            host=None,
        )

    def _each(self, change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        names = ("input_ids", "attention_mask", "rows", *_OF_RECORDS)
        return {name: change(values) for name in names if (values := getattr(self, name)) is not None}


_OF_RECORDS = ("positions", "targets", "uniforms", "sentence_ids", "starts", "ends", "word_starts", "word_ends")
"""The fields of a batch that are numbers of its records, and no places in it."""
