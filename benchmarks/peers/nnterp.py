"""nnterp on nnsight: the layers of a traced batch, projected one after the other by its own norm and head.

Its attention probabilities are left out: it looks for them at a place that GPT-2 of transformers 5 does not have.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from nnterp import StandardizedTransformer  # type: ignore[import-not-found]
from torch import Tensor

from benchmarks.peers.worker import BATCH_SIZES, Read, Sentence, Task, pad, places, serve, split

TOP_K = 5


def load(task: Task) -> Read:
    """Load the model, and make what reads a batch.

    Args:
        task: Of the worker.
    """
    model = StandardizedTransformer(task.model, dtype=task.dtype, device_map=str(task.device))

    def read(sentences: Sequence[Sentence]) -> list[Tensor]:
        ids, mask = pad(sentences, task.device)
        rows, columns = places(mask, task.positions)
        entropies, tops = [], []
        with model.trace({"input_ids": ids, "attention_mask": mask}):
            for layer in range(model.num_layers + 1):
                stream = model.layers_input[0] if layer == 0 else model.layers_output[layer - 1]
                logits = model.project_on_vocab(stream[rows, columns]).float()
                log_probabilities = logits.log_softmax(-1)
                entropies.append((-(log_probabilities.exp() * log_probabilities).sum(-1)).save())
                tops.append(logits.topk(TOP_K).values.save())
        for values in tops:
            values.cpu()
        return split(torch.stack(entropies), rows)

    return read


if __name__ == "__main__":
    serve(load, BATCH_SIZES)
