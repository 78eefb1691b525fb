"""What opening a model costs: finding its parts and proving that it is read rightly, beside one pass over the probe.

    python -m benchmarks.opening --save

For each part of opening: the passes through the model, the tokens in them, the processor's seconds (of this process,
with one thread, so that other programs disturb less), and the memory beyond the weights at the highest. From these, the
time for a model of 7 billion parameters is reckoned. About two minutes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import initialization

from benchmarks import report, subjects
from benchmarks.products import best_rate
from llm_entropy.measuring.lens import check_lens
from llm_entropy.models.attention import open_attention
from llm_entropy.models.attention.interface import READABLE
from llm_entropy.models.families import ModelView, hooks_on_applications, stream_of, view_model
from llm_entropy.models.proofs import check_parts, check_size
from llm_entropy.models.tracing.probe import PROBE_SHAPE, probe_tokens

FORWARD, ALL = "one pass over the probe", "all of opening"
ROUNDS = 3
ROWS = {"num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 2048, "vocab_size": 32_000}
MEDIUM = {**ROWS, "hidden_size": 2048, "num_hidden_layers": 22, "intermediate_size": 5632}
LARGE = {**ROWS, "hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 11_008, "num_key_value_heads": 32}
"""Sizes of a llama of 1.1 billion parameters, which is opened, and of one of 7 billion, which is reckoned."""
NARROW = {"hidden_size": 128, "intermediate_size": 192, "vocab_size": 500}
"""What makes a large model small without another number of blocks: it is opened to count tokens."""
MODELS = {"gpt2": torch.float32, "llama-1.1b": torch.bfloat16}
TINY = {"tiny": torch.float32, "tiny-llama": torch.bfloat16}
"""Models that are opened, and the type of their weights."""

Way = Callable[[], object]


class Count(NamedTuple):
    """What runs through a model."""

    passes: float
    """How often all of its blocks ran."""
    tokens: float
    """Of all of these passes, padding included."""
    rows: float
    """States that went through the decoder."""


class Weights(NamedTuple):
    """Numbers in the matrices that every token runs through."""

    blocks: int
    decoder: int

    def operations(self, count: Count) -> float:
        """Return the operations of what runs through; those of attention are no part worth counting in a probe."""
        return 2.0 * (self.blocks * count.tokens + self.decoder * count.rows)

    def tokens(self, count: Count) -> float:
        """Return how many tokens, each through all blocks and the decoder, take as many operations."""
        return self.operations(count) / (2.0 * (self.blocks + self.decoder))


@dataclass
class Cost:
    """What a part of opening costs."""

    count: Count
    seconds: float
    memory: int


def main() -> None:
    """Measure, print, and save if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try it out")
    parser.add_argument("--threads", type=int, default=1, help="how many of the processor's; default: 1")
    parser.add_argument("--save", action="store_true", help="write the tables to benchmarks/results")
    chosen = parser.parse_args()
    if torch.cuda.is_available():
        parser.error("it measures the processor; hide the GPU: CUDA_VISIBLE_DEVICES= python -m benchmarks.opening")
    torch.set_num_threads(chosen.threads)
    options = " --tiny" if chosen.tiny else ""
    tables = report.Report("opening", saved=chosen.save)
    tables.add(
        f"# Opening\n\n`python -m benchmarks.opening{options}`: {report.conditions('weights as said')}\n"
        f"Random weights. The probe is {PROBE_SHAPE[0]} sentences of {PROBE_SHAPE[1]} tokens. Tokens: of all passes "
        "through the blocks, and states through the decoder; `worth`: whole tokens, through blocks and decoder, that "
        "take as many operations. Seconds: of the processor, the median of three. Memory: of tensors "
        "beyond the weights, at the highest. Behind both, how many times that of one pass over the probe.\n"
    )
    for size, dtype in (TINY if chosen.tiny else MODELS).items():
        model = make_model(size, dtype)
        costs = measure(model)
        weights = weights_of(view_model(model))
        name = f"{size}, {str(dtype).removeprefix('torch.')}, {model.num_parameters() / 1e6:,.0f} million parameters"
        tables.add(f"\n## {name}\n\n{costs_table(costs, weights)}")
    tables.add(f"\n## A llama of 7 billion parameters, reckoned\n\n{reckon(costs, weights, dtype)}")


