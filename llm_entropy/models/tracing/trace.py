"""Finding the parts of any language model by watching a probe of random tokens go through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llm_entropy.errors import ReportedError
from llm_entropy.models.tracing.attending import Attending, attention_noted
from llm_entropy.models.tracing.blocks import find_blocks
from llm_entropy.models.tracing.head import HeadStep, find_decoder, is_norm, logit_transform, steps_between
from llm_entropy.models.tracing.not_found import REFUSALS, NotFound
from llm_entropy.models.tracing.probe import PROBE_SHAPE, probe_tokens
from llm_entropy.models.tracing.watching import Lookups, watching


@dataclass
class Parts:
    """What a trace has found."""

    blocks: tuple[nn.Module, ...]
    """In the order in which they run; a shared one stands here more than once."""
    final_norm: Optional[nn.Module]
    head: tuple[HeadStep, ...]
    """The steps between the final norm and the decoder."""
    decoder: nn.Linear
    bias: Optional[Tensor]
    """[vocab], added to what the decoder's weights give."""
    scale: float
    softcap: Optional[float]
    hidden_size: int
    most_tokens: Optional[int]
    """For how many tokens its table of positions has rows, if it looks up one."""
    words: str
    """What was found, for a message."""


def trace(
    model: PreTrainedModel, in_order: Optional[Sequence[nn.Module]], attending: dict[nn.Module, Attending]
) -> Parts:
    """Find the parts of a model.

    Args:
        model: With its head, in evaluation mode.
        in_order: Its blocks, if they are known.
        attending: Is filled with the modules that were seen to attend, for `find_attention`.

    Raises:
        NotFound: They cannot be found.
    """
    decoder = model.get_output_embeddings()
    with torch.inference_mode(), watching(model, set(in_order or ())) as calls:
        input_ids = probe_tokens(model, PROBE_SHAPE)
        with Lookups() as lookups, attention_noted([model], attending):
            logits = _logits(model, input_ids)
        if not isinstance(decoder, nn.Module):
            decoder = find_decoder(calls, logits.shape[-1])
        last_call = next((call for call in reversed(calls) if call.module is decoder), None)
        if last_call is None or not last_call.inputs:
            raise NotFound(
                f"the decoder ({_name_of(model, decoder)}) is not run as a module: what goes into it is not seen"
            )
        finished = sorted((call for call in calls if call.outputs), key=lambda call: (call.end, -call.order))
        damaged = next((call for call in finished if call.outputs[0].isnan().any()), None)
        if damaged is not None:
            is_half = next(model.parameters()).dtype == torch.float16
            raise ReportedError(
                f"{type(model).__name__}: {damaged.name} ({type(damaged.module).__name__}) gives numbers that are not "
                + ("finite in float16; give dtype bfloat16 or float32" if is_half else "finite; get its weights again")
            )
        blocks = find_blocks(model, calls, in_order)
        matrices = [own for own in model.parameters() if own.ndim == 2]
        steps = list(steps_between(calls, blocks[-1], last_call, matrices))
        stream = blocks[-1].outputs[0]
        final_norm = None
        if steps and isinstance(steps[0][1], nn.Module) and is_norm(steps[0][1], stream):
            final_norm = steps[0][1]
        bias, scale, softcap = logit_transform(model, decoder, last_call.outputs[0], logits)
    names = [name for name, _ in steps]
    transforms = [f"logits times {scale:.6g}"] if scale != 1.0 else []
    transforms += [f"a softcap of {softcap:.6g}"] if softcap is not None else []
    first = blocks[0]
    words = ", then ".join(
        [f"{len(blocks)} blocks from {first.name} ({type(first.module).__name__})", *names, last_call.name, *transforms]
    )
    return Parts(
        blocks=tuple(call.module for call in blocks),
        final_norm=final_norm,
        head=tuple(step for _, step in steps[final_norm is not None :]),
        decoder=cast(nn.Linear, decoder),
        bias=bias,
        scale=scale,
        softcap=softcap,
        hidden_size=stream.shape[-1],
        most_tokens=min(lookups.limits, default=None),
        words=words,
    )


def _logits(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    try:
        logits: Tensor = model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).logits
    except REFUSALS as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise NotFound(f"it cannot be run on tokens and a mask alone ({reason})") from error
    return logits


def _name_of(model: nn.Module, module: Optional[nn.Module]) -> str:
    return next((name for name, own in model.named_modules() if own is module), "none")
