"""tuned-lens: its prediction trajectory through the logit lens, a sentence at a time, as it takes no batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from tuned_lens.nn.lenses import LogitLens  # type: ignore[import-not-found]
from tuned_lens.plotting import PredictionTrajectory  # type: ignore[import-not-found]

from benchmarks.peers.worker import Read, Sentence, Task, serve


def load(task: Task) -> Read:
    """Load the model, and make what reads a sentence.

    Args:
        task: Of the worker.
    """
    model = AutoModelForCausalLM.from_pretrained(task.model, dtype=task.dtype).eval().to(task.device)
    tokenizer = AutoTokenizer.from_pretrained(task.model)
    lens = LogitLens.from_model(model).to(task.device)

    def read(sentences: Sequence[Sentence]) -> list[Tensor]:
        (sentence,) = sentences
        trajectory = PredictionTrajectory.from_lens_and_model(lens, model, sentence.token_ids, tokenizer=tokenizer)
        entropy = torch.from_numpy(trajectory.entropy().stats)
        return [entropy if task.positions == "all" else entropy[:, -1:]]

    return read


if __name__ == "__main__":
    serve(load, batch_sizes=[1])
