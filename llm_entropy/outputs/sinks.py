"""All outputs of one model's shards. Each is a sink, which is fed the sentences a chunk at a time.

A new output is a new sink: it takes a `View` of what one condition holds, or a `Pair` of the two conditions of a
comparison, and is named in one of the lists below.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional, Protocol, TypeVar

import pyarrow as pa

from llm_entropy.outputs.answers import AnswerBuilder, AnswerCsv, AnswerParquet
from llm_entropy.outputs.chunk import Chunk
from llm_entropy.outputs.csv_sinks import (
    ComparativeGenerationCsv,
    ComparativePredictionCsv,
    FourLineCsv,
    GenerationCsv,
    MetricCsv,
    PredictionCsv,
    SentenceCsv,
    TextCsv,
    TokenCsv,
)
from llm_entropy.outputs.curves import CurveBuilder, TrackBuilder
from llm_entropy.outputs.effects import ModelEffects, SteeringFacts, write_doses, write_summary
from llm_entropy.outputs.groups import GroupBuilder, write_table
from llm_entropy.outputs.inference.doses import DoseTable
from llm_entropy.outputs.inference.summary import Summary
from llm_entropy.outputs.lens_grids import ENTROPY, GridBuilder
from llm_entropy.outputs.placebos import PlaceboTable
from llm_entropy.outputs.places import (
    Place,
    doses_path,
    place_of_comparison,
    place_of_comparisons,
    place_of_condition,
    placebos_path,
    summary_path,
)
from llm_entropy.outputs.points import filled_points, num_points
from llm_entropy.outputs.records import ConditionParquet, DifferenceParquet, kept_fields
from llm_entropy.outputs.report.sample import SentenceSampler
from llm_entropy.outputs.tables import ComparisonCurves, ComparisonTables, Curves, ModelTables
from llm_entropy.outputs.texts import FROM_TEXTS
from llm_entropy.outputs.views import Pair, View
from llm_entropy.outputs.words import WordCsv, WordParquet, WordSink
from llm_entropy.schema.shape import ModelShape
from llm_entropy.schema.shards import LENS_TOKENS, TRACKED_TOKENS, WORD_START, column
from llm_entropy.settings import (
    ALL_METRICS,
    ANSWER_METRICS,
    COMPARISON_METRICS,
    KL_FROM_STANDARD,
    STANDARD_SURPRISAL,
    Comparison,
    Condition,
    DataSettings,
    compared,
)

log = logging.getLogger("llm_entropy")

Seen = TypeVar("Seen", contravariant=True)


class Sink(Protocol[Seen]):
    """One output."""

    def add(self, seen: Seen, /) -> None:
        """Take the next sentences."""


@dataclass(frozen=True)
class Target:
    """Where the outputs of a model go, and how large they are."""

    folder: Path
    """A folder that is laid out as the run's own."""
    model: str
    """The model's key, the first part of every file name."""
    schema: pa.Schema
    """The shards' columns."""
    shape: ModelShape
    """The model's sizes."""
    metrics: list[str]
    """What was measured under every condition."""
    text_metrics: list[str]
    """What of generated texts is compared beside it; empty where none are written."""
    num_sentences: int
    """How many sentences will come."""
    seed: int
    """Of the run: of resamples."""
    facts: Mapping[str, SteeringFacts]
    """How the conditions steer, by name."""
    csv: bool
    """Whether there are CSV files."""
    parquet: bool
    """Whether every record is written as Parquet."""
    files: ExitStack
    """Holds the open files; they are complete when it is closed."""
    report_bytes: int = 0
    """What sentences may need in the report; 0: none is shown."""
    data: DataSettings = field(default_factory=DataSettings)
    """Of the run: which columns of the corpus go with the sentences, and what for."""

    @property
    def compared_metrics(self) -> list[str]:
        """What is compared between conditions: metrics, and where there are both answers what is made of them."""
        return [*self.metrics, *(ANSWER_METRICS if self.data.foil_column is not None else ())]

    def curve(self, metric: str) -> CurveBuilder:
        """Return what collects the curve of a metric."""
        return CurveBuilder(metric, num_points(metric, self.shape), self.num_sentences)


