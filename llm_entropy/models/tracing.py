"""Finding the parts of any language model by watching a probe of random tokens go through it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass, field, fields, is_dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple, Optional, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PretrainedConfig, PreTrainedModel

from llm_entropy.errors import ReportedError

HeadStep = Callable[[Tensor], Tensor]

PROBE_SHAPE = (2, 7)
"""[batch, seq] of the random tokens that are watched."""
FUNCTIONS: dict[str, HeadStep] = {
    "gelu": F.gelu,
    "gelu of tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
    "tanh": torch.tanh,
}
"""What may stand between two modules of a head without being one; tried in this order."""
ROUNDINGS = 16
"""What is done once more by other operations may differ by so many roundings, as a share of the largest number."""
LEAST_SUM = 0.98
"""Rows of an attention map that add up to less leave something to sinks; half precision rounds by less."""
LEAST_REST = 2e-5
"""So does what is left beyond the rounding, where a module has weights of sinks."""
LARGEST_DENOMINATOR = 4096
"""Of a fraction that a measured factor is taken for."""
UNSATURATED = 0.9
"""Share of a softcap up to which a logit tells what was capped."""
REFUSALS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a model may raise that needs more than text, or was not made to be run."""
READER = "llm_entropy_reader"
"""Attribute of an attention module that is being read: what is called with the `AttentionInputs`."""
LOOKUPS = {F.embedding, torch.index_select, Tensor.index_select, Tensor.__getitem__}
"""Ways of taking rows of a table."""
Containers = (nn.ModuleList, nn.ModuleDict)
Lists = (*Containers, nn.Sequential)


class NotFound(Exception):  # noqa: N818 - it is an answer
    """What could not be found, in words that follow "its parts cannot be found: "."""


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


@dataclass
class _Call:
    """One call of a module."""

    name: str
    module: nn.Module
    order: int
    """Number of the call, by when it began."""
    inputs: list[Tensor]
    is_direct: bool
    """Whether the first of these is itself an argument, and not inside of one."""
    outputs: list[Tensor] = field(default_factory=list)
    end: int = -1
    """How many calls had begun when it ended."""


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
    with torch.inference_mode(), _watching(model, set(in_order or ())) as calls:
        input_ids = probe_tokens(model, PROBE_SHAPE)
        with _Lookups() as lookups, _attention_noted([model], attending):
            logits = _logits(model, input_ids)
        if not isinstance(decoder, nn.Module):
            decoder = _find_decoder(calls, logits.shape[-1])
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
        blocks = _find_blocks(model, calls, in_order)
        matrices = [own for own in model.parameters() if own.ndim == 2]
        steps = list(_between(calls, blocks[-1], last_call, matrices))
        stream = blocks[-1].outputs[0]
        final_norm = None
        if steps and isinstance(steps[0][1], nn.Module) and _is_norm(steps[0][1], stream):
            final_norm = steps[0][1]
        bias, scale, softcap = _logit_transform(model, decoder, last_call.outputs[0], logits)
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


