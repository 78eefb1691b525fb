"""What a run will take, before it is begun: conditions, tokens, operations, seconds and bytes; no weight is read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import NamedTuple, Optional

import lightning as L
import torch

from llm_entropy.corpus.batching import collate
from llm_entropy.corpus.corpus import Corpus
from llm_entropy.corpus.encoded import EncodedSentences
from llm_entropy.measuring.forwards import shared_layers
from llm_entropy.measuring.generated import measuring_module
from llm_entropy.models.families import outline_model
from llm_entropy.models.finding import load_skeleton, weights_dtype
from llm_entropy.runs.launch import checkpoint_root
from llm_entropy.runs.opening import open_corpus, open_model
from llm_entropy.runs.plan import Plan, for_corpus, plan_model
from llm_entropy.runs.predict import tokens_per_batch
from llm_entropy.runs.trainer import make_trainer
from llm_entropy.schema.batches import Example
from llm_entropy.schema.shards import shard_schema
from llm_entropy.settings import AnalysisSettings, Condition, Settings, compared
from llm_entropy.store.windows import Task

SAMPLE = 256
"""Sentences that are tokenised for an estimate, evenly spaced in the first window of the corpus."""
PROBE_ROWS = 2048
"""Rows of the product with which the speed of a device is measured: those of a batch on a CPU."""
PROBE_SECONDS = 0.05
ROUNDS = 2
"""How often a batch is timed, after it has been run once."""
TOKEN_BYTES = 8
"""What the text of a token takes in a shard, about."""
STORED = 1.2
"""Bytes of a shard for each byte of float32, measured: their lower bits are as good as random, so that neither a
dictionary of the values nor zstd makes them smaller, and the dictionary comes on top."""


@dataclass(frozen=True)
class Estimate:
    """What one model of a run will take."""

    model: str
    """The model's key."""
    conditions: tuple[Condition, ...]
    """Of the run."""
    num_sentences: Optional[int]
    """None where a stream is read whole: then everything else is for a thousand sentences."""
    num_tokens: int
    """That go through the model under each condition."""
    num_records: int
    """Positions that are read."""
    num_forwards: float
    """Forward passes for each sentence; one that starts behind shared blocks counts as the blocks that it runs."""
    num_lenses: int
    """Layers that go through the lens for each position, over all conditions."""
    operations: float
    """Floating-point operations of blocks, attention and lens."""
    shard_bytes: int
    """Of the shards, about."""

    @property
    def num_placebos(self) -> int:
        """How many of the conditions are placebos."""
        return sum(condition.role == "placebo" for condition in self.conditions)

    def describe(self) -> str:
        """Return it in words, without seconds."""
        whole = f"{self.num_sentences:,}" if self.num_sentences is not None else "for each 1,000"
        count = len(self.conditions)
        of_these = f", {self.num_placebos} of them placebos" if self.num_placebos else ""
        return (
            f"{self.model}: {count} condition{'s' if count > 1 else ''}{of_these}; {whole} sentences, "
            f"about {self.num_tokens:,} tokens, {self.num_records:,} positions read; "
            f"{self.num_forwards:.3g} forward passes per sentence, {self.num_lenses} lens products per position, "
            f"{scaled(self.operations)}FLOP; about {scaled(self.shard_bytes)}B of shards"
        )


