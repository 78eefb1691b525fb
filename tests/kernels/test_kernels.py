"""The kernel against the textbook formulas in float64, on shapes that are no multiple of its blocks."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from devices import DEVICE
from dispatch import LargestTensor, NoFloat64
from torch import Tensor

from llm_entropy import kernels
from llm_entropy.kernels import compiled, reference
from llm_entropy.schema.statistics import RowStatistics, Unembedding

SLOTS, ROWS, WIDTH, VOCAB = 6, 5, 16, 103
PAIRS = [(3, 0), (3, 1), (5, 0), (1, 4), (2, 5)]
TOP_SLOTS = [3, 5]
ORDER = 0.5
MEMBERS = torch.arange(VOCAB) % 3 == 1
"""A set of tokens."""
UNEMBEDDINGS = {
    "plain": Unembedding(torch.empty(0)),
    "temperature": Unembedding(torch.empty(0), temperature=0.7),
    "bias, scale, softcap, temperature": Unembedding(
        torch.empty(0), torch.empty(0), scale=0.3, softcap=5.0, temperature=1.3
    ),
}
MASS_ALONE: dict[str, Any] = {"top_slots": [], "pairs": [], "square": False, "order": None, "top1": False}
POWER_ALONE: dict[str, Any] = {"top_slots": [], "members": None, "square": False, "top1": False}
"""Less than everything, which Triton's interpreter takes its time for; powers of slots in pairs and of those alone."""
BLOCKS = {"many blocks": (7, 64), "one block": (4096, 2**22)}
INTERPRETED = find_spec("triton") is not None and not torch.cuda.is_available()
"""Whether Triton's interpreter, which conftest.py asks for, runs its kernels on the CPU."""
ON_CPU = [name for name in kernels.BACKENDS if name != "triton" or INTERPRETED]
ON_DEVICE = ON_CPU if DEVICE.type == "cpu" else ["reference", "triton"]


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.gpu) for name in ON_DEVICE])
def backend(request: pytest.FixtureRequest) -> str:
    """Return a backend that runs on the device."""
    return str(request.param)


@pytest.fixture(params=UNEMBEDDINGS)
def unembedding(request: pytest.FixtureRequest) -> Unembedding:
    generator = torch.Generator().manual_seed(1)
    about = UNEMBEDDINGS[request.param]
    bias = None if about.bias is None else torch.randn(VOCAB, generator=generator) - 8.0
    return about._replace(weight=torch.randn(VOCAB, WIDTH, generator=generator), bias=bias)


@pytest.fixture(params=BLOCKS)
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    chunk, tile = BLOCKS[request.param]
    monkeypatch.setattr(reference, "VOCAB_CHUNK", chunk)
    monkeypatch.setattr(reference, "TILE_LOGITS", tile)
    monkeypatch.setattr(reference, "GATHER_NUMBERS", tile)
    monkeypatch.setattr(compiled, "VOCAB_CHUNK", chunk)
    monkeypatch.setattr(compiled, "TILE_ROWS", tile)
    monkeypatch.setattr(compiled, "MIN_LOGITS_OF_THREAD", 1)


def make_states(seed: int = 0) -> Tensor:
    return torch.randn(SLOTS, ROWS, WIDTH, generator=torch.Generator().manual_seed(seed))


def true_logits(states: Tensor, unembedding: Unembedding) -> Tensor:
    logits = states.double() @ unembedding.weight.double().T
    if unembedding.bias is not None:
        logits = logits + unembedding.bias.double()
    logits = logits * unembedding.scale
    if unembedding.softcap is not None:
        logits = unembedding.softcap * torch.tanh(logits / unembedding.softcap)
    return logits / unembedding.temperature


def statistics_of(states: Tensor, unembedding: Unembedding, **options: Any) -> RowStatistics:
    wanted = {"top_slots": TOP_SLOTS, "top_k": 3, "square": True, "order": ORDER, "top1": True, "pairs": PAIRS}
    wanted |= {"members": torch.arange(len(unembedding.weight)) % 3 == 1} | options
    if isinstance(wanted["members"], Tensor):
        wanted["members"] = wanted["members"].to(DEVICE)
    bias = None if unembedding.bias is None else unembedding.bias.to(DEVICE)
    unembedding = unembedding._replace(weight=unembedding.weight.to(DEVICE), bias=bias)
    rows = kernels.lens_statistics(states.to(DEVICE), unembedding, **wanted)
    return RowStatistics(*(None if values is None else values.cpu() for values in rows))


