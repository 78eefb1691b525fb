"""The prediction writer: what tokens say, records as tables, parts that are whole or absent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
import torch
from plans import plan_of
from tiny_models import FAMILIES, HIDDEN, SENTENCES, make_model, make_tokenizer
from transformers import PreTrainedTokenizerFast

from llm_entropy.corpus.batching import collate
from llm_entropy.corpus.encoding import Encoder
from llm_entropy.measuring.asked import Asked
from llm_entropy.measuring.lens import Lens
from llm_entropy.measuring.module import EntropyModule
from llm_entropy.models.families import view_model
from llm_entropy.runs import writer as writer_module
from llm_entropy.runs.rows import records_table
from llm_entropy.runs.stopping import Stopped
from llm_entropy.runs.token_texts import TokenTexts
from llm_entropy.runs.writer import ShardWriter
from llm_entropy.schema.batches import Batch, BatchKey, WindowNotes
from llm_entropy.schema.records import Records
from llm_entropy.schema.shards import column, shard_schema
from llm_entropy.settings import CONTROL, KL_FROM_STANDARD, METRICS, STANDARD, AnalysisSettings, ControlSettings
from llm_entropy.store import files
from llm_entropy.store.ledger import Ledger, read_ledger
from llm_entropy.store.session import Session
from llm_entropy.store.windows import Task

EVERYTHING = AnalysisSettings(
    metrics=list(METRICS),
    compare_control=True,
    top_k=4,
    lens_tokens=True,
    control=ControlSettings(control_vector=[1.0]),
)


# --- what tokens say ---------------------------------------------------------------------------------------------


def texts_of(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> list[str]:
    return TokenTexts(tokenizer)(torch.tensor(ids))


def test_byte_level_tokens_keep_the_space_that_begins_them():
    tokenizer = make_tokenizer("causal")
    texts = texts_of(tokenizer, tokenizer("the cat and the ship").input_ids)
    assert "".join(texts) == "the cat and the ship"
    assert texts[0] == "the"
    assert any(text.startswith(" ") for text in texts)


def test_a_part_of_a_character_is_shown_as_the_piece_it_is():
    tokenizer = make_tokenizer("causal")
    ids = tokenizer("é月").input_ids
    assert len(ids) == 5, "the tiny tokenizer has no merges for these bytes"
    texts = texts_of(tokenizer, ids)
    assert texts == tokenizer.convert_ids_to_tokens(ids)
    assert not any("\ufffd" in text for text in texts)


def test_a_line_break_and_a_quote_are_themselves():
    tokenizer = make_tokenizer("causal")
    assert texts_of(tokenizer, tokenizer('\n"').input_ids) == ["\n", '"']


def test_word_pieces_keep_their_marks_and_special_tokens_their_names():
    tokenizer = make_tokenizer("masked")
    ids = tokenizer("thecat [MASK]").input_ids
    texts = texts_of(tokenizer, ids)
    assert texts == tokenizer.convert_ids_to_tokens(ids)
    assert texts[0] == "[CLS]"
    assert "[MASK]" in texts
    assert any(text.startswith("##") for text in texts)


def test_sentence_pieces_begin_with_a_space_where_they_begin_a_word():
    vocabulary = {"<unk>": 0, "\u2581the": 1, "the": 2, "\u2581": 3, "\u2581\u2581x": 4}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.decoder = tokenizers.decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    assert texts_of(tokenizer, [1, 2, 3, 4, 0]) == [" the", "the", " ", "  x", "<unk>"]


def test_ids_beyond_the_tokenizer_are_numbers():
    tokenizer = make_tokenizer("masked")
    assert texts_of(tokenizer, [len(tokenizer), 148]) == [f"<{len(tokenizer)}>", "<148>"]


def test_texts_come_in_the_order_of_the_ids_whatever_their_shape():
    tokenizer = make_tokenizer("causal")
    ids = torch.tensor(tokenizer("the cat the cat").input_ids)
    texts = TokenTexts(tokenizer)
    assert texts(torch.stack([ids, ids.flip(0)])) == texts(ids) + texts(ids)[::-1]


# --- records as tables -------------------------------------------------------------------------------------------


def batches_of(family: str, size: int) -> list[Batch]:
    kind = FAMILIES[family].kind
    encode = Encoder(make_tokenizer(kind), kind, positions="all")
    examples = [example for example, _ in encode(range(10, 10 + len(SENTENCES)), SENTENCES)]
    return [collate(examples[i : i + size], 9, seed=0) for i in range(0, len(examples), size)]


def module_of(family: str) -> EntropyModule:
    view = view_model(make_model(family))
    vector = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(6))
    plan = plan_of(EVERYTHING.control, vector, num_blocks=view.shape.num_blocks)
    return EntropyModule(view, Lens(view), Asked(EVERYTHING, {"control": plan}))


def schema_of(family: str) -> pa.Schema:
    return shard_schema(EVERYTHING, view_model(make_model(family)).shape, {"model": "tiny", "revision": ""})


def numbers(table: pa.Table, name: str) -> np.ndarray:
    return np.array(table[name].to_pylist(), dtype=np.float32)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_a_table_holds_every_number_of_the_records(family: str, tmp_path: Path):
    (batch,) = batches_of(family, len(SENTENCES))
    records = module_of(family).predict_step(batch)
    texts = TokenTexts(make_tokenizer(FAMILIES[family].kind))
    pq.write_table(records_table(records, schema_of(family), texts), tmp_path / "records.parquet")
    table = pq.read_table(tmp_path / "records.parquet")
    assert table.schema.equals(schema_of(family))
    assert table.schema.metadata == schema_of(family).metadata
    assert [field.metadata for field in table.schema] == [field.metadata for field in schema_of(family)]
    assert table["sentence_id"].to_pylist() == records.sentence_ids.tolist()
    assert records.texts == dict(enumerate(SENTENCES, start=10))
    assert table["position"].to_pylist() == records.positions.tolist()
    assert table["token"].to_pylist() == texts(records.token_ids)
    assert table["token_start"].to_pylist() == records.starts.tolist()
    for condition, own in records.conditions.items():
        for metric, values in own.metrics.items():
            np.testing.assert_array_equal(numbers(table, column(condition, metric)), values.flatten(1).float().numpy())
        tracked = numbers(table, column(condition, "tracked_probabilities"))
        np.testing.assert_array_equal(tracked, own.tokens.tracked_probabilities.flatten(1).numpy())
        assert table[column(condition, "target_id")].to_pylist() == own.tokens.target_ids.tolist()
        first = [tokens[0] for tokens in table[column(condition, "top_tokens")].to_pylist()]
        assert first == texts(own.tokens.top_ids[:, 0])
        named = table[column(condition, "lens_tokens")].combine_chunks().flatten().to_pylist()
        assert named == texts(own.tokens.lens_ids)
        likely = numbers(table, column(condition, "lens_probabilities"))
        np.testing.assert_array_equal(likely, own.tokens.lens_probabilities.numpy())
        assert numbers(table, column(condition, "top_probabilities")).shape == (len(records.positions), 4)


def test_columns_say_their_units_and_axes():
    schema = schema_of("gpt2")
    assert schema.metadata[b"model"] == b"tiny"
    about = schema.field(column(STANDARD, "attention_entropy")).metadata
    assert about == {b"unit": b"nats", b"axes": b"block head", b"shape": b"3 4"}
    about = schema.field(column(CONTROL, KL_FROM_STANDARD)).metadata
    assert about == {b"unit": b"nats", b"axes": b"layer", b"shape": b"4"}
    assert column(STANDARD, KL_FROM_STANDARD) not in schema.names
    about = schema.field(column(CONTROL, "lens_tokens")).metadata
    assert about == {b"meaning": b"most likely token of each layer", b"axes": b"layer", b"shape": b"4"}


def test_the_tokens_of_layers_are_recorded_where_they_are_asked_for_alone():
    shape = view_model(make_model("gpt2")).shape
    names = set(schema_of("gpt2").names) - set(shard_schema(replace(EVERYTHING, lens_tokens=False), shape, {}).names)
    assert names == {
        column(condition, name) for condition in (STANDARD, CONTROL) for name in ("lens_tokens", "lens_probabilities")
    }


# --- parts -------------------------------------------------------------------------------------------------------


def trainer() -> L.Trainer:
    return L.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, barebones=True)


CONFIG_HASH = "0123"


def write(run_dir: Path, **settings: Any) -> tuple[list[Records], Ledger]:
    """Write the records of small batches as a process does, and return them, and what the markers say."""
    module, one = module_of("gpt2"), trainer()
    session = Session(Task(3, 16), CONFIG_HASH, run_dir)
    writer = ShardWriter(schema_of("gpt2"), make_tokenizer("causal"), "gpt2", session, **settings)
    try:
        writer.setup(one, module, "predict")
        writer.on_predict_start(one, module)
        everything = []
        batches = batches_of("gpt2", 2)
        # The batches come in the order of their lengths in a run: the last sentences first, here.
        for index, batch in enumerate(reversed(batches)):
            notes = WindowNotes(10, 20, 10, True) if index == 0 else None
            batch = replace(batch, key=BatchKey(0, index, len(batches)), notes=notes)
            everything.append(module.predict_step(batch))
            writer.write_on_batch_end(one, module, everything[-1], None, batch, index, 0)
        writer.on_predict_end(one, module)
    except Exception as error:
        writer.on_exception(one, module, error)  # as Lightning does: nothing is being written behind it
        raise
    finally:
        session.release()
    return everything, read_ledger(run_dir / "shards/gpt2", CONFIG_HASH)


def parts_of(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.parquet"))


@pytest.mark.parametrize("settings", [{"part_bytes": 1}, {"part_seconds": 0}])
def test_small_parts_hold_together_what_one_large_part_does(tmp_path: Path, settings: dict[str, float]):
    everything, small = write(tmp_path / "small", **settings)
    _, large = write(tmp_path / "large")
    assert len(parts_of(tmp_path / "small")) == len(everything) == 4
    (whole,) = parts_of(tmp_path / "large")
    assert whole.relative_to(tmp_path / "large/shards/gpt2") == Path(
        "task-00003-of-00016/rank-0000/part-000000.parquet"
    )
    keys = [("sentence_id", "ascending"), ("position", "ascending")]
    pieces = pa.concat_tables([pq.read_table(path) for path in parts_of(tmp_path / "small")])
    # as text, in which what is empty by definition, NaN, equals itself
    assert repr(pieces.sort_by(keys).to_pydict()) == repr(pq.read_table(whole).to_pydict())
    assert small.windows == large.windows


def test_a_marker_says_what_its_part_holds_and_who_made_it(tmp_path: Path):
    everything, ledger = write(tmp_path)
    (marker,) = ledger.markers
    marker.check(content=True)
    assert marker.num_records == sum(len(records.positions) for records in everything)
    assert (marker.first_id, marker.end_id) == (10, 10 + len(SENTENCES))
    assert ledger.windows[0].is_complete
    assert ledger.windows[0].notes == WindowNotes(10, 20, 10, True)
    process = marker.process
    assert (process["task"], process["rank"]) == ([3, 16], [0, 1])
    assert process["num_examples"] == len(SENTENCES)
    assert process["num_tokens"] == sum(records.num_tokens for records in everything)
    assert {"host", "pid", "versions", "git_commit", "seconds", "peak_memory_bytes"} <= set(process)


def test_the_records_of_a_part_are_in_corpus_order(tmp_path: Path):
    write(tmp_path)
    (part,) = parts_of(tmp_path)
    table = pq.read_table(part)
    keys = list(zip(table["sentence_id"].to_pylist(), table["position"].to_pylist(), strict=True))
    assert keys == sorted(keys)
    assert keys[0][0] == 10


def test_a_part_comes_first_and_its_marker_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    renamed: list[Path] = []

    def rename(source: Path, target: Path) -> None:
        assert source.name.startswith("."), "a reader would take an unfinished file for a part"
        assert source.parent == target.parent, "a rename over file systems is a copy"
        assert not target.exists()
        if target.suffix == ".json":
            assert target.with_suffix(".parquet").exists()
        renamed.append(target)
        os.rename(source, target)

    monkeypatch.setattr(files.os, "replace", rename)
    write(tmp_path, part_bytes=1)
    assert [path.suffix for path in renamed] == [".parquet", ".json"] * 4
    assert {path for path in (tmp_path / "shards").rglob("*") if path.is_file()} == set(renamed)


def test_a_part_that_cannot_be_written_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def write_half(table: pa.Table, path: Path, **_: object) -> None:
        path.write_bytes(b"PAR1 half")
        raise OSError("no space left on device")

    monkeypatch.setattr(writer_module.pq, "write_table", write_half)
    with pytest.raises(OSError, match="no space"):
        write(tmp_path, part_bytes=1)
    assert [path for path in (tmp_path / "shards").rglob("*") if path.is_file()] == []


@pytest.fixture
def started(tmp_path: Path) -> Iterator[tuple[ShardWriter, L.Trainer]]:
    """A writer at work in `tmp_path`, as a single process."""
    one = trainer()
    session = Session(Task(), CONFIG_HASH, tmp_path)
    writer = ShardWriter(schema_of("gpt2"), make_tokenizer("causal"), "gpt2", session)
    writer.setup(one, module_of("gpt2"), "predict")
    writer.on_predict_start(one, module_of("gpt2"))
    yield writer, one
    session.release()


Started = tuple[ShardWriter, L.Trainer]


def test_a_process_without_batches_writes_no_part(started: Started, tmp_path: Path):
    writer, one = started
    writer.on_predict_end(one, module_of("gpt2"))
    assert parts_of(tmp_path) == []


def test_a_window_without_records_is_written_down(started: Started, tmp_path: Path):
    writer, one = started
    module = module_of("gpt2")
    notes = WindowNotes(0, 2, 2, True, skipped=[(0, "blank")], unread=[1])
    batch = replace(collate([], 0, 0), key=BatchKey(0, 0, 1), notes=notes)
    writer.write_on_batch_end(one, module, module.predict_step(batch), None, batch, 0, 0)
    writer.on_predict_end(one, module)
    ledger = read_ledger(tmp_path / "shards/gpt2", CONFIG_HASH)
    assert ledger.windows[0].is_complete
    assert ledger.windows[0].notes == notes
    assert (ledger.markers[0].num_records, ledger.markers[0].end_id) == (0, 0)


@pytest.mark.parametrize(
    ("error", "num_parts"),
    [(ValueError("odd"), 1), (Stopped(15), 1), (Stopped(2, at_once=True), 0), (OSError("full"), 0)],
)
def test_what_is_done_is_kept_when_something_goes_wrong_later(
    started: Started, tmp_path: Path, error: BaseException, num_parts: int
):
    writer, one = started
    module = module_of("gpt2")
    batch = batches_of("gpt2", 2)[0]
    writer.write_on_batch_end(one, module, module.predict_step(batch), None, batch, 0, 0)
    writer.on_exception(one, module, error)
    assert len(parts_of(tmp_path)) == num_parts


def test_part_numbers_go_on_where_an_earlier_process_stopped(tmp_path: Path):
    write(tmp_path)
    with pytest.raises(ValueError, match="are there more than once"):
        write(tmp_path)
    assert [path.name for path in parts_of(tmp_path)] == ["part-000000.parquet", "part-000001.parquet"]
