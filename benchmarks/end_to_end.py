"""How long does a sentence take, how far is that from the machine's limit, and what does everything else cost?

    python -m benchmarks.end_to_end --save

A GPT-2 with random weights, sentences of about 19 and of about 200 tokens, all six default metrics and the top 5.
Batches as a run makes them go through the model alone and through `EntropyModule`, in turn; then a whole run of
`--sentences`, by its parts. About fifteen minutes on two cores; two on a GPU, where bfloat16 is measured too.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any, Literal, NamedTuple, Optional, cast
from unittest.mock import patch

import numpy as np
import torch
from transformers import AutoModel

from benchmarks import report, subjects
from benchmarks.products import best_rate
from llm_entropy import AnalysisSettings, ControlSettings, OutputSettings, Settings, TrainerSettings, run_analysis
from llm_entropy.corpus.datamodule import SentenceDataModule, WindowBatches
from llm_entropy.corpus.picking import corpus_of_sentences
from llm_entropy.measuring.asked import Asked
from llm_entropy.measuring.module import EntropyModule
from llm_entropy.models.families import run_base
from llm_entropy.runs.opening import open_model
from llm_entropy.runs.plan import plan_model
from llm_entropy.schema.batches import Batch
from llm_entropy.settings import DEFAULT_METRICS

Positions = Literal["last", "all"]
BATCH_TOKENS = {"cpu": 1200, "cuda": 8192}
"""Tokens of the batch that is timed: on a GPU what a run takes; on a CPU less, as the time is in proportion anyway."""
PRECISIONS = {torch.float32: "32-true", torch.bfloat16: "bf16-true"}


class Work(NamedTuple):
    """How many operations a batch takes: what no program can do without."""

    forward: float
    """Of the model without its head: 2 for each weight and real token, and the attention."""
    lens: float
    """Of the decoder, for one layer."""


@dataclass
class Subject:
    """What is measured."""

    folder: str
    """Of the model."""
    dtype: torch.dtype
    rate: float
    """Operations per second of the fastest product."""

    @property
    def trainer(self) -> TrainerSettings:
        """The settings of a run."""
        return TrainerSettings(devices=1, precision=PRECISIONS[self.dtype])  # type: ignore[arg-type]


def main() -> None:
    """Measure, print, and save if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--size", default="gpt2", help=f"of the model: {', '.join(subjects.SIZES)}; or several, with commas"
    )
    parser.add_argument(
        "--sentences", type=int, default=2000, help="of the whole run; growth is from a tenth of it; 0: no such run"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="about how long each case is timed")
    parser.add_argument("--dtypes", help="names with commas between; default: by the device")
    parser.add_argument("--save", action="store_true", help="write the tables to benchmarks/results")
    parser.add_argument("--start-up", metavar="FOLDER", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.start_up:
        print_first_batch(chosen.start_up)
        return
    dtypes = [torch.float32, torch.bfloat16] if report.device().type == "cuda" else [torch.float32]
    if chosen.dtypes:
        dtypes = [getattr(torch, name) for name in chosen.dtypes.split(",")]
    names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    tables = report.Report("end-to-end", saved=chosen.save)
    tables.add(
        f"# End to end\n\n`python -m benchmarks.end_to_end --size {chosen.size} --sentences {chosen.sentences}`: "
        f"{report.conditions(names)}\nMetrics: {', '.join(DEFAULT_METRICS)}; top 5. The floor: operations of the "
        "forward passes and of the decoder at every layer and position, without padding, at the rate of the fastest "
        "bare product. Memory: at the highest, beyond weights and batch.\n"
    )
    for size in chosen.size.split(","):
        sizes = subjects.make_config(size)
        for dtype in dtypes:
            with tempfile.TemporaryDirectory() as folder:
                rate = best_rate(sizes.hidden_size, sizes.vocab_size, dtype, seconds=10)
                subject = Subject(subjects.save_model(Path(folder), size, dtype), dtype, rate)
                title = f"\n## {size}, {str(dtype).removeprefix('torch.')}, {rate / 1e9:,.0f} GFLOP/s at best\n\n"
                tables.add(title + measure_cases(subject, seconds=chosen.seconds))
                if chosen.sentences:
                    tables.add("\n" + measure_run(subject, chosen.sentences))


# --- a batch -----------------------------------------------------------------------------------------------------


def measure_cases(subject: Subject, *, seconds: float) -> str:
    """Time the model alone and every condition, for each corpus and choice of positions; return a table.

    Args:
        subject: What is measured.
        seconds: About how long each case may take.
    """
    rows: list[Sequence[str]] = []
    bare = load_bare(subject)
    for corpus in subjects.LENGTHS:
        for positions in ("last", "all"):
            case = measure_case(subject, bare, corpus, positions, seconds=seconds)
            for row in case:
                print(*row, sep=" | ", file=sys.stderr, flush=True)
            rows += case
    header = ["sentences", "tokens", "positions", "what", "ms/sentence", "tokens/s", "against the model"]
    header.append("against standard")
    return report.table([*header, "floor, ms/sentence", "of the floor", "memory"], rows)


def load_bare(subject: Subject) -> torch.nn.Module:
    """Return the model without its head, with the attention that transformers chooses.

    Args:
        subject: What is measured.
    """
    model: Any = AutoModel.from_pretrained(subject.folder, dtype=subject.dtype)
    model.config.use_cache = False
    return cast(torch.nn.Module, model.eval().to(report.device()))


def measure_case(
    subject: Subject, bare: torch.nn.Module, corpus: str, positions: Positions, *, seconds: float
) -> list[Sequence[str]]:
    """Time the model alone, the standard condition, and comparisons, on one batch; return rows of the table.

    Args:
        subject: What is measured.
        bare: The model without its head.
        corpus: A key of `subjects.LENGTHS`.
        positions: Where it is read.
        seconds: About how long it may take.
    """
    modules = make_modules(subject, positions)
    standard = modules["standard"]
    batch = typical_batch(subject, corpus, positions).to(report.device())
    num_blocks = standard.view.shape.num_blocks
    work = count_work(bare, standard, batch)
    operations = {"model alone": work.forward, "standard": work.forward + (num_blocks + 1) * work.lens}
    for name, first in FIRST_STEERED.items():
        # what block k gives is the first that differs: the blocks behind it run again, their layers are read again
        changed = num_blocks - int(first * num_blocks)
        again = work.forward * (changed - 1) / num_blocks + changed * work.lens
        operations[name] = operations["standard"] + again
    ways: dict[str, Callable[[], object]] = {"model alone": partial(run_bare, bare, batch)}
    ways |= {name: partial(module.predict_step, batch) for name, module in modules.items()}
    took = report.medians(ways, seconds=seconds)
    count = len(batch.sentences)
    num_tokens = int(batch.attention_mask.sum())
    about = [f"{count} {corpus}", f"{num_tokens:,}", positions]
    return [
        [
            *about,
            name,
            f"{1000 * median / count:,.2f}",
            f"{num_tokens / median:,.0f}",
            f"{median / took['model alone']:.2f}x, {took['model alone'] / median:.0%}",
            f"{median / took['standard']:.2f}x" if name in FIRST_STEERED else "",
            f"{1000 * operations[name] / subject.rate / count:,.2f}",
            f"{operations[name] / subject.rate / median:.0%}",
            report.megabytes(report.peak_bytes(ways[name])),
        ]
        for name, median in took.items()
    ]


FIRST_STEERED = {"comparative from block 0": 0.0, "comparative from half-way": 0.5}
"""Comparisons, and at what share of the blocks their steering begins."""


def make_modules(subject: Subject, positions: Positions) -> dict[str, EntropyModule]:
    """Return a module for the standard condition, and one for each comparison, all of one model.

    Args:
        subject: What is measured.
        positions: Where it is read.
    """
    settings = {"standard": _settings(subject, positions)}
    settings |= {name: _settings(subject, positions, first) for name, first in FIRST_STEERED.items()}
    plans = {name: plan_model("model", subject.folder, each) for name, each in settings.items()}
    opened = open_model(plans["standard"], settings["standard"].analysis, precision=subject.trainer.precision)
    modules = {
        name: EntropyModule(opened.view, opened.lens, Asked(settings[name].analysis, plan.steering))
        for name, plan in plans.items()
    }
    return {name: module.to(report.device()) for name, module in modules.items()}


def _settings(subject: Subject, positions: Positions, first: Optional[float] = None) -> Settings:
    """Return the settings of a run; `first` None: the standard condition, else a comparison steered from there on."""
    control = ControlSettings()
    if first is not None:
        config = subjects.read_config(subject.folder)
        vector = np.random.default_rng(0).normal(size=config.hidden_size).tolist()
        num_blocks = config.num_hidden_layers
        weights = [float(block >= int(first * num_blocks)) for block in range(num_blocks)]
        control = ControlSettings(control_vector=vector, layer_weights=weights)
    analysis = AnalysisSettings(positions=positions, compare_control=first is not None, control=control)
    return Settings(analysis=analysis, models={"model": subject.folder}, trainer=subject.trainer)


def typical_batch(subject: Subject, corpus: str, positions: Positions) -> Batch:
    """Return the batch of a corpus of 2,000 sentences whose sentences are nearest to the mean length.

    Args:
        subject: What is measured.
        corpus: A key of `subjects.LENGTHS`.
        positions: Where it is read.
    """
    plan = plan_model("model", subject.folder, _settings(subject, positions))
    sentences = corpus_of_sentences(subjects.make_sentences(2000, corpus), None, 0)
    tokens = BATCH_TOKENS[report.device().type]
    pad = plan.source.pad_token_id
    data = SentenceDataModule(sentences, plan.encoder, pad_token_id=pad, tokens_per_batch=tokens, seed=0)
    mean = subjects.LENGTHS[corpus]
    batches = WindowBatches(data, rank=0, world_size=1)
    return min(batches, key=lambda batch: abs(float(batch.attention_mask.sum()) / len(batch.sentences) - mean))


def count_work(bare: torch.nn.Module, module: EntropyModule, batch: Batch) -> Work:
    """Return the operations that a batch takes.

    Args:
        bare: The model without its head.
        module: Of the same model.
        batch: Of sentences.
    """
    shape = module.view.shape
    embeddings = {id(each.weight) for each in bare.modules() if isinstance(each, torch.nn.Embedding)}
    weights = sum(each.numel() for each in bare.parameters() if id(each) not in embeddings)
    lengths = batch.attention_mask.sum(1).double()
    attention = 4.0 * shape.hidden_size * shape.num_blocks * float(lengths.square().sum())
    lens = 2.0 * shape.hidden_size * shape.vocab_size * len(batch.rows)
    return Work(2.0 * weights * float(lengths.sum()) + attention, lens)


@torch.inference_mode()
def run_bare(model: torch.nn.Module, batch: Batch) -> None:
    """Run the model without its head, and keep nothing.

    Args:
        model: As transformers loads it.
        batch: Of sentences.
    """
    model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)


