"""Does a run take time in proportion to its sentences, and memory that does not grow? And its resume, and its merge?

    python -m benchmarks.scaling --sizes 10000,100000,1000000 --save

Each size is predicted, resumed with nothing left to do, and merged, each in a process of its own. `--model none` takes
a GPT-2 of one block and random weights, so that everything that is not the model weighs as much as it can. Long
documents, read at every position:

    python -m benchmarks.scaling --model none --document-tokens 8000 --sizes 10,100,1000 --save
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import report
from llm_entropy.builtin import model_folder, read_sentences

METRICS = "[entropy, margin, surprisal]"
DOCUMENT_METRICS = "[entropy, perplexity, margin, kl_divergence, attention_entropy, surprisal]"
SENTENCE_TOKENS = 64
"""Most tokens of a short sentence."""
PROGRAM = "import sys; from llm_entropy.commands.cli import main; main(sys.argv[1:])"


class Took(NamedTuple):
    """What a process took."""

    seconds: float
    cpu_seconds: float
    """Of all its threads: what it would take if nobody else used the machine."""
    peak_bytes: int
    """Largest resident memory, mapped files included."""


def main() -> None:
    """Measure, print, and save if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10000,100000", help="numbers of sentences, with commas between")
    parser.add_argument("--model", default="builtin:tiny-gpt2", help="a model's name, or none")
    parser.add_argument("--document-tokens", type=int, help="long documents of so many tokens, read at every position")
    parser.add_argument("--streaming", action="store_true", help="read the corpus as a stream")
    parser.add_argument("--save", action="store_true", help="write the table to benchmarks/results")
    chosen = parser.parse_args()
    sizes = [int(size) for size in chosen.sizes.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        length = chosen.document_tokens
        model = (
            _save_model(Path(folder) / "model", length or SENTENCE_TOKENS) if chosen.model == "none" else chosen.model
        )
        rows = []
        for size in sizes:
            rows.append(_measure(Path(folder), model, size, length, streaming=chosen.streaming))
            print(f"{size}: {rows[-1]}", file=sys.stderr, flush=True)
    text = _write(rows, chosen.model, length, streaming=chosen.streaming)
    print(text)
    if chosen.save:
        name = "long-documents" if length else "scaling"
        name += ("-no-model" if chosen.model == "none" else "") + ("-stream" if chosen.streaming else "")
        print(f"written to {report.save(name, text)}")


def _save_model(folder: Path, most_tokens: int) -> str:
    """Save the smallest model that the built-in vocabulary allows: one block of width 32, random weights."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder("tiny-gpt2"))
    tokenizer.model_max_length = most_tokens
    config = transformers.GPT2Config(vocab_size=len(tokenizer), n_positions=most_tokens, n_embd=32, n_layer=1, n_head=2)
    config.bos_token_id = config.eos_token_id = tokenizer.eos_token_id
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _write_corpus(path: Path, size: int, length: int | None) -> None:
    """Write sentences of 3 to 6 words of the built-in ones, or documents of `length`, each with a number of its own."""
    words = np.array(sorted({word for row in read_sentences() for word in row["prompt"].split()}))
    random = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as stream:
        for first in range(0, size, 10_000):
            for number in range(first, min(size, first + 10_000)):
                text = " ".join([*random.choice(words, length or random.integers(3, 7)), str(number)])
                stream.write(json.dumps({"text": text}) + "\n")


def _measure(folder: Path, model: str, size: int, length: int | None, *, streaming: bool) -> dict[str, Any]:
    corpus = folder / f"{size}.jsonl"
    _write_corpus(corpus, size, length)
    run_dir = folder / "runs" / str(size)
    options = {
        "models": f"{{tiny: {model}}}",
        "analysis.num_sentences": "null",
        "analysis.metrics": DOCUMENT_METRICS if length else METRICS,
        "analysis.positions": "all" if length else "last",
        "data.path": str(corpus),
        "data.streaming": str(streaming).lower(),
        "data.max_length": str(length or "null"),
        "output.dir": str(run_dir.parent),
        "output.run_name": run_dir.name,
        "output.plots": "false",
        # an array of one task merges nothing by itself: predicting and merging are measured apart
        "data.num_shards": "2",
    }
    words = [f"--{key}={value}" for key, value in options.items()]
    tasks = [_run(["predict", *words, f"--data.shard_index={index}", "--quiet"]) for index in (0, 1)]
    resumed = _run(["predict", *words, "--data.shard_index=0", "--resume", "--quiet"])
    merged = _run(["merge", str(run_dir), "--quiet"])
    model_about = json.loads((run_dir / "run.json").read_text())["models"]["tiny"]
    shards = [path.stat().st_size for path in run_dir.glob("shards/*/*/*/*")]
    return {
        "size": size,
        "tokens": model_about["num_tokens"],
        "tokens_per_second": model_about["tokens_per_process_second"],
        "seconds": sum(took.seconds for took in tasks),
        "cpu_seconds": sum(took.cpu_seconds for took in tasks),
        "peak": max(took.peak_bytes for took in tasks),
        "resume": resumed.seconds,
        "merge": merged.seconds,
        "merge_peak": merged.peak_bytes,
        "parts": model_about["num_parts"],
        "bytes": sum(shards),
        "records": model_about["num_records"],
    }


def _run(words: list[str]) -> Took:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, *words], env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)}: ended with {process.returncode}")
    return Took(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def _write(rows: list[dict[str, Any]], model: str, length: int | None, *, streaming: bool) -> str:
    first = rows[0]["tokens_per_second"]
    header = [
        *(
            "documents" if length else "sentences",
            "tokens",
            "tokens/s",
            "ratio",
            "predict, 2 tasks",
            "CPU time",
            "peak memory",
        ),
        *("resume, all done", "merge", "merge memory", "parts", "bytes/record"),
    ]
    cells = [
        [
            f"{row['size']:,}",
            f"{row['tokens']:,}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['tokens_per_second'] / first:.2f}",
            f"{row['seconds']:.0f} s",
            f"{row['cpu_seconds']:.0f} s",
            f"{row['peak'] / 2**20:,.0f} MiB",
            f"{row['resume']:.1f} s",
            f"{row['merge']:.1f} s",
            f"{row['merge_peak'] / 2**20:,.0f} MiB",
            str(row["parts"]),
            f"{row['bytes'] / row['records']:.0f}",
        ]
        for row in rows
    ]
    how = "a stream" if streaming else "a mapped file"
    what = "GPT-2 of 1 block of width 32, random weights, 4,096 tokens" if model == "none" else model
    option = f" --document-tokens {length}" if length else ""
    texts = f"documents of {length:,} tokens; positions all" if length else "short sentences; positions last"
    about = (
        f"# Scaling\n\n`python -m benchmarks.scaling --model {model}{option}{' --streaming' if streaming else ''}`: "
        f"{report.conditions()}\n{what}; {how} of {texts}; metrics {DOCUMENT_METRICS if length else METRICS}; the two "
        "tasks of an array one after the other. tokens/s: of the processes while they predict. Seconds, CPU time and "
        "memory (resident, mapped files included) are those of whole processes, imports included.\n\n"
    )
    return about + report.table(header, cells)


if __name__ == "__main__":
    main()
