"""The entropy of attention rows, without keeping attention maps."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Optional

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
from llm_entropy.models.families import ModelView, hooks_on_applications, run_base

log = logging.getLogger("llm_entropy")

PROBE_SHAPE = (2, 9)
"""[batch, seq] of the random tokens with which the reading proves itself; the last of the second row are padding."""
PROBE_TOLERANCE = 1e-4
"""Largest error in nats, in float32."""


class AttentionEntropies:
    """What was read of the attention in one forward pass."""

    def __init__(self) -> None:
        self._entropies: list[Tensor] = []
        self._attended: list[Tensor] = []

    def append(self, entropies: Tensor, attended: Optional[Tensor]) -> None:
        """Keep the entropies [record, head] of the next block, and how many tokens its rows may see."""
        self._entropies.append(entropies)
        if attended is not None:
            self._attended.append(attended)

    def stack(self) -> Tensor:
        """Return [block, record, head] in nats, float32: of the blocks that ran."""
        return torch.stack(self._entropies)

    def stack_attended(self) -> Optional[Tensor]:
        """Return how many tokens each row may see, [block, record, head], one head for all if they see the same."""
        return torch.stack(self._attended) if self._attended else None


@contextmanager
def read_attention_entropy(
    view: ModelView, rows: Tensor, positions: Tensor, *, counts: bool = False
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
    """
    entropies, attended = AttentionEntropies(), AttendedTokens(rows, positions)
    implementation = attention_implementation(view.model)
    if implementation == READABLE:
        compute = RowEntropies(rows, positions)

        def read_inputs(inputs: AttentionInputs) -> None:
            count = attended(inputs.mask, inputs.key.shape[2], is_causal=inputs.is_causal) if counts else None
            entropies.append(compute(inputs), count)

        with reading_attention(view.attentions, read_inputs):
            yield entropies
        return

    assert implementation == EAGER, f"no attention can be read of a model that was loaded with {implementation!r}"

    def read_map(
        block: int, module: nn.Module, args: tuple[Any, ...], options: dict[str, Any], output: tuple[Tensor, Tensor]
    ) -> Any:
        states, weights = output
        count = None
        if counts:
            own = None if view.own_mask is None else module.get_buffer(view.own_mask)
            given = inspect.signature(module.forward).bind(*args, **options).arguments
            mask, is_causal = given.get("attention_mask"), view.kind == "causal"
            count = attended(mask, weights.shape[-1], is_causal=is_causal, own_mask=own)
        entropies.append(torch.special.entr(weights[rows, :, positions].float()).sum(dim=-1), count)
        return states, None

    register = partial(nn.Module.register_forward_hook, with_kwargs=True)
    with hooks_on_applications(view.attentions, register, read_map):
        yield entropies


@torch.inference_mode()
def check_attention(view: ModelView, name: str) -> None:
    """Prove, on a few random tokens, that every block's attention is read, and that it is what eager attention shows.

    In float32, whatever the model's type: eager attention of half precision rounds scores and weights by more than a
    scale that is slightly wrong would change them, and what is proved, scale, mask and what else is done to the scores,
    does not depend on the type.

    Args:
        view: A model that was loaded to read its attention.
        name: The model, for the message.

    Raises:
        ReportedError: It is not: the family leaves transformers' interface out, or does more than fused attention can.
    """
    config = view.model.config
    advice = (
        f"; give the row of {config.model_type!r} in ARCHITECTURES (llm_entropy/models/families.py) eager_only=True, "
        "or correct its attention"
    )
    with in_float32(view.model):
        read = _probe(view)
    if len(read) != len(view.blocks):
        raise ReportedError(
            f"{name}: attention was read of {len(read)} blocks, the model has {len(view.blocks)}{advice}"
        )
    if attention_implementation(view.model) == EAGER:
        return  # it shows its own maps
    with eager_attention(view.model), in_float32(view.model):
        truth = _probe(view)
    error = float((read - truth).abs().max())
    if not error <= PROBE_TOLERANCE:
        raise ReportedError(
            f"{name}: attention entropy misses that of the model's own eager attention by {error:.3g} nats (at most "
            f"{PROBE_TOLERANCE:.3g} expected), so that it would be measured wrongly{advice}"
        )
    log.debug("%s: attention entropy is that of eager attention within %.3g nats", name, error)


def _probe(view: ModelView) -> Tensor:
    """Return the entropies [block, record, head] of all real tokens of a padded batch of random ones."""
    device = view.decoder.weight.device
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(view.shape.vocab_size, PROBE_SHAPE, generator=generator).to(device)
    mask = torch.ones_like(input_ids)
    mask[1, -2:] = 0
    rows, positions = mask.nonzero(as_tuple=True)
    with read_attention_entropy(view, rows, positions) as entropies:
        run_base(view, input_ids, mask)
    return entropies.stack()
