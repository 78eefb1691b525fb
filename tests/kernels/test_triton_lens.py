"""What is particular to the kernel in Triton; what holds for every backend is in test_kernels.py."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from llm_entropy.schema.statistics import RowStatistics, Unembedding

triton = pytest.importorskip("triton")

from llm_entropy.kernels import triton_launches, triton_lens  # noqa: E402
from llm_entropy.kernels.wanted import Wanted  # noqa: E402

DEVICE = "cpu" if triton_lens.INTERPRETED else "cuda"
pytestmark = pytest.mark.gpu


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def lens_statistics(states: Tensor, unembedding: Unembedding, **wanted: Any) -> RowStatistics:
    return triton_lens.lens_statistics(states, unembedding, Wanted(**wanted))


def statistics_of_logits(
    z: Tensor,
    top_slots: tuple[int, ...] = (),
    top_k: int = 1,
    pairs: tuple[tuple[int, int], ...] = (),
    order: float | None = None,
    top1: bool = False,
    members: Tensor | None = None,
) -> RowStatistics:
    m = z.amax(-1, keepdim=True)
    p, shifted = z.softmax(-1), z - m
    top = shifted[list(top_slots)].topk(top_k)
    return RowStatistics(
        maximum=m.squeeze(-1),
        log_sum=shifted.logsumexp(-1),
        mean=(p * shifted).sum(-1),
        runner_up=shifted.topk(2).values[..., 1],
        top_ids=top.indices,
        top=top.values,
        square=(p * shifted**2).sum(-1),
        log_power=None if order is None else (order * shifted).logsumexp(-1),
        top1=z.argmax(-1) if top1 else None,
        log_mass=None if members is None else shifted[..., members].logsumexp(-1),
        cross=torch.stack([(p[a] * shifted[b]).sum(-1) for a, b in pairs]) if pairs else None,
    )


def assert_close(seen: RowStatistics, expected: RowStatistics, tolerance: float = 1e-5) -> None:
    for name, want in expected._asdict().items():
        got = getattr(seen, name)
        if name == "top_ids":
            assert torch.equal(got, want)
        elif want is None:
            assert got is None
        else:
            torch.testing.assert_close(
                got.double(), want.double(), rtol=tolerance, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}"
            )


@pytest.mark.parametrize("width", [1, 33, 64])
@pytest.mark.parametrize(("num_rows", "vocab_size"), [(1, 2), (18, 97)])
def test_shapes_need_be_no_multiple_of_a_block(num_rows: int, vocab_size: int, width: int) -> None:
    states, weight = normal(3, num_rows, width), normal(vocab_size, width, seed=1)
    pairs = ((0, 2), (1, 1))
    wanted: dict[str, Any] = {"top_slots": (1,), "top_k": 2, "pairs": pairs, "order": 0.5, "top1": True}
    wanted["members"] = torch.arange(vocab_size, device=DEVICE) % 3 == 1
    seen = lens_statistics(states, Unembedding(weight), square=True, **wanted)
    assert_close(seen, statistics_of_logits(states.double() @ weight.double().T, **wanted))


def test_splits_of_the_vocabulary_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    vocab_size = 2 * triton_lens.SPLIT_UNIT + 7
    unembedding = Unembedding(normal(vocab_size, 16, seed=1), normal(vocab_size, seed=2))
    options: dict[str, Any] = {"top_slots": (2,), "top_k": 4, "square": True, "pairs": ((0, 1), (2, 1))}
    options |= {"order": 2.0, "top1": True, "members": torch.arange(vocab_size, device=DEVICE) > 70}
    seen, splits = [], []
    for at_least in (1, 2, 3):
        monkeypatch.setattr(triton_lens, "MIN_SPLITS", at_least)
        monkeypatch.setattr(triton_lens, "WAVES", 0)
        splits.append(triton.cdiv(vocab_size, triton_lens._tokens_per_split(12, vocab_size, torch.device(DEVICE))))
        seen.append(lens_statistics(normal(3, 6, 16), unembedding, **options))
    assert splits == [1, 2, 3]
    assert_close(seen[1], seen[0], 2e-6)
    assert_close(seen[2], seen[0], 2e-6)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize(
    "pairs",
    [
        ((0, 1),),
        ((1, 0), (0, 1)),
        ((2, 2),),
        ((3, 0), (3, 1), (3, 2), (3, 3)),
        ((0, 1), (1, 2), (2, 3), (3, 0)),
        ((4, 0), (4, 0), (0, 4), (1, 4)),
    ],
)
def test_any_slots_make_a_pair(pairs: tuple[tuple[int, int], ...], softcap: float | None) -> None:
    states = normal(5, 3, 16)
    unembedding = Unembedding(normal(103, 16, seed=1), normal(103, seed=2) - 40.0, softcap=softcap, temperature=1.3)
    z = states.double() @ unembedding.weight.double().T + unembedding.bias.double()
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    expected = statistics_of_logits(z / 1.3, pairs=pairs)
    seen = lens_statistics(states, unembedding, square=True, pairs=pairs)
    assert_close(seen, expected._replace(top_ids=seen.top_ids, top=seen.top))
    assert len(seen.top_ids) == 0


def test_steered_layers_go_with_their_standard_ones_whatever_else_is_wanted() -> None:
    layers = 5
    final = [(layer, k) for layer in (layers - 1, 2 * layers - 1) for k in range(layer - layers + 1, layer + 1)]
    standard = [(k, layers + k) for k in range(layers)]
    launches = triton_launches.plan_launches(2 * layers, (layers - 1, 2 * layers - 1), final + standard)
    together = [pair for launch in launches for pair in zip(launch.first, launch.second, strict=True)]
    assert sorted(together) == standard
    assert [launch.top for launch in launches] == [False, True]


@pytest.mark.parametrize("pairs", [(), ((0, 1), (0, 2), (3, 2)), ((0, 1), (2, 3), (4, 5))])
def test_launches_cover_each_slot_once(pairs: tuple[tuple[int, int], ...]) -> None:
    launches = triton_launches.plan_launches(6, (5, 2), pairs)
    assert sorted(slot for launch in launches for slot in launch.first + launch.second) == list(range(6))
    assert {slot for launch in launches if launch.top for slot in launch.first + launch.second} >= {2, 5}


def test_a_slot_does_not_differ_from_one_that_equals_it() -> None:
    states = normal(2, 20, 33)
    states[1] = states[0]
    unembedding = Unembedding(normal(150, 33, seed=1), normal(150, seed=2))
    seen = lens_statistics(states, unembedding, pairs=((0, 1), (0, 0)))
    assert seen.cross is not None
    assert torch.equal(seen.cross, seen.mean)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_not_worse_than_torch(dtype: torch.dtype) -> None:
    states, weight = normal(4, 16, 64, dtype=dtype), normal(150, 64, seed=1, dtype=dtype)
    pairs = ((0, 1), (3, 1), (3, 2))
    seen = lens_statistics(states, Unembedding(weight), square=True, pairs=pairs)
    truth = statistics_of_logits(states.double() @ weight.double().T, pairs=pairs)
    torchs = statistics_of_logits((states @ weight.T).float(), pairs=pairs)
    for name in ("maximum", "log_sum", "mean", "runner_up", "square", "cross"):
        expected = getattr(truth, name)
        error, budget = ((getattr(way, name).double() - expected).abs() for way in (seen, torchs))
        # torch's error may be 0 by chance: what float32 leaves is allowed in any case
        assert (error <= budget + 2e-6 * (1 + expected.abs())).all(), name
        assert error.mean() < 0.01 * budget.mean(), name


def test_states_and_decoder_may_differ_in_dtype() -> None:
    states, weight = normal(2, 5, 16, dtype=torch.float32), normal(103, 16, seed=1, dtype=torch.bfloat16)
    seen = lens_statistics(states, Unembedding(weight, normal(103, dtype=torch.float16)), square=True, pairs=((1, 0),))
    z = states.double() @ weight.double().T + normal(103, dtype=torch.float16).double()
    expected = statistics_of_logits(z, pairs=((1, 0),))
    assert_close(seen, expected._replace(top_ids=seen.top_ids, top=seen.top))


def test_large_logits_neither_overflow_nor_lose_the_softcap() -> None:
    states, weight = 1e3 * normal(2, 5, 16), normal(103, 16, seed=1)
    z = states.double() @ weight.double().T
    for softcap in (None, 30.0):
        seen = lens_statistics(states, Unembedding(weight, softcap=softcap), square=True, pairs=((0, 1),))
        capped = z if softcap is None else softcap * torch.tanh(z / softcap)
        expected = statistics_of_logits(capped, pairs=((0, 1),))
        # what float32 leaves of logits of 10,000
        assert_close(seen, expected._replace(top_ids=seen.top_ids, top=seen.top), 2e-3)


def test_the_largest_logits_may_be_more_than_a_block_has_and_ties_go_to_the_lower_token() -> None:
    # whole numbers, so that products are exact and ties are many
    weight = normal(103, 4, seed=1).mul(2).round()
    states = normal(2, 3, 4).mul(2).round()
    z = states.double() @ weight.double().T
    values, ids = z.sort(dim=-1, descending=True, stable=True)
    seen = lens_statistics(states, Unembedding(weight), top_slots=(1,), top_k=40)
    assert torch.equal(seen.top_ids, ids[1:, :, :40])
    assert torch.equal(seen.top.double(), (values - values[..., :1])[1:, :, :40])


def test_no_more_of_the_largest_logits_are_named_than_there_are() -> None:
    seen = lens_statistics(normal(2, 3, 4), Unembedding(normal(5, 4, seed=1)), top_slots=(1,), top_k=500)
    assert seen.top_ids.sort(-1).values.tolist() == [[[0, 1, 2, 3, 4]] * 3]


def test_views_are_read_where_they_lie() -> None:
    states, weight = normal(3, 7, 40), normal(103, 40, seed=1)
    options: dict[str, Any] = {"top_slots": (0,), "square": True, "pairs": ((0, 1), (2, 1))}
    expected = lens_statistics(states[:, 1::2, :16].contiguous(), Unembedding(weight[:, :16].contiguous()), **options)
    for part in (states[:, 1::2, :16], states.transpose(0, 1).contiguous().transpose(0, 1)[:, 1::2, :16]):
        assert_close(lens_statistics(part, Unembedding(weight[:, :16]), **options), expected, 0.0)


def test_rows_are_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    states, unembedding = normal(3, 9, 16), Unembedding(normal(103, 16, seed=1), normal(103, seed=2))
    options: dict[str, Any] = {"top_slots": (0,), "top_k": 2, "square": True, "pairs": ((0, 1), (2, 1))}
    options |= {"order": 2.0, "top1": True}
    expected = lens_statistics(states, unembedding, **options)
    for name, value in {"ROWS_TOGETHER": 18, "EXPECTED_NUMBERS": 80, "PROBABILITIES": 256}.items():
        monkeypatch.setattr(triton_lens, name, value)
    assert_close(lens_statistics(states, unembedding, **options), expected, 2e-6)


@pytest.mark.skipif(
    not triton_lens.INTERPRETED, reason="takes memory that no program touches, which a GPU does not have"
)
@pytest.mark.parametrize("far", ["states", "rows", "weight"])
def test_offsets_may_exceed_32_bits(far: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Numbers lie up to 2^31 behind the middle of an untouched block of memory: an offset that wraps around reads zeros
    # before it. The interpreter copies each argument back, here onto itself, which would touch all of it.
    monkeypatch.setattr(torch.UntypedStorage, "copy_", lambda own, source: own)
    no_reserve = 0x4000  # MAP_NORESERVE, to which Python gives a name from 3.13 on
    reserved = mmap.mmap(-1, 2**33 + 2**16, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve)
    memory = torch.frombuffer(reserved, dtype=torch.float16)
    states, weight = normal(3, 4, 16, dtype=torch.float16), normal(103, 16, seed=1, dtype=torch.float16)
    pairs = ((0, 1), (2, 1))
    expected = lens_statistics(states, Unembedding(weight), top_slots=(2,), square=True, pairs=pairs)

    def spread(near: Tensor, axis: int) -> Tensor:
        strides = list(near.stride())
        strides[axis] = -(-(2**31) // (near.shape[axis] - 1))
        view = memory.as_strided(near.shape, strides, 2**31)
        return view.copy_(near)

    if far == "weight":
        weight = spread(weight, 0)
    else:
        states = spread(states, {"states": 0, "rows": 1}[far])
    seen = lens_statistics(states, Unembedding(weight), top_slots=(2,), square=True, pairs=pairs)
    assert_close(seen, expected, 0.0)


class LiveBytes(TorchDispatchMode):
    """Follows how much memory the results of operations hold, and the most that it was."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.storages = {key: item for key, item in self.storages.items() if not item[0].expired()}
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.most = max(self.most, sum(size for _, size in self.storages.values()))
        return result


