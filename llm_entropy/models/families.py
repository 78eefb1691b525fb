"""The only place that names attributes of Hugging Face models: one row of `ARCHITECTURES` per `model_type`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Optional, Union, cast

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PretrainedConfig, PreTrainedModel, activations

from llm_entropy.errors import ReportedError
from llm_entropy.schema import ModelShape, Unembedding
from llm_entropy.settings import Kind

HeadStep = Union[str, Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class Architecture:
    """Where the parts of a model family are found. Paths are dotted names, as in `nn.Module.get_submodule`."""

    kind: Kind
    """Whether its language model is causal or masked."""
    base: str
    """The model without its head, in the model with a head."""
    blocks: str
    """The list of transformer blocks, in `base`; all is run once, in this order, unless `execution` says otherwise."""
    attention: str
    """The attention module in a block; it returns (output, attention weights)."""
    decoder: str
    """The linear layer that makes logits, in the model with a head."""
    final_norm: Optional[str] = None
    """The norm behind the last block, in `base`; None, or a path that holds None: there is none."""
    head: tuple[HeadStep, ...] = ()
    """What stands between the final norm and the decoder: paths in the model with a head, or functions."""
    scale: Callable[[PretrainedConfig], float] = lambda config: 1.0
    """What the logits are multiplied with."""
    softcap: Callable[[PretrainedConfig], Optional[float]] = lambda config: None
    """The cap c of logits c * tanh(z / c)."""
    reserved_positions: Callable[[PretrainedConfig], int] = lambda config: 0
    """How many rows of the position table are never a token's."""
    execution: Callable[[nn.Module], list[nn.Module]] = lambda blocks: list(blocks.children())
    """The blocks in the order in which they run, a shared one as often as it runs."""
    own_mask: Optional[str] = None
    """In the attention module, a buffer [1, 1, position, position] of where it may look, beside the mask it is given;
    for a family that is `eager_only`."""
    eager_only: bool = False
    """Whether its attention does not go through transformers' interface, or needs more than fused attention does."""


def _albert_execution(groups: nn.Module) -> list[nn.Module]:
    """Return ALBERT's layers as they run: a group serves several layers in a row."""
    assert isinstance(groups, nn.ModuleList)
    config = cast(PretrainedConfig, cast(Any, groups[0]).albert_layers[0].config)
    layers_per_group = config.num_hidden_layers / config.num_hidden_groups
    chosen = [groups[int(layer / layers_per_group)] for layer in range(config.num_hidden_layers)]
    return [layer for group in chosen for layer in cast(Any, group).albert_layers]


_GPT2 = Architecture("causal", "transformer", "h", "attn", "lm_head", "ln_f")
_LLAMA = Architecture("causal", "model", "layers", "self_attn", "lm_head", "norm")
_ROBERTA = Architecture(
    kind="masked",
    base="roberta",
    blocks="encoder.layer",
    attention="attention.self",
    decoder="lm_head.decoder",
    head=("lm_head.dense", F.gelu, "lm_head.layer_norm"),
    reserved_positions=lambda config: (config.pad_token_id or 0) + 1,
)

ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": _GPT2,
    "gpt_neo": replace(_GPT2, own_mask="attention.bias", eager_only=True),  # its windows
    "gpt_neox": Architecture("causal", "gpt_neox", "layers", "attention", "lm_head", "final_layer_norm"),
    "opt": Architecture(
        kind="causal",
        base="model",
        blocks="decoder.layers",
        attention="self_attn",
        decoder="lm_head",
        final_norm="decoder.final_layer_norm",
        head=("model.decoder.project_out",),
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma2": replace(
        _LLAMA,
        softcap=lambda config: cast(Optional[float], config.final_logit_softcapping),
        eager_only=True,  # sdpa has no softcap of the attention scores
    ),
    "cohere": replace(_LLAMA, scale=lambda config: float(config.logit_scale)),
    "granite": replace(_LLAMA, scale=lambda config: 1.0 / float(config.logits_scaling)),
    "phi": Architecture("causal", "model", "layers", "self_attn", "lm_head", "final_layernorm"),
    "bloom": Architecture("causal", "transformer", "h", "self_attention", "lm_head", "ln_f", eager_only=True),
    "bert": Architecture(
        kind="masked",
        base="bert",
        blocks="encoder.layer",
        attention="attention.self",
        decoder="cls.predictions.decoder",
        head=("cls.predictions.transform",),
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "distilbert": Architecture(
        kind="masked",
        base="distilbert",
        blocks="transformer.layer",
        attention="attention",
        decoder="vocab_projector",
        head=("vocab_transform", "activation", "vocab_layer_norm"),
    ),
    "electra": Architecture(
        kind="masked",
        base="electra",
        blocks="encoder.layer",
        attention="attention.self",
        decoder="generator_lm_head",
        head=("generator_predictions",),
    ),
    "albert": Architecture(
        kind="masked",
        base="albert",
        blocks="encoder.albert_layer_groups",
        attention="attention",
        decoder="predictions.decoder",
        head=("predictions.dense", "predictions.activation", "predictions.LayerNorm"),
        execution=_albert_execution,
    ),
    "modernbert": Architecture(
        kind="masked",
        base="model",
        blocks="layers",
        attention="attn",
        decoder="decoder",
        final_norm="final_norm",
        head=("head",),
    ),
}
"""Every family that can be measured, by the `model_type` of its configuration."""


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


