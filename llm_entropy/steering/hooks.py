"""Steering: at every block k the residual stream becomes h + strength * layer_weight[k] * token_weight[t] * v[k].

Later blocks read the steered stream, so that the intervention propagates: a vector at block k first shows at layer
k + 1. A plan is the arithmetic on the settings, made once; `steer` puts it on a model's blocks for as long as a `with`
lasts.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from llm_entropy.errors import ReportedError
from llm_entropy.models.families import hooks_on_applications, stream_in, stream_of

if TYPE_CHECKING:
    from llm_entropy.settings import ControlSettings

logger = logging.getLogger("llm_entropy")


@dataclass(frozen=True, eq=False)
class SteeringPlan:
    """What is added where: one row per layer, and how it is spread over a sentence's tokens."""

    vectors: Tensor
    """[L + 1, hidden], float32, by layer: row 0 for the embeddings, row k + 1 for block k; sign, strength and layer
    weight are in it."""
    token_weights: Tensor | None
    """[n], float32, interpolated over each sentence's real tokens; None: 1 at every one."""

    @cached_property
    def steered_layers(self) -> list[int]:
        """The layers, 0 .. L, at which something else than zero is added, in rising order."""
        if self.token_weights is not None and not self.token_weights.any():
            return []
        layers: list[int] = self.vectors.any(dim=1).nonzero().flatten().tolist()
        return layers

    def to(self, device: torch.device) -> SteeringPlan:
        """Return the plan with its vectors on a device; itself, where they are there."""
        if self.vectors.device == device:
            return self
        moved = SteeringPlan(self.vectors.to(device), self.token_weights)
        moved.__dict__["steered_layers"] = self.steered_layers  # asking the device for them would wait for it
        return moved

    @property
    def first_layer(self) -> int | None:
        """The lowest layer that steering changes; None if it changes none. Layers below are those of the standard run.

        Where it is k + 1, the blocks 0 .. k give what they give in the standard run, before the vector is added.
        """
        return next(iter(self.steered_layers), None)


def interpolate(weights: Sequence[float] | Tensor, size: int) -> Tensor:
    """Stretch or shrink weights linearly to `size` numbers.

    Equals torch.nn.functional.interpolate(mode="linear", align_corners=False): number i is read at position
    (i + 1/2) * n / size - 1/2 of the n weights, and the ends are held.

    Args:
        weights: [n], n >= 1.
        size: How many numbers are wanted, at least 1.

    Returns:
        [size], float32.
    """
    values = torch.as_tensor(weights, dtype=torch.float32)
    return functional.interpolate(values[None, None], size=size, mode="linear", align_corners=False)[0, 0]


def plan_steering(control: ControlSettings, vector: Tensor, *, num_blocks: int, sign: int) -> SteeringPlan:
    """Work out what is added at every layer: sign * strength * layer weight * vector.

    The layers that a vector acts on, by its shape and the number of `layer_weights`:

    | vector          | no weights, or L, or others           | L + 1 weights                             |
    |-----------------|---------------------------------------|-------------------------------------------|
    | [hidden]        | every block                           | the embeddings and every block            |
    | [L, hidden]     | row k at block k                      | the same; the first weight must be 0      |
    | [L + 1, hidden] | row 0 at the embeddings with weight 1 | row 0 at the embeddings, the first weight |

    Any other number of layer weights than L or L + 1 is interpolated over the blocks, with a warning.

    Args:
        control: Strength, layer weights and token weights.
        vector: [hidden], [L, hidden] or [L + 1, hidden], as `vectors.resolve_vector` returns it.
        num_blocks: L.
        sign: 1, or -1 to turn the vector, as `vectors.choose_vector` says. Nothing else here reads `direction`.

    Returns:
        The plan, on the vector's device.

    Raises:
        ReportedError: L + 1 layer weights whose first is not 0, for a vector that has no row for the embeddings; or a
            product beyond the range of float32.
    """
    assert sign in (-1, 1), f"sign {sign}"
    has_embedding_row = vector.ndim == 2 and len(vector) == num_blocks + 1
    assert vector.ndim == 1 or has_embedding_row or len(vector) == num_blocks, f"vector {tuple(vector.shape)}"
    given = None if control.layer_weights is None else torch.as_tensor(control.layer_weights, dtype=torch.float32)
    weighs_embeddings = given is not None and len(given) == num_blocks + 1
    if given is not None and weighs_embeddings and vector.ndim == 2 and not has_embedding_row and given[0] != 0:
        raise ReportedError(
            f"analysis.control.layer_weights: got {num_blocks + 1} numbers, the first, {given[0]:g}, for the "
            f"embeddings, but a vector of {num_blocks} rows, none for the embeddings; "
            f"expected 0 there, or {num_blocks} weights, or {num_blocks + 1} rows"
        )
    acts_on_embeddings = has_embedding_row or (vector.ndim == 1 and weighs_embeddings)
    rows = torch.zeros(num_blocks + 1, vector.shape[-1], dtype=torch.float32, device=vector.device)
    rows[0 if acts_on_embeddings else 1 :] = vector
    weights = _weights_by_layer(given, num_blocks).to(vector.device)
    vectors = (sign * control.strength) * weights[:, None] * rows
    if not vectors.isfinite().all():
        raise ReportedError(
            f"analysis.control.strength: got {control.strength:g}, which times the layer weights and the vector "
            "goes beyond the range of float32; expected a smaller strength or smaller weights"
        )
    tokens = control.token_weights
    return SteeringPlan(vectors, None if tokens is None else torch.as_tensor(tokens, dtype=torch.float32))


