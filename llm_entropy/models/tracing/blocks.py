"""Finding the blocks: the longest chain of modules of which each is given what the one before returned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Optional, cast

from torch import nn

from llm_entropy.models.tracing.not_found import NotFound
from llm_entropy.models.tracing.probe import PROBE_SHAPE
from llm_entropy.models.tracing.stream import is_same
from llm_entropy.models.tracing.watching import Call, Lists, is_list


def find_blocks(model: nn.Module, calls: Sequence[Call], in_order: Optional[Sequence[nn.Module]]) -> list[Call]:
    """Return the calls of the blocks: the longest chain of items of a list, each given what the one before returned."""
    if in_order is not None:
        found = [call for call in calls if call.module in set(in_order)]
        if [call.module for call in found] != list(in_order):
            raise NotFound(f"{len(found)} calls of blocks were seen, and {len(in_order)} expected")
        return found
    lists: dict[str, list[Call]] = {}
    for call in calls:
        container = list_of(model, call.name)
        if container is not None and call.inputs and call.outputs:
            lists.setdefault(container, []).append(call)
    chains = [chain for items in lists.values() for chain in _chains(items)]
    if not chains:
        raise NotFound("no list of modules was run of which each takes and returns the residual stream")
    best = max(chains, key=lambda chain: (len(chain), sum(p.numel() for p in chain[0].module.parameters())))
    shape = tuple(best[0].outputs[0].shape)
    if shape[:2] != PROBE_SHAPE or len(shape) != 3:
        raise NotFound(f"its blocks hand on {list(shape)} for {list(PROBE_SHAPE)} tokens: {_other_shape(shape)}")
    if not all(call.is_direct for call in best):
        raise NotFound(f"its blocks take the residual stream inside of another argument ({best[0].name}), not as one")
    container = cast(str, list_of(model, best[0].name))
    if len(best) < len(lists[container]):
        before = best[0] if best[0] is not lists[container][0] else lists[container][len(best)]
        raise NotFound(
            f"of {len(lists[container])} calls in {container} only {len(best)} in a row are given what the one before "
            f"returned (not {before.name}): something else is done to the residual stream between them"
        )
    return best


def _other_shape(shape: tuple[int, ...]) -> str:
    """Say what states of this shape are, which are not those of each token."""
    if shape[:2] == PROBE_SHAPE:
        return "several residual streams side by side, so that no layer has one state to read or to steer"
    if len(shape) == 3 and shape[0] == PROBE_SHAPE[0]:
        return "it adds positions of its own, which are not to be told from those of the tokens"
    return "batch and position are not its first two dimensions, in which states are read and steered"


def _chains(items: list[Call]) -> Iterator[list[Call]]:
    chain = items[:1]
    for call in items[1:]:
        if is_same(call.inputs[0], chain[-1].outputs[0]):
            chain.append(call)
        else:
            yield chain
            chain = [call]
    yield chain


def list_of(model: nn.Module, name: str) -> Optional[str]:
    """Return the list that holds a module, the outermost of lists that hold nothing but lists; None: it is in none."""
    path, _, _ = name.rpartition(".")
    if not name or not isinstance(model.get_submodule(path), Lists):
        return None
    while path:
        outer, _, _ = path.rpartition(".")
        parent = model.get_submodule(outer)
        if not isinstance(parent, Lists) or not all(isinstance(own, Lists) for own in parent.children()):
            break
        path = outer
    return path


def _items(own: nn.Module) -> Iterator[nn.Module]:
    """Iterate over what a list holds; of lists of lists over what these hold."""
    inner = list(own.children())
    are_lists = bool(inner) and all(isinstance(item, Lists) for item in inner)
    for item in inner:
        yield from _items(item) if are_lists else (item,)


def outline(model: nn.Module, num_blocks: int) -> tuple[str, tuple[nn.Module, ...]]:
    """Return the name and the items of the list that is most likely that of the blocks, without running the model.

    Args:
        model: With its head.
        num_blocks: How many there should be.

    Returns:
        An empty name and nothing of a model that has no lists.
    """
    lists = [
        (name, tuple(_items(own))) for name, own in model.named_modules() if is_list(own) and _is_outermost(model, name)
    ]

    def size(items: tuple[nn.Module, ...]) -> tuple[bool, int]:
        return len(items) == num_blocks, sum(weight.numel() for item in items for weight in item.parameters())

    return max(lists, key=lambda one: size(one[1]), default=("", ()))


def _is_outermost(model: nn.Module, name: str) -> bool:
    parents = [model.get_submodule(name[:place]) for place, letter in enumerate(name) if letter == "."]
    return not any(is_list(parent) for parent in parents)