def make_model(size: str, dtype: torch.dtype) -> transformers.PreTrainedModel:
    """Return a model with random weights, as it is loaded to read its attention.

    Args:
        size: A key of `MODELS` or of `subjects.SIZES`.
        dtype: Of the weights.
    """
    config = transformers.LlamaConfig(**MEDIUM) if size == "llama-1.1b" else subjects.make_config(size)
    return _random(config, dtype)


def _random(config: transformers.PretrainedConfig, dtype: torch.dtype) -> transformers.PreTrainedModel:
    """Return a model whose matrices are drawn in the fastest way; a normal distribution takes a minute for a large one.

    Its norms are those that it is made with.
    """
    config.use_cache, config.dtype = False, dtype
    torch.manual_seed(0)
    with initialization.no_init_weights():
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=READABLE)
    model.tie_weights()
    bound = subjects.LOGIT_DEVIATION * (3 / config.hidden_size) ** 0.5  # of a uniform distribution with this deviation
    with torch.no_grad():
        for weight in model.parameters():
            weight.uniform_(-bound, bound) if weight.ndim > 1 else weight.fill_(1.0)
    return model.eval().requires_grad_(False)  # type: ignore[no-any-return]


def parts_of(model: transformers.PreTrainedModel) -> dict[str, Way]:
    """Return the parts of opening, each of which can be run by itself, by name; before them one pass, behind them all.

    Args:
        model: What is opened.
    """
    view = view_model(model)
    input_ids = probe_tokens(model, PROBE_SHAPE)

    def open_all() -> None:
        view = view_model(model)
        check_size(view, "model")
        check_lens(open_attention(check_parts(view, "model"), "model"), "model")

    return {
        FORWARD: torch.inference_mode()(partial(model, input_ids, attention_mask=torch.ones_like(input_ids))),
        "view_model": partial(view_model, model),
        "check_size": partial(check_size, view, "model"),
        "check_parts": partial(check_parts, view, "model"),
        "open_attention": partial(open_attention, view, "model"),
        "check_lens": partial(check_lens, view, "model"),
        ALL: open_all,
    }


def measure(model: transformers.PreTrainedModel) -> dict[str, Cost]:
    """Return what each part of opening costs, by name.

    Args:
        model: What is opened.
    """
    counts = count(model)
    costs = {}
    for name, way in parts_of(model).items():
        costs[name] = Cost(counts[name], _seconds(way), _peak(way))
        print(name, costs[name], file=sys.stderr, flush=True)
    return costs


def count(model: transformers.PreTrainedModel) -> dict[str, Count]:
    """Return what runs through a model in each part of its opening, by name.

    Args:
        model: What is opened.
    """
    view = view_model(model)
    counts = {}
    for name, way in parts_of(model).items():
        with _counting(view) as seen:
            way()
        counts[name] = seen[0]
    return counts


@contextmanager
def _counting(view: ModelView) -> Iterator[list[Count]]:
    """Fill a list with what has run through a model inside of the context: any product outside of the blocks counts."""
    tokens: list[int] = []
    inside = [0]
    seen: list[Count] = []
    operations = FlopCounterMode(display=False)

    def before(block: int, module: nn.Module, args: Any, kwargs: Any) -> None:
        tokens.append(stream_of(args, kwargs)[..., 0].numel())
        inside[0] -= operations.get_total_flops()

    def after(block: int, module: nn.Module, args: Any, output: Any) -> None:
        inside[0] += operations.get_total_flops()

    register = partial(nn.Module.register_forward_pre_hook, with_kwargs=True)
    with (
        hooks_on_applications(view.blocks, register, before),
        hooks_on_applications(view.blocks, nn.Module.register_forward_hook, after),
        operations,
    ):
        yield seen
    rows = (operations.get_total_flops() - inside[0]) / (2 * view.decoder.weight.numel())
    seen.append(Count(len(tokens) / len(view.blocks), sum(tokens) / len(view.blocks), rows))


