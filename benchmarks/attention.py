"""What does attention entropy cost beside the forward pass that it is read in, and beside eager attention?

    python -m benchmarks.attention --save

GPT-2 small with random weights, the model without its head. Three ways take turns in one process: the forward pass
alone, with fused attention; the same while entropies are read; and eager attention whose maps are read.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import nullcontext
from functools import partial

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks import report
from llm_entropy.architectures import ModelView, fuse_activations, run_base, view_model
from llm_entropy.attention import read_attention_entropy
from llm_entropy.attention_interface import EAGER, READABLE

LENGTHS = (16, 64, 256, 1024)
DEVICE = report.device()
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HEADER = (
    "tokens",
    "batch",
    "positions",
    "forward, ms",
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
    parser.add_argument("--padded", action="store_true", help="sentences between three quarters of the length and all")
    parser.add_argument("--save", action="store_true", help="write the table to benchmarks/results")
    chosen = parser.parse_args()
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config()).eval().requires_grad_(False).to(DEVICE, DTYPES[chosen.dtype])
    fuse_activations(model)
    view = view_model(model)
    rows = []
    for length in LENGTHS:
        for positions in ("last", "all"):
            rows.append(
                _measure(view, length, max(1, chosen.tokens // length), positions, chosen.padded, chosen.seconds)
            )
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    padding = "lengths between three quarters and all" if chosen.padded else "no padding"
    text = (
        f"# Attention entropy\n\n`python -m benchmarks.attention`: {report.conditions(chosen.dtype)}\nGPT-2 small (12 "
        f"blocks, 12 heads of width 64) without its head, random weights; {chosen.tokens:,} tokens in a batch, "
        f"{padding}; {torch.get_num_threads()} threads; medians of ways that take turns. Added: the entropies' share "
        "of the forward pass. Eager: entropies from the maps.\n\n" + report.table(HEADER, rows)
    )
    print(text)
    if chosen.save:
        print(f"written to {report.save('attention-padded' if chosen.padded else 'attention', text)}")


@torch.inference_mode()
def _measure(view: ModelView, length: int, batch: int, positions: str, padded: bool, seconds: float) -> list[str]:
    """Return a row of the table."""
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
    took = report.medians({name: partial(attend, *way) for name, way in ways.items()}, seconds=seconds)
    alone, read, eager = (1000 * took[name] for name in ways)
    shares = [f"{100 * (read / alone - 1):.1f} %", f"{eager:.1f}", f"{eager / read:.2f}"]
    return [str(length), str(batch), positions, f"{alone:.1f}", f"{read:.1f}", *shares]


if __name__ == "__main__":
    main()
