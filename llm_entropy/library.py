"""A library, not only a program: models that are loaded are proved, measured and steered in memory, no folder."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Optional, Union

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm_entropy import kernels
from llm_entropy.corpus.batching import collate
from llm_entropy.corpus.encoded import EncodedSentences
from llm_entropy.corpus.sentences import texts_of
from llm_entropy.errors import ReportedError
from llm_entropy.measuring.asked import Asked
from llm_entropy.measuring.budget import CPU_TOKENS
from llm_entropy.measuring.lens import Lens, check_lens
from llm_entropy.measuring.module import EntropyModule
from llm_entropy.models.attention import check_attention
from llm_entropy.models.families import ModelView, run_base, view_model
from llm_entropy.models.layers import read_layers
from llm_entropy.models.loaded import borrowed, loaded_source
from llm_entropy.models.loading import ModelSource, find_model, load_model
from llm_entropy.runs.plan import Plan, plan_model
from llm_entropy.runs.token_texts import TokenTexts
from llm_entropy.schema import Records
from llm_entropy.settings import (
    COMPARISON_METRICS,
    DEFAULT_METRICS,
    AnalysisSettings,
    ControlSettings,
    DataSettings,
    ModelSettings,
    Settings,
    needs_of,
)
from llm_entropy.settings.fields import plain_value
from llm_entropy.steering.hooks import steer_every_token
from llm_entropy.steering.plan import plan_steering
from llm_entropy.steering.vectors import resolve_vector
from llm_entropy.store.windows import plan_batches

log = logging.getLogger("llm_entropy")

COLUMNS = ("model", "condition", "sentence_id", "position", "token", "metric", "layer", "value")
"""Of the frame that `measure` returns."""


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A model that has proved, on a few random tokens, that it is read as it computes. `open_model` makes it."""

    source: ModelSource
    """What it is."""
    view: ModelView
    """Its parts, by their role."""
    lens: Lens
    """How a layer becomes logits."""
    lens_error: float
    """Largest difference between the lens's logits of the last layer and the model's own, in logits."""

    @property
    def name(self) -> str:
        """What frames call it."""
        return self.source.key

    @property
    def model(self) -> PreTrainedModel:
        """The model with its head."""
        return self.view.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        return self.source.tokenizer

    @property
    def num_layers(self) -> int:
        """L + 1: the embeddings' output, and what each block hands on."""
        return self.view.shape.num_layers

    @torch.no_grad()
    def states(self, input_ids: Tensor, attention_mask: Optional[Tensor] = None) -> Tensor:
        """Run the model once and return its residual stream.

        Args:
            input_ids: [batch, seq].
            attention_mask: [batch, seq], 0 at padding; None: there is none.

        Returns:
            [layer, batch, seq, hidden], layers 0..L, before any final norm, on the model's device.
        """
        if input_ids.ndim != 2 or (attention_mask is not None and attention_mask.shape != input_ids.shape):
            shapes = [list(one.shape) for one in (input_ids, attention_mask) if one is not None]
            raise ReportedError(
                f"states: got {' and '.join(map(str, shapes))}; expected [batch, seq] token ids, and mask"
            )
        device = self.view.decoder.weight.device
        ids = input_ids.to(device)
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask.to(device)
        rows, positions = torch.ones_like(ids).nonzero(as_tuple=True)
        with borrowed(self.source, needs_attention=False), read_layers(self.view, rows, positions) as read:
            run_base(self.view, ids, mask)
        states: Tensor = read.stack().unflatten(1, tuple(ids.shape))
        return states

    def logits_at(self, states: Tensor, layer: int) -> Tensor:
        """Return the logits that the lens reads from the residual stream at a layer; at the last one the model's own.

        Args:
            states: [..., hidden], as `states` returns them for each layer, or your own hooks.
            layer: 0 .. L, or from the end, -1 for the last.

        Returns:
            [..., vocab], float32, after what the model does to its logits (bias, scale, softcap).

        Raises:
            ReportedError: There is no such layer, or the states have another width.
        """
        shape, num_layers = self.view.shape, self.num_layers
        if not -num_layers <= layer < num_layers:
            raise ReportedError(f"layer: got {layer}; {self.name} has layers 0 to {num_layers - 1}")
        if states.shape[-1:] != (shape.hidden_size,):
            raise ReportedError(
                f"states: got {list(states.shape)}; expected [..., {shape.hidden_size}], the width of {self.name}"
            )
        rows = states.detach().to(self.view.decoder.weight).reshape(1, -1, shape.hidden_size)
        with torch.inference_mode():
            inputs = self.lens.project(rows, [layer % num_layers])
            logits = kernels.logits_of(inputs[0], self.view.unembedding(temperature=1.0))
        # outside of inference mode: a tensor like any other
        return logits.clone().reshape(*states.shape[:-1], logits.shape[-1])


