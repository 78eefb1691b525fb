"""What is known of families of Hugging Face models beforehand, and a model's parts, which are found by tracing.

Only this file and `tracing` name attributes of Hugging Face models. A family has a row where tracing cannot see
something; all others have none.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple, Optional, cast

import transformers
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    PretrainedConfig,
    PreTrainedModel,
    activations,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from llm_entropy.errors import ReportedError
from llm_entropy.models.tracing.attending import Attending, find_attention
from llm_entropy.models.tracing.blocks import outline
from llm_entropy.models.tracing.head import HeadStep
from llm_entropy.models.tracing.not_found import NotFound
from llm_entropy.models.tracing.trace import trace
from llm_entropy.schema.shape import ModelShape
from llm_entropy.schema.statistics import Unembedding
from llm_entropy.settings import Kind


@dataclass(frozen=True)
class Architecture:
    """What is known of a model family before a model is loaded."""

    kind: Kind
    """Whether its language model is causal or masked."""
    auto: Any = AutoModelForCausalLM
    """The class of transformers that loads it."""
    eager_only: bool = False
    """Whether its attention does not go through transformers' interface, or needs more than fused attention does."""
    reserved_positions: Callable[[PretrainedConfig], int] = lambda config: 0
    """How many rows of the position table are never a token's."""
    execution: Optional[Callable[[PreTrainedModel], list[nn.Module]]] = None
    """The blocks in the order in which they run, where they are not the items of one list."""
    num_blocks: str = "num_hidden_layers"
    """What the configuration calls the number of its blocks."""
    blocks: Optional[str] = None
    """Beside `execution`, the list that holds the blocks, in the model without its head."""
    own_mask: Optional[str] = None
    """In the attention module, a buffer [1, 1, position, position] of where it may look, beside the mask it is given;
    for a family that is `eager_only`."""


def _albert_execution(model: PreTrainedModel) -> list[nn.Module]:
    """Return ALBERT's layers as they run: a group serves several layers in a row."""
    groups, config = cast(Any, model).albert.encoder.albert_layer_groups, model.config
    layers_per_group = config.num_hidden_layers / config.num_hidden_groups
    chosen = [groups[int(layer / layers_per_group)] for layer in range(config.num_hidden_layers)]
    return [layer for group in chosen for layer in group.albert_layers]


def _behind_padding(config: PretrainedConfig) -> int:
    """Return how many rows of a position table are left out where the first position follows the padding's id."""
    has_table = getattr(config, "position_embedding_type", "absolute") == "absolute"
    return (config.pad_token_id or 0) + 1 if has_table else 0


_BEHIND_PADDING = {"reserved_positions": _behind_padding}

ROWS: dict[str, dict[str, Any]] = {
    "albert": {"execution": _albert_execution, "blocks": "encoder.albert_layer_groups"},
    "falcon": {"eager_only": True},  # it knows the ways of attending by name
    "longcat_flash": {"num_blocks": "num_layers"},  # each of them attends twice, and counts as two layers
    "gpt_neo": {"own_mask": "bias"},  # its windows
    "roberta": _BEHIND_PADDING,
    "roberta-prelayernorm": _BEHIND_PADDING,
    "xlm-roberta": _BEHIND_PADDING,
    "xlm-roberta-xl": _BEHIND_PADDING,
    "camembert": _BEHIND_PADDING,
    "data2vec-text": _BEHIND_PADDING,
    "esm": _BEHIND_PADDING,
    "ibert": _BEHIND_PADDING,
    "longformer": _BEHIND_PADDING,
    "luke": _BEHIND_PADDING,
    "mpnet": _BEHIND_PADDING,
    "xmod": _BEHIND_PADDING,
}
"""What tracing cannot see of a family, as fields of `Architecture`, by the `model_type` of its configuration."""

POSITIONS = ("max_position_embeddings", "max_seq_len")
"""What a configuration calls the number of tokens that a model takes."""

