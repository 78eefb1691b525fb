"""How much faster than others, on the same weights and the same sentences, in the same minute?

    python -m benchmarks.peers --setup     # once: an environment for each peer, torch as constraints.txt says
    python -m benchmarks.peers --save

This program and a peer load the same model, each in a process of its own, and read the same sentences in turn: ours,
the peer, ours, the peer. Their entropies are compared. Installing takes some minutes and 5 GB; measuring takes about
half an hour on two cores, less on a GPU, where bfloat16 is measured too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers

from benchmarks import report, subjects
from benchmarks.peers.environments import DEFAULT_FOLDER, PEERS, Peer, python_of, releases, set_up, why_not

OURS = Peer("this program", "ours", (), (), "all six metrics, top 5", every=1)
Entropies = list[list[list[float]]]
"""[sentence][layer][position], in nats."""


class WorkerError(RuntimeError):
    """A worker has ended before its time; its last words."""


class Pair(NamedTuple):
    """What this program and a peer took for the same sentences."""

    ours: float
    """Seconds for a sentence, median."""
    theirs: float
    """Seconds for a sentence, median."""
    difference: float
    """Largest between their entropies, in nats."""
    batch_size: int
    """Sentences that the peer reads together."""


def main() -> None:
    """Set up, or measure, print, and save if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    is_gpu = report.device().type == "cuda"
    parser.add_argument("--setup", action="store_true", help="make the environments, and measure nothing")
    parser.add_argument("--environments", type=Path, default=DEFAULT_FOLDER, help="folder of the environments")
    parser.add_argument("--size", default="gpt2", choices=subjects.SIZES, help="of the model")
    parser.add_argument(
        "--sentences", type=int, default=2048 if is_gpu else 512, help="how many; for all positions a quarter"
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each reads them")
    parser.add_argument("--only", help="modules of peers, with commas between")
    parser.add_argument("--dtypes", help="names with commas between; default: by the device")
    parser.add_argument("--save", action="store_true", help="write the tables to benchmarks/results")
    chosen = parser.parse_args()
    if chosen.setup:
        set_up(chosen.environments)
        return
    only = chosen.only.split(",") if chosen.only else [peer.module for peer in PEERS]
    peers = [peer for peer in PEERS if peer.module in only]
    dtypes = [torch.float32, torch.bfloat16] if is_gpu else [torch.float32]
    if chosen.dtypes:
        dtypes = [getattr(torch, name) for name in chosen.dtypes.split(",")]
    names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    tables = report.Report("peers", saved=chosen.save)
    tables.add(
        f"# Peers\n\n`python -m benchmarks.peers --size {chosen.size} --sentences {chosen.sentences} --rounds "
        f"{chosen.rounds}`: {report.conditions(names)}\n{chosen.sentences} sentences of about "
        f"{subjects.LENGTHS['short']:.0f} tokens, a quarter of them for all positions; medians of rounds in turn, each "
        "pair of processes by itself. This program computes all six default metrics and the top 5. A peer that takes "
        "batches has the faster of two sizes and reads every eighth sentence; one that reads a sentence at a time, "
        "every 32nd. Difference: the largest between the entropies of both, over sentences, positions and layers.\n"
    )
    for dtype in dtypes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            subjects.save_model(folder, chosen.size, dtype)
            for positions, count in (("last", chosen.sentences), ("all", -(-chosen.sentences // 4))):
                sentences = subjects.make_sentences(count)
                title = f"\n## {chosen.size}, {str(dtype).removeprefix('torch.')}, positions {positions}\n\n"
                where = chosen.environments
                rows = [
                    measure_peer(peer, folder, sentences, positions, dtype, rounds=chosen.rounds, environments=where)
                    for peer in peers
                ]
                header = ["peer", "beside entropy", "batch", "ms/sentence", "ours, ms/sentence", "ours is faster"]
                tables.add(title + report.table([*header, "difference, nats"], rows))


def measure_peer(
    peer: Peer,
    folder: Path,
    sentences: Sequence[str],
    positions: str,
    dtype: torch.dtype,
    *,
    rounds: int,
    environments: Path,
) -> list[str]:
    """Measure a peer and this program in turn, and return a row of the table.

    Args:
        peer: Which one.
        folder: Of the model.
        sentences: What is read.
        positions: `last` or `all`.
        dtype: Of the weights.
        rounds: How often each reads them.
        environments: Where the peers are installed.
    """
    python = python_of(peer, environments)
    if python is None:
        return [peer.label, peer.reads, "", why_not(peer, environments), "", "", ""]
    about = releases(peer, python)
    label = f"{peer.label} ({about})" if about else peer.label
    print(f"{label}, positions {positions}", file=sys.stderr, flush=True)
    try:
        pair = _measure_pair(peer, python, folder, sentences, positions, dtype, rounds)
    except WorkerError as error:
        return [label, peer.reads, "", str(error), "", "", ""]
    row = [label, peer.reads, str(pair.batch_size), f"{1000 * pair.theirs:,.1f}", f"{1000 * pair.ours:,.1f}"]
    row += [f"{pair.theirs / pair.ours:.1f}x", f"{pair.difference:.1e}"]
    print(row, file=sys.stderr, flush=True)
    return row


def _measure_pair(
    peer: Peer, python: str, folder: Path, sentences: Sequence[str], positions: str, dtype: torch.dtype, rounds: int
) -> Pair:
    theirs = sentences[:: peer.every]
    with ExitStack() as workers:
        ours_worker = workers.enter_context(_worker(OURS, sys.executable, folder, sentences, positions, dtype))
        peer_worker = workers.enter_context(_worker(peer, python, folder, theirs, positions, dtype))
        took = [(ours_worker.seconds(), peer_worker.seconds()) for _ in range(rounds)]
        ours, other = ours_worker.entropies()[:: peer.every], peer_worker.entropies()
    pairs = zip(ours, other, strict=True)
    difference = max(float(np.abs(np.array(a) - np.array(b)).max()) for a, b in pairs)
    return Pair(
        ours=statistics.median(ours for ours, _ in took) / len(sentences),
        theirs=statistics.median(theirs for _, theirs in took) / len(theirs),
        difference=difference,
        batch_size=peer_worker.batch_size,
    )


class _Worker:
    """A process that reads sentences when it is asked."""

    def __init__(self, process: subprocess.Popen[str], errors: Path) -> None:
        self._process, self._errors = process, errors
        self.batch_size: int = self._answer()["batch_size"]

    def seconds(self) -> float:
        return float(self._ask("read"))

    def entropies(self) -> Entropies:
        answer: Entropies = self._ask("entropies")
        return answer

    def _ask(self, question: str) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{question}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            words = self._errors.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no words"]
            raise WorkerError(f"ended with {self._process.wait()}: {words[-1]}")
        return json.loads(line)


@contextmanager
def _worker(
    peer: Peer, python: str, folder: Path, sentences: Sequence[str], positions: str, dtype: torch.dtype
) -> Iterator[_Worker]:
    """Start a worker, and stop it in the end."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    corpus, errors = folder / f"{peer.module}.json", folder / f"{peer.module}.log"
    corpus.write_text(json.dumps([[each, tokenizer(each)["input_ids"]] for each in sentences]), encoding="utf-8")
    words = [str(folder), str(corpus), positions, str(dtype).removeprefix("torch.")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with errors.open("w") as log:
        process = subprocess.Popen(
            [python, "-m", f"benchmarks.peers.{peer.module}", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
            cwd=Path(__file__).parents[2],
        )
    try:
        yield _Worker(process, errors)
    finally:
        process.communicate()


if __name__ == "__main__":
    main()