Openable = Union[PreTrainedModel, str, Path, Mapping[str, Any], ModelSettings]


def open_model(
    model: Openable,
    tokenizer: Optional[PreTrainedTokenizerBase] = None,
    *,
    name: Optional[str] = None,
    lens: Literal["logit", "raw", "tuned"] = "logit",
    lens_path: Union[str, Path, None] = None,
) -> LanguageModel:
    """Open a model, and prove that its layers, its logits and its attention are read as it computes them.

    A model that is loaded is not copied, and is left as it was: whatever is done to it for a forward pass (evaluation
    mode, another attention) is undone behind it.

    Args:
        model: One of transformers that is loaded, with its language-model head, or a hub name, folder or `builtin:...`.
        tokenizer: Of a model that is loaded; None: what lies where it was loaded from.
        name: What frames and messages call it; None: the last part of its name, or its class.
        lens: How a layer becomes logits: the model's own final norm and head, the head alone, or a trained map first.
        lens_path: Folder of a tuned lens.

    Raises:
        ReportedError: It cannot be loaded, its family is not known, or a proof fails.
    """
    key = key_of(model) if name is None else name
    if isinstance(model, (str, os.PathLike, Mapping, ModelSettings)):
        if tokenizer is not None:
            raise ReportedError("tokenizer: got one beside the name of a model; it is read from where the model lies")
        source = _loaded_by_name(key, model)
    else:
        source = loaded_source(key, model, tokenizer)
    where = f"models.{key}: {source.name}"
    plan = _planned(source, AnalysisSettings(lens=lens, lens_path=None if lens_path is None else os.fspath(lens_path)))
    assert source.loaded is not None
    with borrowed(source, needs_attention=True):
        view = view_model(source.loaded)
        check_attention(view, where)
        return LanguageModel(source, view, Lens(view, lens, plan.lens_path), check_lens(view, where))


def key_of(model: Any) -> str:
    """Return a key for a model without one: the last part of its name or folder, as far as it can name files."""
    name = (
        model.get("name") if isinstance(model, Mapping) else model.name if isinstance(model, ModelSettings) else model
    )
    if not isinstance(name, (str, os.PathLike)):
        return type(model).__name__  # one that is loaded; what is no model is refused by this name
    last = Path(os.fspath(name).rpartition(":")[2]).name or Path(name).absolute().name
    return re.sub(r"[^\w.-]", "-", last, flags=re.ASCII).strip(".") or "model"


def _loaded_by_name(key: str, model: Any) -> ModelSource:
    """Load a model by its name, or by settings."""
    given = {"name": model} if isinstance(model, (str, os.PathLike)) else model
    source = find_model(key, plain_value(given, ModelSettings, "model"))
    loaded = load_model(source, precision="32-true", needs_attention=True)
    loaded.config.use_cache = getattr(source.config, "use_cache", False)  # `generate` is slow without
    return replace(source, loaded=loaded)


