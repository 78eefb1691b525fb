"""Finding what is done between the last block and the logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from llm_entropy.models.tracing.not_found import REFUSALS, NotFound, kind_of
from llm_entropy.models.tracing.stream import ROUNDINGS, is_close, is_same, states_in, tolerance_of
from llm_entropy.models.tracing.watching import Call

HeadStep = Callable[[Tensor], Tensor]
FUNCTIONS: dict[str, HeadStep] = {
    "gelu": F.gelu,
    "gelu of tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
    "tanh": torch.tanh,
}
"""What may stand between two modules of a head without being one; tried in this order."""
LARGEST_DENOMINATOR = 4096
"""Of a fraction that a measured factor is taken for."""
UNSATURATED = 0.9
"""Share of a softcap up to which a logit tells what was capped."""


def find_decoder(calls: Sequence[Call], vocab_size: int) -> nn.Module:
    """Return the last linear layer that gives as many numbers as there are logits."""
    for call in reversed(calls):
        if isinstance(call.module, nn.Linear) and call.module.out_features == vocab_size:
            return call.module
    raise NotFound("there is no decoder: get_output_embeddings gives none, and no linear layer makes the logits")


def steps_between(
    calls: Sequence[Call], last: Call, decoder: Call, matrices: Sequence[Tensor]
) -> Iterator[tuple[str, HeadStep]]:
    """Iterate over what is done to the last block's output until it goes into the decoder."""
    current, place, goal = last.outputs[0], last.end, decoder.inputs[0]
    later = [call for call in calls if call.order >= last.end and not call.order <= decoder.order < call.end]
    where = last.name
    while not is_same(current, goal):
        step = next((call for call in later if call.order >= place and _is_given(call, current)), None)
        if step is not None:
            if not is_same(step.outputs[0], current):
                _check_alone(step, current)
                yield step.name, step.module
            current, place, where = step.outputs[0], step.end, step.name
            continue
        beside = next((call for call in later if call.order >= place and _is_beside(call, current)), None)
        if beside is not None:
            raise NotFound(_mixes(beside, where))
        following = [call.inputs[0] for call in later if call.order >= place and call.inputs and call.outputs]
        name, function = _function(current, [*following, goal], where, matrices)
        yield name, function
        current = next(states for states in [*following, goal] if is_close(function(current), states))


def _is_given(call: Call, states: Tensor) -> bool:
    return bool(call.inputs) and bool(call.outputs) and is_same(call.inputs[0], states)


def _is_beside(call: Call, states: Tensor) -> bool:
    return bool(call.outputs) and any(is_same(given, states) for given in call.inputs[1:])


def _check_alone(step: Call, states: Tensor) -> None:
    """Refuse a module of the head that needs more than the states which it is handed.

    Raises:
        NotFound: It does.
    """
    try:
        again = next(states_in(step.module(states)), None)
    except REFUSALS:
        again = None
    if again is None or not is_close(again, step.outputs[0]):
        raise NotFound(_mixes(step, "the last block"))


def _mixes(step: Call, where: str) -> str:
    return (
        f"{step.name} ({kind_of(step.module)}), on the way to the decoder, makes its numbers of more than what {where} "
        "hands on, so that no layer alone gives the logits"
    )


def _function(
    current: Tensor, following: Sequence[Tensor], where: str, matrices: Sequence[Tensor]
) -> tuple[str, HeadStep]:
    """Return the function that turns what was handed on into what the next module was given."""
    for states in following:
        for name, function in FUNCTIONS.items():
            if is_close(function(current), states):
                return name, function
        factor = _factor(current, states)
        if factor is not None:
            return f"times {factor:.6g}", partial(_times, factor)
        product = _matrix_product(current, states, matrices)
        if product is not None:
            return product
    raise NotFound(f"what is done behind {where}, on the way to the decoder, is neither a module nor a known function")


def _times(factor: float, states: Tensor) -> Tensor:
    return states * factor


def _matrix_product(current: Tensor, states: Tensor, matrices: Sequence[Tensor]) -> Optional[tuple[str, HeadStep]]:
    """Return the product with a matrix of the model's weights that gives other states, however the matrix lies."""
    sizes = current.shape[-1], states.shape[-1]
    for matrix in matrices:
        for shape, product in (
            (sizes, partial(torch.matmul, other=matrix)),
            (sizes[::-1], partial(F.linear, weight=matrix)),
        ):
            if matrix.shape == shape and matrix.dtype == current.dtype and is_close(product(current), states):
                return f"times a matrix {list(shape)}", product
    return None