class ConditionSinks:
    """What is made of one condition."""

    def __init__(self, condition: Condition, target: Target) -> None:
        """Open the condition's files."""
        self.condition = condition
        self.curves = {metric: target.curve(metric) for metric in target.metrics}
        num_tracked = target.schema.field(column(condition.name, TRACKED_TOKENS)).type.list_size
        self.tracks = TrackBuilder(num_tracked, target.shape.num_layers, target.num_sentences)
        self._sinks: list[Sink[View]] = [*self.curves.values(), self.tracks]
        place = place_of_condition(target.folder, condition, target.model)
        if target.csv:
            self._sinks += [MetricCsv(place.metric(metric), metric) for metric in target.metrics]
            self._sinks += [TokenCsv(place.token_probabilities), PredictionCsv(place.predictions)]
            if target.text_metrics:
                beside = (STANDARD_SURPRISAL, KL_FROM_STANDARD)
                measured = [name for name in beside if column(condition.name, name) in target.schema.names]
                kept = target.data.keep_columns
                self._sinks.append(GenerationCsv(place.generations, kept))
                self._sinks.append(TextCsv(place.texts, [*FROM_TEXTS, *measured], kept))
        if target.parquet:
            about = condition, target.metrics, target.model, target.schema
            self._sinks.append(ConditionParquet(place.records, *about, target.files, target.data))
        if WORD_START in target.schema.names:
            self._sinks.append(_word_sink(condition, place, target))
        if target.csv and target.data.keep_columns:
            self._sinks.append(SentenceCsv(place.sentences, target.data.keep_columns, target.compared_metrics))
        self._place = place
        self.lens: Optional[GridBuilder] = None
        if column(condition.name, LENS_TOKENS) in target.schema.names:
            self.lens = GridBuilder(target.num_sentences, has_entropy=ENTROPY in target.metrics)
            self._sinks.append(self.lens)
        self.groups: Optional[GroupBuilder] = None
        if target.data.group_column is not None:
            metrics, compares = target.compared_metrics, condition.role == "standard"
            self.groups = GroupBuilder(metrics, target.shape, target.data, compares=compares)
            self._sinks.append(self.groups)
        self.answers: Optional[AnswerBuilder] = None
        if target.data.target_column is not None:
            self._add_answers(place, target)

    def _add_answers(self, place: Place, target: Target) -> None:
        if target.csv:
            self._sinks.append(AnswerCsv(place.answers, target.data))
        if target.parquet:
            path, about = place.answers.with_suffix(".parquet"), (self.condition.name, target.model, target.schema)
            self._sinks.append(AnswerParquet(path, *about, target.files, target.data))
        if target.data.foil_column is not None:
            self.answers = AnswerBuilder(target.shape.num_layers, target.num_sentences, target.seed)
            self._sinks.append(self.answers)

    def add(self, view: View) -> None:
        """Take the next sentences."""
        for sink in self._sinks:
            sink.add(view)

    def finish(self, seed: int) -> None:
        """Write what can be written only when all sentences are there."""
        if self.groups is not None:
            write_table(self._place.groups, self.groups.table())
            if self.condition.role == "standard":
                write_table(self._place.group_differences, self.groups.differences(seed))


def _word_sink(condition: Condition, place: Place, target: Target) -> WordSink:
    """Return what is made of a condition's words."""
    files: list[WordCsv | WordParquet] = []
    if target.csv:
        files.append(WordCsv(place.words(".csv"), target.data.keep_columns))
    if target.parquet:
        about = target.shape.num_layers, target.model, condition.name
        kept = kept_fields(target.schema, target.data)
        files.append(WordParquet(place.words(".parquet"), *about, target.files, kept))
    return WordSink(*files)


class ComparisonSinks:
    """What is made of one comparison."""

    def __init__(self, comparison: Comparison, target: Target) -> None:
        """Open the comparison's files."""
        self.comparison = comparison
        self.differences = {metric: target.curve(metric) for metric in target.metrics}
        self.between = {metric: target.curve(metric) for metric in COMPARISON_METRICS}
        self._of_pair: list[Sink[Pair]] = list(self.differences.values())
        self._of_other: list[Sink[View]] = list(self.between.values())
        place = place_of_comparison(target.folder, comparison, target.model)
        if target.csv:
            self._of_pair += [FourLineCsv(place.metric(metric), metric) for metric in target.metrics]
            self._of_pair.append(ComparativePredictionCsv(place.predictions))
            self._of_other += [MetricCsv(place.metric(metric), metric) for metric in COMPARISON_METRICS]
        if target.parquet:
            about = comparison, target.metrics, target.model, target.schema
            self._of_pair.append(DifferenceParquet(place.records, *about, target.files, target.data))

    def add(self, pair: Pair) -> None:
        """Take the next sentences."""
        for sink in self._of_pair:
            sink.add(pair)
        for own in self._of_other:
            own.add(pair.other)


