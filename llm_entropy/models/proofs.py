"""Proofs, on random tokens, that a model's parts are what tracing takes them for; what does not hold is refused."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from llm_entropy.errors import ReportedError
from llm_entropy.models.families import ModelView, hooks_on_applications, run_base, shape_of
from llm_entropy.models.layers import read_layers
from llm_entropy.models.tracing.probe import probe_tokens
from llm_entropy.models.tracing.stream import exchanged, stream_in

log = logging.getLogger("llm_entropy")

LENGTHS = (5, 2)
"""Tokens of the sentences that are run together and one by one: few, for a large model takes long over each."""
ALIKE = (5, 5)
"""The same without padding, of a model that padding disturbs."""
STEERED_LENGTH = 1
"""Tokens of the sentences of which each is steered behind another block; there is one for each block."""
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Root mean square of differences that is taken for rounding, as a share of that of a layer's numbers, by type."""


def check_parts(view: ModelView, name: str) -> ModelView:
    """Prove that every block runs once, in order, that what steers one shows behind it, and that a batch does not.

    Args:
        view: The model.
        name: The model, for the message.

    Returns:
        The model, of which is known now whether padding changes what it computes.

    Raises:
        ReportedError: It does not hold.
    """
    alone = _alone(view, LENGTHS, name)
    check_direction(view, name, alone[0])
    view = check_batches(view, name, alone)
    check_steering(view, name)
    return view


def check_size(view: ModelView, name: str) -> None:
    """Refuse a model of which more or less was found than its configuration says.

    Args:
        view: The model.
        name: The model, for the message.

    Raises:
        ReportedError: Its blocks are others in number or in width.
    """
    found, said = view.shape, shape_of(view.model.config)
    if said.num_blocks in (0, found.num_blocks) and said.hidden_size in (0, found.hidden_size):
        return
    streams, rest = divmod(found.hidden_size, max(1, said.hidden_size))
    reason = "it would be measured in part"
    if streams > 1 and not rest:
        reason = f"its blocks hand on {streams} residual streams side by side: no layer has one state to read or steer"
    raise ReportedError(
        f"{name}: the configuration says {said.num_blocks} blocks of width {said.hidden_size}, and "
        f"{found.num_blocks} of width {found.hidden_size} were found by tracing ({view.found}): {reason}; such a model "
        "cannot be measured yet"
    )


@torch.inference_mode()
def check_batches(view: ModelView, name: str, alone: Sequence[Tensor]) -> ModelView:
    """Prove that a batch gives every layer what its sentences give one by one, and that its blocks run in order.

    A batch is padded, unless that alone makes the difference: then it holds sentences of one length.

    Args:
        view: The model.
        name: The model, for the message.
        alone: States [layer, token, hidden] of each sentence by itself, of `LENGTHS` tokens.

    Returns:
        The model, with `takes_padding`.

    Raises:
        ReportedError: It does not.
    """
    for lengths in (LENGTHS, ALIKE):
        apart = alone if lengths == LENGTHS else [alone[0], *_alone(view, ALIKE, name)[1:]]
        off, tolerance = _off_in_batch(view, lengths, apart, name)
        if bool((off <= tolerance).all()):
            log.debug("%s: a batch gives what its sentences give within %.3g", name, float(off.max()))
            if lengths == ALIKE:
                log.info("%s: padding changes what it computes: its batches hold sentences of one length", name)
            return replace(view, takes_padding=lengths == LENGTHS)
    layer = int((off > tolerance).int().argmax())
    size = f"{float(off[layer]):.3g} of their size"
    _refuse(view, name, f"a batch gives layer {layer} other states than its sentences one by one (by {size})")


def _off_in_batch(view: ModelView, lengths: Sequence[int], alone: Sequence[Tensor], name: str) -> tuple[Tensor, float]:
    """Return how much the layers [layer] of a batch differ from those of its sentences, and what rounding may do."""
    input_ids = _sentences(view)
    number = torch.tensor(lengths, device=input_ids.device)
    mask = (torch.arange(max(lengths), device=input_ids.device) < number[:, None]).long()
    together = _layers(view, input_ids, mask, name)
    return _difference(together, torch.cat([*alone], dim=1)), TOLERANCE[together.dtype]


def _sentences(view: ModelView) -> Tensor:
    """Return the tokens that are run together and one by one, [sentence, token]."""
    return probe_tokens(view.model, (len(LENGTHS), max(LENGTHS)), seed=1)


@torch.inference_mode()
def _alone(view: ModelView, lengths: Sequence[int], name: str) -> list[Tensor]:
    """Return the states [layer, token, hidden] of each sentence, cut to one of these lengths, run by itself."""
    return [
        _layers(view, row[None, :length], torch.ones_like(row[None, :length]), name)
        for row, length in zip(_sentences(view), lengths, strict=True)
    ]