def estimate(plan: Plan, analysis: AnalysisSettings, corpus: Corpus) -> Estimate:
    """Return what a model will take, from its configuration and a sample of the corpus.

    Args:
        plan: Of the model.
        analysis: What is measured.
        corpus: Of the run.
    """
    conditions = analysis.run_conditions
    sample, num_examples = _sample(plan, corpus)
    num_sentences = corpus.num_sentences
    scale = (1_000 if num_sentences is None else num_sentences) / max(1, num_examples)
    outline, shape = outline_model(load_skeleton(plan.source)), plan.source.shape
    plans = [plan.steering.get(condition.name) for condition in conditions]
    shared = shared_layers(plans, shape.num_layers)
    blocks = [shape.num_blocks] + [0 if count > shape.num_blocks else shape.num_blocks - count for count in shared[1:]]
    lenses = shape.num_layers + sum(shape.num_layers - count for count in shared[1:])
    weights = sum(own.numel() for block in outline.blocks for own in block.parameters() if own.ndim > 1)
    # As many tokens as may be written count, though texts may end before.
    lengths = [len(example.input_ids) + max(0, analysis.num_new_tokens - 1) for example in sample]
    # 2 operations for each weight and token; queries with keys, and their weights with values, 2 each
    of_pass = 2.0 * weights * sum(lengths) + 4.0 * shape.num_blocks * shape.hidden_size * sum(n * n for n in lengths)
    num_records = sum(len(example.positions) for example in sample)
    weight = getattr(outline.decoder, "weight", None)
    of_lens = 2.0 * (shape.vocab_size * shape.hidden_size if weight is None else weight.numel()) * num_records
    if analysis.is_generated:  # each writes, and its texts are read by the standard condition as well
        num_others = len(compared(conditions))
        blocks += [shape.num_blocks] * (len(conditions) + num_others)
        lenses += shape.num_layers * num_others + len(conditions)
    passes = sum(blocks) / shape.num_blocks
    texts = sum(len(example.sentence.encode()) for example in sample if example.positions)
    record_bytes = _record_bytes(plan, analysis)
    return Estimate(
        model=plan.source.key,
        conditions=conditions,
        num_sentences=num_sentences,
        num_tokens=round(scale * sum(lengths)),
        num_records=round(scale * num_records),
        num_forwards=passes * len(sample) / max(1, num_examples),
        num_lenses=lenses,
        operations=scale * (passes * of_pass + lenses * of_lens),
        shard_bytes=round(scale * (record_bytes * num_records + texts)),
    )


class Forecast(NamedTuple):
    """What one model of a run will take, and how long that is here."""

    work: Estimate
    least_seconds: float
    """What the operations alone take, at the speed that was measured here."""
    measured_seconds: Optional[float]
    """What the whole corpus takes at the pace of one of its batches, which was run; None: it was not."""

    def row(self) -> dict[str, str]:
        """Return it as a row of a table, by column."""
        work = self.work
        row = {
            "model": work.model,
            "sentences": "each 1,000" if work.num_sentences is None else f"{work.num_sentences:,}",
            "tokens": f"{work.num_tokens:,}",
            "positions": f"{work.num_records:,}",
            "forwards": f"{work.num_forwards:.3g}",
            "lenses": f"{work.num_lenses:,}",
            "operations": f"{scaled(work.operations)}FLOP",
            "shards": f"{scaled(work.shard_bytes)}B",
            "at least": duration(self.least_seconds),
        }
        return row if self.measured_seconds is None else {**row, "measured": duration(self.measured_seconds)}

    def describe(self) -> str:
        """Return it in words."""
        return f"{self.work.describe()}; at least {duration(self.least_seconds)} on this machine"


def forecast(plan: Plan, settings: Settings, corpus: Corpus, trainer: L.Trainer, *, measures: bool = False) -> Forecast:
    """Return what a model of a run will take here.

    Args:
        plan: Of the model.
        settings: Of the run.
        corpus: Of the run.
        trainer: Where it runs; the work is shared by its processes.
        measures: Whether the weights are read and a batch is run.

    Raises:
        ReportedError: The model cannot be read.
    """
    work = estimate(plan, settings.analysis, corpus)
    dtype = weights_dtype(plan.source, settings.trainer.precision)
    rate = device_rate(trainer.strategy.root_device, dtype, plan.source.shape.hidden_size)
    measured = _measured_seconds(plan, settings, corpus, trainer) if measures else None
    return Forecast(work, work.operations / rate / trainer.world_size, measured)


def forecast_run(settings: Settings, *, measures: bool = False) -> list[Forecast]:
    """Check a run as `run` does before it begins, and return what each of its models will take; nothing is written.

    Args:
        settings: Of the run.
        measures: Whether weights are read and a batch is run.

    Raises:
        ReportedError: Something in the settings or in what they name is wrong.
    """
    trainer = make_trainer(settings.trainer, checkpoint_root(settings, None))
    plans = [plan_model(key, model, settings) for key, model in settings.models.items()]
    corpus = open_corpus(settings, None, quiet=True)
    return [forecast(for_corpus(plan, corpus), settings, corpus, trainer, measures=measures) for plan in plans]


