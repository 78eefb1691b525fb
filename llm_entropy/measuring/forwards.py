"""Running a model under every condition on one batch: the blocks that conditions share run once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from itertools import count
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from llm_entropy.models.attention import read_attention_entropy
from llm_entropy.models.families import ModelView, run_base
from llm_entropy.models.layers import read_layers
from llm_entropy.models.shared_blocks import BlockOutput, keep_outputs, start_behind
from llm_entropy.schema.batches import Batch
from llm_entropy.schema.statistics import AttentionStatistics
from llm_entropy.steering.hooks import steer
from llm_entropy.steering.plan import SteeringPlan


class Forward(NamedTuple):
    """What one forward pass gives at the positions of a batch."""

    states: Tensor
    """[layer, record, hidden], of the first condition all layers, of the others those that differ from the first's."""
    attention: Optional[AttentionStatistics]
    """Of all blocks; None if it was not asked for."""


class Reading(NamedTuple):
    """How a model is read."""

    view: ModelView
    attention: bool
    """Whether the entropy of its attention is read, too."""
    attended: bool
    """Whether it is counted, beside that, how many tokens are attended."""
    sinks: bool
    """Whether it is read, beside that, how much of it goes to no token."""
    before_block: Callable[[], None]
    """Called before each block runs."""


def shared_layers(plans: Sequence[Optional[SteeringPlan]], num_layers: int) -> list[int]:
    """Return for each condition how many layers, from 0 on, are those of the first one: neither steers them.

    Args:
        plans: How each condition steers; None: not at all.
        num_layers: L + 1.
    """
    firsts = [num_layers if plan is None or plan.first_layer is None else plan.first_layer for plan in plans]
    return [min(firsts[0], first) for first in firsts]


def run_forwards(
    reading: Reading, batch: Batch, plans: Sequence[Optional[SteeringPlan]], shared: Sequence[int]
) -> Iterator[Forward]:
    """Run a model under each condition in turn; each but the first starts behind the blocks that it shares with it.

    What blocks return is kept for as long as the iterator lives: once for each block at which sharing ends, however
    many conditions there are.

    Args:
        reading: How the model is read.
        batch: What it runs on.
        plans: How each condition steers, on the model's device.
        shared: As `shared_layers` returns it.
    """
    num_blocks = reading.view.shape.num_blocks
    ends = {count - 1 for count in shared[1:] if 0 < count <= num_blocks}  # up to these blocks conditions are alike
    first, kept = _forward(reading, batch, plans[0], keep=ends)
    yield first
    for plan, num_shared in zip(plans[1:], shared[1:], strict=True):
        if num_shared > num_blocks:  # nothing is steered
            yield first._replace(states=first.states[:0])
            continue
        behind = None if num_shared == 0 else (num_shared - 1, kept[num_shared - 1])
        other, _ = _forward(reading, batch, plan, behind=behind)
        attention = other.attention
        if first.attention is not None:
            attention = _behind(first.attention, num_shared, attention)
        yield Forward(other.states[num_shared:], attention)


def _behind(first: AttentionStatistics, count: int, others: Optional[AttentionStatistics]) -> AttentionStatistics:
    """Return the attention of `count` blocks of the first condition, and behind it that of blocks that ran again."""
    shared = [None if own is None else own[:count] for own in first]
    if others is None:
        return AttentionStatistics._make(shared)
    pairs = zip(shared, others, strict=True)
    return AttentionStatistics._make(
        None if one is None or other is None else torch.cat([one, other]) for one, other in pairs
    )


def _forward(
    reading: Reading,
    batch: Batch,
    plan: Optional[SteeringPlan],
    *,
    keep: Collection[int] = (),
    behind: Optional[tuple[int, BlockOutput]] = None,
) -> tuple[Forward, dict[int, BlockOutput]]:
    """Run the model once.

    Args:
        reading: How it is read.
        batch: What it runs on.
        plan: What steers it.
        keep: The blocks whose outputs are returned, too.
        behind: A block that does not run again, nor do those before it, and what it returned.
    """
    view = reading.view
    with ExitStack() as hooks:
        num_skipped, calls = 0 if behind is None else behind[0] + 1, count()

        def tell(*_: Any) -> None:
            if next(calls) >= num_skipped:  # one that is skipped is called, too
                reading.before_block()

        for block in dict.fromkeys(view.blocks):
            hooks.callback(block.register_forward_pre_hook(tell).remove)
        if plan is not None:
            host = batch.host or batch
            hooks.enter_context(steer(view.blocks, plan, host.attention_mask, host.input_ids, host.num_own))
        kept = hooks.enter_context(keep_outputs(view, keep))
        if behind is not None:
            hooks.enter_context(start_behind(view, *behind))
        states = hooks.enter_context(read_layers(view, batch.rows, batch.positions))
        runs_blocks = behind is None or behind[0] < view.shape.num_blocks - 1
        read = None
        if reading.attention and runs_blocks:
            read = hooks.enter_context(
                read_attention_entropy(
                    view,
                    batch.rows,
                    batch.positions,
                    counts=reading.attended,
                    sinks=reading.sinks,
                    first_block=num_skipped,
                )
            )
        run_base(view, batch.input_ids, batch.attention_mask, shows_maps=read is not None)
    attention = None
    if read is not None:
        attention = AttentionStatistics(read.stack(), read.stack_attended(), read.stack_sinks())
    return Forward(states.stack(), attention), kept