@torch.inference_mode()
def check_steering(view: ModelView, name: str) -> None:
    """Prove that what is added behind block k shows at layer k + 1, at none before, and in all that follow.

    In one pass: of L + 1 copies of a sentence, copy k is steered behind block k, and the last one is not.

    Args:
        view: The model.
        name: The model, for the message.

    Raises:
        ReportedError: It does not.
    """
    num_blocks = view.shape.num_blocks
    input_ids = probe_tokens(view.model, (1, STEERED_LENGTH), seed=2).expand(num_blocks + 1, -1).contiguous()
    added: dict[int, Tensor] = {}

    def add(block: int, module: nn.Module, args: Any, output: Any) -> Any:
        hidden = stream_in(output)
        size = hidden[-1].float().square().mean().sqrt()
        change = torch.zeros_like(hidden)
        pattern = torch.ones_like(hidden[0])
        pattern[..., 1::2] = -1  # a norm would take out what all numbers have in common
        pattern[..., 2::3] *= 2
        change[block] = pattern * size
        added[block] = change[block].clone()  # else it would hold all of the change
        return exchanged(output, hidden, hidden + change)

    first = partial(nn.Module.register_forward_hook, prepend=True)
    with hooks_on_applications(view.blocks, first, add):
        layers = _layers(view, input_ids, torch.ones_like(input_ids), name)
    layers = layers.unflatten(1, (num_blocks + 1, STEERED_LENGTH))
    tolerance = TOLERANCE[layers.dtype]
    changes = [_difference(layers[:, block], layers[:, -1]) for block in range(num_blocks)]
    for block, off in enumerate(changes):
        if early := (off[: block + 1] > tolerance).nonzero().flatten().tolist():
            _refuse(view, name, f"what is added behind block {block} changes layer {early[0]}, before it")
    for block, off in enumerate(changes):
        change, expected = (layers[block + 1, block] - layers[block + 1, -1]).float(), added[block].float()
        share = float((change * expected).sum() / expected.square().sum())
        lost = [layer for layer in range(block + 2, num_blocks + 1) if not float(off[layer]) > 0]
        if not abs(share - 1.0) <= tolerance:
            lost = [block + 1, *lost]
        if lost:
            _refuse(view, name, f"what is added behind block {block} does not show at layer {lost[0]}")


@torch.inference_mode()
def check_direction(view: ModelView, name: str, states: Tensor) -> None:
    """Prove that a causal model's states depend on no later token, and a masked one's do.

    Args:
        view: The model.
        name: The model, for the message.
        states: States [layer, token, hidden] of the first sentence; here one of its tokens is another one.

    Raises:
        ReportedError: It does not hold.
    """
    input_ids = _sentences(view)[:1]
    other = probe_tokens(view.model, (1, 64), seed=4).flatten()
    changed = max(LENGTHS) // 2
    input_ids[0, changed] = other[(other != input_ids[0, changed]).int().argmax()]
    layers = _layers(view, input_ids, torch.ones_like(input_ids), name)
    last, tolerance = layers[-1:], TOLERANCE[layers.dtype]
    before = float(_difference(last[:, :changed], states[-1:, :changed]))
    behind = float(_difference(last[:, changed + 1 :], states[-1:, changed + 1 :]))
    if view.kind == "causal" and not before <= tolerance:
        _refuse(view, name, "it is read as a causal model, and a token changes the states of those before it")
    if view.kind == "masked" and not max(before, behind) > 0:
        _refuse(view, name, "it is read as a masked model, and no token changes the state of another on this device")
    if view.kind == "masked" and not before > 0:
        _refuse(view, name, "it is read as a masked model, and a token changes nothing before it, as in a causal one")


def _layers(view: ModelView, input_ids: Tensor, mask: Tensor, name: str) -> Tensor:
    """Return the states [layer, token, hidden] at all real tokens of a pass in which every block ran once, in order.

    Raises:
        ReportedError: They did not.
    """
    order: list[int] = []

    def note(block: int, module: nn.Module, args: Any, output: Any) -> None:
        order.append(block)

    after = nn.Module.register_forward_hook
    rows, positions = mask.nonzero(as_tuple=True)
    with read_layers(view, rows, positions) as states, hooks_on_applications(view.blocks, after, note):
        run_base(view, input_ids, mask)
    if order != list(range(view.shape.num_blocks)):
        _refuse(view, name, f"its {view.shape.num_blocks} blocks ran in the order {_listed(order)}")
    return states.stack()


def _difference(one: Tensor, other: Tensor) -> Tensor:
    """Return how much two states differ at each layer [layer], as a share of their size: root mean squares."""
    one, other = one.flatten(1).float(), other.flatten(1).float()
    size = other.square().mean(dim=1).sqrt().clamp_min(1e-30)
    return ((one - other).square().mean(dim=1).sqrt() / size).nan_to_num(torch.inf)


def _listed(order: Sequence[int]) -> str:
    shown = ", ".join(map(str, order[:8])) + (", ..." if len(order) > 8 else "")
    return shown or "of none"


def _refuse(view: ModelView, name: str, words: str) -> NoReturn:
    raise ReportedError(f"{name}: {words}, so that it would be measured wrongly; found by tracing: {view.found}")
