"""What is wanted of the rows of a vocabulary: one value that every backend takes."""

from __future__ import annotations

from typing import NamedTuple, Optional

from torch import Tensor


class Wanted(NamedTuple):
    """What is asked for beside the statistics that are always made; see `llm_entropy.kernels.lens_statistics`."""

    top_slots: tuple[int, ...] = ()
    """The slots of which the largest logits are named."""
    top_k: int = 1
    """How many of them."""
    square: bool = False
    """Whether `square` is wanted."""
    order: Optional[float] = None
    """The order a of which `log_power` is wanted, above 0; None: it is not."""
    top1: bool = False
    """Whether `top1` is wanted."""
    members: Optional[Tensor] = None
    """[vocab], bool, the tokens over which `log_mass` sums; None: it is not wanted."""
    pairs: tuple[tuple[int, int], ...] = ()
    """Slots a and b of which `cross` is wanted."""