def _measured_seconds(plan: Plan, settings: Settings, corpus: Corpus, trainer: L.Trainer) -> float:
    """Read the weights of a model, run a batch of the corpus, and return how long the whole corpus would take.

    Args:
        plan: Of the model.
        settings: Of the run.
        corpus: Of the run; of a stream that is read whole, a thousand sentences.
        trainer: Where it runs; the work is shared by its processes.

    Raises:
        ReportedError: The model cannot be read.
    """
    opened = open_model(plan, settings.analysis, precision=settings.trainer.precision)
    device = trainer.strategy.root_device
    module = measuring_module(opened.view, opened.lens, plan.asked(settings)).to(device)
    most = tokens_per_batch(settings, opened.view, trainer, plan.max_length)
    sample, num_sentences = _sample(plan, corpus)
    if not sample:
        return 0.0
    longest = sorted(sample, key=lambda example: len(example.input_ids))  # batches are filled by length
    middle = longest[len(longest) // 4 :]
    batch_examples = middle[: max(1, most // len(middle[-1].input_ids))]
    batch = collate(batch_examples, plan.source.pad_token_id, settings.seed).to(device)
    took = []
    for _ in range(1 + ROUNDS):  # the first time is spent on what is compiled and allocated once
        start = time.perf_counter()
        records = module.predict_step(batch)
        if records.wait is not None:
            records.wait()
        took.append(time.perf_counter() - start)
    share = sum(len(example.input_ids) for example in batch_examples) / sum(len(one.input_ids) for one in sample)
    whole = 1_000 if corpus.num_sentences is None else corpus.num_sentences
    return min(took[1:]) / share * whole / num_sentences / trainer.world_size


def _sample(plan: Plan, corpus: Corpus) -> tuple[list[Example], int]:
    """Return the examples of some sentences, and how many sentences these are."""
    kind = plan.source.architecture.kind
    window = next(islice(corpus.for_kind(kind).windows(Task()), 1), None)
    if window is None or not window.sentences:
        return [], 0
    step = max(1, len(window.sentences) // SAMPLE)
    ids, sentences = window.sentence_ids[::step][:SAMPLE], window.sentences[::step][:SAMPLE]
    answers = None if window.answers is None else window.answers[::step][:SAMPLE]
    encoded = EncodedSentences(plan.encoder, ids, sentences, answers)
    return [encoded[row] for row in range(len(encoded))], len(sentences)


def _record_bytes(plan: Plan, analysis: AnalysisSettings) -> float:
    """Return what a record takes in a shard, about."""
    size = 0.0
    for field in shard_schema(analysis, plan.source.shape, {}):
        if not hasattr(field.type, "list_size"):
            size += TOKEN_BYTES
        elif field.metadata and b"unit" in field.metadata:
            size += STORED * 4 * field.type.list_size
        else:
            size += TOKEN_BYTES * field.type.list_size
    return size


@cache
def device_rate(device: torch.device, dtype: torch.dtype, width: int) -> float:
    """Return the floating-point operations per second of a device, measured with a product like those of a model.

    Args:
        device: Where the models run.
        dtype: Type of the weights.
        width: Of the residual stream.
    """
    states = torch.randn(PROBE_ROWS, width, device=device, dtype=dtype)
    weights = torch.randn(4 * width, width, device=device, dtype=dtype)
    best, end = float("inf"), time.perf_counter() + PROBE_SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        product = torch.nn.functional.linear(states, weights)
        product[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2.0 * PROBE_ROWS * weights.numel() / best


def scaled(number: float) -> str:
    """Return a number with a unit's prefix, as 1.23 T."""
    prefixes: Sequence[str] = ("", "k", "M", "G", "T", "P", "E")
    place = 0
    while number >= 999.5 and place < len(prefixes) - 1:
        number, place = number / 1000, place + 1
    return f"{number:.3g} {prefixes[place]}"


def duration(seconds: float) -> str:
    """Return a time in words, as 1.5 h."""
    for unit, size in (("days", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2g} s"
