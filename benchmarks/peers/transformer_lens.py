"""TransformerLens: the cache of a bridge, its own readout of the layers, attention entropy from the cached patterns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge  # type: ignore[import-not-found]
from transformer_lens.tools.analysis.logit_lens import logit_readout  # type: ignore[import-not-found]

from benchmarks.peers.worker import BATCH_SIZES, Read, Sentence, Task, pad, places, serve, split

TOP_K = 5
READOUT_ROWS = 256
"""Rows of logits at a time; four times the default, which is slower."""


def load(task: Task) -> Read:
    """Load the model, and make what reads a batch.

    Args:
        task: Of the worker.
    """
    model = TransformerBridge.boot_transformers(task.model, device=task.device, dtype=task.dtype)
    last = model.cfg.n_layers - 1

    def is_wanted(name: str) -> bool:
        return name.endswith(("hook_resid_pre", "attn.hook_pattern")) or name == f"blocks.{last}.hook_resid_post"

    def read(sentences: Sequence[Sentence]) -> list[Tensor]:
        ids, mask = pad(sentences, task.device)
        rows, columns = places(mask, task.positions)
        _, cache = model.run_with_cache(ids, attention_mask=mask, names_filter=is_wanted)
        streams = [cache["resid_pre", block] for block in range(last + 1)] + [cache["resid_post", last]]
        states = torch.stack([stream[rows, columns] for stream in streams])
        readout = logit_readout(model, states, top_k=TOP_K, chunk_size=READOUT_ROWS)
        attention = [torch.special.entr(cache["pattern", block][rows, :, columns]).sum(-1) for block in range(last + 1)]
        for values in [readout.values, *attention]:
            values.cpu()
        return split(readout.entropy, rows)

    return read


if __name__ == "__main__":
    serve(load, BATCH_SIZES)
