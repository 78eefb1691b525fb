"""The layers or blocks at which a metric of a model has numbers: how many, and which stay empty."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Optional

import numpy as np
import numpy.typing as npt

from llm_entropy.schema.shape import ModelShape
from llm_entropy.settings import ALL_METRICS

Places = npt.NDArray[np.int64]


def num_points(metric: str, shape: ModelShape) -> int:
    """Return over how many layers, or blocks, a metric runs; of a whole text there is one number."""
    return {"layer": shape.num_layers, "block": shape.num_blocks, "text": 1}[ALL_METRICS[metric].axis]


def filled_points(metric: str, shape: ModelShape) -> Places:
    """Return the layers, or blocks, that have numbers, rising; the others are empty whatever is measured.

    Empty are those before a metric's first one, and blocks without attention that can be read.
    """
    about = ALL_METRICS[metric]
    points = np.arange(about.first, num_points(metric, shape))
    if about.axis != "block" or shape.heads is None:
        return points
    return points[np.array(shape.heads)[points] > 0]


def drawn_points(metric: str, shape: ModelShape) -> Places:
    """Return the layers, or blocks, that a curve runs through, rising: it goes on over blocks without attention."""
    points, filled = np.arange(num_points(metric, shape)), filled_points(metric, shape)
    return points if len(filled) == len(points) - ALL_METRICS[metric].first else filled


def with_points(metrics: Iterable[str], shape: ModelShape) -> list[str]:
    """Return the metrics of which a model has any number: of none of its blocks need the attention be readable."""
    return [metric for metric in metrics if len(filled_points(metric, shape))]


def mean_over_heads(
    values: npt.NDArray[Any], num_blocks: int, heads: Optional[Sequence[int]] = None
) -> npt.NDArray[Any]:
    """Return numbers of blocks: [row, block * head], the heads of block 0 first, becomes [row, block].

    Args:
        values: Of any metric of the attention.
        num_blocks: How many blocks there are.
        heads: [block], how many heads each has; None: all of them.
    """
    each = values.reshape(len(values), num_blocks, -1)
    if heads is None or set(heads) <= {0, each.shape[2]}:
        return np.asarray(each.mean(axis=2))
    means = np.full(each.shape[:2], np.nan, each.dtype)
    for block, num in enumerate(heads):
        if num:
            means[:, block] = each[:, block, :num].mean(axis=1)
    return means
