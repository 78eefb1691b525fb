"""The entropy of attention rows, without keeping attention maps."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Optional, cast

import torch
from torch import Tensor, nn

from llm_entropy.errors import ReportedError
from llm_entropy.models.attention.attended import AttendedTokens
from llm_entropy.models.attention.interface import (
    EAGER,
    READABLE,
    AttentionInputs,
    attention_implementation,
    eager_attention,
    reading_attention,
)
from llm_entropy.models.attention.rows import RowEntropies
from llm_entropy.models.attention.widened import in_float32
from llm_entropy.models.families import ModelView, hooks_on_applications, run_base, view_model
from llm_entropy.models.tracing import probe_tokens

log = logging.getLogger("llm_entropy")

PROBE_SHAPE = (2, 9)
"""[batch, seq] of the random tokens with which the reading proves itself; the last of the second row are padding."""
PROBE_TOLERANCE = 1e-4
"""Largest error in nats, in float32."""


class AttentionEntropies:
    """What was read of the attention in one forward pass."""

    def __init__(self, has_attention: Sequence[bool], nothing: Tensor, *, counts: bool) -> None:
        self._has_attention, self._nothing, self._counts = has_attention, nothing, counts
        self._entropies: list[Tensor] = []
        self._attended: list[Tensor] = []

    def append(self, entropies: Tensor, attended: Optional[Tensor]) -> None:
        """Keep the entropies [record, head] of the next block with attention, and how many tokens its rows may see."""
        self._entropies.append(entropies)
        if attended is not None:
            self._attended.append(attended)

    def num_read(self) -> int:
        """Return of how many blocks the attention was read."""
        return len(self._entropies)

    def stack(self) -> Tensor:
        """Return [block, record, head] in nats, float32: of the blocks that ran; NaN for those without attention."""
        return torch.stack(self._spread(self._entropies, self._nothing))

    def stack_attended(self) -> Optional[Tensor]:
        """Return how many tokens each row may see, [block, record, head], one head for all if they see the same."""
        if not self._counts:
            return None
        nothing = self._attended[0] if self._attended else self._nothing[:, :1].long()
        return torch.stack(self._spread(self._attended, torch.zeros_like(nothing)))

    def _spread(self, read: list[Tensor], nothing: Tensor) -> list[Tensor]:
        """Return the items of the blocks with attention, in order, among `nothing` for those without."""
        if len(read) == len(self._has_attention):
            return read
        values = iter(read)
        return [next(values) if has_attention else nothing for has_attention in self._has_attention]


@contextmanager
def read_attention_entropy(
    view: ModelView, rows: Tensor, positions: Tensor, *, counts: bool = False, first_block: int = 0
) -> Iterator[AttentionEntropies]:
    """Read -sum_j a_j ln a_j of the attention rows asked for, in the forward pass that runs inside of the context.

    A row sums over the keys that the position may see: padding, and what a causal mask or a window hides, has weight
    0 and adds nothing. Families outside of transformers' attention interface show their maps; the map
    [batch, head, seq, seq] of a block is let go before the next block makes its own.

    Args:
        view: A model that was loaded to read its attention: `sdpa_and_entropy`, or eager.
        rows: [record], the row of the batch of each record.
        positions: [record], the position in that row whose attention is read.
        counts: Whether it is counted, too, how many tokens each of these rows may see.
        first_block: The first block that runs.
    """
    has_attention = [module is not None for module in view.attentions[first_block:]]
    nothing = torch.full((len(rows), view.shape.num_heads), torch.nan, device=rows.device)
    entropies, attended = AttentionEntropies(has_attention, nothing, counts=counts), AttendedTokens(rows, positions)
    modules = [module for module in view.attentions if module is not None]
    implementation = attention_implementation(view.model)
    if implementation == READABLE:
        compute = RowEntropies(rows, positions)

        def read_inputs(inputs: AttentionInputs) -> None:
            count = attended(inputs.mask, inputs.key.shape[2], is_causal=inputs.is_causal) if counts else None
            entropies.append(compute(inputs), count)

        with reading_attention(modules, read_inputs):
            yield entropies
        return

    assert implementation == EAGER, f"no attention can be read of a model that was loaded with {implementation!r}"

    def read_map(block: int, module: nn.Module, args: tuple[Any, ...], options: dict[str, Any], output: Any) -> Any:
        place = next(place for place, value in enumerate(output) if isinstance(value, Tensor) and value.ndim == 4)
        weights: Tensor = output[place][rows, :, positions].float()
        count = None
        if counts and view.counts_weights:
            count = (weights > 0).sum(-1)
        elif counts:
            own = None if view.own_mask is None else module.get_buffer(view.own_mask)
            mask, is_causal = _mask_given(module, args, options), view.kind == "causal"
            count = attended(mask, weights.shape[-1], is_causal=is_causal, own_mask=own)
        if view.has_sinks:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        entropies.append(torch.special.entr(weights).sum(dim=-1), count)
        return type(output)((*output[:place], None, *output[place + 1 :]))

    register = partial(nn.Module.register_forward_hook, with_kwargs=True)
    with hooks_on_applications(modules, register, read_map):
        yield entropies


def _mask_given(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> Optional[Tensor]:
    """Return the attention mask among what an attention module was given."""
    given = inspect.signature(module.forward).bind(*args, **options).arguments
    mask = given.get("attention_mask", given.get("kwargs", {}).get("attention_mask"))
    return cast(Optional[Tensor], mask)


def open_attention(view: ModelView, name: str) -> ModelView:
    """Return a model in the way in which its attention is read, proved; where it cannot be, the log says so once.

    Where what was read beside fused attention is not what eager attention shows (a softcap of the scores, two
    softmaxes), the model attends eagerly from here on. Blocks without attention that can be read have NaN in its place.

    Args:
        view: A model that was loaded to read its attention.
        name: The model, for the log.
    """
    try:
        view = replace(view, attention_error=check_attention(view, name))
    except ReportedError as error:
        log.info("%s", error)
        if attention_implementation(view.model) == EAGER:
            view = replace(view, attentions=(None,) * len(view.blocks))
        else:
            view.model.set_attn_implementation(EAGER)
            return open_attention(view_model(view.model), name)
    is_eager = any(view.attentions) and attention_implementation(view.model) == EAGER
    if is_eager and not _counts_are_right(view):
        view = replace(view, counts_weights=True)
    without = [str(block) for block, module in enumerate(view.attentions) if module is None]
    if without:
        which = (
            "none of its blocks has" if len(without) == len(view.blocks) else f"blocks {', '.join(without)} do not have"
        )
        log.warning(
            "%s: %s attention whose scores or weights can be read: it is null there in tables, and left out of plots",
            name,
            which,
        )
    if view.has_sinks:
        log.warning(
            "%s: a part of the attention goes to sinks, which are no tokens; its entropy is that of the rest", name
        )
    return view


@torch.inference_mode()
def check_attention(view: ModelView, name: str) -> Optional[float]:
    """Prove, on a few random tokens, that every block's attention is read, and that it is what eager attention shows.

    In float32, whatever the model's type: eager attention of half precision rounds scores and weights by more than a
    scale that is slightly wrong would change them, and what is proved, scale, mask and what else is done to the scores,
    does not depend on the type.

    Args:
        view: A model that was loaded to read its attention.
        name: The model, for the message.

    Returns:
        The largest error, in nats; None where the model shows its own maps, and there is nothing to compare.

    Raises:
        ReportedError: It is not: the family leaves transformers' interface out, or does more than fused attention can.
    """
    advice = "; leave attention_entropy and attended_entropy out of analysis.metrics, or correct its attention"
    if not any(view.attentions):
        return None
    is_eager = attention_implementation(view.model) == EAGER  # it shows its own maps: there is nothing to compare
    with nullcontext() if is_eager else in_float32(view.model):
        num_read, read = _probe(view)
    expected = sum(module is not None for module in view.attentions)
    if num_read != expected:
        raise ReportedError(
            f"{name}: attention was read of {num_read} blocks, {expected} of the model have one{advice}"
        )
    if is_eager:
        return None
    with eager_attention(view.model), in_float32(view.model):
        _, truth = _probe(view)
    has_attention = torch.tensor([module is not None for module in view.attentions], device=read.device)
    error = float((read - truth)[has_attention].abs().max()) if has_attention.any() else 0.0
    if not error <= PROBE_TOLERANCE:
        raise ReportedError(
            f"{name}: attention entropy misses that of the model's own eager attention by {error:.3g} nats (at most "
            f"{PROBE_TOLERANCE:.3g} expected), so that it would be measured wrongly{advice}"
        )
    log.debug("%s: attention entropy is that of eager attention within %.3g nats", name, error)
    return error


@torch.inference_mode()
def _counts_are_right(view: ModelView) -> bool:
    """Whether the masks that its attention modules are given tell how many tokens have a weight in their maps."""
    try:
        (_, by_masks), (_, by_weights) = (
            _probe(replace(view, counts_weights=weights), counts=True) for weights in (False, True)
        )
    except (IndexError, TypeError, RuntimeError):  # a mask that is none of floats or truth values, or of another shape
        return False
    return torch.equal(by_masks.expand_as(by_weights), by_weights)


def _probe(view: ModelView, *, counts: bool = False) -> tuple[int, Tensor]:
    """Return the entropies [block, record, head] of all real tokens of a padded batch of random ones, or the counts.

    Of how many blocks they were read stands before them.
    """
    input_ids = probe_tokens(view.model, PROBE_SHAPE)
    mask = torch.ones_like(input_ids)
    mask[1, -2:] = 0
    rows, positions = mask.nonzero(as_tuple=True)
    with read_attention_entropy(view, rows, positions, counts=counts) as entropies:
        run_base(view, input_ids, mask, shows_maps=True)
    num_read = entropies.num_read()
    complete = num_read == sum(module is not None for module in view.attentions)
    read = entropies.stack_attended() if counts else entropies.stack() if complete else None
    return num_read, torch.empty(0) if read is None else read
