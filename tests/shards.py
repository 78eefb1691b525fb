"""Shards as the writer leaves them, made without a model: the numbers are drawn, but shaped like those of one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llm_entropy.outputs.merge import MergeOptions, MergeSource, merge_model
from llm_entropy.outputs.tables import ModelTables
from llm_entropy.schema.batches import BatchKey, WindowNotes
from llm_entropy.schema.shape import ModelShape
from llm_entropy.schema.shards import column, shard_schema
from llm_entropy.settings import METRICS, AnalysisSettings, Condition, ControlSettings, Kind, PlaceboSettings, compared
from llm_entropy.store.files import checksum
from llm_entropy.store.ledger import Ledger, Marker, rank_folder, read_ledger
from llm_entropy.store.windows import Task

CONFIG_HASH = "made up"

SHAPE = ModelShape(num_blocks=4, num_heads=2, hidden_size=8, vocab_size=4000)
SENTENCES = [
    'a quote " and, a comma',
    "a line\nand another",
    "月亮绕着地球转。",
    "emoji 😀🎉 too",
    "NA",
    "  spaces around  ",
    "carriage\rreturn\r\n",
    "costs $5 and $6, under_score ^ {braces}",
    "Water boils at",
    "The capital of France is",
]


def comparative(**settings: object) -> AnalysisSettings:
    return AnalysisSettings(compare_control=True, control=ControlSettings(control_vector=[0.1]), **settings)


def dose(**settings: object) -> AnalysisSettings:
    """Five strengths of one vector, and two placebos, beside the standard condition."""
    placebo = PlaceboSettings(random=1, orthogonal=1)
    control = ControlSettings(control_vector=[0.1], strengths=[-2, -1, 0, 1, 2], placebo=placebo)
    return AnalysisSettings(compare_control=True, control=control, **settings)


def table(
    sentences: Sequence[str],
    analysis: AnalysisSettings,
    shape: ModelShape = SHAPE,
    *,
    records: Sequence[int] = (1,),
    ids: Sequence[int] | None = None,
    seed: int = 0,
) -> pa.Table:
    """Return the records of sentences in corpus order; sentence i has `records[i % len(records)]` of them."""
    random = np.random.default_rng(seed)
    counts = np.array([records[index % len(records)] for index in range(len(sentences))])
    owners = np.repeat(np.arange(len(sentences)), counts)
    schema = shard_schema(analysis, shape, {"model": "made up"})
    num = len(owners)
    identity = np.arange(len(sentences)) if ids is None else np.asarray(ids)
    values: dict[str, object] = {
        "sentence_id": identity[owners],
        "sentence": [sentences[owner] for owner in owners],
        "position": np.concatenate([3 + 2 * np.arange(count) for count in counts]),
        "token_id": random.integers(0, shape.vocab_size, num),
        "token": random.choice([" the", "月", ",", "\n"], num).tolist(),
        "token_start": np.zeros(num, int),
        "token_end": np.full(num, 3),
    }
    entropy = _entropies(random, num, shape)
    conditions = analysis.run_conditions
    comparisons = compared(conditions)
    others = [comparison.other for comparison in comparisons]
    growth = np.maximum(np.arange(shape.num_layers) - 1, 0)
    for condition in conditions:
        if condition in others:
            step = random.normal(0.35, 0.4, (num, 1)) * (growth / shape.num_layers)
            entropy = np.maximum(entropy + step, 1e-3)
        values |= _condition(random, condition, analysis, shape, entropy, schema)
    for condition in others:
        values[column(condition.name, "kl_from_standard")] = random.lognormal(-3, 1, (num, 1)) * growth
        is_changed = random.random((num, 1)) < growth / shape.num_layers
        values[column(condition.name, "top1_changed")] = is_changed.astype(float)
    for condition in {comparison.baseline.name for comparison in comparisons}:
        norms = random.lognormal(2, 0.1, (num, 1)) * (1 + np.arange(shape.num_layers))
        values.setdefault(column(condition, "residual_norm"), norms)
    return pa.Table.from_arrays([_array(field, values[field.name]) for field in schema], schema=schema)


def write(
    run_dir: Path,
    model: str,
    whole: pa.Table,
    *,
    num_files: int = 3,
    seed: int = 0,
    expected: Sequence[int] | None = None,
    rows_per_window: int = 40,
) -> pa.Table:
    """Write records as several processes would: window by window, out of order, a batch of each window in every part.

    `expected` are the ids of the sentences that the corpus has, unless they are those of the records.
    """
    ids = whole["sentence_id"].to_numpy()
    expected = np.unique(ids) if expected is None else np.asarray(expected)
    windows = [expected[first : first + rows_per_window] for first in range(0, len(expected), rows_per_window)]
    first_ids = np.array([window[0] for window in windows])
    window_of = np.maximum(np.searchsorted(first_ids, ids, side="right") - 1, 0)
    batch_of = np.random.default_rng(seed).integers(0, num_files, len(whole))
    for index in range(num_files):
        rows = np.flatnonzero(batch_of == index)
        path = rank_folder(run_dir / "shards" / model, Task(), index % 2) / f"part-{index:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        part = _texts_once(whole.take(pa.array(rows)).sort_by([("sentence_id", "ascending")]))
        pq.write_table(part, path, row_group_size=64)
        counts = np.bincount(window_of[rows], minlength=len(windows)).tolist()
        notes = {
            number: WindowNotes(int(window[0]), int(window[-1]) + 1, len(window), number == len(windows) - 1)
            for number, window in enumerate(windows)
        }
        Marker(
            part=path,
            checksum=checksum(path),
            num_bytes=path.stat().st_size,
            config_hash=CONFIG_HASH,
            num_records=len(rows),
            first_id=int(ids[rows].min()) if len(rows) else 0,
            end_id=int(ids[rows].max()) + 1 if len(rows) else 0,
            batches=[(BatchKey(number, index, num_files), count) for number, count in enumerate(counts)],
            notes=notes if index == 0 else {},
            process={"launch": "made up"},
        ).write()
    return whole


def _texts_once(part: pa.Table) -> pa.Table:
    """Leave each sentence's text in its first record alone."""
    is_first = np.diff(part["sentence_id"].to_numpy(), prepend=-1) != 0
    place = part.schema.get_field_index("sentence")
    texts = pc.if_else(pa.array(is_first), part["sentence"], pa.scalar(None, pa.string()))
    return part.set_column(place, part.schema.field(place), texts)


