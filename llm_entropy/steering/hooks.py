"""Steering: a plan on a model's blocks, for as long as a `with` lasts.

At every block k the residual stream h becomes `operator`(h): with `add`, h + strength * layer_weight[k] *
token_weight[t] * v[k]; `operators` has the others. Later blocks read the steered stream, so that the intervention
propagates: a vector at block k first shows at layer k + 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from llm_entropy.models.families import hooks_on_applications, stream_of
from llm_entropy.models.tracing.stream import exchanged, stream_in
from llm_entropy.steering.operators import OPERATORS
from llm_entropy.steering.plan import SteeringPlan
from llm_entropy.steering.token_weights import token_weights_for


@contextmanager
def steer(
    blocks: Sequence[nn.Module],
    plan: SteeringPlan,
    attention_mask: Tensor,
    input_ids: Tensor | None = None,
    num_own: Tensor | None = None,
) -> Iterator[None]:
    """Steer whole forwards of one batch over `blocks`, until the `with` ends, however it ends.

    Tensors are replaced, never changed in place, and the hooks stand before the others of a block: whatever else reads
    a block's input or output by a hook sees the steered one (unless it is registered inside of the `with` and asks to
    stand first, too). Layers at which nothing happens get no hook.

    Args:
        blocks: [L] in the order in which they run. A module that runs several times (ALBERT) stands there as often;
            every forward inside of the `with` must then run all of them.
        plan: What acts, on the model's device.
        attention_mask: [batch, seq], 0 at padding, as the model gets it; best on the CPU, where looking at it takes no
            waiting for the device.
        input_ids: [batch, seq], beside the mask; only plans that leave out special tokens need it.
        num_own: [batch], beside the mask: how many tokens are the sentence's own, where a model has written others.
    """
    assert attention_mask.ndim == 2, f"attention mask {tuple(attention_mask.shape)}, expected [batch, seq]"
    if not plan.steered_layers:
        yield
        return
    with steer_by(blocks, plan, token_weights_for(plan, attention_mask, input_ids, num_own)):
        yield


@contextmanager
def steer_by(blocks: Sequence[nn.Module], plan: SteeringPlan, weights: Tensor) -> Iterator[None]:
    """Steer as `steer` does, by weights of the tokens that are given.

    Args:
        blocks: As for `steer`.
        plan: As for `steer`.
        weights: [batch, seq], float32, of the tokens that go through the model; best on the CPU.
    """
    token_weights = weights[..., None].to(plan.directions.device, non_blocking=True)

    def weights_of(hidden: Tensor) -> Tensor:
        assert hidden.shape[:-1] == token_weights.shape[:-1], (
            f"hidden state {tuple(hidden.shape)}, but the weights of the tokens are {tuple(token_weights.shape[:-1])}"
        )
        return token_weights

    with _steered(blocks, plan, weights_of):
        yield


@contextmanager
def steer_every_token(blocks: Sequence[nn.Module], plan: SteeringPlan) -> Iterator[None]:
    """Steer every token of every forward over `blocks`, of whatever batches, until the `with` ends: also in generation.

    Padding is steered too; the attention mask hides it from the other tokens.

    Args:
        blocks: As for `steer`.
        plan: What acts, on the model's device; it chooses no tokens, and gives them no weights.
    """
    assert plan.token_weights is None, "weights are spread over whole sentences"
    assert plan.tokens == "all", plan.tokens
    every = torch.ones(1, 1, 1, device=plan.directions.device)
    with _steered(blocks, plan, lambda hidden: every):
        yield


@contextmanager
def _steered(blocks: Sequence[nn.Module], plan: SteeringPlan, weights_of: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Steer forwards over `blocks`.

    Args:
        blocks: As for `steer`.
        plan: What acts.
        weights_of: Given the stream [batch, seq, hidden], returns the weights of its tokens, [batch, seq, 1] or one.
    """
    assert len(plan.directions) == len(blocks) + 1, f"{len(plan.directions)} rows for {len(blocks)} blocks"
    layers = set(plan.steered_layers)
    if not layers:
        yield
        return
    # All applications of a steered module are hooked, so that each can be told from the others by counting.
    steered = {id(blocks[layer - 1]) for layer in layers if layer > 0}
    applied = [(layer, block) for layer, block in enumerate(blocks, start=1) if id(block) in steered]
    entered = [block for block in blocks if block is blocks[0]] if 0 in layers else []
    num_runs: Counter[int] = Counter()

    def steered_stream(hidden: Tensor, layer: int) -> Tensor:
        return OPERATORS[plan.operator](hidden, plan.action(layer), weights_of(hidden))

    def steer_input(index: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if index > 0:
            return None
        hidden = stream_of(args, kwargs)
        given: dict[Any, Any] = dict(enumerate(args)) | kwargs
        # The first alone: a model may hand the embeddings to its blocks once more, beside the stream.
        given[next(place for place, value in given.items() if value is hidden)] = steered_stream(hidden, 0)
        return tuple(given[place] for place in range(len(args))), {name: given[name] for name in kwargs}

    def steer_output(index: int, _: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        layer, _block = applied[index]
        num_runs[layer] += 1
        if layer not in layers:
            return None
        hidden = stream_in(output)
        return exchanged(output, hidden, steered_stream(hidden, layer))

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
