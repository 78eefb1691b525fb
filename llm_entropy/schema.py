"""The contracts between the parts: batch, statistics, records, column names and units.

Nothing here imports torch or pyarrow when it is imported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

from llm_entropy.settings import (
    BASELINE_METRICS,
    COMPARISON_METRICS,
    METRICS,
    STANDARD_SURPRISAL,
    TEXT_METRICS,
    WORD_METRICS,
    AnalysisSettings,
    beside_sinks,
    compared,
)

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

# --- what flows through a run ------------------------------------------------------------------------------------


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


class Unembedding(NamedTuple):
    """The last step of a lens: z = softcap(scale * (x W^T + b)) / temperature."""

    weight: Tensor
    """W, [vocab, width]."""
    bias: Optional[Tensor] = None
    """b, [vocab]."""
    scale: float = 1.0
    """What the model multiplies its logits with."""
    softcap: Optional[float] = None
    """c in c * tanh(z / c), or None."""
    temperature: float = 1.0
    """What the user divides the logits by."""


class RowStatistics(NamedTuple):
    """Sufficient statistics of rows of logits z, each [slot, row], float32, shifted by the row maximum m.

    z are the logits after bias, softcap, logit scale and temperature; p = softmax(z). A slot is a layer of a condition;
    one that several conditions share is there once. Fields that were not asked for are None.
    """

    maximum: Tensor
    """m = max z."""
    log_sum: Tensor
    """ln sum exp(z - m), so that the log-normaliser is m + log_sum."""
    mean: Tensor
    """sum p (z - m)."""
    runner_up: Tensor
    """Second largest z - m; 0 where the maximum occurs twice."""
    top_ids: Tensor
    """[top slot, row, k], int64: the tokens with the largest logits, the largest first."""
    top: Tensor
    """[top slot, row, k]: z - m of these tokens."""
    square: Optional[Tensor] = None
    """sum p (z - m)^2."""
    log_power: Optional[Tensor] = None
    """ln sum exp(a (z - m)) of an order a."""
    top1: Optional[Tensor] = None
    """The token with the largest logit, int64; of equal logits the one with the lowest id."""
    log_mass: Optional[Tensor] = None
    """ln sum exp(z - m) over a set of tokens alone; minus infinity where all of them are masked."""
    cross: Optional[Tensor] = None
    """[pair, row]: sum p_a (z_b - m_b), the logit of slot b expected under the distribution of slot a."""


class LayerStatistics(NamedTuple):
    """What metrics are made from: statistics by condition and layer, each [condition, layer, row], float32.

    The names are those of `RowStatistics`. Fields that were not asked for are None.
    """

    log_sum: Tensor
    """ln sum exp(z - m)."""
    mean: Tensor
    """sum p (z - m)."""
    runner_up: Tensor
    """Second largest z - m."""
    square: Optional[Tensor] = None
    """sum p (z - m)^2."""
    log_power: Optional[Tensor] = None
    """ln sum exp(a (z - m)), a being `order`."""
    top1: Optional[Tensor] = None
    """The token with the largest logit, int64."""
    log_mass: Optional[Tensor] = None
    """ln sum exp(z - m) over the tokens that begin a word or end the text."""
    target: Optional[Tensor] = None
    """z_y - m of the target token y."""
    target_rank: Optional[Tensor] = None
    """Number of tokens whose logit is larger than the target's, int64."""
    final_cross: Optional[Tensor] = None
    """sum p_final (z - m): the logit expected under the final layer's distribution of the same condition."""
    standard_cross: Optional[Tensor] = None
    """sum p_standard (z - m): the logit expected under the first condition's distribution at the same layer."""
    order: float = 2.0
    """a in `log_power`."""


class AttentionStatistics(NamedTuple):
    """What metrics of the attention are made from: of the attention row of each record, by block and head."""

    entropy: Tensor
    """[block, record, head]: -sum_j a_j ln a_j, in nats, float32."""
    attended: Optional[Tensor] = None
    """[block, record, head], int64: how many tokens the row may see; one head for all if they see the same. None if it
    was not asked for."""
    sinks: Optional[Tensor] = None
    """[block, record, head], float32: how much of the row goes to what is no token. None if it was not asked for."""