class NoLaunch:
    """In place of a kernel: leaves memory as it is."""

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **kwargs: None


def test_extra_memory_is_below_200_mb_at_the_largest_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    for kernel in ("single_statistics", "paired_statistics", "probabilities", "expected_rows"):
        monkeypatch.setattr(triton_lens, kernel, NoLaunch())
    monkeypatch.setattr(triton_lens, "SPLIT_UNIT", 256)
    layers, rows, vocab_size, width = 26, 1024, 128_256, 4096
    row = normal(width, dtype=torch.bfloat16)
    states = row.as_strided((2 * layers, rows, width), (0, 0, 1))
    unembedding = Unembedding(row.as_strided((vocab_size, width), (0, 1)), normal(vocab_size, dtype=torch.bfloat16))
    pairs = [(k, layers + k) for k in range(layers)] + [(layers - 1, 0)]
    with LiveBytes() as live:
        lens_statistics(
            states,
            unembedding,
            top_slots=(layers - 1, 2 * layers - 1),
            top_k=10,
            square=True,
            order=2.0,
            top1=True,
            members=torch.ones(vocab_size, dtype=torch.bool),
            pairs=pairs,
        )
    # the results alone are more than five numbers for each row
    assert 20 * layers * 2 * rows < live.most < 200e6


