"""What is between the layers of a model and its metrics: the last step of a lens, and sufficient statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Optional

if TYPE_CHECKING:
    from torch import Tensor


class Unembedding(NamedTuple):
    """The last step of a lens: z = softcap(scale * (x W^T + b)) / temperature."""

    weight: Tensor
    """W, [vocab, width]."""
    bias: Optional[Tensor] = None
    """b, [vocab]."""
    scale: float = 1.0
    """What the model multiplies its logits with."""
    softcap: Optional[float] = None
    """c in c * tanh(z / c), or None."""
    temperature: float = 1.0
    """What the user divides the logits by."""


class RowStatistics(NamedTuple):
    """Sufficient statistics of rows of logits z, each [slot, row], float32, shifted by the row maximum m.

    z are the logits after bias, softcap, logit scale and temperature; p = softmax(z). A slot is a layer of a condition;
    one that several conditions share is there once. Fields that were not asked for are None.
    """

    maximum: Tensor
    """m = max z."""
    log_sum: Tensor
    """ln sum exp(z - m), so that the log-normaliser is m + log_sum."""
    mean: Tensor
    """sum p (z - m)."""
    runner_up: Tensor
    """Second largest z - m; 0 where the maximum occurs twice."""
    top_ids: Tensor
    """[top slot, row, k], int64: the tokens with the largest logits, the largest first."""
    top: Tensor
    """[top slot, row, k]: z - m of these tokens."""
    square: Optional[Tensor] = None
    """sum p (z - m)^2."""
    log_power: Optional[Tensor] = None
    """ln sum exp(a (z - m)) of an order a."""
    top1: Optional[Tensor] = None
    """The token with the largest logit, int64; of equal logits the one with the lowest id."""
    log_mass: Optional[Tensor] = None
    """ln sum exp(z - m) over a set of tokens alone; minus infinity where all of them are masked."""
    cross: Optional[Tensor] = None
    """[pair, row]: sum p_a (z_b - m_b), the logit of slot b expected under the distribution of slot a."""


class LayerStatistics(NamedTuple):
    """What metrics are made from: statistics by condition and layer, each [condition, layer, row], float32.

    The names are those of `RowStatistics`. Fields that were not asked for are None.
    """

    log_sum: Tensor
    """ln sum exp(z - m)."""
    mean: Tensor
    """sum p (z - m)."""
    runner_up: Tensor
    """Second largest z - m."""
    square: Optional[Tensor] = None
    """sum p (z - m)^2."""
    log_power: Optional[Tensor] = None
    """ln sum exp(a (z - m)), a being `order`."""
    top1: Optional[Tensor] = None
    """The token with the largest logit, int64."""
    log_mass: Optional[Tensor] = None
    """ln sum exp(z - m) over the tokens that begin a word or end the text."""
    target: Optional[Tensor] = None
    """z_y - m of the target token y."""
    target_rank: Optional[Tensor] = None
    """Number of tokens whose logit is larger than the target's, int64."""
    final_cross: Optional[Tensor] = None
    """sum p_final (z - m): the logit expected under the final layer's distribution of the same condition."""
    standard_cross: Optional[Tensor] = None
    """sum p_standard (z - m): the logit expected under the first condition's distribution at the same layer."""
    order: float = 2.0
    """a in `log_power`."""


class AttentionStatistics(NamedTuple):
    """What metrics of the attention are made from: of the attention row of each record, by block and head."""

    entropy: Tensor
    """[block, record, head]: -sum_j a_j ln a_j, in nats, float32."""
    attended: Optional[Tensor] = None
    """[block, record, head], int64: how many tokens the row may see; one head for all if they see the same. None if it
    was not asked for."""
    sinks: Optional[Tensor] = None
    """[block, record, head], float32: how much of the row goes to what is no token. None if it was not asked for."""
