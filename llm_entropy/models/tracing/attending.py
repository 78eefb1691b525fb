"""Finding how the attention of each block can be read."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llm_entropy.models.tracing.probe import PROBE_SHAPE, probe_tokens

LEAST_SUM = 0.98
"""Rows of an attention map that add up to less leave something to sinks; half precision rounds by less."""
LEAST_REST = 2e-5
"""So does what is left beyond the rounding, where a module has weights of sinks."""
READER = "llm_entropy_reader"
"""Attribute of an attention module that is being read: what is called with the `AttentionInputs`."""


class Attention(NamedTuple):
    """How the attention of a model can be read."""

    modules: tuple[Optional[nn.Module], ...]
    """That of each block that has one."""
    heads: tuple[int, ...]
    """Of each block; 0 of one that has none."""
    if_asked: bool
    """Whether maps are returned only where `output_attentions` is said."""
    has_sinks: bool
    """Whether rows of maps add up to less than 1: the rest goes to what is no token."""
    hides_sinks: bool
    """Whether modules have weights of sinks, and rows of their maps add up to 1 all the same."""


@dataclass
class Attending:
    """What was seen of a module that attends."""

    num_heads: int
    least: float = 1.0
    """The least sum of a row of its map."""
    rounding: float = 0.0
    """By how much such a sum may miss 1 where there are no sinks."""


def find_attention(
    model: PreTrainedModel, blocks: Sequence[nn.Module], attending: Mapping[nn.Module, Attending]
) -> Attention:
    """Return the attention module of each block that has one.

    Of a model that was loaded to read its attention, they are those that call transformers' interface; of one that
    attends eagerly, those that return maps [batch, head, seq, seq]. Any other shows none.

    Args:
        model: With its head.
        blocks: Of the model.
        attending: The modules that were seen to attend while it was traced.
    """
    inside = {own for block in blocks for own in block.modules()}
    found = {module: own for module, own in attending.items() if module in inside}
    options: dict[str, bool] = {}
    is_eager = model.config._attn_implementation == "eager"
    if not found and is_eager and _takes(model, "output_attentions"):
        options, input_ids = {"output_attentions": True}, probe_tokens(model, PROBE_SHAPE)
        with torch.inference_mode(), attention_noted(blocks, found):
            model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), **options)
    attentions = tuple(next((own for own in found if own in set(block.modules())), None) for block in blocks)
    modules = [module for module in attentions if module is not None]
    holding = [module for module in modules if any("sink" in name.lower() for name, _ in module.named_parameters())]
    has_sinks = any(found[module].least < LEAST_SUM for module in modules)
    has_sinks = has_sinks or any(1 - found[module].least > found[module].rounding for module in holding)
    return Attention(
        modules=attentions,
        heads=tuple(0 if module is None else found[module].num_heads for module in attentions),
        if_asked=bool(options) and bool(found),
        has_sinks=has_sinks,
        hides_sinks=not has_sinks and bool(holding),
    )


def _takes(model: PreTrainedModel, name: str) -> bool:
    """Whether a model's `forward` takes an argument of this name, or any."""
    parameters = inspect.signature(model.forward).parameters
    return name in parameters or any(own.kind is inspect.Parameter.VAR_KEYWORD for own in parameters.values())


@contextmanager
def attention_noted(blocks: Sequence[nn.Module], found: dict[nn.Module, Attending]) -> Iterator[None]:
    """Note in `found` the modules in blocks that attend in a way that can be read."""

    def note_inputs(module: nn.Module, inputs: Any) -> None:
        found.setdefault(module, Attending(inputs.query.shape[1]))

    def note_map(module: nn.Module, args: Any, output: Any) -> None:
        weights = _map_in(output)
        if weights is not None and not any(own in found for own in module.modules()):
            rounding = max(LEAST_REST, 2 * torch.finfo(weights.dtype).eps)
            found[module] = Attending(weights.shape[1], float(weights.float().sum(dim=-1).min()), rounding)

    with ExitStack() as undo:
        for module in {own for block in blocks for own in block.modules()}:
            setattr(module, READER, partial(note_inputs, module))
            undo.callback(delattr, module, READER)
            undo.callback(module.register_forward_hook(note_map).remove)
        yield


def _map_in(output: Any) -> Optional[Tensor]:
    """Return the attention map [batch, head, seq, seq] that a module returns beside what it attended to, if it does."""
    values = [value for value in output if isinstance(value, Tensor)] if isinstance(output, (tuple, list)) else []
    weights = next((value for value in values if value.ndim == 4), None)
    if (
        weights is None
        or all(value.shape[:2] != PROBE_SHAPE for value in values)
        or weights.shape[::2] != (PROBE_SHAPE[0], PROBE_SHAPE[1])
        or weights.shape[3] != PROBE_SHAPE[1]
    ):
        return None
    sums = weights.float().sum(dim=-1)
    return weights if float(weights.min()) >= 0 and float(sums.max()) <= 2 - LEAST_SUM else None