def probe_tokens(model: PreTrainedModel, shape: tuple[int, int], seed: int = 0) -> Tensor:
    """Return random tokens [batch, seq] on the model's device; of what the model takes for padding there is none."""
    embeddings = model.get_input_embeddings()
    weight = getattr(embeddings, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise NotFound(f"its tokens go into no table of embeddings (get_input_embeddings gives {_kind(embeddings)})")
    input_ids = torch.randint(weight.shape[0], shape, generator=torch.Generator().manual_seed(seed))
    special = _special_ids(model.config, weight.shape[0])
    if special and len(special) < weight.shape[0]:
        other = next(token for token in range(weight.shape[0] - 1, -1, -1) if token not in special)
        input_ids[torch.isin(input_ids, torch.tensor(sorted(special)))] = other
    return input_ids.to(weight.device)


def _special_ids(config: PretrainedConfig, vocab_size: int) -> set[int]:
    """Return tokens that a model treats otherwise than words: padding, and what stands for images or sounds."""
    numbers = [
        value
        for own in (config, config.get_text_config())
        for name, value in vars(own).items()
        if name.endswith(("token_id", "token_index"))
    ]
    return {number for number in numbers if isinstance(number, int) and 0 <= number < vocab_size}


# --- watching ----------------------------------------------------------------------------------------------------


@contextmanager
def _watching(model: nn.Module, also: set[nn.Module]) -> Iterator[list[_Call]]:
    """Note the calls of the modules that are in no list, or items of one, with their tensors [batch, seq, ...].

    What is inside of the items is not looked at: of a large model it would take much memory.
    """
    calls: list[_Call] = []
    running: dict[nn.Module, list[_Call]] = {}

    def begin(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        inputs = list(_states((args, kwargs)))
        is_direct = any(value is given for given in inputs[:1] for value in (*args, *kwargs.values()))
        call = _Call(name, module, len(calls), inputs, is_direct)
        calls.append(call)
        running.setdefault(module, []).append(call)

    def end(module: nn.Module, args: Any, output: Any) -> None:
        call = running[module].pop()
        # Whatever is done to the output in place is not to be taken for the module's work; to the model's, nothing is.
        call.outputs = [states if module is model else states.clone() for states in _states(output)]
        call.end = len(calls)

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if module in also or _is_watched(model, name):
                before = partial(begin, name)
                hooks.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
                hooks.callback(module.register_forward_hook(end).remove)
        yield calls


class _Lookups(TorchFunctionMode):
    """Notes for how many tokens there are rows, wherever rows are taken one behind the other, a row for each token.

    That is how positions are looked up, learned ones and fixed ones. The first row may be another than row 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.limits: list[int] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in LOOKUPS:
            given = (*args, *(kwargs or {}).values())
            flat = [item for value in given for item in (value if isinstance(value, tuple) else (value,))]
            tensors = [value for value in flat if isinstance(value, Tensor)]
            table = next((value for value in tensors if value.is_floating_point() and value.ndim == 2), None)
            rows = next((value for value in tensors if not value.is_floating_point()), None)
            if table is not None and rows is not None and (first := _first_of_sequence(rows)) is not None:
                self.limits.append(table.shape[0] - first)
        return function(*args, **(kwargs or {}))


def _first_of_sequence(rows: Tensor) -> Optional[int]:
    """Return where rows begin that are taken one behind the other, the same of every sentence of the probe."""
    length = PROBE_SHAPE[1]
    if rows.dtype == torch.bool or rows.numel() % length or not rows.numel():
        return None
    sequences = rows.reshape(-1, length)
    first = int(sequences[0, 0])
    return first if bool((sequences == torch.arange(first, first + length, device=rows.device)).all()) else None


def _is_watched(model: nn.Module, name: str) -> bool:
    """Whether a module is neither a list, nor within an item of one."""
    module, is_item = model, False
    for part in name.split(".") if name else ():
        if is_item and not isinstance(module, Containers):
            return False
        is_item = is_item or isinstance(module, Containers)
        module = getattr(module, part) if not isinstance(module, nn.ModuleDict) else module[part]
    return not isinstance(module, Containers)


def _states(values: Any) -> Iterator[Tensor]:
    """Iterate over the floating-point tensors [batch, seq, ...] among what a module got or returned."""
    if isinstance(values, Tensor):
        if values.is_floating_point() and values.ndim >= 3:
            yield values
    else:
        for value in _parts_of(values):
            yield from _states(value)


def _parts_of(values: Any) -> Iterable[Any]:
    """Return what a tuple, list, dictionary or dataclass holds."""
    if isinstance(values, dict):
        return list(values.values())
    if is_dataclass(values) and not isinstance(values, type):
        return [getattr(values, own.name) for own in fields(values)]
    return values if isinstance(values, (tuple, list)) else ()


def stream_in(output: Any) -> Tensor:
    """Return the residual stream [batch, seq, hidden] in what a block returned: the first states in it."""
    return next(_states(output))


def exchanged(values: Any, old: Tensor, new: Tensor) -> Any:
    """Return what a module was given or has returned with `new` in the place of `old`; nothing is changed in place."""
    if values is old:
        return new
    if isinstance(values, dict):
        changed = copy(values)
        for name, value in values.items():
            changed[name] = new if value is old else value
        return changed
    if is_dataclass(values) and not isinstance(values, type):
        return replace(values, **{own.name: new for own in fields(values) if getattr(values, own.name) is old})
    items = [new if item is old else item for item in values]
    return type(values)(*items) if hasattr(values, "_fields") else tuple(items) if isinstance(values, tuple) else items


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and torch.equal(one, other))


def _tolerance(of: Tensor) -> float:
    return ROUNDINGS * torch.finfo(of.dtype).eps * max(1e-30, float(of.abs().max()))


def _close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and float((one - other).abs().max()) <= _tolerance(other)


# --- the blocks --------------------------------------------------------------------------------------------------


def _find_blocks(model: nn.Module, calls: Sequence[_Call], in_order: Optional[Sequence[nn.Module]]) -> list[_Call]:
    """Return the calls of the blocks: the longest chain of items of a list, each given what the one before returned."""
    if in_order is not None:
        found = [call for call in calls if call.module in set(in_order)]
        if [call.module for call in found] != list(in_order):
            raise NotFound(f"{len(found)} calls of blocks were seen, and {len(in_order)} expected")
        return found
    lists: dict[str, list[_Call]] = {}
    for call in calls:
        container = _list_of(model, call.name)
        if container is not None and call.inputs and call.outputs:
            lists.setdefault(container, []).append(call)
    chains = [chain for items in lists.values() for chain in _chains(items)]
    if not chains:
        raise NotFound("no list of modules was run of which each takes and returns the residual stream")
    best = max(chains, key=lambda chain: (len(chain), sum(p.numel() for p in chain[0].module.parameters())))
    shape = tuple(best[0].outputs[0].shape)
    if shape[:2] != PROBE_SHAPE or len(shape) != 3:
        raise NotFound(f"its blocks hand on {list(shape)} for {list(PROBE_SHAPE)} tokens: {_other_shape(shape)}")
    if not all(call.is_direct for call in best):
        raise NotFound(f"its blocks take the residual stream inside of another argument ({best[0].name}), not as one")
    container = cast(str, _list_of(model, best[0].name))
    if len(best) < len(lists[container]):
        before = best[0] if best[0] is not lists[container][0] else lists[container][len(best)]
        raise NotFound(
            f"of {len(lists[container])} calls in {container} only {len(best)} in a row are given what the one before "
            f"returned (not {before.name}): something else is done to the residual stream between them"
        )
    return best


def _other_shape(shape: tuple[int, ...]) -> str:
    """Say what states of this shape are, which are not those of each token."""
    if shape[:2] == PROBE_SHAPE:
        return "several residual streams side by side, so that no layer has one state to read or to steer"
    if len(shape) == 3 and shape[0] == PROBE_SHAPE[0]:
        return "it adds positions of its own, which are not to be told from those of the tokens"
    return "batch and position are not its first two dimensions, in which states are read and steered"


def _chains(items: list[_Call]) -> Iterator[list[_Call]]:
    chain = items[:1]
    for call in items[1:]:
        if _same(call.inputs[0], chain[-1].outputs[0]):
            chain.append(call)
        else:
            yield chain
            chain = [call]
    yield chain


def _list_of(model: nn.Module, name: str) -> Optional[str]:
    """Return the list that holds a module, the outermost of lists that hold nothing but lists; None: it is in none."""
    path, _, _ = name.rpartition(".")
    if not name or not isinstance(model.get_submodule(path), Lists):
        return None
    while path:
        outer, _, _ = path.rpartition(".")
        parent = model.get_submodule(outer)
        if not isinstance(parent, Lists) or not all(isinstance(own, Lists) for own in parent.children()):
            break
        path = outer
    return path


def _items(own: nn.Module) -> Iterator[nn.Module]:
    """Iterate over what a list holds; of lists of lists over what these hold."""
    inner = list(own.children())
    are_lists = bool(inner) and all(isinstance(item, Lists) for item in inner)
    for item in inner:
        yield from _items(item) if are_lists else (item,)


def outline(model: nn.Module, num_blocks: int) -> tuple[str, tuple[nn.Module, ...]]:
    """Return the name and the items of the list that is most likely that of the blocks, without running the model.

    Args:
        model: With its head.
        num_blocks: How many there should be.

    Returns:
        An empty name and nothing of a model that has no lists.
    """
    lists = [
        (name, tuple(_items(own)))
        for name, own in model.named_modules()
        if _is_list(own) and _is_outermost(model, name)
    ]

    def size(items: tuple[nn.Module, ...]) -> tuple[bool, int]:
        return len(items) == num_blocks, sum(weight.numel() for item in items for weight in item.parameters())

    return max(lists, key=lambda one: size(one[1]), default=("", ()))


def _is_outermost(model: nn.Module, name: str) -> bool:
    parents = [model.get_submodule(name[:place]) for place, letter in enumerate(name) if letter == "."]
    return not any(_is_list(parent) for parent in parents)


def _is_list(own: nn.Module) -> bool:
    """Whether a module holds modules of one kind, as a list of blocks does, and not those of a model by their names."""
    kinds = {type(item) for item in own.children()}
    return isinstance(own, nn.ModuleList) or (isinstance(own, Lists) and len(kinds) == 1)


# --- the attention -----------------------------------------------------------------------------------------------


class Attention(NamedTuple):
    """How the attention of a model can be read."""

    modules: tuple[Optional[nn.Module], ...]
    """That of each block that has one."""
    heads: tuple[int, ...]
    """Of each block; 0 of one that has none."""
    if_asked: bool
    """Whether maps are returned only where `output_attentions` is said."""
    has_sinks: bool
    """Whether rows of maps add up to less than 1: the rest goes to what is no token."""
    hides_sinks: bool
    """Whether modules have weights of sinks, and rows of their maps add up to 1 all the same."""


@dataclass
class Attending:
    """What was seen of a module that attends."""

    num_heads: int
    least: float = 1.0
    """The least sum of a row of its map."""
    rounding: float = 0.0
    """By how much such a sum may miss 1 where there are no sinks."""


def find_attention(
    model: PreTrainedModel, blocks: Sequence[nn.Module], attending: Mapping[nn.Module, Attending]
) -> Attention:
    """Return the attention module of each block that has one.

    Of a model that was loaded to read its attention, they are those that call transformers' interface; of one that
    attends eagerly, those that return maps [batch, head, seq, seq]. Any other shows none.

    Args:
        model: With its head.
        blocks: Of the model.
        attending: The modules that were seen to attend while it was traced.
    """
    inside = {own for block in blocks for own in block.modules()}
    found = {module: own for module, own in attending.items() if module in inside}
    options: dict[str, bool] = {}
    is_eager = model.config._attn_implementation == "eager"
    if not found and is_eager and _takes(model, "output_attentions"):
        options, input_ids = {"output_attentions": True}, probe_tokens(model, PROBE_SHAPE)
        with torch.inference_mode(), _attention_noted(blocks, found):
            model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), **options)
    attentions = tuple(next((own for own in found if own in set(block.modules())), None) for block in blocks)
    modules = [module for module in attentions if module is not None]
    holding = [module for module in modules if any("sink" in name.lower() for name, _ in module.named_parameters())]
    has_sinks = any(found[module].least < LEAST_SUM for module in modules)
    has_sinks = has_sinks or any(1 - found[module].least > found[module].rounding for module in holding)
    return Attention(
        modules=attentions,
        heads=tuple(0 if module is None else found[module].num_heads for module in attentions),
        if_asked=bool(options) and bool(found),
        has_sinks=has_sinks,
        hides_sinks=not has_sinks and bool(holding),
    )


def _takes(model: PreTrainedModel, name: str) -> bool:
    """Whether a model's `forward` takes an argument of this name, or any."""
    parameters = inspect.signature(model.forward).parameters
    return name in parameters or any(own.kind is inspect.Parameter.VAR_KEYWORD for own in parameters.values())


@contextmanager
def _attention_noted(blocks: Sequence[nn.Module], found: dict[nn.Module, Attending]) -> Iterator[None]:
    """Note in `found` the modules in blocks that attend in a way that can be read."""

    def note_inputs(module: nn.Module, inputs: Any) -> None:
        found.setdefault(module, Attending(inputs.query.shape[1]))

    def note_map(module: nn.Module, args: Any, output: Any) -> None:
        weights = _map_in(output)
        if weights is not None and not any(own in found for own in module.modules()):
            rounding = max(LEAST_REST, 2 * torch.finfo(weights.dtype).eps)
            found[module] = Attending(weights.shape[1], float(weights.float().sum(dim=-1).min()), rounding)

    with ExitStack() as undo:
        for module in {own for block in blocks for own in block.modules()}:
            setattr(module, READER, partial(note_inputs, module))
            undo.callback(delattr, module, READER)
            undo.callback(module.register_forward_hook(note_map).remove)
        yield


def _map_in(output: Any) -> Optional[Tensor]:
    """Return the attention map [batch, head, seq, seq] that a module returns beside what it attended to, if it does."""
    values = [value for value in output if isinstance(value, Tensor)] if isinstance(output, (tuple, list)) else []
    weights = next((value for value in values if value.ndim == 4), None)
    if (
        weights is None
        or all(value.shape[:2] != PROBE_SHAPE for value in values)
        or weights.shape[::2] != (PROBE_SHAPE[0], PROBE_SHAPE[1])
        or weights.shape[3] != PROBE_SHAPE[1]
    ):
        return None
    sums = weights.float().sum(dim=-1)
    return weights if float(weights.min()) >= 0 and float(sums.max()) <= 2 - LEAST_SUM else None


# --- from the last block to the decoder --------------------------------------------------------------------------


def _find_decoder(calls: Sequence[_Call], vocab_size: int) -> nn.Module:
    """Return the last linear layer that gives as many numbers as there are logits."""
    for call in reversed(calls):
        if isinstance(call.module, nn.Linear) and call.module.out_features == vocab_size:
            return call.module
    raise NotFound("there is no decoder: get_output_embeddings gives none, and no linear layer makes the logits")


def _between(
    calls: Sequence[_Call], last: _Call, decoder: _Call, matrices: Sequence[Tensor]
) -> Iterator[tuple[str, HeadStep]]:
    """Iterate over what is done to the last block's output until it goes into the decoder."""
    current, place, goal = last.outputs[0], last.end, decoder.inputs[0]
    later = [call for call in calls if call.order >= last.end and not call.order <= decoder.order < call.end]
    where = last.name
    while not _same(current, goal):
        step = next((call for call in later if call.order >= place and _is_given(call, current)), None)
        if step is not None:
            if not _same(step.outputs[0], current):
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
        current = next(states for states in [*following, goal] if _close(function(current), states))


def _is_given(call: _Call, states: Tensor) -> bool:
    return bool(call.inputs) and bool(call.outputs) and _same(call.inputs[0], states)


def _is_beside(call: _Call, states: Tensor) -> bool:
    return bool(call.outputs) and any(_same(given, states) for given in call.inputs[1:])


def _check_alone(step: _Call, states: Tensor) -> None:
    """Refuse a module of the head that needs more than the states which it is handed.

    Raises:
        NotFound: It does.
    """
    try:
        again = next(_states(step.module(states)), None)
    except REFUSALS:
        again = None
    if again is None or not _close(again, step.outputs[0]):
        raise NotFound(_mixes(step, "the last block"))


def _mixes(step: _Call, where: str) -> str:
    return (
        f"{step.name} ({_kind(step.module)}), on the way to the decoder, makes its numbers of more than what {where} "
        "hands on, so that no layer alone gives the logits"
    )


def _function(
    current: Tensor, following: Sequence[Tensor], where: str, matrices: Sequence[Tensor]
) -> tuple[str, HeadStep]:
    """Return the function that turns what was handed on into what the next module was given."""
    for states in following:
        for name, function in FUNCTIONS.items():
            if _close(function(current), states):
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
            if matrix.shape == shape and matrix.dtype == current.dtype and _close(product(current), states):
                return f"times a matrix {list(shape)}", product
    return None


def _factor(current: Tensor, states: Tensor) -> Optional[float]:
    """Return the number by which one is multiplied to give the other; a simple fraction where it is as good as one."""
    if current.shape != states.shape:
        return None
    given, wanted = current.double(), states.double()
    measured = float((given * wanted).sum() / given.square().sum())
    simple = float(Fraction(measured).limit_denominator(LARGEST_DENOMINATOR))
    factor = simple if abs(simple - measured) <= _tolerance(states) / float(given.abs().max()) else measured
    return factor if _close(current * factor, states) else None


def _is_norm(module: nn.Module, states: Tensor) -> bool:
    """Whether a module only normalises: it has no matrix, and twice the stream gives the same."""
    if any(weight.ndim > 1 for weight in module.parameters()):
        return False
    once, twice = module(states * 64), module(states * 128)
    return once.shape == states.shape and bool((once - twice).abs().max() <= 1e-2 * once.abs().max())


# --- from the decoder to the logits ------------------------------------------------------------------------------


def _logit_transform(
    model: PreTrainedModel, decoder: nn.Module, given: Tensor, logits: Tensor
) -> tuple[Optional[Tensor], float, Optional[float]]:
    """Return the bias, the scale and the softcap that make the logits of what the decoder gives.

    Numbers are those of the configuration, so that they are exact.
    """
    weight, bias = decoder.weight, getattr(decoder, "bias", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise NotFound(f"the decoder is a {type(decoder).__name__}, which holds no matrix of weights")
    if _same(given, logits):
        return bias, 1.0, None
    if given.shape != logits.shape:
        raise NotFound(f"the decoder gives {list(given.shape)}, and the model {list(logits.shape)} logits")
    if bias is None:
        for parameter in model.parameters():
            if parameter.shape == weight.shape[:1] and _close(given + parameter, logits):
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


def _kind(module: Any) -> str:
    return type(module).__name__


def _name_of(model: nn.Module, module: Optional[nn.Module]) -> str:
    return next((name for name, own in model.named_modules() if own is module), "none")