def _factor(current: Tensor, states: Tensor) -> Optional[float]:
    """Return the number by which one is multiplied to give the other; a simple fraction where it is as good as one."""
    if current.shape != states.shape:
        return None
    given, wanted = current.double(), states.double()
    measured = float((given * wanted).sum() / given.square().sum())
    simple = float(Fraction(measured).limit_denominator(LARGEST_DENOMINATOR))
    factor = simple if abs(simple - measured) <= tolerance_of(states) / float(given.abs().max()) else measured
    return factor if is_close(current * factor, states) else None


def is_norm(module: nn.Module, states: Tensor) -> bool:
    """Whether a module only normalises: it has no matrix, and twice the stream gives the same."""
    if any(weight.ndim > 1 for weight in module.parameters()):
        return False
    once, twice = module(states * 64), module(states * 128)
    return once.shape == states.shape and bool((once - twice).abs().max() <= 1e-2 * once.abs().max())


def logit_transform(
    model: PreTrainedModel, decoder: nn.Module, given: Tensor, logits: Tensor
) -> tuple[Optional[Tensor], float, Optional[float]]:
    """Return the bias, the scale and the softcap that make the logits of what the decoder gives.

    Numbers are those of the configuration, so that they are exact.
    """
    weight, bias = decoder.weight, getattr(decoder, "bias", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise NotFound(f"the decoder is a {type(decoder).__name__}, which holds no matrix of weights")
    if is_same(given, logits):
        return bias, 1.0, None
    if given.shape != logits.shape:
        raise NotFound(f"the decoder gives {list(given.shape)}, and the model {list(logits.shape)} logits")
    if bias is None:
        for parameter in model.parameters():
            if parameter.shape == weight.shape[:1] and is_close(given + parameter, logits):
                return parameter, 1.0, None
    exact_given, exact_logits = given.double(), logits.double()
    found = []
    for scale, softcap in _transforms(list(_numbers(model.config)), exact_given, exact_logits):
        made = exact_given * scale
        made = made if softcap is None else softcap * torch.tanh(made / softcap)
        found.append((float((made - exact_logits).square().mean().sqrt()), scale, softcap))
    error, scale, softcap = min(found, key=lambda one: one[0])
    if error > ROUNDINGS * torch.finfo(weight.dtype).eps * max(1.0, float(exact_logits.square().mean().sqrt())):
        factor = _factor(given, logits)
        seen = "" if factor is None else f": the logits are {factor:.6g} times what it gives"
        raise NotFound(
            f"what is done to the decoder's output is neither a scale nor a softcap of the configuration{seen}"
        )
    return bias, scale, softcap


def _transforms(numbers: Sequence[float], given: Tensor, logits: Tensor) -> Iterator[tuple[float, Optional[float]]]:
    """Iterate over the scales and softcaps of a configuration that may have made the logits, the simplest first."""
    scales = {scale for number in numbers for scale in (number, 1.0 / number)}
    for softcap in (None, *numbers):
        plain, kept = logits, torch.ones_like(logits, dtype=torch.bool)
        if softcap is not None:
            if float(logits.abs().max()) > softcap * (1 + 1e-2):
                continue
            kept = logits.abs() < UNSATURATED * softcap
            plain = softcap * torch.atanh((logits / softcap).clamp(-UNSATURATED, UNSATURATED))
        yield 1.0, softcap
        if scales and kept.any():
            measured = float((plain[kept] * given[kept]).sum() / given[kept].square().sum())
            yield min(scales, key=lambda scale: abs(scale - measured)), softcap


def _numbers(config: PretrainedConfig) -> Iterator[float]:
    """Iterate over the numbers of a configuration that logits may be scaled or capped with."""
    for own in (config, config.get_text_config()):
        for name, value in vars(own).items():
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if (
                is_number
                and value > 0
                and value != 1
                and any(word in name for word in ("logit", "scal", "mult", "cap"))
            ):
                yield float(value)