def find_architecture(config: PretrainedConfig, name: str) -> Architecture:
    """Return the row of a model's family.

    Args:
        config: The model's configuration.
        name: The model, for the message.

    Raises:
        ReportedError: The family has no row.
    """
    architecture = ARCHITECTURES.get(config.model_type)
    if architecture is None:
        raise ReportedError(
            f"{name}: its model_type {config.model_type!r} is none of the causal or masked families that can be "
            f"measured ({', '.join(ARCHITECTURES)}). A new family is one row of ARCHITECTURES in "
            "llm_entropy/models/families.py: where its blocks, its attention, its final norm, its head and its decoder "
            "are found"
        )
    return architecture


def shape_of(config: PretrainedConfig) -> ModelShape:
    """Return the sizes that a configuration promises, before any weight is read."""
    return ModelShape(
        num_blocks=config.num_hidden_layers * getattr(config, "inner_group_num", 1),
        num_heads=config.num_attention_heads,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
    )


def most_tokens(config: PretrainedConfig) -> Optional[int]:
    """Return how many tokens of a sentence the model can take, or None if it sets no limit."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return None
    return int(positions) - ARCHITECTURES[config.model_type].reserved_positions(config)


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
    attentions: tuple[nn.Module, ...]
    """The attention module of each block."""
    final_norm: Optional[nn.Module]
    """The norm behind the last block, if there is one."""
    head: tuple[Callable[[Tensor], Tensor], ...]
    """The steps between the final norm and the decoder."""
    decoder: nn.Linear
    """The linear layer that makes logits."""
    scale: float
    """What the logits are multiplied with."""
    softcap: Optional[float]
    """The cap of the logits, or None."""
    own_mask: Optional[str] = None
    """The name of a buffer of its attention modules, as in `Architecture`."""

    def unembedding(self, temperature: float) -> Unembedding:
        """Return the decoder, and what the model applies to its logits, with the user's temperature."""
        bias = self.decoder.bias
        return Unembedding(self.decoder.weight, bias, self.scale, self.softcap, temperature)


def view_model(model: PreTrainedModel) -> ModelView:
    """Find the parts of a model.

    Args:
        model: A causal or masked language model with its head.

    Raises:
        ReportedError: Its family has no row in `ARCHITECTURES`.
    """
    config = model.config
    architecture = find_architecture(config, type(model).__name__)
    base = model.get_submodule(architecture.base)
    blocks = tuple(architecture.execution(base.get_submodule(architecture.blocks)))
    steps = [_find(model, step) if isinstance(step, str) else step for step in architecture.head]
    decoder = model.get_submodule(architecture.decoder)
    assert isinstance(decoder, nn.Linear)
    return ModelView(
        model=model,
        kind=architecture.kind,
        shape=shape_of(config)._replace(num_blocks=len(blocks), vocab_size=decoder.weight.shape[0]),
        base=base,
        blocks=blocks,
        attentions=tuple(block.get_submodule(architecture.attention) for block in blocks),
        final_norm=_find(base, architecture.final_norm) if architecture.final_norm else None,
        head=tuple(step for step in steps if step is not None),
        decoder=decoder,
        scale=architecture.scale(config),
        softcap=architecture.softcap(config),
        own_mask=architecture.own_mask,
    )


def _find(root: nn.Module, path: str) -> Optional[nn.Module]:
    """Return what stands at `path`; a family's norm or projection may be None in one of its models."""
    parent, _, name = path.rpartition(".")
    found = getattr(root.get_submodule(parent), name)
    assert found is None or isinstance(found, nn.Module), path
    return found


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
    hidden = args[0] if args else kwargs["hidden_states"]
    assert isinstance(hidden, Tensor)
    return hidden


def stream_in(output: Any) -> Tensor:
    """Return the residual stream [batch, seq, hidden] in what a block returned."""
    hidden = output[0] if isinstance(output, (tuple, list)) else output
    assert isinstance(hidden, Tensor)
    return hidden


def run_base(view: ModelView, input_ids: Tensor, attention_mask: Tensor) -> None:
    """Run the model without its head; what it computes is read and changed by hooks.

    Args:
        view: The model.
        input_ids: [batch, seq].
        attention_mask: [batch, seq], 1 at real tokens.
    """
    view.base(input_ids=input_ids, attention_mask=attention_mask)
