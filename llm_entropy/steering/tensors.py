"""Numbers, arrays and tensors of any kind, as float32 tensors on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llm_entropy.errors import ReportedError
from llm_entropy.settings.fields import holds_arrays

Array = npt.NDArray[Any]


def as_vector(value: Any) -> Tensor:
    """Return what was given as a vector in memory as a tensor.

    Args:
        value: A tensor of any floating type, on any device; an array of floating-point numbers, or what numpy makes
            one of; a list of them, a row each; a list of numbers, or of equally long lists of them.

    Returns:
        Float32 on the CPU, finite: [hidden] or [rows, hidden]. Of more than two axes those of size 1 are left out, so
        that [1, 1, hidden] is [hidden] and [rows, 1, hidden] is [rows, hidden].

    Raises:
        ReportedError: Another type or shape, integers in an array, something else than finite numbers.
    """
    if isinstance(value, (list, tuple)):
        return _stacked_rows(value) if holds_arrays(value) else _from_numbers(value)
    if not isinstance(value, Tensor) and hasattr(value, "__array__"):
        value = np.asarray(np.ma.filled(value, np.nan) if isinstance(value, np.ma.MaskedArray) else value)
    if not isinstance(value, (Tensor, np.ndarray)):
        raise ReportedError(f"got {type(value).__name__}; expected a tensor, or a mapping of blocks to tensors")
    is_real = value.is_floating_point() if isinstance(value, Tensor) else np.issubdtype(value.dtype, np.floating)
    if not is_real:
        raise ReportedError(
            f"got numbers of type {value.dtype}; expected floating-point numbers, as float32 (what integers stand for "
            "is not known: they may be quantised)"
        )
    shape = [size for size in value.shape[:-1] if size != 1 or value.ndim < 3] + list(value.shape[-1:])
    if len(shape) not in (1, 2) or 0 in shape:
        raise ReportedError(f"got shape {list(value.shape)}; expected [hidden] or [rows, hidden], not empty")
    vector = _float32(value).reshape(shape)
    num_bad = int((~vector.isfinite()).sum())
    if num_bad:
        raise ReportedError(f"got NaN or infinity in {num_bad} of {vector.numel()} numbers; expected finite float32")
    return vector


def as_row(value: Any) -> Tensor:
    """Return what is given as the vector of one block, [hidden] or [1, hidden], as [hidden]; see `as_vector`."""
    vector = as_vector(value)
    if vector.ndim == 2 and len(vector) > 1:
        raise ReportedError(f"got shape {list(vector.shape)}; expected [hidden]")
    return vector.flatten()


def _float32(value: Tensor | Array) -> Tensor:
    if isinstance(value, np.ndarray):
        # A copy, in the machine's byte order and without negative strides, neither of which torch has. What overflows
        # is infinite, which is reported.
        with np.errstate(over="ignore"):
            return torch.from_numpy(np.array(value, dtype=np.float32))
    if value.is_meta:
        raise ReportedError("got a tensor on the meta device, which holds no numbers; expected one that is loaded")
    return value.detach().to_dense().to("cpu", torch.float32).contiguous()


def _stacked_rows(rows: list[Any] | tuple[Any, ...]) -> Tensor:
    vectors = [as_row(row) for row in rows]
    shapes = sorted({tuple(vector.shape) for vector in vectors})
    if len(shapes) > 1:
        raise ReportedError(
            f"got a list of tensors of the shapes {[list(shape) for shape in shapes]}; expected [hidden] for each"
        )
    return torch.stack(vectors)


def _from_numbers(numbers: list[Any] | tuple[Any, ...]) -> Tensor:
    """Return a list of numbers, or of equally long lists of numbers, as a tensor."""
    try:
        array = np.asarray(numbers)
    except ValueError as error:
        raise ReportedError(
            "got lists of different lengths; expected numbers, or equally long lists of them"
        ) from error
    if array.size and array.dtype.kind not in "iuf":
        raise ReportedError(f"got {str(numbers)[:60]}; expected numbers")
    return as_vector(array.astype(np.float64))
