"""The progress bar: what it shows, also in the middle of a long document."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from llm_entropy.corpus.batching import collate
from llm_entropy.runs.progress import SentenceProgress
from llm_entropy.schema.batches import NO_ANSWER, PREDICTED, TARGET_ANSWER, Batch, Example
from llm_entropy.schema.records import Records


def batch_of(lengths: list[int]) -> Batch:
    examples = [
        Example(index, "x", list(range(length)), [length - 1], [PREDICTED], [0], [1])
        for index, length in enumerate(lengths)
    ]
    return collate(examples, 0, seed=0)


def records_of(batch: Batch) -> Records:
    nothing = torch.empty(0)
    sizes = {"num_tokens": int(batch.attention_mask.sum()), "num_sentences": len(batch.sentences)}
    return Records(nothing, {}, nothing, nothing, nothing, nothing, {}, **sizes)


def test_the_bar_moves_within_a_batch_and_counts_sentences_and_tokens(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("llm_entropy.runs.progress.REFRESH_SECONDS", 0.0)
    trainer: Any = SimpleNamespace(is_global_zero=True, world_size=1)
    progress = SentenceProgress("gpt2", 3)
    module: Any = None
    progress.on_predict_start(trainer, module)
    shown = []
    for lengths in ([1000], [10, 30]):
        batch = batch_of(lengths)
        progress.on_predict_batch_start(trainer, module, batch, 0)
        progress.move(sum(lengths) // 2)
        shown.append(capsys.readouterr().err.rpartition("\r")[2])
        progress.on_predict_batch_end(trainer, module, records_of(batch), batch, 0)
    progress.on_predict_end(trainer, module)
    shown.append(capsys.readouterr().err.rpartition("\r")[2])
    assert "0.5/3" in shown[0]
    assert "500 tokens" in shown[0]
    assert "2.0/3" in shown[1]
    assert "1,020 tokens" in shown[1]
    assert "3/3" in shown[2]
    assert "1,040 tokens" in shown[2]


def test_the_bar_counts_neither_answers_nor_the_ways_in_which_a_sentence_is_masked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("llm_entropy.runs.progress.REFRESH_SECONDS", 0.0)
    trainer: Any = SimpleNamespace(is_global_zero=True, world_size=1)
    progress, module = SentenceProgress("bert", 2), cast(Any, None)
    progress.on_predict_start(trainer, module)
    kinds = [(0, NO_ANSWER), (0, NO_ANSWER), (0, TARGET_ANSWER), (1, NO_ANSWER), (1, TARGET_ANSWER)]
    examples = [Example(number, "x", [1, 2], [1], [PREDICTED], [0], [1], answer=answer) for number, answer in kinds]
    batch = collate(examples, 0, seed=0)
    progress.on_predict_batch_start(trainer, module, batch, 0)
    progress.move(10)
    assert "2.0/2" in capsys.readouterr().err.rpartition("\r")[2]
    progress.on_predict_batch_end(trainer, module, records_of(batch), batch, 0)
    progress.on_predict_end(trainer, module)
    assert "2/2" in capsys.readouterr().err.rpartition("\r")[2]


def test_nothing_is_shown_where_it_is_to_be_quiet(capsys: pytest.CaptureFixture[str]):
    trainer: Any = SimpleNamespace(is_global_zero=True, world_size=1)
    progress = SentenceProgress("gpt2", None, quiet=True)
    module: Any = None
    progress.on_predict_start(trainer, module)
    progress.on_predict_batch_start(trainer, module, batch_of([3]), 0)
    progress.move(2)
    progress.on_predict_end(trainer, module)
    assert capsys.readouterr().err == ""