def _weights_by_layer(given: Tensor | None, num_blocks: int) -> Tensor:
    """Return a weight per layer, [L + 1], of which the first, for the embeddings, is 1 unless it was given."""
    if given is None:
        return torch.ones(num_blocks + 1)
    if len(given) == num_blocks + 1:
        return given
    if len(given) != num_blocks:
        logger.warning(
            "analysis.control.layer_weights: got %d, interpolated over the %d blocks", len(given), num_blocks
        )
        given = interpolate(given, num_blocks)
    return torch.cat([torch.ones(1, device=given.device), given])


def token_weights_for(plan: SteeringPlan, attention_mask: Tensor) -> Tensor:
    """Spread the token weights over the real tokens of each sentence, special tokens included; padding gets 0.

    A sentence gets the same numbers whatever it is batched with and on whichever side it is padded.

    Args:
        plan: Whose `token_weights` count; without any, every real token gets 1.
        attention_mask: [batch, seq], 0 at padding.

    Returns:
        [batch, seq], float32, on the mask's device.
    """
    is_real = attention_mask != 0
    if plan.token_weights is None:
        return is_real.float()
    lengths: list[int] = is_real.sum(dim=1).tolist()
    curves = {length: interpolate(plan.token_weights, length) for length in set(lengths) if length}
    if not curves:
        return is_real.float()
    # The sentences' curves end to end are the real positions in reading order, wherever the padding lies.
    in_order = torch.cat([curves[length] for length in lengths if length]).to(attention_mask.device)
    return torch.zeros(is_real.shape, device=attention_mask.device).masked_scatter(is_real, in_order)


@contextmanager
def steer(blocks: Sequence[nn.Module], plan: SteeringPlan, attention_mask: Tensor) -> Iterator[None]:
    """Steer whole forwards of one batch over `blocks`, until the `with` ends, however it ends.

    Tensors are replaced, never changed in place, and the hooks stand before the others of a block: whatever else reads
    a block's input or output by a hook sees the steered one (unless it is registered inside of the `with` and asks to
    stand first, too). The sum is taken in the hidden state's dtype, the addend in float32. Layers to which nothing is
    added get no hook.

    Args:
        blocks: [L] in the order in which they run. A module that runs several times (ALBERT) stands there as often;
            every forward inside of the `with` must then run all of them.
        plan: What to add, on the model's device.
        attention_mask: [batch, seq], 0 at padding, as the model gets it; best on the CPU, where looking at it takes no
            waiting for the device.
    """
    assert attention_mask.ndim == 2, f"attention mask {tuple(attention_mask.shape)}, expected [batch, seq]"
    assert len(plan.vectors) == len(blocks) + 1, f"{len(plan.vectors)} rows for {len(blocks)} blocks"
    layers = set(plan.steered_layers)
    if not layers:
        yield
        return
    vectors = plan.vectors
    token_weights = token_weights_for(plan, attention_mask)[..., None].to(vectors.device, non_blocking=True)
    # All applications of a steered module are hooked, so that each can be told from the others by counting.
    steered = {id(blocks[layer - 1]) for layer in layers if layer > 0}
    applied = [(layer, block) for layer, block in enumerate(blocks, start=1) if id(block) in steered]
    entered = [block for block in blocks if block is blocks[0]] if 0 in layers else []
    num_runs: Counter[int] = Counter()

    def steer_input(index: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if index > 0:
            return None
        hidden = stream_of(args, kwargs)
        new = _add(hidden, token_weights, vectors[0])
        return _exchange(args, hidden, new), {name: new if value is hidden else value for name, value in kwargs.items()}

    def steer_output(index: int, _: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        layer, _block = applied[index]
        num_runs[layer] += 1
        if layer not in layers:
            return None
        hidden = stream_in(output)
        return _exchange(output, hidden, _add(hidden, token_weights, vectors[layer]))

    before = partial(nn.Module.register_forward_pre_hook, prepend=True, with_kwargs=True)
    after = partial(nn.Module.register_forward_hook, prepend=True)
    with (
        hooks_on_applications(entered, before, steer_input),
        hooks_on_applications([block for _, block in applied], after, steer_output),
    ):
        yield
    for block in {block for _, block in applied}:
        runs = [num_runs[layer] for layer, other in applied if other is block]
        assert len(set(runs)) == 1, f"a shared block ran {runs} times; its rows have met the wrong applications"


def _add(hidden: Tensor, token_weights: Tensor, vector: Tensor) -> Tensor:
    """Return hidden [batch, seq, hidden] + token_weights [batch, seq, 1] * vector [hidden], in the type of `hidden`."""
    assert hidden.shape[:-1] == token_weights.shape[:-1], (
        f"hidden state {tuple(hidden.shape)}, but the attention mask given to `steer` is "
        f"{tuple(token_weights.shape[:-1])}"
    )
    return hidden + (token_weights * vector).to(hidden)


def _exchange(items: Any, old: Tensor, new: Tensor) -> Any:
    """Return `items`, a tensor, tuple or list, with `new` in the place of `old`."""
    if items is old:
        return new
    exchanged = [new if item is old else item for item in items]
    return tuple(exchanged) if isinstance(items, tuple) else exchanged
