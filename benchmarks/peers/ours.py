"""This program, as a run uses it: texts in, the records of every batch out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.peers.worker import Read, Sentence, Task, serve
from llm_entropy import AnalysisSettings, Settings
from llm_entropy.corpus.datamodule import SentenceDataModule, WindowBatches
from llm_entropy.corpus.picking import corpus_of_sentences
from llm_entropy.measuring.asked import Asked
from llm_entropy.measuring.budget import CPU_TOKENS, gpu_tokens
from llm_entropy.measuring.lens import Lens
from llm_entropy.measuring.module import EntropyModule
from llm_entropy.models.families import view_model
from llm_entropy.models.loading import load_model
from llm_entropy.runs.plan import plan_model

PRECISIONS = {torch.float32: "32-true", torch.bfloat16: "bf16-true"}


def load(task: Task) -> Read:
    """Load the model, and make what reads sentences with all six default metrics.

    Args:
        task: Of the worker.
    """
    analysis = AnalysisSettings(positions=task.positions)  # type: ignore[arg-type]
    settings = Settings(analysis=analysis, models={"model": task.model})
    plan = plan_model("model", task.model, settings)
    model = load_model(plan.source, precision=PRECISIONS[task.dtype], needs_attention=True)
    view = view_model(model)
    module = EntropyModule(view, Lens(view), Asked(analysis, {})).to(task.device)
    tokens = CPU_TOKENS
    if task.device.type == "cuda":
        tokens = gpu_tokens(
            torch.cuda.mem_get_info()[0],
            view.shape,
            bytes_per_number=task.dtype.itemsize,
            num_conditions=1,
            reads_all=task.positions == "all",
            map_length=plan.max_length if model.config._attn_implementation == "eager" else None,
        )

    def read(sentences: Sequence[Sentence]) -> list[Tensor]:
        corpus = corpus_of_sentences([sentence.text for sentence in sentences], None, 0)
        pad = plan.source.pad_token_id
        data = SentenceDataModule(corpus, plan.encoder, pad_token_id=pad, tokens_per_batch=tokens, seed=0)
        batches = WindowBatches(data, rank=0, world_size=1)
        records = [module.predict_step(batch.to(task.device)) for batch in batches]
        for each in records:
            if each.wait is not None:
                each.wait()
        ids = torch.cat([each.sentence_ids for each in records])
        order = torch.cat([each.positions for each in records]) + ids * 2**20
        entropies = torch.cat([each.conditions["standard"].metrics["entropy"] for each in records])
        return list(entropies[order.argsort()].T.split(torch.bincount(ids).tolist(), dim=1))

    return read


if __name__ == "__main__":
    serve(load, batch_sizes=[2**20])
