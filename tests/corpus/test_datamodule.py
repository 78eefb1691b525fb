"""The batches of a run: each once, the same whoever asks, shared evenly."""

from __future__ import annotations

import itertools
import json
import os
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import lightning
import numpy as np
import pytest
import torch
import transformers
from launcher import Launcher
from tiny_models import make_tokenizer

from llm_entropy.builtin import model_folder, read_sentences
from llm_entropy.corpus import datamodule
from llm_entropy.corpus.corpus import Corpus
from llm_entropy.corpus.datamodule import SentenceDataModule, WindowBatches
from llm_entropy.corpus.encoding import Encoder
from llm_entropy.corpus.picking import corpus_of_sentences, load_corpus
from llm_entropy.measuring.budget import CPU_TOKENS
from llm_entropy.schema.batches import Batch, BatchKey
from llm_entropy.settings import DataSettings
from llm_entropy.store import windows
from llm_entropy.store.ledger import Done
from llm_entropy.store.windows import Task

TOKENS_PER_BATCH = 64
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "the", "ship", "left", "port"]

pytestmark = [
    # How many workers there should be is the caller's choice.
    pytest.mark.filterwarnings("ignore:The 'predict_dataloader' does not have many workers"),
    # Where a stream is left before its end, `datasets` does not close its files.
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "WINDOW_ROWS", 16)
    monkeypatch.setattr(windows, "MIN_BATCH_TOKENS", 8)
    monkeypatch.setattr(windows, "MIN_PIECE_TOKENS", 8)


def sentences_of(count: int) -> list[str]:
    rng = np.random.default_rng(count)
    return [" ".join([f"{i}", *rng.choice(WORDS, rng.integers(0, 12))]) for i in range(count)]


@cache
def tokenizer() -> transformers.PreTrainedTokenizerFast:
    return make_tokenizer("causal")


def make_data(corpus: Corpus, **settings: Any) -> SentenceDataModule:
    encoder = Encoder(tokenizer(), "causal", positions="all")
    return SentenceDataModule(corpus, encoder, pad_token_id=0, tokens_per_batch=TOKENS_PER_BATCH, seed=3, **settings)


def batches_of(corpus: Corpus, rank: int = 0, world_size: int = 1, **settings: Any) -> list[Batch]:
    return list(WindowBatches(make_data(corpus, **settings), rank, world_size))


def streamed(folder: Path, files: list[list[str]]) -> Corpus:
    for index, lines in enumerate(files):
        rows = [json.dumps({"text": line, "other": index}) + "\n" for line in lines]
        (folder / f"part-{index}.jsonl").write_text("".join(rows), encoding="utf-8")
    # a file without rows cannot be found by a glob of files with columns, but it is read beside others
    data = DataSettings(path=str(folder / "part-*.jsonl"), text_column="text", streaming=True)
    return load_corpus(data, None, 0, quiet=True)


def contents(batch: Batch) -> tuple[Any, ...]:
    """Everything of a batch, to compare."""
    return (
        batch.key,
        batch.notes,
        batch.sentences,
        *(value.tolist() for value in vars(batch).values() if hasattr(value, "tolist")),
    )


def test_the_batches_of_a_window_hold_all_of_it_and_the_first_says_so(small_windows: None):
    texts = sentences_of(40)
    batches = batches_of(corpus_of_sentences(texts, None, 0))
    assert sorted(text for batch in batches for text in batch.sentences) == sorted(texts)
    for number in range(3):
        own = [batch for batch in batches if batch.key.window == number]
        assert [batch.key for batch in own] == [BatchKey(number, index, len(own)) for index in range(len(own))]
        assert [batch.notes is not None for batch in own] == [True] + [False] * (len(own) - 1)
        notes = own[0].notes
        assert notes is not None
        assert (notes.first_id, notes.end_id, notes.is_last) == (16 * number, min(40, 16 * number + 16), number == 2)
        assert notes.num_rows == notes.num_sentences == notes.num_examples == (16, 16, 8)[number]
    for batch in batches:
        assert batch.input_ids.numel() <= TOKENS_PER_BATCH or len(batch.sentences) == 1


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 7])
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", ["mapped", "one file", "files"])
def test_tasks_processes_and_workers_share_the_same_batches_each_once(
    small_windows: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    num_tasks: int,
    num_ranks: int,
    num_workers: int,
):
    texts = sentences_of(75)
    if kind == "mapped":
        corpus: Corpus = corpus_of_sentences(texts, None, 0)
    else:
        corpus = streamed(tmp_path, [texts] if kind == "one file" else [texts[:40], texts[40:41], texts[41:]])
    whole = {batch.key: contents(batch) for batch in batches_of(corpus)}
    shared = []
    for task, rank, worker in itertools.product(range(num_tasks), range(num_ranks), range(num_workers or 1)):
        info = SimpleNamespace(id=worker, num_workers=num_workers) if num_workers else None
        monkeypatch.setattr(datamodule, "get_worker_info", lambda info=info: info)
        shared += batches_of(corpus, rank, num_ranks, task=Task(task, num_tasks))
    assert len(shared) == len(whole)
    assert {batch.key: contents(batch) for batch in shared} == whole


