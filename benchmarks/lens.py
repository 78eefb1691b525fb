"""How far is the lens kernel from the bare product, how far ahead of plain torch, how exact, and how large?

    python -m benchmarks.lens --save

The backends that run on the device, against the product alone (the floor), and against torch with the logits kept.
The errors are those of sampled rows against float64 on the same numbers. About three minutes on two cores, the sizes
of GPT-2 small; on a GPU also of a large model, in three dtypes, with torch.compile, and cut-cross-entropy where it is
installed, which gives the loss alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import NamedTuple, Optional

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import report
from benchmarks.products import bare_products, operations
from llm_entropy import kernels
from llm_entropy.schema.statistics import Unembedding


class Shape(NamedTuple):
    """Sizes of a call of the kernel."""

    num_slots: int
    """Layers that are looked at together."""
    num_rows: int
    """Positions of each."""
    width: int
    vocab_size: int

    def __str__(self) -> str:
        return f"[{self.num_slots} x {self.num_rows:,}, {self.width:,}] x [{self.width:,}, {self.vocab_size:,}]"


CPU_SHAPES = tuple(Shape(13, num_rows, 768, 50_257) for num_rows in (16, 64, 256))
GPU_SHAPES = (Shape(1, 8192, 768, 50_257), Shape(13, 4096, 768, 50_257), Shape(1, 4096, 4096, 128_256))
GPU_DTYPES = (torch.bfloat16, torch.float32, torch.float16)
SAMPLE_ROWS = 8
"""Rows of each slot whose error is measured."""
TOP_K = 5


class Read(NamedTuple):
    """What every way gives, each [slot, row], float32."""

    entropy: Tensor
    """In nats."""
    margin: Tensor
    """In logits."""


Way = Callable[[], Optional[Read]]


def main() -> None:
    """Measure, print, and save if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=40.0, help="about how long each shape is timed")
    parser.add_argument("--shapes", help="slots:rows:width:vocabulary, with commas between; default: by the device")
    is_gpu = report.device().type == "cuda"
    parser.add_argument("--dtypes", help="names with commas between; default: by the device")
    parser.add_argument(
        "--compile",
        default="bfloat16" if is_gpu else "",
        help="dtypes in which torch.compile takes part; it takes a while",
    )
    parser.add_argument("--save", action="store_true", help="write the tables to benchmarks/results")
    chosen = parser.parse_args()
    shapes: Sequence[Shape] = GPU_SHAPES if is_gpu else CPU_SHAPES
    if chosen.shapes:
        shapes = [Shape(*map(int, shape.split(":"))) for shape in chosen.shapes.split(",")]
    dtypes: Sequence[torch.dtype] = GPU_DTYPES if is_gpu else (torch.float32,)
    if chosen.dtypes:
        dtypes = [getattr(torch, name) for name in chosen.dtypes.split(",")]
    names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    tables = report.Report("lens", saved=chosen.save)
    tables.add(
        f"# Lens kernel\n\n`python -m benchmarks.lens`: {report.conditions(names)}\n"
        "Medians of interleaved calls. Share of the floor: time of the fastest bare product of the same numbers over "
        f"the time of the way. Entropy, margin, log-normaliser, expected logit of every row, top {TOP_K} of the last "
        "slot. Errors: largest of the sampled rows, against float64. Memory: held at the highest beyond arguments.\n"
    )
    for dtype in dtypes:
        for shape in shapes:
            title = f"\n## {shape}, {str(dtype).removeprefix('torch.')}\n\n"
            compiles = str(dtype).removeprefix("torch.") in chosen.compile.split(",")
            tables.add(title + measure(shape, dtype, seconds=chosen.seconds, compiles=compiles))


def measure(shape: Shape, dtype: torch.dtype, *, seconds: float, compiles: bool = False) -> str:
    """Measure every way at one shape, and return a table.

    Args:
        shape: Of the call.
        dtype: Of states and decoder.
        seconds: About how long it may take.
        compiles: Whether torch.compile takes part.
    """
    states, unembedding = make_numbers(shape, dtype)
    flat = states.flatten(0, 1)
    products = bare_products(flat, unembedding.weight)
    ways = reading_ways(states, unembedding)
    others, reasons = that_run(others_ways(states, unembedding.weight, compiles=compiles))
    ways |= others
    took = report.medians({**products, **ways}, seconds=seconds)
    floor = min(took[name] for name in products)
    truth = read_exactly(states[:, :SAMPLE_ROWS], unembedding)
    rows = []
    for name, median in took.items():
        read = ways[name]() if name in ways else None
        errors = ["", ""] if read is None else [f"{error:.1e}" for error in largest_errors(read, truth)]
        del read
        row = [name, f"{1000 * median:,.2f}", f"{operations(flat, unembedding.weight) / median / 1e9:,.0f}"]
        row += [f"{floor / median:.0%}", f"{took[LOGITS_KEPT] / median:.2f}x", *errors]
        rows.append([*row, report.megabytes(report.peak_bytes({**products, **ways}[name]))])
    rows += [[name, reason, *[""] * 6] for name, reason in reasons.items()]
    header = [
        "way",
        "ms",
        "GFLOP/s",
        "of the floor",
        f"against {LOGITS_KEPT}",
        "entropy error",
        "margin error",
        "memory",
    ]
    return report.table(header, rows)