class NamedTokens(NamedTuple):
    """The tokens that one condition names for the records of a batch."""

    target_ids: Tensor
    """[record], the target token."""
    top_ids: Tensor
    """[record, top_k], the final layer's most likely tokens; with sampling [record, 1], the sampled one."""
    top_probabilities: Tensor
    """As `top_ids`."""
    tracked_ids: Tensor
    """[record, tracked], the tokens that the final layer ranks highest."""
    tracked_probabilities: Tensor
    """[record, tracked, layer], their probability at every layer."""
    lens_ids: Tensor
    """[record, layer], each layer's own most likely token, of equal ones that with the lowest id; [record, 0] where
    nobody asks."""
    lens_probabilities: Tensor
    """As `lens_ids`: the probability of that token at that layer."""


class ConditionRecords(NamedTuple):
    """What one condition gives for the records of a batch."""

    metrics: dict[str, Tensor]
    """Per metric [record, layer] or [record, block]; [record, block, head] of one that has a number for each head."""
    tokens: Optional[NamedTokens]
    """None for a condition whose records are metrics alone."""
    written: Optional[Tensor] = None
    """[record], on the CPU: the token that the model wrote there, or `NO_TOKEN`; None: it wrote none."""

    @classmethod
    def join(cls, parts: Sequence[ConditionRecords]) -> ConditionRecords:
        """Return the records of several batches, in order."""
        import torch

        metrics = {name: torch.cat([part.metrics[name] for part in parts]) for name in parts[0].metrics}
        tokens = [part.tokens for part in parts if part.tokens is not None]
        written = [part.written for part in parts if part.written is not None]
        return cls(
            metrics,
            NamedTokens(*map(torch.cat, zip(*tokens, strict=True))) if tokens else None,
            torch.cat(written) if written else None,
        )

    def changed(self, change: Callable[[Tensor], Tensor]) -> ConditionRecords:
        """Return the records with every tensor changed."""
        tokens = None if self.tokens is None else NamedTokens(*map(change, self.tokens))
        written = None if self.written is None else change(self.written)
        return ConditionRecords({name: change(value) for name, value in self.metrics.items()}, tokens, written)


@dataclass
class Records:
    """What `predict_step` returns: the records of one batch, on the CPU."""

    sentence_ids: Tensor
    """[record]."""
    texts: dict[int, str]
    """By sentence id, the sentences of the batch: a text is kept once, however many records it has."""
    positions: Tensor
    """[record]."""
    token_ids: Tensor
    """[record], the token at the position, as the model read it; `NO_TOKEN` where each condition read another."""
    starts: Tensor
    """[record], in characters, or -1."""
    ends: Tensor
    """[record], in characters, or -1."""
    conditions: dict[str, ConditionRecords]
    """By condition, the standard one first."""
    word_starts: Optional[Tensor] = None
    """[record], as the batch has them."""
    word_ends: Optional[Tensor] = None
    """[record], as the batch has them."""
    num_tokens: int = 0
    """Real tokens of the batch."""
    num_sentences: int = 0
    """Rows of the batch."""
    key: BatchKey = ONLY_BATCH
    """Which batch of the corpus it is."""
    notes: Optional[WindowNotes] = None
    """Of its window, where it is the window's first batch."""
    kept: Optional[pa.Table] = None
    """As `Batch.kept`."""
    answers: Optional[Tensor] = None
    """As `Batch.answers`."""
    wait: Optional[Callable[[], None]] = None
    """Waits until the numbers have come from the device; to be called before they are read. None: they are there."""


# --- records on disk ---------------------------------------------------------------------------------------------

SENTENCE_ID, SENTENCE, POSITION = "sentence_id", "sentence", "position"
TOKEN_ID, TOKEN, TOKEN_START, TOKEN_END = "token_id", "token", "token_start", "token_end"
WORD_START, WORD_END = "word_start", "word_end"
TARGET_ID, TARGET = "target_id", "target"
CONTINUATION = "continuation"
TOP_TOKENS, TOP_PROBABILITIES = "top_tokens", "top_probabilities"
TRACKED_TOKENS, TRACKED_PROBABILITIES = "tracked_tokens", "tracked_probabilities"
LENS_TOKENS, LENS_PROBABILITIES = "lens_tokens", "lens_probabilities"
ANSWER_SURPRISAL, ANSWER_RANK, ANSWER_PROBABILITY = "answer_surprisal", "answer_rank", "answer_probability"
ANSWER_COLUMNS = {ANSWER_SURPRISAL: "nats", ANSWER_RANK: "tokens", ANSWER_PROBABILITY: ""}
"""What is read of an answer, and the units: the surprisal of all its tokens; rank and probability of the first."""