def truth_of(z: Tensor) -> dict[str, Tensor]:
    """Return the statistics of logits [slot, row, vocab] by the textbook, as far as they need no token's number."""
    m, p = z.amax(-1, keepdim=True), z.softmax(-1)
    return {
        "maximum": m.squeeze(-1),
        "log_sum": z.logsumexp(-1) - m.squeeze(-1),
        "mean": (p * (z - m)).sum(-1),
        "square": (p * (z - m) ** 2).sum(-1),
        "log_power": (ORDER * (z - m)).logsumexp(-1),
        "cross": torch.stack([(p[a] * (z[b] - m[b])).sum(-1) for a, b in PAIRS]),
    }


def assert_close(seen: RowStatistics, truth: dict[str, Tensor]) -> None:
    for name, expected in truth.items():
        torch.testing.assert_close(
            getattr(seen, name).double(), expected, rtol=1e-5, atol=2e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.usefixtures("blocks")
def test_every_statistic_is_that_of_the_full_row(unembedding: Unembedding, backend: str) -> None:
    states = make_states()
    z = true_logits(states, unembedding)
    m = z.amax(-1, keepdim=True)
    seen = statistics_of(states, unembedding, backend=backend)
    more = {
        "runner_up": z.topk(2).values[..., 1] - m.squeeze(-1),
        "log_mass": z[..., MEMBERS].logsumexp(-1) - m.squeeze(-1),
        "top": z[TOP_SLOTS].topk(3).values - m[TOP_SLOTS],
    }
    assert_close(seen, truth_of(z) | more)
    assert all(getattr(seen, name).dtype == torch.float32 for name in (*truth_of(z), *more))
    assert torch.equal(seen.top_ids, z[TOP_SLOTS].topk(3).indices)
    assert torch.equal(seen.top1, z.argmax(-1))


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("chosen", ["the last one", "all"])  # a third is in the test above
def test_the_mass_of_a_set_of_tokens_is_that_of_the_full_row(
    chosen: str, unembedding: Unembedding, backend: str
) -> None:
    members = torch.arange(VOCAB) >= (VOCAB - 1 if chosen == "the last one" else 0)
    states = make_states()
    z = true_logits(states, unembedding)
    seen = statistics_of(states, unembedding, **MASS_ALONE, members=members, backend=backend)
    expected = z[..., members].logsumexp(-1) - z.amax(-1)
    torch.testing.assert_close(seen.log_mass.double(), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("unembedding", ["bias, scale, softcap, temperature"], indirect=True)
def test_a_mass_changes_no_other_statistic(unembedding: Unembedding, backend: str) -> None:
    states = make_states()
    seen = statistics_of(states, unembedding, backend=backend)
    without = statistics_of(states, unembedding, members=None, backend=backend)
    assert without.log_mass is None
    others = [name for name in RowStatistics._fields if name != "log_mass"]
    assert all(torch.equal(getattr(seen, name), getattr(without, name)) for name in others)


@pytest.mark.usefixtures("blocks")
def test_a_mass_far_below_the_most_likely_token_is_exact(backend: str) -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(VOCAB, WIDTH, generator=generator)
    bias = torch.where(MEMBERS, -200.0, 0.0)
    states = make_states()
    seen = statistics_of(states, Unembedding(weight, bias), backend=backend)
    z = true_logits(states, Unembedding(weight, bias))
    expected = z[..., MEMBERS].logsumexp(-1) - z.amax(-1)
    assert expected.max() < -150
    torch.testing.assert_close(seen.log_mass.double(), expected, rtol=1e-6, atol=2e-5)
    bias = torch.where(MEMBERS, -torch.inf, 0.0)
    seen = statistics_of(states, Unembedding(weight, bias), pairs=[], backend=backend)
    assert torch.equal(seen.log_mass, torch.full_like(seen.log_mass, -torch.inf))


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("order", [0.05, 0.9, 1.1, 2.0, 30.0])
def test_powers_of_any_order_are_those_of_the_full_row(order: float, unembedding: Unembedding, backend: str) -> None:
    states = make_states()
    z = true_logits(states, unembedding)
    seen = statistics_of(states, unembedding, **POWER_ALONE, order=order, backend=backend)
    expected = (order * (z - z.amax(-1, keepdim=True))).logsumexp(-1)
    torch.testing.assert_close(seen.log_power.double(), expected, rtol=1e-5, atol=2e-5 * max(1.0, order))


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("negative_zero", [False, True])
def test_of_equal_logits_the_lowest_token_is_the_most_likely(negative_zero: bool, backend: str) -> None:
    weight = torch.full((VOCAB, WIDTH), -1.0)
    weight[[20, 60, 61, VOCAB - 1]] = 0.0
    if negative_zero:  # 0 is no larger
        weight[20] = -0.0
    seen = statistics_of(torch.ones(2, 3, WIDTH), Unembedding(weight), top_slots=[1], pairs=[(0, 1)], backend=backend)
    assert (seen.top1 == 20).all()


def test_loops_just_compiled_give_the_bytes_of_loops_read_from_the_disk(tmp_path: Path) -> None:
    program = """
        import sys, torch
        from llm_entropy.kernels import lens_statistics
        from llm_entropy.schema.statistics import Unembedding
        torch.manual_seed(0)
        states, decoder = torch.randn(4, 30, 16), Unembedding(torch.randn(3001, 16))
        wanted = {"top_slots": [3], "square": True, "order": 0.5, "top1": True, "pairs": [(0, 3), (3, 1)]}
        wanted["members"] = torch.arange(3001) % 3 == 1
        rows = lens_statistics(states, decoder, **wanted, backend="compiled")
        torch.save(tuple(rows), sys.argv[1])
    """
    for name in ("compiled.pt", "read.pt"):
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "numba")}
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / name)], env=environment, check=True
        )
        assert list((tmp_path / "numba").rglob("epilogue.add_chunk-*.nbc"))
    for one, other in zip(torch.load(tmp_path / "compiled.pt"), torch.load(tmp_path / "read.pt"), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_threads_and_tiles_change_no_bit(num_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    states, unembedding = make_states(), Unembedding(torch.randn(VOCAB, WIDTH))
    whole = statistics_of(states, unembedding, backend="compiled")
    monkeypatch.setattr(compiled, "MIN_LOGITS_OF_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    for one, other in zip(whole, statistics_of(states, unembedding, backend="compiled"), strict=True):
        assert torch.equal(one, other)


MASKS = {
    "the first ones": slice(0, 70),
    "the last ones": slice(30, VOCAB),
    "every second one": slice(0, VOCAB, 2),
    "all but two": slice(2, VOCAB),
    "all but one": slice(1, VOCAB),
}


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("blocks", ["many blocks"], indirect=True)
@pytest.mark.parametrize(
    ("least", "temperature"), [(-torch.inf, 1.0), (-torch.inf, 3.0), (torch.finfo(torch.float32).min, 0.4)]
)
@pytest.mark.parametrize("masked", MASKS)
def test_masked_tokens_are_as_if_they_were_not_there(
    masked: str, least: float, temperature: float, backend: str
) -> None:
    generator = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(VOCAB, WIDTH, generator=generator), torch.randn(VOCAB, generator=generator)
    is_masked = torch.zeros(VOCAB, dtype=torch.bool)
    is_masked[MASKS[masked]] = True
    states, left = make_states(), (~is_masked).nonzero().squeeze(-1)
    few = Unembedding(weight[left], bias[left], temperature=temperature)
    decoder = Unembedding(weight, bias.masked_fill(is_masked, least), temperature=temperature)
    seen = statistics_of(states, decoder, backend=backend)
    z = true_logits(states, few)
    m = z.amax(-1, keepdim=True)
    assert_close(seen, truth_of(z))
    assert torch.equal(seen.top1, left[z.argmax(-1)])
    real = min(3, len(left))
    best = z[TOP_SLOTS].topk(real)
    assert torch.equal(seen.top_ids[..., :real], left[best.indices])
    assert (seen.top[..., real:].exp() == 0).all()
    if len(left) > 1:
        expected = (z - m).topk(2).values[..., 1]
        torch.testing.assert_close(seen.runner_up.double(), expected, rtol=1e-5, atol=2e-5)
    else:
        assert (seen.runner_up < -1e30).all()
    for ids in seen.top_ids.flatten(0, 1).tolist():
        assert len(set(ids)) == 3
        assert set(ids) <= set(range(VOCAB))


@pytest.mark.usefixtures("blocks")
@pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")  # said by Triton's interpreter
def test_a_row_without_a_token_that_is_not_masked_is_no_number(backend: str) -> None:
    everything = Unembedding(torch.randn(VOCAB, WIDTH), torch.full((VOCAB,), -torch.inf))
    seen = statistics_of(make_states(), everything, backend=backend)
    for values in (seen.log_sum - seen.mean, seen.mean, seen.runner_up, seen.square, seen.cross):
        assert values.isnan().all()
    for ids in (seen.top_ids, seen.top1):
        assert ((ids >= 0) & (ids < VOCAB)).all()


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("backend", ["reference", "compiled"])
@pytest.mark.parametrize("token", [0, 50, VOCAB - 1])
def test_what_is_masked_in_the_second_of_a_pair_alone_is_infinitely_far(token: int, backend: str) -> None:
    weight = torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(1))
    weight[token] = 0.0
    weight[token, 0] = torch.finfo(torch.float32).min  # ten times of it is minus infinity
    states = make_states()
    states[:, :, 0] = 0.0
    states[1, :, 0] = 10.0
    seen = statistics_of(states, Unembedding(weight), pairs=[(0, 1), (1, 0), (0, 2)], backend=backend)
    assert (seen.cross[0] == -torch.inf).all()
    assert seen.cross[1:].isfinite().all()
    z = (states.double() @ weight.double().T)[[0, 1]]
    z[1, :, token] = -torch.inf
    p, shifted = z.softmax(-1), z - z.amax(-1, keepdim=True)
    torch.testing.assert_close(seen.cross[1].double(), (p[1] * shifted[0]).sum(-1), rtol=1e-5, atol=2e-5)
    assert seen.mean.isfinite().all()


@pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")  # said by Triton's interpreter
def test_logits_that_are_no_numbers_are_not_hidden(backend: str) -> None:
    states = make_states()
    states[TOP_SLOTS[0], 3] = torch.nan
    seen = statistics_of(states, Unembedding(torch.randn(VOCAB, WIDTH)), backend=backend)
    assert seen.mean[TOP_SLOTS[0], 3].isnan()
    assert seen.mean.isnan().sum() == 1
    for ids in (seen.top_ids, seen.top1):
        assert ((ids >= 0) & (ids < VOCAB)).all()


def test_a_vocabulary_of_one_token_is_certain(backend: str) -> None:
    seen = statistics_of(make_states(), Unembedding(torch.randn(1, WIDTH)), top_k=1, backend=backend)
    for values in (seen.log_sum, seen.mean, seen.log_power, seen.top1):
        assert not values.any()


def test_what_is_not_asked_for_is_left_open(backend: str) -> None:
    decoder = Unembedding(torch.randn(VOCAB, WIDTH).to(DEVICE))
    seen = kernels.lens_statistics(make_states().to(DEVICE), decoder, backend=backend)
    for values in (seen.square, seen.log_power, seen.top1, seen.cross):
        assert values is None
    assert len(seen.top_ids) == len(seen.top) == 0


@pytest.mark.usefixtures("blocks")
def test_equal_logits_have_no_margin(backend: str) -> None:
    weight = torch.zeros(VOCAB, WIDTH)
    weight[[20, 60, 61]] = 1.0
    statistics = statistics_of(
        torch.ones(2, 3, WIDTH), Unembedding(weight), top_slots=[1], pairs=[(0, 1)], backend=backend
    )
    assert not statistics.runner_up.any()
    assert statistics.top_ids[0].sort(-1).values.tolist() == [[20, 60, 61]] * 3


def test_a_common_offset_of_the_logits_changes_nothing(backend: str) -> None:
    states, weight = make_states(), torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(1))
    near = statistics_of(states, Unembedding(weight, torch.zeros(VOCAB)), backend=backend)
    far = statistics_of(states, Unembedding(weight, torch.full((VOCAB,), -300.0)), backend=backend)
    for name in ("log_sum", "mean", "runner_up", "square", "log_power", "cross"):
        torch.testing.assert_close(getattr(near, name), getattr(far, name), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_give_statistics_of_float32_products(dtype: torch.dtype, backend: str) -> None:
    states = make_states().to(dtype)
    weight = torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)
    half = statistics_of(states, Unembedding(weight), backend=backend)
    full = statistics_of(states.float(), Unembedding(weight.float()), backend=backend)
    for name in ("maximum", "log_sum", "mean", "runner_up", "square", "log_power", "top1"):
        assert torch.equal(getattr(half, name), getattr(full, name))


@pytest.mark.parametrize("vocab_size", [VOCAB, 20_000])
def test_a_device_without_float64_keeps_within_the_budget(vocab_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_entropy.schema.batches.WITHOUT_FLOAT64", {"cpu"})
    monkeypatch.setattr(reference, "VOCAB_CHUNK", 64)
    states, weight = make_states(), torch.randn(vocab_size, WIDTH, generator=torch.Generator().manual_seed(1))
    unembedding = Unembedding(weight, torch.full((vocab_size,), -8.0), softcap=20.0, temperature=1.3)
    z = true_logits(states, unembedding)
    p = z.softmax(-1)
    draws = torch.rand(ROWS, generator=torch.Generator().manual_seed(5))
    with NoFloat64():
        seen = statistics_of(states, unembedding, backend="reference")
        sampled = kernels.sample_tokens(states, unembedding, seen.maximum + seen.log_sum, draws)
    assert_close(seen, truth_of(z))
    reached = p.cumsum(-1).gather(-1, sampled.unsqueeze(-1)).squeeze(-1)
    drawn = p.gather(-1, sampled.unsqueeze(-1)).squeeze(-1)
    assert ((reached - drawn - 1e-5 <= draws) & (draws <= reached + 1e-5)).all()


@pytest.mark.parametrize(
    "backend", ["reference", "compiled"]
)  # what the other keeps is followed in test_triton_lens.py
@pytest.mark.parametrize(("num_rows", "vocab_size"), [(400, 2_000), (40, 20_000)])
def test_no_tensor_grows_with_rows_and_vocabulary(
    num_rows: int, vocab_size: int, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "TILE_LOGITS", 2**16)
    monkeypatch.setattr(reference, "VOCAB_CHUNK", 512)
    monkeypatch.setattr(reference, "GATHER_NUMBERS", 2**16)
    monkeypatch.setattr(compiled, "TILE_ROWS", 128)
    monkeypatch.setattr(compiled, "VOCAB_CHUNK", 512)
    states = torch.randn(SLOTS, num_rows, 8)
    unembedding = Unembedding(torch.randn(vocab_size, 8))
    with LargestTensor() as largest:
        statistics = statistics_of(states, unembedding, backend=backend)
        logits = kernels.token_logits(states, unembedding, statistics.top_ids[0])
        kernels.count_larger(states, unembedding, statistics.top_ids[0, :, 0], logits[..., 0])
        kernels.sample_tokens(states[:2], unembedding, torch.full((2, num_rows), 20.0), torch.rand(num_rows).double())
    assert largest.numel <= 2**16


@pytest.mark.usefixtures("blocks")
def test_sampling_inverts_the_cumulative_distribution(unembedding: Unembedding) -> None:
    states = make_states()[:2]
    cumulative = true_logits(states, unembedding).softmax(-1).cumsum(-1)
    log_normalizer = true_logits(states, unembedding).logsumexp(-1).float()
    uniforms = torch.rand(ROWS, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    expected = (cumulative <= uniforms.unsqueeze(-1)).sum(-1)
    assert torch.equal(kernels.sample_tokens(states, unembedding, log_normalizer, uniforms), expected)


@pytest.mark.usefixtures("blocks")
def test_a_draw_close_to_one_still_gives_a_token(unembedding: Unembedding) -> None:
    states = make_states()[:2]
    log_normalizer = true_logits(states, unembedding).logsumexp(-1).float()
    nearly_one = torch.full((ROWS,), 1.0 - 2.0**-53, dtype=torch.float64)
    sampled = kernels.sample_tokens(states, unembedding, log_normalizer + 1e-5, nearly_one)
    assert (sampled == VOCAB - 1).all()


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("num_masked", [1, 40, VOCAB - 1])
def test_a_draw_beyond_all_probabilities_gives_the_last_token_that_has_one(num_masked: int) -> None:
    bias = torch.zeros(VOCAB)
    bias[-num_masked:] = -torch.inf
    unembedding, states = Unembedding(torch.randn(VOCAB, WIDTH), bias), make_states()[:2]
    log_normalizer = true_logits(states, unembedding).logsumexp(-1).float()
    nearly_one = torch.full((ROWS,), 1.0 - 2.0**-53, dtype=torch.float64)
    sampled = kernels.sample_tokens(states, unembedding, log_normalizer + 1e-5, nearly_one)
    assert (sampled == VOCAB - num_masked - 1).all()


def test_a_draw_of_zero_gives_the_first_token_that_has_a_probability() -> None:
    bias = torch.zeros(VOCAB)
    bias[:9] = -torch.inf
    unembedding, states = Unembedding(torch.randn(VOCAB, WIDTH), bias), make_states()[:2]
    log_normalizer = true_logits(states, unembedding).logsumexp(-1).float()
    assert (kernels.sample_tokens(states, unembedding, log_normalizer, torch.zeros(ROWS).double()) == 9).all()


def test_the_rank_does_not_count_the_target_itself() -> None:
    states, weight = make_states(), torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(1))
    unembedding = Unembedding(weight)
    best = true_logits(states, unembedding)[0].argmax(-1)
    # a target's logit that is rounded down must not put the target behind itself
    logits = kernels.token_logits(states, unembedding, best.unsqueeze(-1)).squeeze(-1) - 1e-6
    assert not kernels.count_larger(states, unembedding, best, logits)[0].any()
