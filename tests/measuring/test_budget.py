"""How large a batch is where nobody says so, and what happens when it is too large."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from tiny_models import make_model

from llm_entropy.corpus.batching import collate
from llm_entropy.measuring.asked import Asked
from llm_entropy.measuring.budget import FEWEST_TOKENS, MOST_TOKENS, gpu_tokens
from llm_entropy.measuring.lens import Lens
from llm_entropy.measuring.module import EntropyModule
from llm_entropy.models.families import view_model
from llm_entropy.schema.batches import PREDICTED, Batch, Example
from llm_entropy.schema.records import ConditionRecords
from llm_entropy.schema.shape import ModelShape
from llm_entropy.settings import METRICS, AnalysisSettings

LENGTHS = (3, 9, 4, 6, 5, 8, 7)
GPT2 = ModelShape(num_blocks=12, num_heads=12, hidden_size=768, vocab_size=50257)
LLAMA_8B = ModelShape(num_blocks=32, num_heads=32, hidden_size=4096, vocab_size=128256)


def make_batch() -> Batch:
    generator = torch.Generator().manual_seed(2)
    examples = []
    for number, length in enumerate(LENGTHS):
        ids = torch.randint(3, 60, (length,), generator=generator).tolist()
        examples.append(Example(number, f"sentence {number}", ids, [0, length - 1], [5, PREDICTED], [-1, -1], [-1, -1]))
    return collate(examples, 0, 0)


def make_module(**analysis: Any) -> EntropyModule:
    view = view_model(make_model("gpt2"))
    return EntropyModule(view, Lens(view), Asked(AnalysisSettings(metrics=list(METRICS), **analysis), {}))


def refuse_more_than(module: EntropyModule, most: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let a module run out of memory with more sentences, and return the list of what it is tried with."""
    tried: list[int] = []
    measure = module._measure

    def with_little_memory(batch: Batch) -> list[ConditionRecords]:
        tried.append(len(batch.sentences))
        if len(batch.sentences) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return measure(batch)

    monkeypatch.setattr(module, "_measure", with_little_memory)
    return tried


@pytest.mark.parametrize("use_sampling", [False, True])
def test_a_batch_that_does_not_fit_is_run_in_halves(
    use_sampling: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    whole = make_module(use_sampling=use_sampling).predict_step(make_batch())
    module = make_module(use_sampling=use_sampling)
    tried = refuse_more_than(module, 2, monkeypatch)
    with caplog.at_level(logging.WARNING, logger="llm_entropy"):
        parts = module.predict_step(make_batch())
    assert tried == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "out of memory with a batch of 7 sentences",
        "out of memory with a batch of 3 sentences",
    ]
    assert parts.texts == whole.texts
    assert parts.num_tokens == whole.num_tokens == sum(LENGTHS)
    own, truth = parts.conditions["standard"], whole.conditions["standard"]
    assert torch.equal(own.tokens.target_ids, truth.tokens.target_ids)
    assert torch.equal(own.tokens.tracked_ids, truth.tokens.tracked_ids)
    assert own.metrics.keys() == truth.metrics.keys()
    for name, values in truth.metrics.items():
        torch.testing.assert_close(own.metrics[name], values, rtol=1e-4, atol=2e-5, equal_nan=True)
    module.predict_step(make_batch())
    assert tried[9:] == [1] * 7, "what did not fit once is not tried again"


def test_a_sentence_that_does_not_fit_by_itself_is_an_error(monkeypatch: pytest.MonkeyPatch):
    module = make_module()
    refuse_more_than(module, 0, monkeypatch)
    with pytest.raises(torch.OutOfMemoryError):
        module.predict_step(make_batch())


def test_rows_of_a_batch_are_a_batch_of_their_own():
    part = make_batch().rows_between(2, 5)
    assert part.input_ids.shape == (3, 6)
    assert part.rows.tolist() == [0, 0, 1, 1, 2, 2]
    assert part.positions.tolist() == [0, 3, 0, 5, 0, 4]
    assert part.sentence_ids.tolist() == [2, 2, 3, 3, 4, 4]
    assert part.sentences == ["sentence 2", "sentence 3", "sentence 4"]


def tokens_of(gigabytes: float, shape: ModelShape = LLAMA_8B, **options: Any) -> int:
    wanted = {"bytes_per_number": 2, "num_conditions": 1, "reads_all": True, "map_length": None, **options}
    return gpu_tokens(int(gigabytes * 2**30), shape, **wanted)


def test_more_memory_and_less_work_make_larger_batches():
    assert tokens_of(16) < tokens_of(64) <= MOST_TOKENS
    assert tokens_of(8, num_conditions=2) < tokens_of(8) < tokens_of(8, reads_all=False)
    assert tokens_of(8, bytes_per_number=4) < tokens_of(8)
    assert tokens_of(4, map_length=4096) < tokens_of(4)
    assert tokens_of(1e-6) == FEWEST_TOKENS
    assert tokens_of(80, GPT2, reads_all=False) == MOST_TOKENS


def test_a_little_less_memory_changes_no_batch():
    assert tokens_of(16) == tokens_of(15.5)
