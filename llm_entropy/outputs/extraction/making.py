"""From the shards of an extraction to what people open: vectors, their quality, and a plot of it."""

from __future__ import annotations

import json
import logging
import time
from importlib import metadata
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file

from llm_entropy.outputs.extraction.contrast import Numbers, each_permuted, halves, left_out_pairs, vectors
from llm_entropy.outputs.extraction.quality import Quality, best_of, judge, split_half
from llm_entropy.outputs.extraction.result import ExtractionResult, quality_path, quality_plot_path, vector_path
from llm_entropy.outputs.extraction.states import PairStates, find_states
from llm_entropy.outputs.making import report_reading
from llm_entropy.outputs.opening import merging, open_and_make
from llm_entropy.outputs.plots.quality import draw_quality
from llm_entropy.schema.shape import ModelShape
from llm_entropy.settings import ExtractionSettings
from llm_entropy.store import manifest
from llm_entropy.store.files import written_whole
from llm_entropy.store.ledger import Ledger

log = logging.getLogger("llm_entropy")

VECTOR, SHUFFLED = "control_vector", "shuffled"
"""Tensors of a file: [L, hidden], and [number, L, hidden]."""
ABOUT = "extraction"
"""Key of a file's metadata that holds the rest, as JSON; the only one: safetensors writes several in any order."""


def merge_vectors(run_dir: Path, *, quiet: bool = False) -> ExtractionResult:
    """Make the vectors of an extraction, from the shards of all its tasks.

    Args:
        run_dir: The run's folder.
        quiet: Whether the terminal shows warnings and errors alone.

    Raises:
        ReportedError: There is no such run, its shards are not complete, or one is corrupt.
        RunIncompleteError: The disk is full.
    """
    other_kind = "is no run of llm-entropy extract; merge_run makes its outputs"
    return open_and_make(make_vectors, run_dir, ExtractionSettings, other_kind, quiet=quiet)


def make_vectors(
    run_dir: Path, settings: ExtractionSettings, about: dict[str, Any], ledgers: dict[str, Ledger]
) -> ExtractionResult:
    """Make the vectors of every model, judge them, and write down that the run is complete.

    Args:
        run_dir: The run's folder.
        settings: Of the run.
        about: What `run.json` says.
        ledgers: By model, complete.

    Raises:
        ReportedError: Something is missing or corrupt, or somebody else is merging.
    """
    with merging(run_dir, about, ledgers):
        models = {}
        for key, ledger in ledgers.items():
            model = manifest.read_model(run_dir, key)
            assert model is not None, "a complete model has a model.json"
            found = _make_model(run_dir, settings, about, key, model, ledger)
            models[key] = {**model, **manifest.model_totals(ledger), **found}
        manifest.update_manifest(run_dir, "complete", finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"), models=models)
        for model in models.values():
            report_reading(model)
        return ExtractionResult(run_dir, tuple(models))


def _make_model(
    run_dir: Path, settings: ExtractionSettings, about: dict[str, Any], key: str, model: dict[str, Any], ledger: Ledger
) -> dict[str, Any]:
    """Write the files of a model, and return what `run.json` says of them."""
    extract, shape = settings.extract, ModelShape.of(model["shape"])
    states = find_states(ledger, shape, key)
    if states.num_lost:
        log.warning("%s: %d pairs are left out: one of their texts holds no token to read", key, states.num_lost)
    is_test = left_out_pairs(states.pairs, extract.test_share, settings.seed)
    rows, tensors = _make_blocks(states, is_test, shape, settings)
    best = best_of(rows)
    counts = {"num_pairs": len(is_test), "num_left_out": int(is_test.sum())}
    written = {
        **{name: model[name] for name in ("name", "revision", "model_type", "dtype")},
        "method": extract.method,
        "tokens": extract.position,
        "seed": settings.seed,
        "data_fingerprint": about["corpus"]["fingerprint"],
        **counts,
        "best": best.block,
        "quality": {name: [_plain(getattr(row, name)) for row in rows] for name in Quality._fields[1:]},
        "written_by": f"llm_entropy {metadata.version('llm_entropy')}",
    }
    vector_path(run_dir, key).parent.mkdir(exist_ok=True)
    with written_whole(vector_path(run_dir, key)) as temporary:
        save_file(tensors, temporary, {ABOUT: json.dumps(written)})
    table = pd.DataFrame(rows, columns=list(Quality._fields))
    with written_whole(quality_path(run_dir, key)) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")
    if settings.output.plots:
        line = f"{key} · {extract.method} · {counts['num_left_out']} of {counts['num_pairs']} pairs left out"
        place = quality_plot_path(run_dir, key).with_suffix(f".{settings.output.plot_format}")
        draw_quality(table, line, place)
    log.info(
        "%s: best block %d (of 0 to %d): AUROC %.3f, d' %.2f on %d left-out pairs, norm %.2g of the stream's; %s",
        *(key, best.block, len(rows) - 1, best.auroc, best.d_prime, counts["num_left_out"], best.relative_norm),
        vector_path(run_dir, key),
    )
    return {**counts, "best_block": best.block}


def _make_blocks(
    states: PairStates, is_test: np.ndarray[Any, np.dtype[np.bool_]], shape: ModelShape, settings: ExtractionSettings
) -> tuple[list[Quality], dict[str, torch.Tensor]]:
    """Return the quality by block, and the tensors of the file; the states of one block are in memory at a time."""
    extract, norms = settings.extract, states.norms().astype(np.float64)
    splits = halves(states.pairs[~is_test], extract.splits, settings.seed)
    everything = np.ones((int((~is_test).sum()), 1), bool)
    rows: list[Quality] = []
    found: list[Numbers] = []
    permuted: list[Numbers] = []
    for block in range(shape.num_blocks):
        read = states.block(block)
        positive, negative = (read[~is_test, side].astype(np.float64) for side in (0, 1))
        differences = positive - negative
        found.append(vectors(extract.method, differences, everything)[0])
        own = list(each_permuted(extract.method, positive, negative, settings.seed, extract.shuffled))
        permuted.append(np.array(own).reshape(-1, shape.hidden_size))
        del positive, negative
        reliable = split_half(extract.method, differences, splits)
        left_out = [read[is_test, side].astype(np.float64) for side in (0, 1)]
        rows.append(judge(block, found[-1], permuted[-1], left_out[0], left_out[1], norms[..., block], reliable))
    tensors = {VECTOR: torch.from_numpy(np.stack(found)).float()}
    if extract.shuffled:
        tensors[SHUFFLED] = torch.from_numpy(np.stack(permuted, axis=1)).float()
    return rows, tensors


def _plain(value: float) -> float | None:
    """Return a number as JSON can hold it, which has no word for what is not finite."""
    return value if isfinite(value) else None