def ledger_of(run_dir: Path, model: str) -> Ledger:
    """Return what `write` wrote."""
    return read_ledger(run_dir / "shards" / model, CONFIG_HASH)


def merge(
    run_dir: Path,
    model: str,
    analysis: AnalysisSettings,
    shape: ModelShape = SHAPE,
    *,
    kind: Kind = "causal",
    source: MergeSource | None = None,
    **options: object,
) -> ModelTables:
    """Merge what `write` wrote."""
    source = source or MergeSource(model, f"builtin:{model}", kind, shape, ledger_of(run_dir, model))
    return merge_model(run_dir, source, analysis, MergeOptions(**options))


def _entropies(random: np.random.Generator, num: int, shape: ModelShape) -> np.ndarray:
    depth = np.linspace(0, 1, shape.num_layers)
    shares = 0.25 + 0.6 * np.sin(np.pi * (depth * 0.7 + 0.15)) - 0.35 * depth**3
    noise = random.normal(0, 0.08, (num, 1)) + random.normal(0, 0.03, (num, shape.num_layers))
    return np.clip(shares + noise, 0.02, 0.99) * np.log(shape.vocab_size)


def _condition(random, condition: Condition, analysis, shape, entropy, schema) -> dict[str, object]:
    metrics = _metrics(random, shape, entropy)
    if not condition.keeps_tokens:
        for name in (name for name, about in METRICS.items() if about.is_per_head):
            metrics[name] = metrics[name].reshape(len(entropy), shape.num_blocks, -1).mean(axis=2)
    fields = _tokens(random, condition, shape, len(entropy), schema) if condition.keeps_tokens else {}
    fields |= {name: metrics[name] for name in analysis.metrics}
    return {column(condition.name, name): numbers for name, numbers in fields.items()}