def make_numbers(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Unembedding]:
    """Return states [slot, row, width] and a decoder; from slot to slot the distributions are sharper.

    Args:
        shape: Their sizes.
        dtype: Their type.
    """
    device = report.device()
    generator = torch.Generator(device).manual_seed(0)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, device=device)

    deviation = torch.linspace(0.5, 4.0, shape.num_slots, device=device).view(-1, 1, 1)
    states = draw(shape.num_slots, shape.num_rows, shape.width) * deviation
    weight = draw(shape.vocab_size, shape.width) / shape.width**0.5
    return states.to(dtype), Unembedding(weight.to(dtype))


LOGITS_KEPT = "torch, logits kept"


def reading_ways(states: Tensor, unembedding: Unembedding) -> dict[str, Way]:
    """Return plain torch and the program's own ways to the statistics, by name.

    Args:
        states: [slot, row, width].
        unembedding: The decoder.
    """
    weight = unembedding.weight
    ways: dict[str, Way] = {LOGITS_KEPT: lambda: stack(keep_logits(slot, weight) for slot in states)}
    return ways | {f"backend {name}": partial(read_by, name, states, unembedding) for name in backends(states.device)}


def others_ways(states: Tensor, weight: Tensor, *, compiles: bool) -> dict[str, Way]:
    """Return what others offer here, by name: torch.compile if asked, cut-cross-entropy where it is installed.

    Args:
        states: [slot, row, width].
        weight: [vocab, width].
        compiles: Whether torch.compile takes part.
    """
    ways: dict[str, Way] = {}
    if compiles:
        torch.compiler.reset()  # what was compiled for another shape would be compiled for any shape now
        compiled = torch.compile(keep_logits, dynamic=False)
        ways["torch.compile, logits kept"] = lambda: stack(compiled(slot, weight) for slot in states)
    if states.is_cuda and states.dtype != torch.float32 and find_spec("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy  # type: ignore[import-not-found]

        flat = states.flatten(0, 1)
        targets = torch.arange(len(flat), device=flat.device) % len(weight)

        def lose() -> None:
            linear_cross_entropy(flat, weight, targets, reduction="none")

        ways["cut-cross-entropy, loss alone"] = lose
    return ways


def that_run(ways: Mapping[str, Way]) -> tuple[dict[str, Way], dict[str, str]]:
    """Return those of others' ways that run here, and of the rest the reasons.

    Args:
        ways: By name.
    """
    running, reasons = {}, {}
    for name, way in ways.items():
        try:
            way()
        except Exception as error:  # what others raise, where they do not fit this machine, is of any kind
            reasons[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200].replace("|", "/")
        else:
            running[name] = way
    return running, reasons


def backends(device: torch.device) -> list[str]:
    """Return the backends that run on a device: the reference, and the one that is chosen there.

    Args:
        device: Which one.
    """
    return list(dict.fromkeys(["reference", kernels.choose_backend(device)]))


def read_by(backend: str, states: Tensor, unembedding: Unembedding) -> Read:
    """Read the statistics by a backend of the kernel.

    Args:
        backend: Its name.
        states: [slot, row, width].
        unembedding: The decoder.
    """
    last = states.shape[0] - 1
    rows = kernels.lens_statistics(states, unembedding, top_slots=[last], top_k=TOP_K, backend=backend)
    return Read(rows.log_sum - rows.mean, -rows.runner_up)


def keep_logits(states: Tensor, weight: Tensor) -> Read:
    """Read a slot as plain torch does: its logits are kept, and their log-softmax in float32.

    Args:
        states: [row, width].
        weight: [vocab, width].
    """
    logits = F.linear(states, weight).float()
    log_probabilities = logits.log_softmax(-1)
    top = logits.topk(TOP_K, dim=-1).values
    return Read(-(log_probabilities.exp() * log_probabilities).sum(-1), top[:, 0] - top[:, 1])


def read_exactly(states: Tensor, unembedding: Unembedding) -> Read:
    """Return what is true, computed in float64.

    Args:
        states: [slot, row, width].
        unembedding: The decoder.
    """
    weight = unembedding.weight.double()
    return stack(_exact_slot(slot.double(), weight) for slot in states)


def _exact_slot(states: Tensor, weight: Tensor) -> Read:
    log_probabilities = (states @ weight.T).log_softmax(-1)
    top = log_probabilities.topk(2, dim=-1).values
    return Read(-(log_probabilities.exp() * log_probabilities).sum(-1), top[:, 0] - top[:, 1])


def stack(slots: Iterable[Read]) -> Read:
    """Return [slot, row] of slots [row]."""
    return Read(*(torch.stack(values) for values in zip(*slots, strict=True)))


def largest_errors(read: Read, truth: Read) -> list[float]:
    """Return the largest error of entropy and margin.

    Args:
        read: All rows.
        truth: The first rows of each slot, float64.
    """
    sampled = truth.entropy.shape[1]
    return [float((ours[:, :sampled] - exact).abs().max()) for ours, exact in zip(read, truth, strict=True)]


if __name__ == "__main__":
    main()
