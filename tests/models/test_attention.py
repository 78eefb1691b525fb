"""Attention entropy without maps: against the maps themselves, in every family, and in memory that does not grow."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
from devices import DEVICE
from dispatch import LargestTensor
from tiny_models import FAMILIES, is_eager_only, make_model
from torch import Tensor, nn

from llm_entropy.models.attention import attended, check_attention, read_attention_entropy, rows, widened
from llm_entropy.models.attention.interface import EAGER, READABLE, AttentionInputs, attention_implementation
from llm_entropy.models.attention.widened import in_float32
from llm_entropy.models.families import ModelView, run_base, view_model

THROUGH_THE_INTERFACE = [name for name in FAMILIES if not is_eager_only(name)]
LENGTHS = (60, 31, 1, 44, 9)
"""Of the sentences of a batch: longer than every window, and of one token."""
WAYS = {"few": (10**9, 1), "scores": (-1, 10**9), "fused": (-1, 1)}
"""Each way of computing: up to how many rows are few, and from which length on the kernel is fused."""


@cache
def view_of(family: str) -> ModelView:
    return view_model(make_model(family, attention=READABLE))


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let all rows be computed in one way."""
    few, fused_length = WAYS[request.param]
    monkeypatch.setattr(rows, "most_few", lambda length: few)
    monkeypatch.setattr(rows, "FUSED_LENGTH", fused_length)
    return request.param


def sentences(lengths: tuple[int, ...] = LENGTHS, padded_to: int = 0) -> tuple[Tensor, Tensor]:
    """Return token ids and the mask, padded on the right; a sentence's tokens depend on its length alone."""
    width = max(*lengths, padded_to)
    input_ids = torch.full((len(lengths), width), 9)
    for row, length in zip(input_ids, lengths, strict=True):
        row[:length] = torch.randint(3, 140, (length,), generator=torch.Generator().manual_seed(length))
    return input_ids, (torch.arange(width) < torch.tensor(lengths)[:, None]).long()