def _planned(source: ModelSource, analysis: AnalysisSettings, max_length: Optional[int] = None, seed: int = 0) -> Plan:
    """Return what a run with this model alone would do."""
    settings = Settings(
        seed=seed, analysis=analysis, models={source.key: source.settings}, data=DataSettings(max_length=max_length)
    )
    return plan_model(source.key, source.settings, settings, source)


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
    """Measure what a model believes at every layer, in memory: a row for each number. Nothing is written.

    The numbers are those of a run. For a corpus that does not fit, for several devices, and for tests and intervals,
    there is `run_analysis`.

    Args:
        lm: As `open_model` returns it.
        sentences: Texts: a list, an iterator, a column, or a data frame or data set with a text column. One that is
            blank or missing has no rows.
        metrics: Name or names, keys of `llm_entropy.METRICS`.
        positions: Causal models: the last token, or every one.
        conditions: Ways of steering, by name: each a vector (a file, a tensor or array, numbers), or a mapping with
            `control_vector` and any other key of `analysis.control`. The model as it is, `standard`, is always there.
        temperature: Every logit is divided by it.
        mask_strategy: Masked models: which token of a sentence without a mask is masked.
        renyi_order: Of the metric `renyi_entropy`.
        max_length: Most tokens of a sentence; None: what the model allows.
        tokens_per_batch: How many tokens, padding included, go through the model together.
        seed: Of random masks and placebos.

    Returns:
        Columns model, condition, sentence_id (number of the text), position, token, metric, layer, value. Metrics of
        the attention have blocks 0..L-1 as layers, and the mean over the heads as value. Beside the metrics asked for,
        steered conditions have `kl_from_standard` and `top1_changed`.

    Raises:
        ReportedError: Something that was given is wrong.
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
    plan = _planned(lm.source, analysis, max_length, seed)
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
        for rows in plan_batches(encoded.lengths, tokens_per_batch):
            batch = collate([encoded[row] for row in rows], lm.source.pad_token_id, seed)
            found.append(module.predict_step(batch.to(device)))
            if (wait := found[-1].wait) is not None:
                wait()
    asked = [*analysis.metrics, *COMPARISON_METRICS]
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
                values = values.mean(dim=-1)
            numbers = values.numpy()[order]
            width = numbers.shape[1]
            columns = (
                *(lm.name, condition),
                *(np.repeat(column[order], width) for column in (about["sentence_ids"], about["positions"], tokens)),
                *(metric, np.tile(np.arange(width), len(numbers)), numbers.ravel()),
            )
            parts.append(pd.DataFrame(dict(zip(COLUMNS, columns, strict=True))))
    return pd.concat(parts, ignore_index=True)


@contextmanager
def steer(
    lm: LanguageModel,
    vector: Any,
    strength: float = 1.0,
    *,
    blocks: Union[str, Sequence[int], None] = None,
    layer_weights: Optional[Sequence[float]] = None,
    operator: Literal["add", "add_keep_norm", "project_out", "cap"] = "add",
    cap: Optional[float] = None,
) -> Iterator[None]:
    """Steer whatever runs the model inside of the `with`: your own loop, or `lm.model.generate`.

    Every token of every forward pass is steered, in generation the prompt and what follows. The weights are not
    touched; gradients flow through.

    Args:
        lm: As `open_model` returns it.
        vector: A file, a tensor or array, or numbers: [hidden], [L, hidden] or [L + 1, hidden].
        strength: Factor on the vector; below 0 the other way.
        blocks: Which blocks are steered: numbers, or a slice as "8:12"; None: all that the vector has.
        layer_weights: A factor for each block, or one more, the first for the embeddings.
        operator: What happens to the stream; `llm_entropy.steering.operators` has the formulas.
        cap: Of the operator `cap`: the largest component along the vector that is left.

    Raises:
        ReportedError: The vector does not fit, or something else that was given is wrong.
    """
    shape = lm.view.shape
    control = _control({"blocks": blocks, "layer_weights": layer_weights, "operator": operator, "cap": cap})
    resolved = resolve_vector(
        vector,
        key="vector",
        model=lm.name,
        num_blocks=shape.num_blocks,
        hidden_size=shape.hidden_size,
        operator=operator,
    )
    plan = plan_steering(control, resolved, key="steer", num_blocks=shape.num_blocks, sign=1)
    plan = plan.at_strength(_control({"strength": strength}).strength, "steer")
    with steer_every_token(lm.view.blocks, plan.to(lm.view.decoder.weight.device)):
        yield


def _control(given: dict[str, Any]) -> ControlSettings:
    """Return the settings of a vector, with errors that name arguments."""
    try:
        return ControlSettings(**given)
    except ReportedError as error:
        raise ReportedError(str(error).replace(f"{ControlSettings.KEY}.", "")) from error
