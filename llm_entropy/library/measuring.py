"""What a model believes at every layer, measured in memory: a data frame, and no folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Optional, Union

import numpy as np
import pandas as pd
import torch

from llm_entropy.corpus.batching import collate
from llm_entropy.corpus.encoded import EncodedSentences
from llm_entropy.corpus.sentences import texts_of
from llm_entropy.errors import ReportedError
from llm_entropy.library.opening import LanguageModel, planned
from llm_entropy.measuring.asked import Asked
from llm_entropy.measuring.budget import CPU_TOKENS
from llm_entropy.measuring.metrics import over_heads
from llm_entropy.measuring.module import EntropyModule
from llm_entropy.models.attention import check_sinks
from llm_entropy.models.loaded import borrowed
from llm_entropy.runs.token_texts import TokenTexts
from llm_entropy.schema.records import Records
from llm_entropy.schema.shape import measured_of
from llm_entropy.settings import (
    COMPARISON_METRICS,
    DEFAULT_METRICS,
    AnalysisSettings,
    ControlSettings,
    DataSettings,
    needs_of,
)
from llm_entropy.store.windows import plan_batches

log = logging.getLogger("llm_entropy")

COLUMNS = ("model", "condition", "sentence_id", "position", "token", "metric", "layer", "value")
"""Columns of the frame that `measure` returns."""


def measure(
    lm: LanguageModel,
    sentences: Any,
    *,
    metrics: Union[str, Sequence[str]] = DEFAULT_METRICS,
    positions: Literal["last", "all"] = "all",
    conditions: Optional[Mapping[str, Any]] = None,
    temperature: float = 1.0,
    mask_strategy: Literal["last", "random", "each"] = "last",
    renyi_order: float = 2.0,
    max_length: Optional[int] = None,
    tokens_per_batch: int = CPU_TOKENS,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure what a model believes at every layer, in memory. No files are written.

    The numbers are the same as in a run. Use `run_analysis` for tests and intervals, for several devices, and for a
    corpus that does not fit into memory.

    Args:
        lm: As `open_model` returns it.
        sentences: Texts: a list, an iterator, a column, or a data frame or data set with a text column. A blank or
            missing text has no rows.
        metrics: Name or names, keys of `llm_entropy.METRICS`.
        positions: Where causal models are read: at the last token, or at all tokens.
        conditions: Steered conditions, by name: each a vector (a file, a tensor or array, numbers), or a mapping with
            `control_vector` and any other key of `analysis.control`. `standard`, the model as it is, is always there.
        temperature: Every logit is divided by it.
        mask_strategy: Which token masked models mask in a sentence without a mask.
        renyi_order: Of the metric `renyi_entropy`.
        max_length: Largest number of tokens of a sentence; None: the model's.
        tokens_per_batch: Number of tokens in a batch, padding included.
        seed: Seed of random masks and placebos.

    Returns:
        A row for each condition, position, metric and layer. Columns: model, condition, sentence_id (number of the
        text), position, token, metric, layer, value. For metrics of the attention, layer is the block, 0..L-1, and
        value the mean over the heads. Models with sinks also have `sink_mass` beside them. Steered conditions also have
        `kl_from_standard` and `top1_changed`.

    Raises:
        ReportedError: An argument is wrong.
    """
    analysis = AnalysisSettings(
        temperature=temperature,
        positions=positions,
        mask_strategy=mask_strategy,
        metrics=metrics,  # type: ignore[arg-type]
        renyi_order=renyi_order,
        compare_control=bool(conditions),
        conditions=_as_settings(conditions or {}),
    )
    check_sinks(lm.view, analysis.metrics, lm.name)
    plan = planned(lm.source, analysis, max_length, seed)
    texts = texts_of(sentences, DataSettings(), None)
    ids = [number for number, text in enumerate(texts) if text is not None and text.strip()]
    encoded = EncodedSentences(plan.encoder, ids, [str(texts[number]) for number in ids])
    for count, what in (
        (encoded.num_cut, "were cut at the most tokens that fit"),
        (len(encoded.unread), "hold no token to read"),
    ):
        if count:
            log.warning("%s: %d sentences %s", lm.name, count, what)
    found: list[Records] = []
    device = lm.view.decoder.weight.device
    with borrowed(lm.source, needs_attention="attention" in needs_of(analysis.metrics)):
        module = EntropyModule(lm.view, lm.lens, Asked(analysis, plan.steering))
        for rows in plan_batches(encoded.lengths, tokens_per_batch, pads=lm.view.takes_padding):
            batch = collate([encoded[row] for row in rows], lm.source.pad_token_id, seed)
            found.append(module.predict_step(batch.to(device)))
            if (wait := found[-1].wait) is not None:
                wait()
    asked = [*measured_of(analysis, lm.view.shape), *COMPARISON_METRICS]
    return _frame(lm, [records for records in found if records.conditions], asked)


def _as_settings(conditions: Mapping[str, Any]) -> dict[str, Any]:
    """Return conditions as settings hold them."""
    made: dict[str, Any] = {}
    for name, given in conditions.items():
        made[name] = given if isinstance(given, (Mapping, ControlSettings)) else {"control_vector": given}
        own = made[name].get("target_kl") if isinstance(made[name], Mapping) else made[name].target_kl
        if own is not None:
            raise ReportedError(
                f"conditions.{name}.target_kl: got {own}; strengths are searched by run_analysis, which writes what it "
                "finds into run.json; give that as strength"
            )
    return made


def _frame(lm: LanguageModel, found: Sequence[Records], asked: Sequence[str]) -> pd.DataFrame:
    """Return the records of all batches as rows, by condition, then metric, then sentence, position and layer.

    Args:
        lm: The model.
        found: A batch each.
        asked: The metrics that are wanted, in order, where a condition has them.
    """
    if not found:
        return pd.DataFrame({name: [] for name in COLUMNS})
    about = {
        name: torch.cat([getattr(records, name) for records in found]).numpy()
        for name in ("sentence_ids", "positions", "token_ids")
    }
    order = np.lexsort((about["positions"], about["sentence_ids"]))
    tokens = np.array(TokenTexts(lm.tokenizer)(torch.from_numpy(about["token_ids"])), dtype=object)
    parts = []
    for condition in found[0].conditions:
        for metric in (name for name in asked if name in found[0].conditions[condition].metrics):
            values = torch.cat([records.conditions[condition].metrics[metric].float() for records in found])
            if values.ndim == 3:  # [record, block, head]
                values = over_heads(values, lm.view.shape.heads)
            numbers = values.numpy()[order]
            width = numbers.shape[1]
            columns = (
                *(lm.name, condition),
                *(np.repeat(column[order], width) for column in (about["sentence_ids"], about["positions"], tokens)),
                *(metric, np.tile(np.arange(width), len(numbers)), numbers.ravel()),
            )
            parts.append(pd.DataFrame(dict(zip(COLUMNS, columns, strict=True))))
    return pd.concat(parts, ignore_index=True)