class ModelSinks:
    """What is made of a model, whatever its conditions are."""

    def __init__(self, conditions: Sequence[Condition], target: Target) -> None:
        """Open all files."""
        self._all, self._target = conditions, target
        comparisons = compared(conditions)
        self._conditions = {one.name: ConditionSinks(one, target) for one in conditions if one.keeps_tokens}
        self._comparisons = {
            one.other.name: ComparisonSinks(one, target) for one in comparisons if one.other.keeps_tokens
        }
        shown = [sinks.condition for sinks in self._conditions.values()]
        self._sampler = SentenceSampler(shown, target.schema, target.seed, target.report_bytes)
        counted = [*target.compared_metrics, *target.text_metrics]
        self._placebos = PlaceboTable(counted)
        self._effects = ModelEffects(
            conditions,
            counted,
            target.shape,
            target.facts,
            num_sentences=target.num_sentences,
            seed=target.seed,
        )
        self._generations: Optional[ComparativeGenerationCsv] = None
        if target.csv and target.text_metrics and comparisons:
            place = place_of_comparisons(target.folder, target.model)
            self._generations = ComparativeGenerationCsv(place.generations, target.data.keep_columns)
        self._summary: Optional[Summary] = None
        self._doses: Optional[DoseTable] = None
        self._baseline_of = {one.other.name: one.baseline.name for one in comparisons}

    def add(self, chunk: Chunk) -> None:
        """Take the next sentences; what was made for a condition is let go before the next one, save a baseline's."""
        self._sampler.add(chunk)
        baselines: dict[str, View] = {}
        if self._generations is not None:
            self._generations.add([View(chunk, one) for one in self._all if one.keeps_tokens])
        for condition in self._all:
            view = View(chunk, condition)
            if condition.keeps_tokens:
                self._conditions[condition.name].add(view)
            if condition.name in self._baseline_of:
                pair = Pair(baselines[self._baseline_of[condition.name]], view)
                self._comparisons.get(condition.name, self._placebos).add(pair)
                if condition.keeps_tokens:
                    self._effects.add(pair)
            if condition.name in self._baseline_of.values():
                baselines[condition.name] = view

    def finish(self) -> None:
        """Write what can be written only when all sentences are there."""
        folder, model = self._target.folder, self._target.model
        for own in self._conditions.values():
            own.finish(self._target.seed)
        self._placebos.write(placebos_path(folder, model), model)
        self._summary, self._doses = self._effects.summary(self._placebos), self._effects.doses()
        if self._summary is not None:
            write_summary(summary_path(folder, model), self._summary)
        if self._doses is not None:
            write_doses(doses_path(folder, model), self._doses, self._effects.strengths())

    def tables(self, name: str, num_records: int) -> ModelTables:
        """Return what plots and the terminal show, and warn of numbers that are not finite.

        Args:
            name: The model's hub name, folder or built-in name.
            num_records: How many records came.
        """
        target = self._target
        for sinks in self._conditions.values():
            for metric, builder in sinks.curves.items():
                _warn_if_missing(target, sinks.condition.name, metric, builder)
        curves = {name: _built(sinks.curves) for name, sinks in self._conditions.items()}
        return ModelTables(
            target.model,
            name,
            target.shape,
            target.num_sentences,
            num_records,
            [sinks.condition for sinks in self._conditions.values()],
            curves,
            {name: sinks.tracks.tracks() for name, sinks in self._conditions.items()},
            {name: _compare(sinks, curves) for name, sinks in self._comparisons.items()},
            self._summary,
            self._doses,
            self._placebos.by_vector(),
            self._effects.untouched(),
            self._sampler.sample(),
            {name: own.answers.curves() for name, own in self._conditions.items() if own.answers is not None},
            {name: own.groups.curves() for name, own in self._conditions.items() if own.groups is not None},
            {name: own.lens.grid() for name, own in self._conditions.items() if own.lens is not None},
            self._effects.strengths(),
        )


def _built(builders: dict[str, CurveBuilder]) -> dict[str, Curves]:
    return {metric: builder.curves() for metric, builder in builders.items()}


def _compare(sinks: ComparisonSinks, curves: dict[str, dict[str, Curves]]) -> ComparisonTables:
    before, after = (curves[condition.name] for condition in sinks.comparison)
    differences = _built(sinks.differences)
    metrics = {metric: ComparisonCurves(before[metric], after[metric], differences[metric]) for metric in differences}
    return ComparisonTables(sinks.comparison, metrics, _built(sinks.between))


def _warn_if_missing(target: Target, condition: str, metric: str, builder: CurveBuilder) -> None:
    missing = int(builder.moments.missing[filled_points(metric, target.shape)].sum())
    if missing and not ALL_METRICS[metric].has_gaps:
        log.warning(
            "%s, %s: %d of the numbers of %s are not finite: null in the CSV file, left out of the mean curve",
            *(target.model, condition, missing, metric),
        )