# --- a run -------------------------------------------------------------------------------------------------------

PARTS = {
    "start-up: configuration, weights, checks of lens and attention": (
        ("plan.py", "plan_model"),
        ("loading.py", "load_model"),
        ("lens.py", "check_lens"),
        ("families.py", "view_model"),
        ("proofs.py", "check_parts"),
        ("__init__.py", "open_attention"),
    ),
    "tokenising, batches": (("datamodule.py", "_batches"),),
    "forward, lens, records": (("module.py", "predict_step"),),
    "shards": (("writer.py", "write_on_batch_end"), ("writer.py", "on_predict_end")),
    "merge, without plots": (("making.py", "make_outputs"),),
}
"""Parts of a run, and the functions whose time they are: file and name."""
START_UP, BATCHES, COMPUTED, SHARDS, MERGE = PARTS
FORWARD = (("forwards.py", "_forward"),)


def measure_run(subject: Subject, num_sentences: int) -> str:
    """Run a corpus and a tenth of it, and a few sentences from nothing; return what took how long.

    Args:
        subject: What is measured.
        num_sentences: Of the corpus.
    """
    sentences = subjects.make_sentences(num_sentences)
    before = profile_run(subject, sentences[: max(1, num_sentences // 10)])
    took = profile_run(subject, sentences)
    total = sum(took.values()) - took[FORWARD_KEY]
    rows = [[name, f"{seconds:.2f}", f"{seconds / total:.1%}"] for name, seconds in took.items()]
    work, work_before = (_without_start_up(each) for each in (took, before))
    else_ = work - took[COMPUTED]
    start_up = seconds_to_first_batch(subject)
    return (
        f"A run of {num_sentences:,} short sentences, positions last, plots off, "
        f"{1000 * total / num_sentences:.1f} ms/sentence; profiled, and waiting for the device after each forward "
        f"pass and each step:\n\n{report.table(['part', 'seconds', 'share'], rows)}\n"
        f"Everything that is neither forward nor lens, start-up apart: {else_ / work:.1%}. A tenth of the sentences "
        f"took {work_before:.2f} s, all of them {work:.2f} s: {work / work_before:.1f} times. From the start of the "
        f"process to the end of the first batch: {start_up:.1f} s.\n"
    )


FORWARD_KEY = "of these, forward"
REST = "everything else in the loop of the Trainer and around it"


def profile_run(subject: Subject, sentences: Sequence[str]) -> dict[str, float]:
    """Run a corpus, and return the seconds of each part.

    Args:
        subject: What is measured.
        sentences: The corpus.
    """
    profiler = cProfile.Profile()
    with tempfile.TemporaryDirectory() as folder, waiting_for_device():
        start = time.perf_counter()
        profiler.enable()
        run_analysis(
            {"model": subject.folder},
            sentences=sentences,
            trainer=subject.trainer,
            output=OutputSettings(dir=folder, plots=False),
            quiet=True,
        )
        profiler.disable()
        total = time.perf_counter() - start
    stats: dict[tuple[str, int, str], tuple[Any, ...]] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    seconds = {(Path(file).name, name): values[3] for (file, _, name), values in stats.items() if "llm_entropy" in file}
    took = {part: sum(seconds[function] for function in functions) for part, functions in PARTS.items()}
    took[REST] = total - sum(took.values())
    took[FORWARD_KEY] = sum(seconds[function] for function in FORWARD)
    return took


def _without_start_up(took: dict[str, float]) -> float:
    return sum(took.values()) - took[START_UP] - took[FORWARD_KEY]


@contextmanager
def waiting_for_device() -> Iterator[None]:
    """Let forward passes and steps end when the device's work is done, so that a profile says whose time it is."""

    def waiting(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            report.synchronize()
            return result

        return run

    with ExitStack() as patches:
        # without a GPU too, where there is nothing to wait for: a name that is gone would be noticed on a GPU alone
        patches.enter_context(patch("llm_entropy.measuring.forwards.run_base", waiting(run_base)))
        patches.enter_context(patch.object(EntropyModule, "predict_step", waiting(EntropyModule.predict_step)))
        yield


def seconds_to_first_batch(subject: Subject) -> float:
    """Return the seconds from the start of a process to the end of its first batch.

    Args:
        subject: What is measured.
    """
    command = [sys.executable, "-m", "benchmarks.end_to_end", "--start-up", subject.folder]
    start = time.time()
    process = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return float(process.stdout.splitlines()[0]) - start


def print_first_batch(folder: str) -> None:
    """Run a few sentences, and print at what time the first batch is done.

    Args:
        folder: Of the model.
    """
    step = EntropyModule.predict_step

    def timed(*args: Any, **kwargs: Any) -> Any:
        records = step(*args, **kwargs)
        report.synchronize()
        print(time.time(), flush=True)
        return records

    with tempfile.TemporaryDirectory() as out, patch.object(EntropyModule, "predict_step", timed):
        output = OutputSettings(dir=out, plots=False)
        run_analysis({"model": folder}, sentences=subjects.make_sentences(8), output=output, quiet=True)


if __name__ == "__main__":
    main()
