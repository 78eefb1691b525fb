"""Plain transformers in batches: hidden states and attentions returned, the logits of each layer kept for a moment."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.peers.worker import BATCH_SIZES, Read, Sentence, Task, pad, places, serve, split

TOP_K = 5


def load(task: Task) -> Read:
    """Load the model with eager attention, and make what reads a batch.

    Args:
        task: Of the worker.
    """
    model = AutoModelForCausalLM.from_pretrained(task.model, dtype=task.dtype, attn_implementation="eager")
    model = model.eval().to(task.device)

    def read(sentences: Sequence[Sentence]) -> list[Tensor]:
        ids, mask = pad(sentences, task.device)
        rows, columns = places(mask, task.positions)
        output = model(ids, attention_mask=mask, output_hidden_states=True, output_attentions=True)
        *streams, normed = (state[rows, columns] for state in output.hidden_states)
        layers = [*map(model.transformer.ln_f, streams), normed]
        targets = model.lm_head(normed).argmax(-1, keepdim=True)
        entropies = []
        for layer in layers:
            logits = model.lm_head(layer).float()
            log_probabilities = logits.log_softmax(-1)
            entropies.append(-(log_probabilities.exp() * log_probabilities).sum(-1))
            metrics = [logits.topk(TOP_K).values, log_probabilities.gather(-1, targets)]
        metrics += [torch.special.entr(each[rows, :, columns]).sum(-1) for each in output.attentions]
        for values in metrics:
            values.cpu()
        return split(torch.stack(entropies), rows)

    return read


if __name__ == "__main__":
    serve(load, BATCH_SIZES)