_SEVERAL_STREAMS = (
    "its blocks hand on several residual streams side by side, so that no layer has one state to read or to steer"
)
_DIFFUSION = "it writes a block of tokens by diffusion, in many passes over it, so that no pass gives the distribution"
_MIXED_LAYERS = (
    "its blocks and its head read a mixture of what several earlier blocks have handed on, so that no layer alone "
    "gives the logits"
)
_ASSISTANT = "it drafts for a larger model, whose states it is given, and reads no text by itself"
REFUSED = {
    **dict.fromkeys(("gemma3n", "gemma3n_text", "deepseek_v4", "glm5_next", "hy_v4", "hy_v4_vl"), _SEVERAL_STREAMS),
    **dict.fromkeys(("qwen4_exp", "qwen4_exp_text"), _SEVERAL_STREAMS),
    **dict.fromkeys(("inkling2", "inkling2_text", "inkling2_loop", "inkling2_loop_text"), _MIXED_LAYERS),
    **dict.fromkeys(("gemma4_assistant", "gemma4_unified_assistant"), _ASSISTANT),
    "blt": "its blocks stand in three stacks, over bytes, patches and bytes again, and no layer has the states of all",
    "perceiver": "its blocks work on latent vectors, not on tokens, so that no layer has the state of a token",
    "diffusion_gemma": _DIFFUSION,
}
"""Why a family is not measured, by `model_type`."""
_ENCODER_DECODER = "it is an encoder-decoder, whose decoder writes an answer to what its encoder has read"


FUSED_ACTIVATIONS: dict[type[nn.Module], Callable[[], nn.Module]] = {
    # 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), written out: eight passes over four times the stream
    activations.NewGELUActivation: partial(nn.GELU, approximate="tanh"),
    activations.FastGELUActivation: partial(nn.GELU, approximate="tanh"),
}
"""Activations of transformers for which torch has the same function as one operation."""


