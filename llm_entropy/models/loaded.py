"""Models that are loaded already: what they are, borrowed for a while and given back as they were."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Optional

import torch
import xxhash
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm_entropy.errors import ReportedError
from llm_entropy.models.attention.interface import EAGER, READABLE, attention_implementation, in_language_model
from llm_entropy.models.families import find_architecture, fused_activations, most_tokens, shape_of
from llm_entropy.models.finding import DTYPES, ModelSource, find_model, limit_of
from llm_entropy.models.own_code import code_name
from llm_entropy.settings import LOADED_PREFIX, ModelSettings

NOT_IDENTITY = ("transformers_version", "use_cache", "dtype", "torch_dtype")
"""Of a configuration: what changes no number, or is told by the weights."""


def loaded_source(key: str, model: Any, tokenizer: Optional[Any] = None) -> ModelSource:
    """Return what `find_model` returns, of a model that is loaded.

    Args:
        key: Its name, in file names and messages.
        model: With its head, as AutoModelForCausalLM or AutoModelForMaskedLM makes it.
        tokenizer: None: what lies where the model was loaded from.

    Raises:
        ReportedError: It is no such model, has no tokenizer, lies on several devices, or its family is not known.
    """
    where = f"models.{key}"
    if not isinstance(model, PreTrainedModel):
        raise ReportedError(
            f"{where}: got {type(model).__name__}; expected a model of transformers, as "
            "AutoModelForCausalLM.from_pretrained returns it, or its name"
        )
    architecture = find_architecture(model.config, where, type(model))
    if model.get_output_embeddings() is None:
        raise ReportedError(
            f"{where}: got {type(model).__name__}, which has no language-model head; expected what "
            f"{architecture.auto.__name__}.from_pretrained returns"
        )
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(devices) > 1:
        raise ReportedError(
            f"{where}: its weights lie on {', '.join(devices)}; expected one device, as model.to('cpu')"
        )
    dtype = next((name for name, own in DTYPES.items() if own == model.dtype), None)
    if dtype is None:
        raise ReportedError(f"{where}: got weights of type {model.dtype}; expected one of {', '.join(DTYPES)}")
    own = _own_tokenizer(key, model) if tokenizer is None else tokenizer
    if not isinstance(own, PreTrainedTokenizerBase):
        raise ReportedError(
            f"{where}: got {type(own).__name__} as its tokenizer; expected what AutoTokenizer.from_pretrained returns"
        )
    name = f"{LOADED_PREFIX}{type(model).__name__}"
    return ModelSource(
        key=key,
        name=name,
        location=model.name_or_path or "",
        settings=ModelSettings(name, dtype=dtype),  # type: ignore[arg-type]
        config=model.config,
        tokenizer=own,
        architecture=architecture,
        shape=shape_of(model.config),
        most_tokens=limit_of(most_tokens(model.config), own.model_max_length),
        revision=None,
        code=code_name([type(model), type(model.config), type(own)]),
        loaded=model,
    )


def _own_tokenizer(key: str, model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """Return the tokenizer that lies beside the files of a model."""
    missing = ReportedError(
        f"models.{key}: got {type(model).__name__} without a tokenizer; expected (model, tokenizer)"
    )
    if not model.name_or_path:
        raise missing
    try:
        return find_model(key, ModelSettings(model.name_or_path)).tokenizer
    except ReportedError as error:
        raise missing from error


@contextmanager
def borrowed(source: ModelSource, *, needs_attention: bool) -> Iterator[None]:
    """Let a loaded model be as `load_model` would make it, and give it back as it was: modes, cache, attention, device.

    Its weights are not touched.

    Args:
        source: Of a model that is loaded.
        needs_attention: Whether its attention is to be read.
    """
    model = source.loaded
    assert model is not None
    attention = EAGER if source.architecture.eager_only else READABLE if needs_attention else None
    config: Any = model.config
    with ExitStack() as back:
        back.callback(_restore_modes, [(module, module.training) for module in model.modules()])
        back.callback(torch.nn.Module.to, model, next(model.parameters()).device)
        for own in (config, config.get_text_config()):
            if hasattr(own, "use_cache"):
                back.callback(setattr, own, "use_cache", own.use_cache)
                own.use_cache = False
        back.enter_context(fused_activations(model))
        if attention is not None and attention != attention_implementation(model):
            back.callback(model.set_attn_implementation, in_language_model(config, attention_implementation(model)))
            model.set_attn_implementation(in_language_model(config, attention))
        model.eval()
        yield


def _restore_modes(modes: list[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        module.training = training


def content_of(model: PreTrainedModel) -> str:
    """Return a name for a model's weights and configuration, 32 hexadecimal digits: every byte counts.

    Args:
        model: On any device; one tensor at a time is brought to the CPU.
    """
    config = {
        name: value
        for name, value in model.config.to_dict().items()
        if name not in NOT_IDENTITY and not name.startswith("_")
    }
    digest = xxhash.xxh3_128(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
