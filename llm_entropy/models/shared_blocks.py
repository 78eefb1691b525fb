"""The blocks that two forward passes have in common, run once: the second pass starts behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from llm_entropy.models.families import ModelView, hooks_on_applications


class BlockOutput:
    """What a block returned."""

    value: Any = None
    """As the block returned it: the residual stream of the whole batch, or a tuple that holds it."""


@contextmanager
def keep_output(view: ModelView, block: int) -> Iterator[BlockOutput]:
    """Keep what a block returns in the forward pass that runs inside of the context.

    Args:
        view: The model.
        block: 0..L-1, by the order in which the blocks run.
    """
    kept = BlockOutput()

    def keep(index: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if index == block:
            kept.value = output

    with hooks_on_applications(view.blocks, nn.Module.register_forward_hook, keep):
        yield kept


@contextmanager
def start_behind(view: ModelView, block: int, kept: BlockOutput) -> Iterator[None]:
    """Let the forward passes inside of the context begin behind a block, on the same batch.

    Embeddings and masks are made as always; blocks 0..`block` do nothing but return what was kept, so that whatever
    hooks them, as steering does, finds the block's own output.

    Args:
        view: The model.
        block: The last block that is not run again.
        kept: What it returned.
    """
    applications: dict[nn.Module, list[bool]] = {}
    for index, module in enumerate(view.blocks):
        applications.setdefault(module, []).append(index <= block)
    with ExitStack() as undo:
        for module, skipped in applications.items():
            if any(skipped):
                module.forward = _Forward(module.forward, skipped, kept)
                undo.callback(delattr, module, "forward")
        yield


class _Forward:
    """Stands in for the `forward` of a block, which may run several times in a pass (ALBERT)."""

    def __init__(self, forward: Callable[..., Any], skipped: Sequence[bool], kept: BlockOutput) -> None:
        self._forward, self._skipped, self._kept = forward, skipped, kept
        self._calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        index = self._calls % len(self._skipped)
        self._calls += 1
        return self._kept.value if self._skipped[index] else self._forward(*args, **kwargs)