class ModelShape(NamedTuple):
    """The sizes that fix a model's record columns."""

    num_blocks: int
    """L; there are L + 1 layers."""
    num_heads: int
    """Attention heads of a block; where blocks differ, of the one that has most."""
    hidden_size: int
    """Width of the residual stream."""
    vocab_size: int
    """V, the number of logits."""
    heads: Optional[tuple[int, ...]] = None
    """[block], the heads whose attention can be read; None: `num_heads` of every block."""
    has_sinks: bool = False
    """Whether a part of the attention goes to what is no token."""

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> ModelShape:
        """Return the sizes that `plain` has made."""
        heads = about.get("heads")
        return cls(**{**about, "heads": None if heads is None else tuple(heads)})

    def plain(self) -> dict[str, Any]:
        """Return the sizes as JSON holds them; what is as in most models is left out."""
        usual = self._field_defaults
        return {name: value for name, value in self._asdict().items() if name not in usual or value != usual[name]}

    @property
    def num_layers(self) -> int:
        """L + 1."""
        return self.num_blocks + 1


def measured_of(analysis: AnalysisSettings, shape: ModelShape) -> list[str]:
    """Return the metrics that are measured of a model: those asked for, and of its sinks what goes with them."""
    return beside_sinks(analysis.metrics) if shape.has_sinks else analysis.metrics


def column(condition: str, name: str) -> str:
    """Return the shard column that holds `name` under `condition`."""
    return f"{condition}/{name}"


def kept_column(name: str) -> str:
    """Return the shard column that holds a column of the corpus; no condition has an empty name."""
    return column("", name)


