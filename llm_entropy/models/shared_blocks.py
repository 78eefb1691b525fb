"""The blocks that several forward passes have in common, run once: the later passes start behind them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn

from llm_entropy.models.families import ModelView, hooks_on_applications

BlockOutput = Any
"""As a block returned it: the residual stream of the whole batch, or a tuple that holds it."""


@contextmanager
def keep_outputs(view: ModelView, blocks: Collection[int]) -> Iterator[dict[int, BlockOutput]]:
    """Keep what some blocks return in the forward pass that runs inside of the context, before anything steers it.

    Args:
        view: The model, whose steering hooks, if any, are there already.
        blocks: 0..L-1, by the order in which the blocks run.
    """
    kept: dict[int, BlockOutput] = {}

    def keep(index: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if index in blocks:
            kept[index] = output

    first = partial(nn.Module.register_forward_hook, prepend=True)
    with hooks_on_applications(view.blocks if blocks else [], first, keep):
        yield kept


@contextmanager
def start_behind(view: ModelView, block: int, output: BlockOutput) -> Iterator[None]:
    """Let the forward passes inside of the context begin behind a block, on the same batch.

    Embeddings and masks are made as always; blocks 0..`block` do nothing but return what was kept, so that whatever
    hooks them, as steering does, finds the block's own output.

    Args:
        view: The model.
        block: The last block that is not run again.
        output: What it returned.
    """
    applications: dict[nn.Module, list[bool]] = {}
    for index, module in enumerate(view.blocks):
        applications.setdefault(module, []).append(index <= block)
    with ExitStack() as undo:
        for module, skipped in applications.items():
            if any(skipped):
                module.forward = _Forward(module.forward, skipped, output)
                undo.callback(delattr, module, "forward")
        yield


class _Forward:
    """Stands in for the `forward` of a block, which may run several times in a pass (ALBERT)."""

    def __init__(self, forward: Callable[..., Any], skipped: Sequence[bool], output: BlockOutput) -> None:
        self._forward, self._skipped, self._output = forward, skipped, output
        self._calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        index = self._calls % len(self._skipped)
        self._calls += 1
        return self._output if self._skipped[index] else self._forward(*args, **kwargs)