def _metrics(random: np.random.Generator, shape: ModelShape, entropy: np.ndarray) -> dict[str, np.ndarray]:
    made = {
        "entropy": entropy,
        "perplexity": np.exp(entropy),
        "margin": random.gamma(2, 1, entropy.shape) * np.linspace(0.3, 2, shape.num_layers),
        "kl_divergence": np.log(shape.vocab_size) - entropy,
        "surprisal": entropy * random.lognormal(0, 0.3, entropy.shape),
        "attention_entropy": random.gamma(4, 0.4, (len(entropy), shape.num_blocks * shape.num_heads)),
        "kl_to_final": random.gamma(2, 1, entropy.shape) * np.linspace(2, 0, shape.num_layers),
        "target_rank": np.floor(random.lognormal(3, 1, entropy.shape) * np.linspace(2, 0, shape.num_layers)),
        "varentropy": random.gamma(2, 1, entropy.shape),
    }
    made |= {
        "residual_norm": random.gamma(9, 3, entropy.shape) * np.linspace(1, 4, shape.num_layers),
        "entropy_change": np.diff(entropy, axis=1, prepend=np.nan),
        "top1_agreement": (random.random(entropy.shape) < np.linspace(0, 1, shape.num_layers)).astype(float),
        "attended_entropy": random.beta(4, 2, made["attention_entropy"].shape),
        "renyi_entropy": entropy * random.beta(9, 2, entropy.shape),
    }
    made["sink_mass"] = 0.5 - 0.4 * made["attended_entropy"]
    made["attended_entropy"][random.random(len(entropy)) < 0.1] = np.nan
    assert set(made) == set(METRICS)
    if shape.heads is not None:
        lacks = (np.arange(shape.num_heads) >= np.array(shape.heads)[:, None]).ravel()
        for name in (name for name, about in METRICS.items() if about.is_per_head):
            made[name][:, lacks] = np.nan
    return made


def _tokens(random, condition: Condition, shape: ModelShape, num: int, schema: pa.Schema) -> dict[str, object]:
    words = [" the", " Paris", "月", "$x_1$", " a", ",", "\n", "##ing", " water", "é"]
    num_top = schema.field(column(condition.name, "top_tokens")).type.list_size
    num_tracked = schema.field(column(condition.name, "tracked_tokens")).type.list_size
    top = -np.sort(-random.dirichlet(np.ones(num_top + 3), num))[:, :num_top]
    rise = np.linspace(0, 1, shape.num_layers) ** random.uniform(1, 8, (num, num_tracked, 1))
    tracked = rise * -np.sort(-random.dirichlet(np.ones(num_tracked + 2), num))[:, :num_tracked, None]
    of_layers = {}
    if column(condition.name, "lens_tokens") in schema.names:
        of_layers = {
            "lens_tokens": random.choice(words, (num, shape.num_layers)),
            "lens_probabilities": random.beta(2, 4, (num, shape.num_layers)),
        }
    return of_layers | {
        "target_id": random.integers(0, shape.vocab_size, num),
        "target": random.choice(words, num).tolist(),
        "top_tokens": random.choice(words, (num, num_top)),
        "top_probabilities": top,
        "tracked_tokens": random.choice(words, (num, num_tracked)),
        "tracked_probabilities": tracked.reshape(num, -1),
    }


def _array(field: pa.Field, values: object) -> pa.Array:
    if not pa.types.is_fixed_size_list(field.type):
        return pa.array(values, field.type)
    flat = np.asarray(values).ravel()
    inner = field.type.value_type
    return pa.FixedSizeListArray.from_arrays(
        pa.array(flat.tolist(), inner) if pa.types.is_string(inner) else pa.array(flat.astype(np.float32)),
        field.type.list_size,
    ).cast(field.type)