COMPILE = """
import json, re, sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from llm_entropy.kernels import triton_programs as programs

def compiled(kernel, dtype, warps, **known):
    names, numbers = kernel.arg_names, ("inner", "outer", "order")
    pointers = dict.fromkeys(("slots_ptr", "top_ids_ptr", "top1_ptr"), "*i64")
    pointers["members_ptr"] = "*u8"
    pointers |= dict.fromkeys(("weight_ptr", "states_ptr", "bias_ptr"), dtype)
    signature, attributes = {}, {}
    for at, name in enumerate(names):
        kind = pointers.get(name, "*fp32") if name.endswith("_ptr") else "fp32" if name in numbers else "i32"
        signature[name] = "constexpr" if name in known else kind
        if name not in known and (name.endswith("_ptr") or name.endswith("_stride")):
            attributes[at,] = [["tt.divisibility", 16]]
    constants = {(names.index(name),): value for name, value in known.items()}
    source = ASTSource(kernel, signature, constants, attributes)
    options = {"num_warps": warps, "num_stages": 3}
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    return re.findall(r"wgmma.mma_async.sync.aligned.(\\w+).f32.(\\w+)", ptx)

both = {"WIDTH": 4096, "WIDEN": False}
one = {**both, "SOFTCAP": False, "SQUARE": False, "PAIRED": False, "TOP_K": 0, "CANDIDATES": 1, "GROUP": 8}
no = dict.fromkeys(("bias_ptr", "cross_ptr", "top_ptr", "top_ids_ptr", "top1_ptr", "power_ptr", "mass_ptr"))
no["members_ptr"] = None
all = {**one, "SOFTCAP": True, "SQUARE": True, "PAIRED": True, "TOP_K": 5, "CANDIDATES": 8}
block = {"BLOCK_ROWS": 128, "BLOCK_TOKENS": 128}
print(json.dumps({
    "bf16": compiled(programs.statistics, "*bf16", 8, **one, **no, **block, BLOCK_WIDTH=64),
    "bf16, everything": compiled(programs.statistics, "*bf16", 8, **all, **block, BLOCK_WIDTH=64),
    "fp16": compiled(programs.statistics, "*fp16", 8, **one, **no, **block, BLOCK_WIDTH=64),
    "fp32": compiled(programs.statistics, "*fp32", 8, **one, **no, **block, BLOCK_WIDTH=32),
    "probabilities": compiled(
        programs.probabilities, "*bf16", 4, **both, BLOCK_ROWS=64, BLOCK_TOKENS=128, BLOCK_WIDTH=64
    ),
    "rows": compiled(
        programs.expected_rows, "*bf16", 4, WIDTH=4096, BLOCK_ROWS=64, BLOCK_TOKENS=32, BLOCK_WIDTH=128
    ),
}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles on Linux")
def test_kernels_compile_for_hopper_with_its_tensor_cores_and_float32_in_three_products(tmp_path: Any) -> None:
    # the compiler needs no GPU, but a process of its own: in this one Triton interprets
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    (tmp_path / "compile.py").write_text(COMPILE)
    done = subprocess.run(
        [sys.executable, tmp_path / "compile.py"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    products = json.loads(done.stdout)
    dtypes = {name: {dtype for _, dtype in found} for name, found in products.items()}
    assert dtypes == {
        "bf16": {"bf16"},
        "bf16, everything": {"bf16"},
        "fp16": {"f16"},
        "fp32": {"tf32"},
        "probabilities": {"bf16"},
        "rows": {"tf32"},
    }
    # a product of 128 bytes of a row takes four instructions, tf32x3 thrice as many
    assert len(products["bf16"]) == 4
    assert len(products["bf16, everything"]) == 8
    assert len(products["fp32"]) == 12
