"""A real model, of 30 blocks, four bits and 49,152 tokens, measured and compared with transformers itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from llm_entropy import open_model, run_analysis
from tools.showcase.fetch import NotFetched, fetch_model

SENTENCES = ["The capital of Spain is", "The capital of Japan is", "Water freezes at zero", "Two and two make"]


@pytest.fixture(scope="module")
def smollm() -> Path:
    pytest.importorskip("gguf")
    try:
        return fetch_model()
    except NotFetched as reason:
        pytest.skip(str(reason))


@pytest.mark.slow
def test_a_real_model_is_measured_as_transformers_computes_it(smollm: Path, tmp_path: Path):
    opened = open_model(smollm)  # once: to make float32 of the four bits takes longer than all the rest
    result = run_analysis(
        sentences=SENTENCES,
        models={"smollm2": opened},
        compare_control=False,
        output={"dir": str(tmp_path), "plots": False},
        quiet=True,
    )["smollm2"]["standard"]
    tokenizer, model = opened.tokenizer, opened.model
    assert model.dtype == torch.float32
    with torch.inference_mode():
        logits = torch.stack([model(**tokenizer(text, return_tensors="pt")).logits[0, -1] for text in SENTENCES])
    chances = logits.double().softmax(dim=-1)
    entropy = -(chances * chances.log()).sum(dim=-1)
    assert np.abs(result["entropy"].to_numpy()[:, -1] - entropy.numpy()).max() < 1e-4
    top = logits.topk(2).values
    assert np.abs(result["margin"].to_numpy()[:, -1] - (top[:, 0] - top[:, 1]).numpy()).max() < 1e-4
    assert tokenizer.decode(int(logits[0].argmax())) == " Madrid"
    assert result["entropy"].shape == (4, 31)
