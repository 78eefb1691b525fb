"""The usual script: a sentence at a time, all that the model can return, and each metric from the logits anew."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.peers.worker import Read, Sentence, Task, serve

TOP_K = 5


def load(task: Task) -> Read:
    """Load the model with eager attention, and make what reads a sentence.

    Args:
        task: Of the worker.
    """
    model = AutoModelForCausalLM.from_pretrained(task.model, dtype=task.dtype, attn_implementation="eager")
    model = model.eval().to(task.device)

    def read(sentences: Sequence[Sentence]) -> list[Tensor]:
        (sentence,) = sentences
        ids = torch.tensor([sentence.token_ids], device=task.device)
        output = model(ids, output_hidden_states=True, output_attentions=True)
        *streams, normed = output.hidden_states
        logits = torch.stack([model.lm_head(state[0]) for state in [*map(model.transformer.ln_f, streams), normed]])
        entropy = entropy_of(logits)
        metrics = [entropy, entropy_of(logits).exp(), margin_of(logits), kl_of(logits), surprisal_of(logits, ids[0])]
        metrics.append(
            torch.stack([torch.special.entr(attention[0]).sum(-1).mean(0) for attention in output.attentions])
        )
        logits[-1].softmax(-1).topk(TOP_K)
        for values in metrics:
            values.cpu()
        return [entropy if task.positions == "all" else entropy[:, -1:]]

    return read


def entropy_of(logits: Tensor) -> Tensor:
    """Return -sum p ln p of logits [layer, position, vocab]."""
    probabilities = logits.float().softmax(-1)
    return -(probabilities * probabilities.log()).sum(-1)


def margin_of(logits: Tensor) -> Tensor:
    """Return the largest logit minus the second largest."""
    ranked = logits.sort(dim=-1, descending=True).values
    return ranked[..., 0] - ranked[..., 1]


def kl_of(logits: Tensor) -> Tensor:
    """Return KL(p, uniform)."""
    probabilities = logits.float().softmax(-1)
    return (probabilities * (probabilities * logits.shape[-1]).log()).sum(-1)


def surprisal_of(logits: Tensor, token_ids: Tensor) -> Tensor:
    """Return -ln p of the next token; at the last position of the likeliest."""
    probabilities = logits.float().softmax(-1)
    targets = torch.cat([token_ids[1:], logits[-1, -1].argmax().unsqueeze(0)])
    return -probabilities.gather(-1, targets.view(1, -1, 1).expand(len(logits), -1, 1)).squeeze(-1).log()


if __name__ == "__main__":
    serve(load, batch_sizes=[1])
