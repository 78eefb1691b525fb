"""Reading the weights of a model that was found, and checking that they are those of a language model."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from llm_entropy.errors import ReportedError
from llm_entropy.models.adapters import merge_adapter
from llm_entropy.models.asking import one_error, quiet_transformers
from llm_entropy.models.attention.interface import EAGER, READABLE, in_language_model
from llm_entropy.models.checkpoints import CONFIG
from llm_entropy.models.families import fuse_activations, outline_model
from llm_entropy.models.finding import ModelSource, adapter_name, weights_dtype
from llm_entropy.models.quantised import decompress_, restore_head_

log = logging.getLogger("llm_entropy")
HARMLESS = re.compile(
    # heads that a language model does without; constants that are made anew
    r"(^|\.)(pooler|seq_relationship|sop_classifier|discriminator_predictions)\."
    r"|attn\.(attention\.)?(masked_)?bias$|rotary_emb\.inv_freq$|(^|\.)position_ids$"
)
"""Weights of which it says nothing that they are not used."""
CLASSIFIERS = ("score", "classifier", "qa_outputs")
"""Heads of models that were trained to classify."""


def load_model(source: ModelSource, *, precision: str, needs_attention: bool) -> PreTrainedModel:
    """Read a model's weights.

    Args:
        source: What `find_model` found.
        precision: `trainer.precision`; the model's own `dtype`, if given, goes before it.
        needs_attention: Whether attention entropy will be read; a family outside of transformers' attention interface
            needs eager attention, which is always read.

    Returns:
        The model with its head, in evaluation mode, on the CPU; one that is loaded is returned as it is, for whoever
        has borrowed it.

    Raises:
        ReportedError: The weights cannot be read, or are not those of a language model.
    """
    if source.loaded is not None:
        return source.loaded
    settings = source.settings
    auto = source.architecture.auto
    dtype = weights_dtype(source, precision)
    attention = EAGER if source.architecture.eager_only else READABLE if needs_attention else None
    with one_error(source.key, settings, source.location), quiet_transformers():
        loaded: Any = auto.from_pretrained(
            source.location,
            revision=source.revision or settings.revision,  # what `find_model` read: a branch may have moved on
            trust_remote_code=settings.trust_remote_code,
            dtype=dtype if source.adapter is None else torch.float32,
            attn_implementation=None if attention is None else in_language_model(source.config, attention),
            **({} if source.gguf_file is None else {"gguf_file": source.gguf_file}),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are looked at below; transformers would only point to its own report
        )
        model, loading = loaded
        if decompress_(model):
            log.info("models.%s: %s: its compressed weights were made whole", source.key, source.name)
    _check_weights(source, model, loading)
    if source.adapter is not None:
        merged: Any = merge_adapter(model, source.adapter, adapter_name(source), source.name)
        model = merged.to(dtype)
    if restore_head_(model, dtype):
        log.info("models.%s: %s: its quantised decoder was dequantised once, to %s", source.key, source.name, dtype)
    for config in (model.config, model.config.get_text_config()):
        config.use_cache = False
    fuse_activations(model)
    return cast(PreTrainedModel, model.eval().requires_grad_(False))


def _check_weights(source: ModelSource, model: PreTrainedModel, loading: dict[str, Any]) -> None:
    """Refuse weights that make another model than the configuration says, and list those that are not used.

    Args:
        source: What was asked for.
        model: As transformers has made it.
        loading: What transformers says of it: keys that are missing, unexpected, or of other sizes.

    Raises:
        ReportedError: The weights are not those of this language model.
    """
    name = f"models.{source.key}: {source.name}"
    if missing := sorted(loading["missing_keys"]):
        raise ReportedError(
            f"{name} lacks {len(missing)} weights of a {source.architecture.kind} language model "
            f"({_listed(missing)}); it may be a checkpoint for another task, give one with a language-model head"
        )
    if mismatched := sorted(loading["mismatched_keys"]):
        weight, found, expected = mismatched[0]
        raise ReportedError(
            f"{name}: {weight} is {list(found)} in the weights, and {list(expected)} by {CONFIG} ({len(mismatched)} "
            "weights have other sizes); give the configuration and the weights of one model"
        )
    num_rows, promised = _num_embeddings(model), source.shape.vocab_size
    if num_rows < promised:
        raise ReportedError(
            f"{name}: the embeddings have {num_rows} rows, and {CONFIG} says {promised}; correct its vocab_size"
        )
    unused = sorted(loading["unexpected_keys"])
    _refuse_other_model(source, model, unused, name)
    if surprising := [key for key in unused if not HARMLESS.search(key)]:
        log.warning("%s: %d weights of its files are not used: %s", name, len(surprising), _listed(surprising))
    if unused:
        log.debug("%s: not used: %s", name, ", ".join(unused))


def _refuse_other_model(source: ModelSource, model: PreTrainedModel, unused: Sequence[str], name: str) -> None:
    """Refuse a model if what it does not use of its files shows that it was another one.

    Raises:
        ReportedError: It had more blocks, or was a classifier.
    """
    path, blocks, head = outline_model(model)
    num_blocks = len(set(blocks))
    pattern = re.compile(rf"(?:^|\.){re.escape(path)}\.(\d+)\.")
    numbers = [int(match[1]) for key in unused if (match := pattern.search(key))]
    if max(numbers, default=-1) >= num_blocks:
        raise ReportedError(
            f"{name} holds weights of {max(numbers) + 1} blocks, and {CONFIG} says {num_blocks}: it would be measured "
            "without the last ones; correct the number of layers, or give the configuration of these weights"
        )
    classifier = [key for key in unused if key.split(".")[0] in CLASSIFIERS]
    embeddings = model.get_input_embeddings()
    if classifier and head is not None and head.weight is embeddings.weight:
        raise ReportedError(
            f"{name} holds the head of a classifier ({_listed(classifier)}) and none of a language model: its tied "
            "embeddings would pass for one, though it was trained for something else; give a language model"
        )


def _num_embeddings(model: PreTrainedModel) -> int:
    """Return how many tokens the model knows."""
    return int(cast(torch.Tensor, model.get_input_embeddings().weight).shape[0])


def _listed(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