def weights_of(view: ModelView) -> Weights:
    """Return the sizes of what a token runs through.

    Args:
        view: The model.
    """
    blocks = sum(weight.numel() for block in view.blocks for weight in block.parameters() if weight.ndim > 1)
    return Weights(blocks, view.decoder.weight.numel())


def _seconds(way: Way) -> float:
    """Return the processor's seconds, which other programs change less than those of the clock."""
    took = []
    for _ in range(ROUNDS + 1):
        start = time.process_time()
        way()
        took.append(time.process_time() - start)
    return statistics.median(took[1:])  # the first one gets memory that is kept


def _peak(way: Way) -> int:
    """Return how many bytes of tensors are held beside those from before, at the highest, as torch's profiler saw it.

    The memory of the process also has what its allocator keeps for later, which may be more than all of these.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        way()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    return max(itertools.accumulate((change for _, change in changes), initial=0))


def costs_table(costs: Mapping[str, Cost], weights: Weights) -> str:
    """Return a table of what the parts of opening cost.

    Args:
        costs: By name.
        weights: Of the model.
    """
    one = costs[FORWARD]
    rows = []
    for name, cost in costs.items():
        rows.append(
            [
                name,
                f"{cost.count.passes:.0f}",
                f"{cost.count.tokens:.0f}",
                f"{cost.count.rows:.0f}",
                f"{weights.tokens(cost.count):.1f}",
                f"{cost.seconds:,.3f}",
                f"{cost.seconds / one.seconds:.1f}x",
                f"{cost.memory / 2**20:,.1f} MiB",
                f"{cost.memory / max(1, one.memory):.1f}x",
            ]
        )
    header = ["part", "passes", "tokens", "decoder", "worth", "seconds", "of one pass", "memory", "of one pass"]
    return report.table(header, rows)


def reckon(costs: Mapping[str, Cost], weights: Weights, dtype: torch.dtype) -> str:
    """Return what opening a model of 7 billion parameters takes, by its tokens and the rates of a smaller one.

    The tokens are counted in a model with as many blocks, which is narrow.

    Args:
        costs: Of the smaller model, by name.
        weights: Of it.
        dtype: Of it.
    """
    rate = best_rate(LARGE["hidden_size"], LARGE["vocab_size"], dtype, seconds=5)
    counts = count(_random(transformers.LlamaConfig(**{**LARGE, **NARROW}), torch.bfloat16))
    width, inner = LARGE["hidden_size"], LARGE["intermediate_size"]
    large = Weights(LARGE["num_hidden_layers"] * (4 * width**2 + 3 * width * inner), width * LARGE["vocab_size"])
    rows = []
    for name, cost in costs.items():
        operations = large.operations(counts[name])
        reached = weights.operations(cost.count) / cost.seconds
        rows.append(
            [
                name,
                f"{counts[name].passes:.0f}",
                f"{large.tokens(counts[name]):.1f}",
                f"{operations / 1e9:,.0f}",
                f"{operations / rate:,.2f}",
                f"{reached / 1e9:,.0f}",
                f"{operations / reached if reached else cost.seconds:,.2f}",
            ]
        )
    header = ["part", "passes", "worth", "GFLOP", "seconds, best rate", "GFLOP/s reached", "seconds, rate reached"]
    return (
        f"{LARGE['num_hidden_layers']} blocks of width {width}, {inner} inside, {LARGE['vocab_size']:,} tokens. The "
        f"best rate is that of the fastest bare product of many rows, {rate / 1e9:,.0f} GFLOP/s with "
        f"{torch.get_num_threads()} threads; the rate reached is that of the same part in the model above, whose "
        "weights have to come from memory for a few tokens, as here.\n\n" + report.table(header, rows)
    )


if __name__ == "__main__":
    main()