def fuse_activations(model: nn.Module) -> None:
    """Let torch compute a model's activations in one operation where transformers takes several.

    The function is the same; its rounding is not, where it rounds less often.

    Args:
        model: Changed in place.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if fused := FUSED_ACTIVATIONS.get(type(child)):
                setattr(parent, name, fused())


@contextmanager
def fused_activations(model: nn.Module) -> Iterator[None]:
    """As `fuse_activations`, inside of the context alone."""
    before = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) in FUSED_ACTIVATIONS
    ]
    fuse_activations(model)
    try:
        yield
    finally:
        for parent, name, child in before:
            setattr(parent, name, child)


def find_architecture(
    config: PretrainedConfig, name: str, model_class: Optional[type[PreTrainedModel]] = None
) -> Architecture:
    """Return what is known of a model's family.

    Args:
        config: The model's configuration.
        name: The model, for the message.
        model_class: What it has become; the text model of a multimodal one has a configuration of its own.

    Raises:
        ReportedError: It is no causal or masked language model with one residual stream.
    """
    model_type = config.model_type
    reason = REFUSED.get(model_type) or (_ENCODER_DECODER if config.is_encoder_decoder else None)
    if reason is not None:
        raise ReportedError(
            f"{name}: its model_type {model_type!r} cannot be measured: {reason}; give a causal or masked "
            "language model"
        )
    found = _kind_and_class(config, model_class)
    if found is None:
        raise ReportedError(
            f"{name}: its model_type {model_type!r} is no causal or masked language model of transformers "
            f"{transformers.__version__}; give one, or the code of its own with trust_remote_code: true, which must "
            "name an AutoModelForCausalLM or AutoModelForMaskedLM"
        )
    kind, auto = found
    known = auto._model_mapping.get(type(config), model_class)
    known = known[0] if isinstance(known, tuple) else known
    supports = getattr(known, "_supports_sdpa", True)
    if known is not None and not known.__module__.startswith("transformers."):
        supports = supports and known._can_set_attn_implementation()  # where it cannot, transformers only warns
    is_eager_only = not supports or (known is not None and _lists_ways_of_attending(known))
    return Architecture(**{"kind": kind, "auto": auto, "eager_only": is_eager_only, **ROWS.get(model_type, {})})


@cache
def _lists_ways_of_attending(model_class: type) -> bool:
    """Whether a model's code lists by name the ways of attending in which it does something, and leaves out ours.

    Sparse attention hides tokens so: under another name the model would attend to all of them.
    """
    try:
        code = inspect.getsource(sys.modules[model_class.__module__])
    except (OSError, KeyError, TypeError):  # made on the spot: there is no file
        return False
    return re.search(r"_attn_implementation\s+(not\s+)?in\s*[\[({]", code) is not None


def _kind_and_class(
    config: PretrainedConfig, model_class: Optional[type[PreTrainedModel]]
) -> Optional[tuple[Kind, Any]]:
    """Return what a configuration makes a language model of: of a family that has both kinds, the masked one."""
    own_code = getattr(config, "auto_map", None) or {}
    made = {
        auto: type(config) in auto._model_mapping or auto.__name__ in own_code
        for auto in (AutoModelForMaskedLM, AutoModelForCausalLM, AutoModelForImageTextToText)
    }
    if made[AutoModelForMaskedLM] and not (made[AutoModelForCausalLM] and getattr(config, "is_decoder", False)):
        return "masked", AutoModelForMaskedLM
    auto = next((auto for auto, is_made in made.items() if is_made and auto is not AutoModelForMaskedLM), None)
    if auto is None and model_class is not None:
        is_causal = model_class.__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        auto = AutoModelForCausalLM if is_causal else None
    return None if auto is None else ("causal", auto)


def shape_of(config: PretrainedConfig) -> ModelShape:
    """Return the sizes that a configuration promises, before any weight is read; 0: it says nothing of it."""
    text = config.get_text_config()
    blocks = ROWS.get(config.model_type, {}).get("num_blocks", Architecture.num_blocks)
    return ModelShape(
        num_blocks=_size(text, blocks, 0) * getattr(text, "inner_group_num", 1),
        num_heads=_size(text, "num_attention_heads", 1),  # some families have no attention
        hidden_size=_size(text, "hidden_size", 0),
        vocab_size=_size(text, "vocab_size", 0),
    )


def _size(config: PretrainedConfig, name: str, default: int) -> int:
    try:
        value = getattr(config, name, None)
    except RuntimeError:  # every layer has its own, and is to be asked
        value = [own for layer in config.per_layer_config if (own := getattr(layer, name)) is not None]
    value = max(value, default=None) if isinstance(value, (list, tuple)) else value
    return default if value is None else int(value)


def most_tokens(config: PretrainedConfig) -> Optional[int]:
    """Return how many tokens of a sentence the model can take, or None if it sets no limit."""
    text = config.get_text_config()
    positions = next((number for name in POSITIONS if (number := _size(text, name, 0))), 0)
    if positions < 1:
        return None
    reserved = ROWS.get(config.model_type, {}).get("reserved_positions")
    return positions - (reserved(text) if reserved else 0)


@dataclass(frozen=True)
class ModelView:
    """The parts of a loaded model, by their role."""

    model: PreTrainedModel
    """The model with its head."""
    kind: Kind
    """Causal or masked."""
    shape: ModelShape
    """Its sizes."""
    base: nn.Module
    """The model without its head."""
    blocks: tuple[nn.Module, ...]
    """The L blocks in the order in which they run; a shared one stands here more than once."""
    attentions: tuple[Optional[nn.Module], ...]
    """The attention module of each block that has one, as far as the model was loaded to show them."""
    final_norm: Optional[nn.Module]
    """The norm behind the last block, if there is one."""
    head: tuple[HeadStep, ...]
    """The steps between the final norm and the decoder."""
    decoder: nn.Linear
    """The linear layer that makes logits."""
    bias: Optional[Tensor]
    """[vocab], what is added to the logits, or None."""
    scale: float
    """What the logits are multiplied with."""
    softcap: Optional[float]
    """The cap of the logits, or None."""
    own_mask: Optional[str] = None
    """The name of a buffer of its attention modules, as in `Architecture`."""
    shows_maps_if_asked: bool = False
    """Whether its attention modules return their maps only where `output_attentions` is said."""
    hides_sinks: bool = False
    """Whether a part of its attention goes to sinks, and its maps do not show it."""
    counts_weights: bool = False
    """Whether the tokens that a row may see are those with a weight: its modules are given no mask that tells them."""
    attention_error: Optional[float] = None
    """Largest difference between attention entropies read beside fused attention and those of the model's own maps, in
    nats; None where they are read from the maps, or not read."""
    takes_padding: bool = True
    """Whether padding leaves the states of tokens as they are; else a batch holds sentences of one length."""
    most_tokens: Optional[int] = None
    """For how many tokens of a sentence its table of positions has rows; None: it looks up no table."""
    found: str = ""
    """What tracing has found, in words, for a message."""

    def unembedding(self, temperature: float) -> Unembedding:
        """Return the decoder, and what the model applies to its logits, with the user's temperature."""
        return Unembedding(self.decoder.weight, self.bias, self.scale, self.softcap, temperature)


