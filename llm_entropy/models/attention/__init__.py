"""The entropy of attention rows, without keeping attention maps."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Collection, Iterator, Sequence
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
    in_language_model,
    reading_attention,
)
from llm_entropy.models.attention.rows import RowEntropies
from llm_entropy.models.attention.widened import in_float32
from llm_entropy.models.families import ModelView, hooks_on_applications, run_base, view_model
from llm_entropy.models.tracing.probe import probe_tokens
from llm_entropy.schema.batches import widest_float
from llm_entropy.settings import SINK_MASS

log = logging.getLogger("llm_entropy")

PROBE_SHAPE = (2, 9)
"""[batch, seq] of the random tokens with which the reading proves itself; the last of the second row are padding."""
PROBE_TOLERANCE = 1e-4
"""Largest error in nats, in float32."""


class AttentionEntropies:
    """What was read of the attention in one forward pass.

    Args:
        has_attention: Of each block that runs.
        nothing: [record, head], NaN: of a block without attention, and of heads that a block does not have.
        counts: Whether the tokens that rows may see are counted.
        sinks: Whether it is read, too, how much of the rows goes to no token.
    """

    def __init__(self, has_attention: Sequence[bool], nothing: Tensor, *, counts: bool, sinks: bool) -> None:
        self._has_attention, self._nothing, self._counts, self._reads_sinks = has_attention, nothing, counts, sinks
        self._entropies: list[Tensor] = []
        self._attended: list[Tensor] = []
        self._sinks: list[Tensor] = []

    def append(self, entropies: Tensor, attended: Optional[Tensor], sinks: Optional[Tensor]) -> None:
        """Keep what was read of the next block with attention.

        Args:
            entropies: [record, head].
            attended: [record, head], how many tokens its rows may see; one head for all if they see the same.
            sinks: [record, head], how much of its rows goes to no token; None: nothing.
        """
        self._entropies.append(entropies)
        if attended is not None:
            self._attended.append(attended)
        if self._reads_sinks:
            self._sinks.append(torch.zeros_like(entropies) if sinks is None else sinks)

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
        is_same = all(counts.shape[1] == 1 for counts in self._attended)
        nothing = torch.zeros_like(self._nothing[:, :1] if is_same else self._nothing, dtype=torch.long)
        each = [counts.expand_as(nothing) if counts.shape[1] == 1 else counts for counts in self._attended]
        return torch.stack(self._spread(each, nothing))

    def stack_sinks(self) -> Optional[Tensor]:
        """Return how much of each row goes to no token, [block, record, head], float32; NaN as in `stack`."""
        return torch.stack(self._spread(self._sinks, self._nothing)) if self._reads_sinks else None

    def _spread(self, read: list[Tensor], nothing: Tensor) -> list[Tensor]:
        """Return the items of the blocks with attention, in order, among `nothing` for those without.

        So are the heads that a block has less than others.
        """
        most = nothing.shape[1]
        wide = [own if own.shape[1] == most else torch.cat([own, nothing[:, own.shape[1] :]], dim=1) for own in read]
        if len(wide) == len(self._has_attention):
            return wide
        values = iter(wide)
        return [next(values) if has_attention else nothing for has_attention in self._has_attention]


@contextmanager
def read_attention_entropy(
    view: ModelView,
    rows: Tensor,
    positions: Tensor,
    *,
    counts: bool = False,
    sinks: bool = False,
    first_block: int = 0,
) -> Iterator[AttentionEntropies]:
    """Read -sum_j a_j ln a_j of the attention rows asked for, in the forward pass that runs inside of the context.

    A row sums over the keys that the position may see: padding, and what a causal mask or a window hides, has weight
    0 and adds nothing. Where a part of it goes to sinks, which are no tokens, the entropy is that of the rest. Families
    outside of transformers' attention interface show their maps; the map [batch, head, seq, seq] of a block is let go
    before the next block makes its own.

    Args:
        view: A model that was loaded to read its attention: `sdpa_and_entropy`, or eager.
        rows: [record], the row of the batch of each record.
        positions: [record], the position in that row whose attention is read.
        counts: Whether it is counted, too, how many tokens each of these rows may see.
        sinks: Whether it is read, too, how much of each of these rows goes to sinks.
        first_block: The first block that runs.
    """
    has_attention = [module is not None for module in view.attentions[first_block:]]
    nothing = torch.full((len(rows), view.shape.num_heads), torch.nan, device=rows.device)
    entropies = AttentionEntropies(has_attention, nothing, counts=counts, sinks=sinks)
    attended = AttendedTokens(rows, positions)
    modules = [module for module in view.attentions if module is not None]
    implementation = attention_implementation(view.model)
    if implementation == READABLE:
        compute = RowEntropies(rows, positions)

        def read_inputs(inputs: AttentionInputs) -> None:
            count = attended(inputs.mask, inputs.key.shape[2], is_causal=inputs.is_causal) if counts else None
            entropies.append(compute(inputs), count, None)

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
        mass = None
        if view.shape.has_sinks:
            mass = _mass_of_sinks(weights) if sinks else None
            weights = weights / weights.sum(dim=-1, keepdim=True)
        entropies.append(torch.special.entr(weights).sum(dim=-1), count, mass)
        return type(output)((*output[:place], None, *output[place + 1 :]))

    register = partial(nn.Module.register_forward_hook, with_kwargs=True)
    with hooks_on_applications(modules, register, read_map):
        yield entropies


def _mass_of_sinks(weights: Tensor) -> Tensor:
    """Return what rows [..., seq] of attention leave to sinks, 1 - their sum, [...]; added up without rounding."""
    return (1 - weights.sum(dim=-1, dtype=widest_float(weights.device))).clamp(min=0).to(weights.dtype)


def _mask_given(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> Optional[Tensor]:
    """Return the attention mask among what an attention module was given."""
    given = inspect.signature(module.forward).bind(*args, **options).arguments
    mask = given.get("attention_mask", given.get("kwargs", {}).get("attention_mask"))
    return cast(Optional[Tensor], mask)


def open_attention(view: ModelView, name: str) -> ModelView:
    """Return a model in the way in which its attention is read, proved; `about_attention` says where it cannot be.

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
            view.model.set_attn_implementation(in_language_model(view.model.config, EAGER))
            return open_attention(view_model(view.model), name)
    view = with_right_counts(view)
    if not any(view.attentions):
        view = replace(view, shape=view.shape._replace(heads=(0,) * len(view.blocks), has_sinks=False))
    return view


