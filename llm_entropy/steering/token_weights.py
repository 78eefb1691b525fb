"""How much each token of a sentence is steered: the token weights of a plan, spread over the real tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from llm_entropy.steering.plan import SteeringPlan, interpolate
from llm_entropy.steering.tokens import steered_tokens, steers_new_tokens


def token_weights_for(
    plan: SteeringPlan, attention_mask: Tensor, input_ids: Tensor | None = None, num_own: Tensor | None = None
) -> Tensor:
    """Spread the token weights over the real tokens of each sentence, special tokens included; padding gets 0.

    Tokens that the plan does not choose get 0, too; the weights of the others are those that they have without a
    choice. A sentence gets the same numbers whatever it is batched with and on whichever side it is padded.

    Args:
        plan: Whose `token_weights` and `tokens` count; without weights, every chosen token gets 1.
        attention_mask: [batch, seq], 0 at padding.
        input_ids: [batch, seq]; only plans that leave out special tokens need it.
        num_own: [batch], how many of the real tokens are the sentence's own; those behind them a model has written,
            and `new_token_weights` has their weights. None: all.

    Returns:
        [batch, seq], float32, on the mask's device.
    """
    is_real = attention_mask != 0
    if num_own is not None:
        numbers = is_real.cumsum(dim=1) - 1
        is_new = is_real & (numbers >= num_own[:, None])
        own = token_weights_for(plan, (is_real & ~is_new).long(), input_ids)
        return new_token_weights(plan, numbers, num_own, input_ids).where(is_new, own)
    chosen = steered_tokens(plan.tokens, attention_mask, input_ids, plan.special)
    if plan.token_weights is None:
        return chosen.float()
    lengths: list[int] = is_real.sum(dim=1).tolist()
    curves = {length: interpolate(plan.token_weights, length) for length in set(lengths) if length}
    if not curves:
        return is_real.float()
    # The sentences' curves end to end are the real positions in reading order, wherever the padding lies.
    in_order = torch.cat([curves[length] for length in lengths if length]).to(attention_mask.device)
    spread = torch.zeros(is_real.shape, device=attention_mask.device).masked_scatter(is_real, in_order)
    return spread.where(chosen, 0.0)


def new_token_weights(plan: SteeringPlan, numbers: Tensor, num_own: Tensor, input_ids: Tensor | None = None) -> Tensor:
    """Return the weights of tokens that a model has written: the last of `token_weights`, 0 where none is steered.

    Args:
        plan: Whose `token_weights` and `tokens` count; without weights, every chosen token gets 1.
        numbers: [batch, seq], the number of each token in its text, from 0 on.
        num_own: [batch], how many tokens the sentence itself has.
        input_ids: [batch, seq]; only plans that leave out special tokens need it.

    Returns:
        [batch, seq], float32.
    """
    last = 1.0 if plan.token_weights is None else float(plan.token_weights[-1])
    return last * steers_new_tokens(plan.tokens, numbers, num_own, input_ids, plan.special).float()