def view_model(model: PreTrainedModel) -> ModelView:
    """Find the parts of a model, by watching a few random tokens go through it.

    Args:
        model: A causal or masked language model with its head, in evaluation mode, with its weights.

    Raises:
        ReportedError: They cannot be found.
    """
    config = model.config
    architecture = find_architecture(config, type(model).__name__, type(model))
    attending: dict[nn.Module, Attending] = {}
    try:
        in_order = None if architecture.execution is None else architecture.execution(model)
        parts = trace(model, in_order, attending)
    except NotFound as error:
        raise ReportedError(
            f"the parts of a {type(model).__name__} (model_type {config.model_type!r}) cannot be found: {error}; such "
            "a model cannot be measured yet"
        ) from error
    attention = find_attention(model, parts.blocks, attending)
    shape = ModelShape(
        num_blocks=len(parts.blocks),
        num_heads=max(attention.heads) or shape_of(config).num_heads,
        hidden_size=parts.hidden_size,
        vocab_size=parts.decoder.weight.shape[0],
        heads=attention.heads if len(set(attention.heads)) > 1 else None,
        has_sinks=attention.has_sinks,
    )
    return ModelView(
        model=model,
        kind=architecture.kind,
        shape=shape,
        base=_base_of(model, parts.blocks),
        blocks=parts.blocks,
        attentions=attention.modules,
        final_norm=parts.final_norm,
        head=parts.head,
        decoder=parts.decoder,
        bias=parts.bias,
        scale=parts.scale,
        softcap=parts.softcap,
        own_mask=architecture.own_mask,
        shows_maps_if_asked=attention.if_asked,
        hides_sinks=attention.hides_sinks,
        most_tokens=parts.most_tokens,
        found=parts.words,
    )


def _base_of(model: PreTrainedModel, blocks: Sequence[nn.Module]) -> nn.Module:
    """Return the model without its head, if it can be run: its decoder is work that the lens does, too."""
    base = model.base_model
    return base if isinstance(base, PreTrainedModel) and set(blocks) <= set(base.modules()) else model


class Outline(NamedTuple):
    """What a model's modules tell without a pass through it."""

    path: str
    """Where the list of its blocks is, in the model without its head."""
    blocks: tuple[nn.Module, ...]
    """In the order in which they run."""
    decoder: Optional[nn.Module]
    """The linear layer that makes logits."""


def outline_model(model: PreTrainedModel) -> Outline:
    """Return what a model's modules tell, which may have no weights, or other ones than it should.

    Args:
        model: A causal or masked language model with its head.
    """
    architecture = find_architecture(model.config, type(model).__name__, type(model))
    decoder = model.get_output_embeddings()
    if architecture.execution is not None:
        assert architecture.blocks is not None
        return Outline(architecture.blocks, tuple(architecture.execution(model)), decoder)
    name, blocks = outline(model, shape_of(model.config).num_blocks)
    prefix = next((name for name, own in model.named_modules() if own is model.base_model), "")
    path = name.removeprefix(f"{prefix}.") if prefix else name
    return Outline(path, blocks, decoder)


ForwardHook = Callable[..., Any]


@contextmanager
def hooks_on_applications(
    modules: Sequence[nn.Module], register: Callable[[nn.Module, ForwardHook], RemovableHandle], hook: ForwardHook
) -> Iterator[None]:
    """Hook every application of modules that run in this order, of which some may be the same module.

    Args:
        modules: In the order in which they run in one forward pass.
        register: Puts a hook on a module, for instance `partial(..., with_kwargs=True)` of a PyTorch method.
        hook: Called as `hook(index, module, ...)` with the index of the application in `modules`.
    """
    indices = defaultdict(list)
    for index, module in enumerate(modules):
        indices[module].append(index)
    with ExitStack() as handles:
        for module, order in indices.items():
            calls = _Cycle(order)
            handle = register(module, partial(_call_with_index, hook, calls))
            handles.callback(handle.remove)
        yield


class _Cycle:
    """Counts the applications of one module: 3, 7, 3, 7, ... for a module that runs third and seventh."""

    def __init__(self, order: list[int]) -> None:
        self.order, self.calls = order, 0

    def next(self) -> int:
        self.calls += 1
        return self.order[(self.calls - 1) % len(self.order)]


def _call_with_index(hook: ForwardHook, calls: _Cycle, module: nn.Module, *args: Any) -> Any:
    return hook(calls.next(), module, *args)


def stream_of(args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """Return the residual stream [batch, seq, hidden] among the arguments of a block."""
    hidden = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(hidden, Tensor):
        hidden = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.ndim == 3)
    return hidden


def run_base(view: ModelView, input_ids: Tensor, attention_mask: Tensor, *, shows_maps: bool = False) -> None:
    """Run the model without its head; what it computes is read and changed by hooks.

    Args:
        view: The model.
        input_ids: [batch, seq].
        attention_mask: [batch, seq], 1 at real tokens.
        shows_maps: Whether eager attention modules have to return their maps.
    """
    options = {"output_attentions": True} if shows_maps and view.shows_maps_if_asked else {}
    view.base(input_ids=input_ids, attention_mask=attention_mask, **options)
