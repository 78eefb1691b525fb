"""Models whose weights are kept in 8 or 4 bits: the lens needs the decoder's weights as numbers."""

from __future__ import annotations

import importlib.util
from typing import Any, Optional

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

PACKAGES = {
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed_tensors",
    "torchao": "torchao",
}
"""The package that reads each way of keeping weights in few bits; the others are left to transformers."""
ROWS_AT_ONCE = 256
"""Rows of the identity that go through a quantised decoder together."""


def method_of(config: PretrainedConfig) -> Optional[str]:
    """Return how a model's weights are quantised, by its configuration; None: they are not."""
    about = getattr(config, "quantization_config", None)
    if about is None:
        return None
    method = about.get("quant_method") if isinstance(about, dict) else about.quant_method
    return str(getattr(method, "value", method))


def missing_package(config: PretrainedConfig) -> Optional[str]:
    """Return the package that a model's quantised weights need and that is not installed; None: there is none."""
    package = PACKAGES.get(method_of(config) or "")
    return package if package is not None and importlib.util.find_spec(package) is None else None


def decompress_(model: PreTrainedModel) -> bool:
    """Let compressed-tensors make its weights whole now, and not in the first pass of a model that is being traced.

    Args:
        model: As it was loaded. Changed in place.

    Returns:
        Whether it was compressed.
    """
    waiting: Any = getattr(model, "ct_decompress_hook", None)
    if waiting is None:
        return False
    with torch.inference_mode(False), torch.no_grad():
        model._forward_pre_hooks[waiting.id](model, ())  # takes itself away
    return True


def restore_head_(model: PreTrainedModel, dtype: torch.dtype) -> bool:
    """Replace a decoder whose weights are quantised by a linear layer of the numbers that it multiplies with.

    Whatever the library, a linear layer shows its weights on the rows of the identity. Most checkpoints keep the
    decoder as it was; then nothing changes.

    Args:
        model: With its head. Changed in place.
        dtype: Type of the numbers.

    Returns:
        Whether it was replaced.
    """
    decoder = model.get_output_embeddings()
    if not isinstance(decoder, nn.Linear) or _is_plain(decoder.weight):
        return False
    with torch.inference_mode(False), torch.no_grad():
        device = decoder.weight.device
        bias = decoder(torch.zeros(1, decoder.in_features, dtype=dtype, device=device))[0]
        restored = nn.Linear(decoder.in_features, decoder.out_features, decoder.bias is not None, device, dtype)
        for start in range(0, decoder.in_features, ROWS_AT_ONCE):
            stop = min(start + ROWS_AT_ONCE, decoder.in_features)
            rows = torch.zeros(stop - start, decoder.in_features, dtype=dtype, device=device)
            rows[:, start:stop].fill_diagonal_(1.0)
            restored.weight[:, start:stop] = (decoder(rows) - bias).T
        if decoder.bias is not None:
            restored.bias.copy_(bias)
    model.set_output_embeddings(restored.requires_grad_(False))
    return True


def _is_plain(weight: torch.Tensor) -> bool:
    """Return whether a weight is a tensor of numbers, and not of another library's class or of integers."""
    return type(weight) in (torch.Tensor, nn.Parameter) and weight.is_floating_point()
