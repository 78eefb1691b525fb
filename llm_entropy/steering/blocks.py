"""Which blocks of a model a choice of blocks means."""

from __future__ import annotations

from llm_entropy.errors import ReportedError
from llm_entropy.settings.control import as_slice


def chosen_blocks(blocks: str | list[int], num_blocks: int, key: str) -> list[int]:
    """Return the numbers of the chosen blocks.

    Args:
        blocks: As `ControlSettings.blocks`: numbers, or a slice.
        num_blocks: L.
        key: Where the choice is made, for messages.

    Raises:
        ReportedError: The model has no such block.
    """
    shown, sizes = f"{key}: got {blocks!r}", f"the model has {num_blocks} blocks"
    if not isinstance(blocks, str):
        beyond = next((block for block in blocks if not 0 <= block < num_blocks), None)
        if beyond is not None:
            raise ReportedError(f"{shown}, block {beyond}, but {sizes}; expected numbers from 0 to {num_blocks - 1}")
        return blocks
    asked = as_slice(blocks)
    chosen = list(range(num_blocks)[asked])
    ends = [end for end in (asked.start, asked.stop) if end is not None]
    beyond = next((end for end in ends if not -num_blocks <= end <= num_blocks), None)
    if beyond is not None or not chosen:
        problem = "no block" if beyond is None else f"up to {beyond}"
        raise ReportedError(f"{shown}, {problem}, but {sizes}; expected some of 0:{num_blocks}")
    return chosen
