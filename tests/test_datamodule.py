from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from datasets import Dataset

from llm_entropy.datamodule import SentenceDataModule, Totals, deal
from llm_entropy.schema import Batch

TOKENS_PER_BATCH = 64


def make_examples(count: int) -> Dataset:
    """Return examples as `encode_corpus` gives them: lengths of 1 to 40, two positions where there is room."""
    rng = np.random.default_rng(count)
    rows = []
    for i in range(count):
        length = int(rng.integers(1, 41))
        positions = sorted({0, length - 1})
        rows.append(
            {
                "sentence_id": 2 * i,
                "sentence": f"sentence {i}",
                "input_ids": rng.integers(5, 90, length).tolist(),
                "positions": positions,
                "targets": [-1] * len(positions),
                "starts": [0] * len(positions),
                "ends": [1] * len(positions),
                "was_cut": False,
                "num_tokens": length,
            }
        )
    return Dataset.from_list(rows)


def make_data(examples: Dataset, **settings: Any) -> SentenceDataModule:
    return SentenceDataModule(examples, pad_token_id=0, tokens_per_batch=TOKENS_PER_BATCH, seed=3, **settings)


class Watcher(lightning.LightningModule):
    """Keeps the batches that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[Batch] = []

    def predict_step(self, batch: Batch) -> int:
        self.batches.append(batch)
        return len(batch.sentences)


def predict(data: SentenceDataModule, folder: Path, **settings: Any) -> tuple[list[Batch], lightning.Trainer]:
    settings = {"accelerator": "cpu", "devices": 1, **settings}
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(
        use_distributed_sampler=False, enable_model_summary=False, default_root_dir=folder, **quiet, **settings
    )
    watcher = Watcher()
    trainer.predict(watcher, datamodule=data, return_predictions=False)
    return watcher.batches, trainer


def sentence_ids(batches: list[Batch]) -> list[int]:
    """Return the id of every row of the batches."""
    return [2 * int(sentence.removeprefix("sentence ")) for batch in batches for sentence in batch.sentences]


# How many workers there should be is the caller's choice.
pytestmark = pytest.mark.filterwarnings("ignore:The 'predict_dataloader' does not have many workers")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_trainer_sees_every_example_once(tmp_path: Path, num_workers: int):
    examples = make_examples(57)
    batches, _ = predict(make_data(examples, num_workers=num_workers), tmp_path)
    assert sorted(sentence_ids(batches)) == [2 * i for i in range(57)]
    for batch in batches:
        assert batch.input_ids.numel() <= TOKENS_PER_BATCH or len(batch.sentences) == 1
        for row, sentence in enumerate(batch.sentences):
            expected = examples[int(sentence.removeprefix("sentence "))]
            assert batch.input_ids[row][batch.attention_mask[row] == 1].tolist() == expected["input_ids"]
            assert batch.positions[batch.rows == row].tolist() == expected["positions"]


def test_the_batches_are_the_same_each_time(tmp_path: Path):
    first, _ = predict(make_data(make_examples(57)), tmp_path)
    second, _ = predict(make_data(make_examples(57)), tmp_path)
    assert [batch.sentences for batch in first] == [batch.sentences for batch in second]
    assert all(torch.equal(a.uniforms, b.uniforms) for a, b in zip(first, second, strict=True))


def test_the_totals_are_those_of_the_batches(tmp_path: Path):
    examples = make_examples(57)
    data = make_data(examples)
    batches, _ = predict(data, tmp_path)
    assert data.totals == Totals(57, sum(examples["num_tokens"]), len(batches))
    assert data.totals.num_tokens == sum(int(batch.attention_mask.sum()) for batch in batches)
    assert data.rank_totals == data.totals


@pytest.mark.slow
def test_two_processes_together_see_every_example_once(tmp_path: Path):
    # DDP starts this file again for the second process, which pytest would not survive.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for count in COUNTS:
        first, second = (json.loads((tmp_path / f"{count}_{rank}.json").read_text()) for rank in (0, 1))
        assert sorted(first["ids"] + second["ids"]) == [2 * i for i in range(count)]
        assert first["totals"] == second["totals"]
        assert first["totals"][0] == count
        for rank in (first, second):
            assert rank["rank_totals"][0] == len(rank["ids"])
        parts = np.array([first["rank_totals"], second["rank_totals"]])
        assert parts.sum(axis=0).tolist() == first["totals"]
        if count > 1:
            assert abs(parts[0][1] - parts[1][1]) <= TOKENS_PER_BATCH


COUNTS = (57, 1)
"""Examples of two runs in one process; in the second one process has nothing to do."""


def predict_as_one_of_two(folder: Path) -> None:
    for count in COUNTS:
        data = make_data(make_examples(count))
        batches, trainer = predict(data, folder, devices=2, strategy="ddp")
        seen = {"ids": sentence_ids(batches), "totals": data.totals, "rank_totals": data.rank_totals}
        (folder / f"{count}_{trainer.global_rank}.json").write_text(json.dumps(seen))


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8, 40])
def test_the_work_is_dealt_evenly_and_completely(num_ranks: int):
    weights = np.random.default_rng(num_ranks).integers(1, 8193, 30).tolist()
    hands = deal(weights, num_ranks)
    assert len(hands) == num_ranks
    assert sorted(item for hand in hands for item in hand) == list(range(30))
    assert all(hand == sorted(hand) for hand in hands)
    loads = [sum(weights[item] for item in hand) for hand in hands]
    assert max(loads) - min(loads) <= max(weights)
    assert hands == deal(weights, num_ranks)


def test_the_heaviest_batch_goes_first():
    assert deal([1, 1, 1, 1, 4], 2) == [[4], [0, 1, 2, 3]]


def test_many_batches_leave_the_processes_nearly_equal():
    weights = np.random.default_rng(0).integers(4000, 8193, 10_000).tolist()
    loads = [sum(weights[item] for item in hand) for hand in deal(weights, 64)]
    assert max(loads) < 1.01 * min(loads)


if __name__ == "__main__":
    predict_as_one_of_two(Path(sys.argv[1]))