class Real(NamedTuple):
    """A corpus of real sentences, large enough for several windows, and what encodes it."""

    corpus: Corpus
    encoder: Any
    """As an `Encoder`, but it encodes the same sentences once for all processes."""
    num_tokens: int


@pytest.fixture(scope="module")
def real() -> Real:
    rows = read_sentences()
    texts = [f"{row['prompt']} {copy}" for copy in range(48) for row in rows]
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder("tiny-gpt2"))
    encoder = Encoder(tokenizer, "causal", positions="last")
    encode_once = cache(lambda ids, sentences: list(encoder.examples(ids, sentences)))
    return Real(
        corpus_of_sentences(texts, None, 0),
        SimpleNamespace(examples=lambda ids, sentences: encode_once(tuple(ids), tuple(sentences)), num_new_tokens=0),
        sum(map(len, tokenizer(texts).input_ids)),
    )


@pytest.mark.parametrize(("num_ranks", "num_workers"), [(2, 0), (3, 0), (2, 2), (3, 2)])
def test_the_tokens_of_the_processes_of_a_real_corpus_differ_by_less_than_five_percent(
    real: Real, monkeypatch: pytest.MonkeyPatch, num_ranks: int, num_workers: int
):
    data = SentenceDataModule(
        real.corpus,
        real.encoder,
        pad_token_id=0,
        tokens_per_batch=CPU_TOKENS,
        seed=0,
        num_workers=num_workers,
    )
    tokens = np.zeros(num_ranks)
    for rank, worker in itertools.product(range(num_ranks), range(num_workers or 1)):
        info = SimpleNamespace(id=worker, num_workers=num_workers) if num_workers else None
        monkeypatch.setattr(datamodule, "get_worker_info", lambda info=info: info)
        tokens[rank] += sum(int(batch.attention_mask.sum()) for batch in WindowBatches(data, rank, num_ranks))
    assert tokens.sum() == real.num_tokens
    assert tokens.max() <= 1.05 * tokens.min(), tokens


@pytest.mark.parametrize("streams", [False, True])
def test_what_is_done_is_left_out_and_the_rest_stays_as_it_is(small_windows: None, tmp_path: Path, streams: bool):
    texts = sentences_of(75)
    corpus = streamed(tmp_path, [texts[:40], texts[40:]]) if streams else corpus_of_sentences(texts, None, 0)
    whole = {batch.key: contents(batch) for batch in batches_of(corpus)}
    rng = np.random.default_rng(2)
    for share in (0.0, 0.3, 0.9, 1.0):
        gone = [key for key in whole if rng.random() < share]
        by_window: dict[int, set[int]] = {}
        for key in gone:
            by_window.setdefault(key.window, set()).add(key.index)
        sizes = {key.window: key.num_batches for key in whole}
        complete = {window for window, indices in by_window.items() if len(indices) == sizes[window]}
        done = Done(complete, {window: own for window, own in by_window.items() if window not in complete})
        left = [batch for rank in range(2) for batch in batches_of(corpus, rank, 2, done=done)]
        assert {batch.key: contents(batch) for batch in left} == {
            key: value for key, value in whole.items() if key not in gone
        }