@torch.inference_mode()
def read(view: ModelView, input_ids: Tensor, mask: Tensor, where: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Return the entropies [block, record, head] at all real tokens, or where it is said."""
    where = mask.nonzero(as_tuple=True) if where is None else where
    view.model.to(DEVICE)
    with read_attention_entropy(view, *(tensor.to(DEVICE) for tensor in where)) as entropies:
        run_base(view, input_ids.to(DEVICE), mask.to(DEVICE))
    return entropies.stack().cpu()


def _keep_map(maps: list[Tensor], module: nn.Module, args: Any, output: tuple[Tensor, Tensor]) -> None:
    maps.append(output[1])


@cache
def truth(family: str, lengths: tuple[int, ...] = LENGTHS) -> Tensor:
    """Return the entropies [block, record, head] of the maps, sentence by sentence."""
    return torch.cat([-torch.xlogy(a, a).sum(-1) for a in maps_of(family, lengths)], dim=2).transpose(1, 2)


@cache
def maps_of(family: str, lengths: tuple[int, ...] = LENGTHS) -> list[Tensor]:
    """Return the maps [block, head, seq, seq] of each sentence, of the same model in float64."""
    view = view_model(make_model(family).double())
    found = []
    for length in lengths:
        maps: list[Tensor] = []
        keep = partial(_keep_map, maps)
        handles = [module.register_forward_hook(keep) for module in set(view.attentions)]
        with torch.no_grad():
            run_base(view, *sentences((length,)))
        for handle in handles:
            handle.remove()
        assert len(maps) == len(view.blocks)
        found.append(torch.stack([a[0] for a in maps]))
    return found


def assert_close(found: Tensor, expected: Tensor, atol: float = 2e-5) -> None:
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-5, atol=atol)


# --- every family --------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("family", THROUGH_THE_INTERFACE)
def test_entropies_of_padded_batches_are_those_of_float64_maps(family: str, way: str) -> None:
    assert_close(read(view_of(family), *sentences()), truth(family))


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in THROUGH_THE_INTERFACE])
def test_families_outside_of_the_interface_show_their_maps(family: str) -> None:
    with pytest.raises(ValueError, match="does not support an attention implementation"):
        make_model(family, attention=READABLE)
    view = view_model(make_model(family))
    check_attention(view, family)
    assert_close(read(view, *sentences()), truth(family))


@torch.inference_mode()
@pytest.mark.parametrize(
    ("family", "eager"), [(name, False) for name in THROUGH_THE_INTERFACE] + [(name, True) for name in FAMILIES]
)
def test_the_tokens_that_a_row_may_see_are_those_that_have_a_weight_in_its_map(family: str, eager: bool) -> None:
    view = view_model(make_model(family)) if eager else view_of(family)
    expected = torch.cat([(maps > 0).sum(-1) for maps in maps_of(family)], dim=2).transpose(1, 2)
    for padded_to, lengths in ((0, LENGTHS), (61, LENGTHS), (0, LENGTHS[:1])):
        input_ids, mask = sentences(lengths, padded_to)
        with read_attention_entropy(view, *mask.nonzero(as_tuple=True), counts=True) as entropies:
            run_base(view, input_ids, mask)
        counts = entropies.stack_attended()
        assert counts is not None
        num_tokens = sum(lengths)
        assert torch.equal(counts.expand(-1, -1, expected.shape[2]), expected[:, :num_tokens]), (padded_to, lengths)
    assert len(set(expected[0, :, 0].tolist())) > 3, "rows that all see the same prove little"


def test_what_is_not_counted_is_not_there() -> None:
    input_ids, mask = sentences()
    with torch.no_grad(), read_attention_entropy(view_of("gpt2"), *mask.nonzero(as_tuple=True)) as entropies:
        run_base(view_of("gpt2"), input_ids, mask)
    assert entropies.stack_attended() is None


@pytest.mark.parametrize("tile", [1, 2**22])
def test_every_mask_is_counted(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attended, "TILE", tile)
    for name, (query, _, mask, is_causal, _) in masks(make_inputs(7)).items():
        batch, _, length, _ = query.shape
        row, position = torch.ones(batch, length).nonzero(as_tuple=True)
        steps = torch.arange(length)
        seen = (steps <= steps[:, None] if is_causal else torch.ones(length, length, dtype=torch.bool))[None, None]
        if mask is not None:
            seen = mask.expand(batch, -1, -1, -1)
            seen = seen if seen.dtype == torch.bool else seen > -torch.inf
        expected = seen.expand(batch, -1, length, length)[row, :, position].sum(-1)
        count = attended.AttendedTokens(row, position)
        assert torch.equal(count(mask, length, is_causal=is_causal), expected), name
        own = (steps[:, None] - steps < 3).expand(1, 1, -1, -1)
        both = (seen & own).expand(batch, -1, length, length)[row, :, position].sum(-1)
        if mask is not None or not is_causal:
            assert torch.equal(count(mask, length, is_causal=is_causal, own_mask=own), both), name


@pytest.mark.gpu
@pytest.mark.parametrize("family", THROUGH_THE_INTERFACE)
def test_every_family_proves_itself_and_is_left_as_it_was(family: str) -> None:
    view = view_of(family)
    view.model.to(DEVICE)
    check_attention(view, family)
    assert attention_implementation(view.model) == READABLE
    assert not any("llm_entropy_reader" in vars(module) for module in view.model.modules())


@pytest.mark.parametrize("family", ["gpt2", "mistral", "bert", "modernbert"])
def test_without_a_reader_the_model_computes_what_sdpa_does(family: str) -> None:
    input_ids, mask = sentences()
    plain = make_model(family, attention="sdpa")
    with torch.no_grad():
        expected = plain(input_ids=input_ids, attention_mask=mask).logits
        assert torch.equal(view_of(family).model(input_ids=input_ids, attention_mask=mask).logits, expected)
        with read_attention_entropy(view_of(family), *mask.nonzero(as_tuple=True)):
            read_too = view_of(family).model(input_ids=input_ids, attention_mask=mask).logits
    assert torch.equal(read_too, expected)


def test_a_reader_sees_its_own_model_alone() -> None:
    ours, other = view_of("gpt2"), view_model(make_model("gpt2", seed=1, attention=READABLE))
    batch = sentences()
    where = batch[1].nonzero(as_tuple=True)
    with torch.no_grad(), read_attention_entropy(ours, *where) as entropies:
        run_base(other, *batch)
        run_base(ours, *batch)
    assert torch.equal(entropies.stack(), read(ours, *batch))


def test_a_model_that_was_loaded_for_no_attention_is_not_read() -> None:
    view = view_model(make_model("gpt2", attention="sdpa"))
    with pytest.raises(AssertionError, match="'sdpa'"):
        read(view, *sentences())


# --- what is refused -----------------------------------------------------------------------------------------------


def test_a_family_that_leaves_the_interface_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    view = view_model(make_model("llama", attention=READABLE))
    passes_by = view.attentions[1]
    monkeypatch.setattr(passes_by, "forward", lambda hidden_states, *args, **options: (hidden_states, None))
    with pytest.raises(ValueError, match=r"read of 3 blocks, 4 of the model have one; leave attention_entropy"):
        check_attention(view, "mine")


def test_a_family_that_does_more_than_sdpa_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    view = view_model(make_model("llama", attention=READABLE))
    monkeypatch.setattr(view.attentions[2], "scaling", 0.1)
    forward = view.attentions[2].forward

    def with_sharper_maps(*args: Any, **options: Any) -> Any:
        eager = attention_implementation(view.model) == EAGER
        monkeypatch.setattr(view.attentions[2], "scaling", 0.2 if eager else 0.1)
        return forward(*args, **options)

    monkeypatch.setattr(view.attentions[2], "forward", with_sharper_maps)
    with pytest.raises(ValueError, match="misses that of the model's own eager attention by"):
        check_attention(view, "mine")
    assert attention_implementation(view.model) == READABLE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["gpt2", "llama", "granite", "bert"])
def test_a_scale_that_is_off_by_one_percent_is_refused_in_every_precision(
    family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(3):
        view = view_model(make_model(family, seed, READABLE).to(dtype))
        check_attention(view, "right")
        for wrong in (0.99, 1.01):

            class Scaled(rows.RowEntropies):
                def __call__(self, inputs: AttentionInputs, wrong: float = wrong) -> Tensor:
                    return super().__call__(inputs._replace(scale=wrong * inputs.scale))

            with monkeypatch.context() as patch:
                patch.setattr("llm_entropy.models.attention.RowEntropies", Scaled)
                with pytest.raises(ValueError, match="misses that of the model's own eager attention by"):
                    check_attention(view, "mine")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "bert", "albert", "modernbert"])
def test_a_widened_model_computes_as_a_copy_in_float32_and_is_left_as_it_was(
    family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(widened, "ROWS", 7)  # the last rows of a matrix are fewer
    model = make_model(family, attention="sdpa").to(dtype)
    before = {name: (weight, weight.clone()) for name, weight in model.named_parameters(remove_duplicate=False)}
    input_ids, mask = sentences()
    with torch.no_grad(), in_float32(model):
        seen = model(input_ids=input_ids, attention_mask=mask).logits
    with torch.no_grad():
        expected = make_model(family, attention="sdpa").to(dtype).float()(input_ids=input_ids, attention_mask=mask)
    assert seen.dtype == torch.float32
    torch.testing.assert_close(seen[mask.bool()], expected.logits[mask.bool()], rtol=1e-5, atol=1e-5)
    for name, weight in model.named_parameters(remove_duplicate=False):
        assert weight is before[name][0]
        assert torch.equal(weight, before[name][1])
    left = [vars(module) for module in model.modules()]
    assert not any(own["_forward_hooks"] or own["_forward_pre_hooks"] or "forward" in own for own in left)


def test_a_model_that_fails_while_it_is_widened_gets_its_weights_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("gpt2", attention="sdpa").to(torch.bfloat16)
    norm = model.transformer.h[1].ln_1

    def fail(states: Tensor) -> Tensor:
        assert norm.weight.dtype == torch.float32
        raise RuntimeError("in the middle")

    monkeypatch.setattr(norm, "forward", fail)
    with pytest.raises(RuntimeError, match="in the middle"), in_float32(model):
        model(input_ids=torch.tensor([[1, 2]]))
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


# --- batches -------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["gpt2", "mistral", "bert", "modernbert", "albert"])
def test_neither_padding_nor_the_batch_nor_the_number_of_records_changes_a_record(family: str, way: str) -> None:
    view = view_of(family)
    together = read(view, *sentences())
    one_by_one = torch.cat([read(view, *sentences((length,))) for length in LENGTHS], dim=1)
    padded = read(view, *sentences(padded_to=63))
    input_ids, mask = sentences()
    where = mask.nonzero(as_tuple=True)
    some = torch.arange(len(where[0])).flip(0)[::7]
    fewer = read(view, input_ids, mask, (where[0][some], where[1][some]))
    for found, expected in ((one_by_one, together), (padded, together), (fewer, together[:, some])):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_no_record_is_no_entropy() -> None:
    nothing = torch.zeros(0, dtype=torch.long)
    assert read(view_of("gpt2"), *sentences(), (nothing, nothing)).shape == (3, 0, 4)


@pytest.mark.gpu
def test_the_first_token_of_a_causal_model_sees_itself_alone(way: str) -> None:
    where = torch.arange(len(LENGTHS)), torch.zeros(len(LENGTHS), dtype=torch.long)
    assert read(view_of("gpt2"), *sentences(), where).abs().max() <= 1e-5


# --- the ways, on their own ----------------------------------------------------------------------------------------


def make_inputs(
    length: int = 70, key_heads: int = 2, batch: int = 3, offset: float = 0.0, dtype: torch.dtype = torch.float32
) -> AttentionInputs:
    generator = torch.Generator().manual_seed(length)
    query = torch.randn(batch, 4, length, 16, generator=generator)
    key = 1.5 * torch.randn(batch, key_heads, length, 16, generator=generator)
    return AttentionInputs(query.to(dtype), (key + offset).to(dtype), None, False, 0.3)


def on_device(inputs: AttentionInputs) -> AttentionInputs:
    query, key, mask, *others = inputs
    return AttentionInputs(query.to(DEVICE), key.to(DEVICE), None if mask is None else mask.to(DEVICE), *others)


def exact(inputs: AttentionInputs) -> Tensor:
    """Return the entropies [batch, head, seq] of float64 maps, padding rows that see nothing as NaN."""
    query, key, mask, is_causal, scale = inputs
    scores = scale * query.double() @ key.double().repeat_interleave(query.shape[1] // key.shape[1], 1).mT
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    maps = scores.softmax(-1)
    return -torch.xlogy(maps, maps).sum(-1)


def masks(inputs: AttentionInputs) -> dict[str, AttentionInputs]:
    """Return the same queries and keys under every kind of mask."""
    batch, heads, length, _ = inputs.query.shape
    steps = torch.arange(length)
    distance = steps[:, None] - steps
    real = steps < torch.tensor([length, length - 20, 1])[:batch, None, None, None]
    nothing = torch.ones(batch, 1, length, length, dtype=torch.bool)
    slopes = torch.tensor([0.5, 0.25, 0.1, 0.01])[:heads, None, None]
    bias = torch.where(distance >= 0, -slopes * distance, -torch.inf)
    return {
        "none": inputs,
        "causal": inputs._replace(is_causal=True),
        "causal and padding": inputs._replace(mask=real & (distance >= 0) & nothing),
        "a window": inputs._replace(mask=real & (distance >= 0) & (distance < 6) & nothing),
        "padding": inputs._replace(mask=real & nothing),
        "both sides, with padding rows that see nothing": inputs._replace(mask=real & (distance.abs() < 6) & nothing),
        "the same for every sentence": inputs._replace(mask=(distance.abs() < 9)[None, None]),
        "added to the scores": inputs._replace(mask=bias.expand(batch, -1, -1, -1)),
    }


@pytest.mark.gpu
@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 7, 70])
@pytest.mark.parametrize("tile", [1, 2**12, 2**20])
def test_every_mask_gives_the_entropies_of_maps(
    length: int, key_heads: int, tile: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "TILE", tile)
    for name, inputs in masks(make_inputs(length, key_heads)).items():
        expected = exact(inputs)
        row, position = expected[:, 0].isfinite().nonzero(as_tuple=True)
        found = rows.RowEntropies(row.to(DEVICE), position.to(DEVICE))(on_device(inputs)).cpu()
        assert found.shape == (len(row), 4), name
        assert_close(found, expected[row, :, position])


@pytest.mark.gpu
def test_keys_that_have_much_in_common_cost_no_digits() -> None:
    inputs = make_inputs(offset=20.0)
    assert_close(rows.all_fused(on_device(inputs)).cpu(), exact(inputs))


def of_maps(inputs: AttentionInputs) -> Tensor:
    """Return what eager attention in the inputs' own type would show, [batch, head, seq]."""
    query, key, mask, is_causal, scale = inputs
    scores = (query @ key.mT) * scale
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return torch.special.entr(scores.softmax(-1, dtype=torch.float32).to(inputs.query.dtype).float()).sum(-1)


def fused_on_device(inputs: AttentionInputs) -> Tensor:
    return rows.all_fused(on_device(inputs)).cpu()


def errors_of(inputs: AttentionInputs, compute: Callable[[AttentionInputs], Tensor]) -> Tensor:
    expected = exact(inputs)
    return (compute(inputs) - expected)[expected.isfinite()].abs()


@pytest.mark.parametrize("offset", [0.0, 20.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_costs_the_entropies_nothing_on_a_cpu(dtype: torch.dtype, offset: float) -> None:
    for name, inputs in masks(make_inputs(256, 4, dtype=dtype, offset=offset)).items():
        ways = [rows.all_from_scores]
        if inputs.mask is None or inputs.mask.dtype == torch.bool:
            ways.append(rows.all_fused)
        for compute in ways:
            assert errors_of(inputs, compute).max() < 5e-5, f"{name}, {compute.__name__}"


@pytest.mark.gpu
@pytest.mark.parametrize("offset", [0.0, 20.0])
def test_a_kernel_in_float16_is_no_worse_than_maps_in_bfloat16(offset: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a GPU computes it."""
    monkeypatch.setattr(rows, "_fused_dtype", lambda device_type, dtype: torch.float16)
    for name, inputs in masks(make_inputs(256, 4, dtype=torch.bfloat16, offset=offset)).items():
        if inputs.mask is not None and inputs.mask.dtype != torch.bool:
            continue
        error, eager = errors_of(inputs, fused_on_device), errors_of(inputs, of_maps)
        assert error.mean() <= eager.mean(), f"{name}: {error.mean()}, eager {eager.mean()}"
        assert error.max() <= eager.max(), f"{name}: {error.max()}, eager {eager.max()}"


@pytest.mark.parametrize("broken", ["absent", "refusing", "wrong", "a scale off by one percent"])
def test_a_fused_kernel_that_does_not_prove_itself_is_not_used(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows._fused_is_right.cache_clear()
    right = rows._fused_attention

    def kernel(query: Tensor, key: Tensor, value: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        if broken == "absent":
            raise AttributeError("'_OpNamespace' 'aten' object has no attribute")
        if broken == "refusing":
            raise RuntimeError("no kernel for this type")
        if broken == "a scale off by one percent":
            return right(query, key, value, *args[:2], 1.01 * args[2])
        return value, query.sum(-1)

    monkeypatch.setattr(rows, "_fused_attention", kernel)
    for dtype in rows.FUSIBLE:
        assert not rows._fused_is_right(torch.device("cpu"), dtype, 16)
    inputs = make_inputs()
    row, position = torch.ones(3, 70).nonzero(as_tuple=True)
    try:
        assert_close(rows.RowEntropies(row, position)(inputs), exact(inputs)[row, :, position])
    finally:
        rows._fused_is_right.cache_clear()


@pytest.mark.gpu
def test_the_fused_kernel_proves_itself_here() -> None:
    for dtype in rows.FUSIBLE:
        for width in (8, 12, 64, 128):
            assert rows._fused_is_right(DEVICE, dtype, width), f"{dtype} {width}"


# --- memory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize(("batch", "length"), [(40, 64), (10, 256), (2, 1024)])
def test_no_tensor_grows_with_heads_and_the_square_of_the_length(
    batch: int, length: int, is_masked: bool, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "TILE", 2**13)
    inputs = make_inputs(length, batch=batch)._replace(is_causal=True)
    if is_masked:
        window = torch.ones(length, length, dtype=torch.bool).tril().triu(-30)
        inputs = inputs._replace(mask=window.repeat(batch, 1, 1, 1), is_causal=False)
    row, position = torch.ones(batch, length)[:, :: 16 if way == "few" else 1].nonzero(as_tuple=True)
    rows._fused_is_right(torch.device("cpu"), torch.float32, 16)
    with LargestTensor() as largest:
        rows.RowEntropies(row, position)(inputs)
    one_sentence = inputs.key[0].numel()
    all_keys = inputs.query.numel() if way == "fused" else 0
    of_the_mask = batch * length**2 if is_masked and way == "fused" else 0
    assert largest.numel <= max(2**13, one_sentence, all_keys, of_the_mask, 4 * len(row))
    assert largest.numel < batch * 4 * length**2
