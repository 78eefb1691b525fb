"""Reading the layers of the residual stream, at the positions asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Optional

import torch
from torch import Tensor, nn

from llm_entropy.models.families import ModelView, hooks_on_applications, stream_of
from llm_entropy.models.tracing.stream import stream_in


class LayerStates:
    """What was read of the residual stream in one forward pass."""

    def __init__(self, num_layers: int) -> None:
        self._states: list[Optional[Tensor]] = [None] * num_layers

    def put(self, layer: int, states: Tensor) -> None:
        """Keep the states [record, hidden] of a layer."""
        self._states[layer] = states

    def stack(self) -> Tensor:
        """Return [layer, record, hidden], layers 0..L."""
        read = [states for states in self._states if states is not None]
        assert len(read) == len(self._states), "a block did not run"
        return torch.stack(read)


@contextmanager
def read_layers(view: ModelView, rows: Tensor, positions: Tensor) -> Iterator[LayerStates]:
    """Read layers 0..L in the forward pass that runs inside of the context.

    Layers 0..L-1 are the inputs of the blocks, layer L is the output of the last one, before any final norm. Whatever
    steers the stream by prepended forward hooks, or by the output of an earlier block, is included.

    Args:
        view: The model.
        rows: [record], the row of the batch of each record.
        positions: [record], the position in that row.
    """
    states = LayerStates(view.shape.num_layers)
    last = view.shape.num_blocks - 1

    def read_input(block: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states.put(block, stream_of(args, kwargs)[rows, positions])

    def read_output(block: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if block == last:
            states.put(last + 1, stream_in(output)[rows, positions])

    before = partial(nn.Module.register_forward_pre_hook, with_kwargs=True)
    with (
        hooks_on_applications(view.blocks, before, read_input),
        hooks_on_applications(view.blocks, nn.Module.register_forward_hook, read_output),
    ):
        yield states


@contextmanager
def read_block_means(
    view: ModelView, rows: Tensor, positions: Tensor, *, before: Callable[[], None]
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Read what each block hands on, as means over each row's positions, in the forward pass inside of the context.

    Args:
        view: The model.
        rows: [record], the row of the batch of each position, ascending; every row has one at least.
        positions: [record], the position in that row.
        before: Called before each block runs.

    Yields:
        A list that the blocks fill as they run: states [row, hidden], and the mean of their norms, [row], in float32.
    """
    read: list[tuple[Tensor, Tensor]] = []
    num_rows = int(rows[-1]) + 1
    is_single = len(rows) == num_rows

    def read_output(block: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        stream = stream_in(output)
        if is_single:
            states = stream[rows, positions].float()
            read.append((states, states.norm(dim=1)))
            return
        # A product with weights, not a sum by index, which a GPU would add up in any order.
        weights = torch.zeros(stream.shape[:2], device=stream.device)
        weights[rows, positions] = 1.0
        weights = weights / weights.sum(dim=1, keepdim=True)
        stream = stream.float()
        states = torch.bmm(weights[:, None], stream)[:, 0]
        read.append((states, (weights * stream.norm(dim=2)).sum(dim=1)))

    with ExitStack() as hooks:
        for block in dict.fromkeys(view.blocks):
            hooks.callback(block.register_forward_pre_hook(lambda *_: before()).remove)
        hooks.enter_context(hooks_on_applications(view.blocks, nn.Module.register_forward_hook, read_output))
        yield read
    assert len(read) == len(view.blocks), "a block did not run"
