"""What a worker does: it loads a model once, then reads the same sentences as often as it is asked, and says how long.

A worker runs in the environment of the peer that it measures: nothing here, nor in a peer's file, imports
`llm_entropy`, but that of ours.

On its standard input come lines: `read`, to which it answers the seconds that it took, or `entropies`, to which it
answers these, so that they can be compared; each answer is a line of JSON. What libraries print goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

BATCH_SIZES = (32, 256) if torch.cuda.is_available() else (4, 32)
"""How many sentences a peer that takes batches may read together; the fastest of them counts."""


class Sentence(NamedTuple):
    """What is read."""

    text: str
    token_ids: list[int]


class Task(NamedTuple):
    """What a worker is started for."""

    model: str
    """Folder of a GPT-2 and its tokenizer."""
    positions: str
    """`last` or `all`."""
    device: torch.device
    dtype: torch.dtype


Read = Callable[[Sequence[Sentence]], list[Tensor]]
"""Reads sentences, as many as make a batch, and returns the entropy of each, [layer, position], in nats."""


def serve(load: Callable[[Task], Read], batch_sizes: Sequence[int]) -> None:
    """Answer until standard input ends.

    Args:
        load: Makes what reads.
        batch_sizes: How many sentences to a batch; the fastest of them is taken.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("model", help="folder of a model")
    parser.add_argument("sentences", help="JSON list of [text, token ids]")
    parser.add_argument("positions", choices=["last", "all"])
    parser.add_argument("dtype", help="of the weights")
    chosen = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with open(chosen.sentences, encoding="utf-8") as stream:
        sentences = [Sentence(*each) for each in json.load(stream)]
    with torch.inference_mode():
        read = load(Task(chosen.model, chosen.positions, device, getattr(torch, chosen.dtype)))
        read(sentences[:1])
        took = {size: _read_all(read, sentences, size)[0] for size in batch_sizes}
        size = min(took, key=lambda size: took[size])
        print(json.dumps({"batch_size": size}), file=answers)
        for line in sys.stdin:
            seconds, entropies = _read_all(read, sentences, size)
            wants_entropies = line.strip() == "entropies"
            print(json.dumps([each.tolist() for each in entropies] if wants_entropies else seconds), file=answers)


def _read_all(read: Read, sentences: Sequence[Sentence], size: int) -> tuple[float, list[Tensor]]:
    """Read all sentences, those of like length together; return the seconds, and the entropies in their order."""
    start = time.perf_counter()
    order = sorted(range(len(sentences)), key=lambda index: len(sentences[index].token_ids))
    entropies: list[Tensor] = []
    for first in range(0, len(order), size):
        entropies += read([sentences[index] for index in order[first : first + size]])
    in_order = [entropies[order.index(index)].float().cpu() for index in range(len(order))]
    return time.perf_counter() - start, in_order


def pad(sentences: Sequence[Sentence], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask, [batch, seq], padded on the right.

    Args:
        sentences: Of the batch.
        device: Where to.
    """
    lengths = torch.tensor([len(sentence.token_ids) for sentence in sentences])
    ids = [torch.tensor(sentence.token_ids) for sentence in sentences]
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    mask = (torch.arange(padded.shape[1]) < lengths.unsqueeze(1)).long()
    return padded.to(device), mask.to(device)


def places(mask: Tensor, positions: str) -> tuple[Tensor, Tensor]:
    """Return row and position of every record, in order.

    Args:
        mask: [batch, seq], 1 at real tokens.
        positions: `last` or `all`.
    """
    if positions == "all":
        rows, columns = mask.nonzero(as_tuple=True)
        return rows, columns
    return torch.arange(len(mask), device=mask.device), mask.sum(1) - 1


def split(values: Tensor, rows: Tensor) -> list[Tensor]:
    """Return [layer, record] of each sentence of a batch.

    Args:
        values: [layer, record] of all.
        rows: [record], the sentence.
    """
    return list(values.split(torch.bincount(rows).tolist(), dim=1))
