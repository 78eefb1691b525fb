"""A model that is loaded, opened in memory and proved: its states, and its logits at every layer."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Optional, Union

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm_entropy import kernels
from llm_entropy.errors import ReportedError
from llm_entropy.measuring.lens import Lens, check_lens
from llm_entropy.models.attention import about_attention, check_attention, with_right_counts
from llm_entropy.models.families import ModelView, run_base, view_model
from llm_entropy.models.finding import ModelSource, find_model, limit_of
from llm_entropy.models.layers import read_layers
from llm_entropy.models.loaded import borrowed, loaded_source
from llm_entropy.models.loading import load_model
from llm_entropy.models.proofs import check_parts, check_size
from llm_entropy.runs.plan import Plan, plan_model
from llm_entropy.settings import AnalysisSettings, DataSettings, ModelSettings, Settings
from llm_entropy.settings.fields import plain_value

log = logging.getLogger("llm_entropy")


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A model whose logits and attention can be reproduced, as was checked on a few random tokens; see `open_model`."""

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
        """L + 1: the output of the embeddings, and of each of L blocks."""
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
    """Open a model, and check that its logits and its attention can be reproduced from its layers.

    A loaded model is not copied. What a forward pass changes in it (evaluation mode, another attention) is undone
    afterwards.

    Args:
        model: A loaded model of transformers with its language-model head, or a hub name, folder or `builtin:...`.
        tokenizer: Of a loaded model; None: the tokenizer in the place from which the model was loaded.
        name: Its name in frames and messages; None: the last part of its name, or its class.
        lens: How a layer becomes logits: the model's own final norm and head, the head alone, or a trained map first.
        lens_path: Folder of a tuned lens.

    Raises:
        ReportedError: It cannot be loaded, it is no language model that can be measured, or a check fails.
    """
    key = key_of(model) if name is None else name
    if isinstance(model, (str, os.PathLike, Mapping, ModelSettings)):
        if tokenizer is not None:
            raise ReportedError(
                "tokenizer: got one beside the name of a model, which has its own; leave it out, or give a loaded model"
            )
        source = _loaded_by_name(key, model)
    else:
        source = loaded_source(key, model, tokenizer)
    where = f"models.{key}: {source.name}"
    plan = planned(source, AnalysisSettings(lens=lens, lens_path=None if lens_path is None else os.fspath(lens_path)))
    assert source.loaded is not None
    with borrowed(source, needs_attention=True):
        view = view_model(source.loaded)
        check_size(view, where)
        view = check_parts(view, where)
        check_attention(view, where)
        view = with_right_counts(view)
        for line in about_attention(view, ()):
            log.warning("%s: %s", where, line)
        source = replace(source, most_tokens=limit_of(source.most_tokens, view.most_tokens))
        return LanguageModel(source, view, Lens(view, lens, plan.lens_path), check_lens(view, where).error)


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


def planned(source: ModelSource, analysis: AnalysisSettings, max_length: Optional[int] = None, seed: int = 0) -> Plan:
    """Return what a run with this model alone would do."""
    settings = Settings(
        seed=seed, analysis=analysis, models={source.key: source.settings}, data=DataSettings(max_length=max_length)
    )
    return plan_model(source.key, source.settings, settings, source)