def with_right_counts(view: ModelView) -> ModelView:
    """Return a model whose rows are known to see the tokens that have a weight, where its masks do not tell them.

    Args:
        view: A model whose attention is proved.
    """
    is_eager = any(view.attentions) and attention_implementation(view.model) == EAGER
    return replace(view, counts_weights=True) if is_eager and not _counts_are_right(view) else view


def about_attention(view: ModelView, metrics: Collection[str]) -> Iterator[str]:
    """Yield what is to be known of numbers of a model's attention.

    Args:
        view: As `open_attention` returns it.
        metrics: What is measured.
    """
    without = [str(block) for block, module in enumerate(view.attentions) if module is None]
    if without:
        which = (
            "none of its blocks has" if len(without) == len(view.blocks) else f"blocks {', '.join(without)} do not have"
        )
        yield (
            f"{which} attention whose scores or weights can be read: it is null there in tables, and left out of plots"
        )
    if view.shape.has_sinks:
        yield (
            f"a part of the attention goes to sinks, which are no tokens; its entropy is that of the rest, and "
            f"{SINK_MASS} is that part"
        )
    elif view.hides_sinks:
        yield "a part of the attention goes to sinks, which its maps do not show; its entropy is that of the rest"
    elif SINK_MASS in metrics and any(view.attentions):
        yield f"all of its attention goes to tokens: {SINK_MASS} is 0"


def check_sinks(view: ModelView, metrics: Collection[str], name: str) -> None:
    """Make sure that it can be read how much of the attention goes to sinks, if that is asked for.

    Args:
        view: The model.
        metrics: What is measured.
        name: The model, for the message.

    Raises:
        ReportedError: It cannot: the model has sinks, and its attention maps add up to 1.
    """
    if SINK_MASS in metrics and view.hides_sinks:
        raise ReportedError(
            f"{name}: a part of its attention goes to sinks, and its maps do not show how much; leave {SINK_MASS} out "
            "of analysis.metrics"
        )


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
    advice = "; leave attention_entropy and its like out of analysis.metrics, or correct its attention"
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
    heads = view.shape.heads or (view.shape.num_heads,) * len(view.attentions)
    errors = [(one - other)[:, :num].flatten() for one, other, num in zip(read, truth, heads, strict=True)]
    error = float(torch.cat(errors).abs().max())
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
