"""Numbers as a page holds them: few digits, or two bytes each."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

DIGITS = 5
MISSING = 65_535
"""The code of what is no finite number."""
LARGEST = MISSING - 1
LEAST_PROBABILITY = 1e-9
"""Below it a probability is shown as less than this."""


def short(value: Any) -> Any:
    """Return numbers as JSON holds them, with few digits; null is no number, and a text what is infinite.

    Args:
        value: A number, an array of any shape, or a list or dict of them.
    """
    if isinstance(value, dict):
        return {name: short(item) for name, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [short(item) for item in (value.tolist() if isinstance(value, np.ndarray) else value)]
    if not isinstance(value, float):
        return value
    if math.isnan(value):
        return None
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    number = float(f"{value:.{DIGITS}g}")
    return int(number) if number.is_integer() and abs(number) < 1e15 else number


def packed_places(places: Sequence[int]) -> dict[str, Any]:
    """Return numbers from 0 on, such as places in a list, in base64.

    Returns:
        `codes`, little-endian, of `size` bytes each: 2, or 4 where one does not fit.
    """
    size = 2 if max(places, default=0) < 2**16 else 4
    return {"codes": base64.b64encode(np.array(places, f"<u{size}").tobytes()).decode("ascii"), "size": size}


def packed(values: npt.NDArray[np.floating[Any]], scale: Literal["linear", "logarithmic"]) -> dict[str, Any]:
    """Return an array as two bytes a number, in base64: steps between its least and its largest number.

    Args:
        values: Any shape; what is not finite, and of a logarithmic scale what is not above 0, is left out.
        scale: Whether the steps are those of the numbers, or of their logarithms.

    Returns:
        `codes`, little-endian, in C order; `low` and `high`, what the codes 0 and 65,534 stand for; `scale`.
    """
    numbers = values.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.log(numbers) if scale == "logarithmic" else numbers
    finite = np.isfinite(steps)
    low, high = (float(steps[finite].min()), float(steps[finite].max())) if finite.any() else (0.0, 0.0)
    width = (high - low) or 1.0
    codes = np.full(steps.shape, MISSING, "<u2")
    codes[finite] = ((steps[finite] - low) / width * LARGEST).round()
    ends = np.exp([low, high]).tolist() if scale == "logarithmic" else [low, high]
    text = base64.b64encode(codes.tobytes()).decode("ascii")
    return {"codes": text, "low": ends[0], "high": ends[1], "scale": scale}