def test_a_stream_counts_the_rows_of_each_file_and_tells_what_it_skips(small_windows: None, tmp_path: Path):
    corpus = streamed(tmp_path, [["one", "", "three", *[" "] * 30], ["x"] * 32])
    batches = batches_of(corpus)
    notes = {batch.key.window: batch.notes for batch in batches if batch.notes is not None}
    second = windows.WINDOWS_PER_FILE
    assert list(notes) == [0, 1, 2, second, second + 1]
    assert [one.is_last for one in notes.values() if one] == [False, False, True, False, True]
    first = notes[0]
    assert first is not None
    assert (first.first_id, first.end_id, first.num_rows, first.num_sentences) == (0, 16, 16, 2)
    assert first.skipped[:2] == [(1, "blank"), (3, "blank")]
    assert [batch.sentences for batch in batches if batch.key.window in (1, 2)] == [[], []]
    assert sorted(id for batch in batches for id in set(batch.sentence_ids.tolist()))[:3] == [
        0,
        2,
        windows.ROWS_PER_FILE,
    ]


def test_an_empty_batch_has_the_shapes_of_any_other(small_windows: None, tmp_path: Path):
    (batch,) = batches_of(streamed(tmp_path, [[" ", ""]]))
    assert batch.input_ids.shape == batch.attention_mask.shape == (0, 1)
    assert batch.rows.shape == batch.targets.shape == batch.uniforms.shape == (0,)
    assert batch.notes is not None
    assert batch.notes.num_sentences == 0


def test_a_sample_reads_the_picked_rows(small_windows: None):
    corpus = corpus_of_sentences(sentences_of(100), 40, seed=5)
    batches = batches_of(corpus)
    ids = sorted(set(np.concatenate([batch.sentence_ids for batch in batches]).tolist()))
    assert ids == corpus.ids.tolist()
    for batch in batches:
        for row, sentence in enumerate(batch.sentences):
            assert int(sentence.split()[0]) == batch.sentence_ids[batch.rows == row][0]


# --- with Lightning ----------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("streams", [False, True])
def test_a_trainer_sees_every_batch_once_whatever_the_number_of_workers(
    small_windows: None, tmp_path: Path, num_workers: int, streams: bool
):
    texts = sentences_of(75)
    corpus = streamed(tmp_path, [texts[:40], texts[40:]]) if streams else corpus_of_sentences(texts, None, 0)
    batches, _ = predict(make_data(corpus, num_workers=num_workers), tmp_path)
    whole = {batch.key: contents(batch) for batch in batches_of(corpus)}
    assert len(batches) == len(whole)
    assert {batch.key: contents(batch) for batch in batches} == whole


AS_ONE_OF_TWO = """
from pathlib import Path
folder, tests = map(Path, sys.argv[1:])
sys.path.insert(0, str(tests))
from test_datamodule import predict_as_one_of_two
predict_as_one_of_two(folder)
"""


def test_two_processes_together_see_every_batch_once(launcher: Launcher, tmp_path: Path):
    ended = launcher.at(tmp_path)([str(tmp_path), str(Path(__file__).parent)], program=AS_ONE_OF_TWO, num_copies=1)
    assert ended.status == 0, ended.said
    for count in COUNTS:
        first, second = (json.loads((tmp_path / f"{count}_{rank}.json").read_text()) for rank in (0, 1))
        assert sorted(first["ids"] + second["ids"]) == list(range(count))
        assert bool(second["ids"]) == (count > 1)
        if count > 1:
            assert abs(first["tokens"] - second["tokens"]) <= 0.05 * first["tokens"]


COUNTS = (570, 1)
"""Sentences of two runs in one process; in the second one process has nothing to do."""


def predict_as_one_of_two(folder: Path) -> None:
    for count in COUNTS:
        # rank 0 says what is done: nothing; what rank 1 believes does not matter
        done = Done() if os.environ.get("LOCAL_RANK", "0") == "0" else Done({0})
        data = make_data(corpus_of_sentences(sentences_of(count), None, 0), done=done)
        batches, trainer = predict(data, folder, devices=2, strategy="ddp")
        ids = [int(sentence.split()[0]) for batch in batches for sentence in batch.sentences]
        tokens = sum(int(torch.sum(batch.attention_mask)) for batch in batches)
        (folder / f"{count}_{trainer.global_rank}.json").write_text(json.dumps({"ids": ids, "tokens": tokens}))