def shard_schema(
    analysis: AnalysisSettings,
    shape: ModelShape,
    metadata: dict[str, str],
    *,
    kept: Sequence[pa.Field] = (),
    answers: bool = False,
) -> pa.Schema:
    """Return the Arrow schema of a model's shards: one row per (sentence, position), columns for each condition.

    Metrics are fixed-size lists of float32, a number per layer; those of attention hold blocks x heads numbers, the
    heads of block 0 first, NaN for those that a block does not have, of a placebo their mean over the heads;
    `tracked_probabilities` tracked x layers, the layers of the first token first; `lens_tokens` and
    `lens_probabilities`, where asked for, one of each per layer. Unit, axis and shape are in each field's metadata, and
    the heads of each block where they differ. A text stands in the first record that a part has of its sentence, and is
    null in the others: copies would grow with the square of a document's length.

    Of generated texts a row is (sentence, step): behind one sentence every condition writes its next token at the same
    position. The targets of a condition are what it wrote, its other columns what it says there; they are null, or NaN,
    where its text has ended. The text itself, `continuation`, stands in the first record of its sentence. So do the
    values of columns of the corpus.

    Args:
        analysis: What is measured.
        shape: The model's sizes.
        metadata: Of the schema.
        kept: The columns of the corpus that go with each sentence, by their own names.
        answers: Whether answers are read. Each has a row of its own, whose position is minus the number of the answer
            (`TARGET_ANSWER`, `FOIL_ANSWER`), and whose numbers stand in the columns `ANSWER_COLUMNS` of each condition;
            its other columns are null, or zeros. In other rows those of the answers are zeros.
    """
    import pyarrow as pa

    def numbers(name: str, unit: str, axes: str, *sizes: int) -> pa.Field:
        about = {"unit": unit, "axes": axes, "shape": " ".join(map(str, sizes))}
        return pa.field(name, pa.list_(pa.float32(), math.prod(sizes)), metadata=about)

    fields = [
        pa.field(SENTENCE_ID, pa.int64(), metadata={"meaning": "row of the corpus"}),
        pa.field(SENTENCE, pa.string()),
        pa.field(POSITION, pa.int32(), metadata={"unit": "tokens"}),
        pa.field(TOKEN_ID, pa.int32()),
        pa.field(TOKEN, pa.string()),
        pa.field(TOKEN_START, pa.int32(), metadata={"unit": "characters"}),
        pa.field(TOKEN_END, pa.int32(), metadata={"unit": "characters"}),
    ]
    if analysis.words:
        fields += [pa.field(name, pa.int32(), metadata={"unit": "characters"}) for name in (WORD_START, WORD_END)]
    num_layers, num_tracked = shape.num_layers, min(analysis.tracked_tokens, shape.vocab_size)
    num_top = 1 if analysis.use_sampling and not analysis.is_generated else analysis.top_k
    metrics = measured_of(analysis, shape)
    conditions = analysis.run_conditions
    for condition in conditions:
        own = partial(column, condition.name)
        if condition.keeps_tokens:
            fields += [
                pa.field(own(TARGET_ID), pa.int32()),
                pa.field(own(TARGET), pa.string()),
                pa.field(own(TOP_TOKENS), pa.list_(pa.string(), num_top)),
                numbers(own(TOP_PROBABILITIES), "", "token", num_top),
                pa.field(own(TRACKED_TOKENS), pa.list_(pa.string(), num_tracked)),
                numbers(own(TRACKED_PROBABILITIES), "", "token layer", num_tracked, num_layers),
            ]
        if condition.keeps_tokens and analysis.lens_tokens:
            about = {"meaning": "most likely token of each layer", "axes": "layer", "shape": str(num_layers)}
            fields += [
                pa.field(own(LENS_TOKENS), pa.list_(pa.string(), num_layers), metadata=about),
                numbers(own(LENS_PROBABILITIES), "", "layer", num_layers),
            ]
        if analysis.is_generated:
            more = pa.field(own(CONTINUATION), pa.string()) if condition.keeps_tokens else None
            fields.append(more or pa.field(own(TARGET_ID), pa.int32()))
        for name in metrics:
            metric = METRICS[name]
            axes: str = metric.axis
            sizes = [num_layers if metric.axis == "layer" else shape.num_blocks]
            if metric.is_per_head and condition.keeps_tokens:
                axes, sizes = f"{axes} head", [*sizes, shape.num_heads]
            field = numbers(own(name), metric.unit, axes, *sizes)
            if metric.is_per_head and shape.heads is not None and set(shape.heads) - {0, shape.num_heads}:
                field = field.with_metadata({**field.metadata, "heads": " ".join(map(str, shape.heads))})
            fields.append(field)
        if analysis.words and condition.keeps_tokens:
            fields += [
                numbers(own(name), metric.unit, metric.axis, num_layers)
                for name, metric in WORD_METRICS.items()
                if name not in analysis.metrics
            ]
    for name, metric in COMPARISON_METRICS.items():
        fields += [
            numbers(column(comparison.other.name, name), metric.unit, metric.axis, num_layers)
            for comparison in compared(conditions)
        ]
    baselines = dict.fromkeys(comparison.baseline.name for comparison in compared(conditions))
    fields += [
        numbers(column(baseline, name), metric.unit, metric.axis, num_layers)
        for baseline in baselines
        for name, metric in BASELINE_METRICS.items()
        if name not in analysis.metrics
    ]
    if analysis.is_generated and baselines:
        metric = TEXT_METRICS[STANDARD_SURPRISAL]
        fields += [
            numbers(column(condition.name, STANDARD_SURPRISAL), metric.unit, metric.axis, num_layers)
            for condition in conditions
        ]
    if answers:
        fields += [
            numbers(column(condition.name, name), unit, "layer", num_layers)
            for condition in conditions
            for name, unit in ANSWER_COLUMNS.items()
        ]
    fields += [field.with_name(kept_column(field.name)) for field in kept]
    return pa.schema(fields, metadata={"llm_entropy": "records", **metadata})


# --- states on disk ----------------------------------------------------------------------------------------------

STATES = "states"
"""Stands where a condition does, in the columns of an extraction's shards."""
STATE_NORMS = "norms"


def state_column(block: int) -> str:
    """Return the name of a block's states, below `STATES`."""
    return f"block_{block}"


def states_schema(shape: ModelShape, metadata: dict[str, str]) -> pa.Schema:
    """Return the Arrow schema of an extraction's shards: one row per text, its state at the output of each block."""
    import pyarrow as pa

    def numbers(name: str, size: int) -> pa.Field:
        return pa.field(column(STATES, name), pa.list_(pa.float32(), size))

    fields = [
        pa.field(SENTENCE_ID, pa.int64(), metadata={"meaning": "2 x pair, plus 1 for the negative text"}),
        pa.field(SENTENCE, pa.string()),
        pa.field(POSITION, pa.int32(), metadata={"unit": "tokens", "meaning": "the last that was read"}),
        numbers(STATE_NORMS, shape.num_blocks),
        *(numbers(state_column(block), shape.hidden_size) for block in range(shape.num_blocks)),
    ]
    return pa.schema(fields, metadata={"llm_entropy": STATES, **metadata})
