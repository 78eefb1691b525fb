"""What does attention entropy cost beside the forward pass that it is read in, and beside eager attention?

    python -m benchmarks.attention --save

GPT-2 small with random weights, the model without its head. Three ways take turns in one process: the forward pass
alone, with fused attention; the same while entropies are read; and eager attention whose maps are read. Then the same
of the attention of one block by itself, without the products around it. About five minutes on two cores.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks import report
from llm_entropy.models.attention import read_attention_entropy
from llm_entropy.models.attention.interface import EAGER, READABLE, AttentionInputs
from llm_entropy.models.attention.rows import RowEntropies
from llm_entropy.models.families import ModelView, fuse_activations, run_base, view_model

LENGTHS = (16, 64, 256, 1024)
DEVICE = report.device()
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NUM_HEADS, HEAD_WIDTH = 12, 64
HEADER = (
    "tokens",
    "batch",
    "positions",
    "alone, ms",
    "with entropy, ms",
    "added",
    "eager, ms",
    "eager / with entropy",
)


def main() -> None:
    """Measure, print, and save if asked."""
    on_gpu = DEVICE.type == "cuda"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=65_536 if on_gpu else 2_048, help="tokens in a batch")
    parser.add_argument("--seconds", type=float, default=10.0, help="about how long each row may take")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16" if on_gpu else "float32")
    parser.add_argument(
        "--lengths", default=",".join(map(str, LENGTHS)), help="tokens of a sentence, with commas between"
    )
    parser.add_argument("--padded", action="store_true", help="sentences between three quarters of the length and all")
    parser.add_argument("--save", action="store_true", help="write the table to benchmarks/results")
    chosen = parser.parse_args()
    lengths = [int(length) for length in chosen.lengths.split(",")]
    torch.manual_seed(0)
    config = GPT2Config(n_positions=max(1024, *lengths))
    model = GPT2LMHeadModel(config).eval().requires_grad_(False).to(DEVICE, DTYPES[chosen.dtype])
    fuse_activations(model)
    view = view_model(model)
    seconds = chosen.seconds / 2
    padding = "lengths between three quarters and all" if chosen.padded else "no padding"
    tables = report.Report("attention-padded" if chosen.padded else "attention", saved=chosen.save)
    tables.add(
        f"# Attention entropy\n\n`python -m benchmarks.attention`: {report.conditions(chosen.dtype)}\nGPT-2 small (12 "
        f"blocks, {NUM_HEADS} heads of width {HEAD_WIDTH}) without its head, random weights; {chosen.tokens:,} tokens "
        f"in a batch, {padding}; {torch.get_num_threads()} threads; medians of ways that take turns. Added: the "
        "entropies' share. Eager: entropies from the maps.\n"
    )
    whole = _table(lambda *case: _measure_model(view, *case, chosen.padded, seconds), chosen.tokens, lengths)
    tables.add(f"\n## The forward pass of the model\n\n{whole}")
    alone = _table(lambda *case: _measure_block(DTYPES[chosen.dtype], *case, seconds), chosen.tokens, lengths)
    tables.add(f"\n## The attention of one block, without the products around it (no padding)\n\n{alone}")


def _table(measure: Callable[[int, int, str], dict[str, float]], tokens: int, lengths: Sequence[int]) -> str:
    """Measure every length and choice of positions, and return a table.

    Args:
        measure: Called with length, batch size and positions; returns seconds of `alone`, `read` and `eager`.
        tokens: Of a batch.
        lengths: Of its sentences.
    """
    rows = []
    for length in lengths:
        for positions in ("last", "all"):
            batch = max(1, tokens // length)
            took = measure(length, batch, positions)
            alone, read, eager = (1000 * took[name] for name in ("alone", "read", "eager"))
            shares = [f"{100 * (read / alone - 1):.1f} %", f"{eager:.1f}", f"{eager / read:.2f}"]
            rows.append([str(length), str(batch), positions, f"{alone:.1f}", f"{read:.1f}", *shares])
            print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)
    return report.table(HEADER, rows)


@torch.inference_mode()
def _measure_model(
    view: ModelView, length: int, batch: int, positions: str, padded: bool, seconds: float
) -> dict[str, float]:
    """Return the seconds of a forward pass alone, with entropies, and with eager attention."""
    generator = torch.Generator().manual_seed(length)
    input_ids = torch.randint(view.shape.vocab_size, (batch, length), generator=generator)
    lengths = torch.full((batch,), length)
    if padded:
        lengths[1:] = torch.randint(3 * length // 4, length + 1, (batch - 1,), generator=generator)
    mask = (torch.arange(length) < lengths[:, None]).long()
    where = mask.nonzero(as_tuple=True) if positions == "all" else (torch.arange(batch), lengths - 1)
    input_ids, mask, *where = (tensor.to(DEVICE) for tensor in (input_ids, mask, *where))

    def forward(reads: bool) -> None:
        with read_attention_entropy(view, *where) if reads else nullcontext() as entropies:
            run_base(view, input_ids, mask)
        if entropies is not None:
            entropies.stack()

    def attend(implementation: str, reads: bool) -> None:
        view.model.set_attn_implementation(implementation)
        forward(reads)

    ways = {"alone": (READABLE, False), "read": (READABLE, True), "eager": (EAGER, True)}
    return report.medians({name: partial(attend, *way) for name, way in ways.items()}, seconds=seconds)


@torch.inference_mode()
def _measure_block(dtype: torch.dtype, length: int, batch: int, positions: str, seconds: float) -> dict[str, float]:
    """Return the seconds of one block's causal attention alone, with entropies, and eager."""
    generator = torch.Generator().manual_seed(length)
    shape = (batch, NUM_HEADS, length, HEAD_WIDTH)
    query, key, value = (torch.randn(shape, generator=generator).to(DEVICE, dtype) for _ in range(3))
    inputs = AttentionInputs(query, key, None, True, HEAD_WIDTH**-0.5)
    every = torch.ones(batch, length).nonzero(as_tuple=True)
    where = every if positions == "all" else (torch.arange(batch), torch.full((batch,), length - 1))
    rows, places = (tensor.to(DEVICE) for tensor in where)
    hidden = torch.ones(length, length, dtype=torch.bool, device=DEVICE).triu(1)

    def attend() -> None:
        F.scaled_dot_product_attention(query, key, value, is_causal=True)

    def read() -> None:
        attend()
        RowEntropies(rows, places)(inputs)

    def eager() -> None:
        scores = (query @ key.mT * inputs.scale).masked_fill_(hidden, -torch.inf)
        weights = scores.softmax(dim=-1, dtype=torch.float32)
        weights.to(dtype) @ value
        torch.special.entr(weights[rows, :, places]).sum(dim=-1)

    return report.medians({"alone": attend, "read": read, "eager": eager}, seconds=seconds)


if __name__ == "__main__":
    main()
