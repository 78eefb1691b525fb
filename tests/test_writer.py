"""The prediction writer: what tokens say, records as tables, parts that are whole or absent."""

from __future__ import annotations

import os
from pathlib import Path

import lightning as L
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
import torch
from tiny_models import FAMILIES, HIDDEN, SENTENCES, make_model, make_tokenizer
from transformers import PreTrainedTokenizerFast

from llm_entropy import writer as writer_module
from llm_entropy.architectures import view_model
from llm_entropy.lens import Lens
from llm_entropy.module import EntropyModule
from llm_entropy.positions import Encoder, collate
from llm_entropy.schema import Batch, Records, column, shard_schema
from llm_entropy.settings import (
    ATTENTION_ENTROPY,
    CONTROL,
    KL_FROM_STANDARD,
    METRICS,
    STANDARD,
    AnalysisSettings,
    ControlSettings,
)
from llm_entropy.steering import plan_steering
from llm_entropy.writer import ShardWriter, TokenTexts, records_table

EVERYTHING = AnalysisSettings(
    metrics=list(METRICS), compare_control=True, top_k=4, control=ControlSettings(control_vector=[1.0])
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
    plan = plan_steering(EVERYTHING.control, vector, num_blocks=view.shape.num_blocks, sign=1)
    return EntropyModule(view, Lens(view), EVERYTHING, plan)


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
    assert table["sentence"].to_pylist() == records.sentences
    assert table["position"].to_pylist() == records.positions.tolist()
    assert table["token"].to_pylist() == texts(records.token_ids)
    assert table["token_start"].to_pylist() == records.starts.tolist()
    for condition, own in records.conditions.items():
        for metric, values in own.metrics.items():
            np.testing.assert_array_equal(numbers(table, column(condition, metric)), values.flatten(1).float().numpy())
        tracked = numbers(table, column(condition, "tracked_probabilities"))
        np.testing.assert_array_equal(tracked, own.tracked_probabilities.flatten(1).numpy())
        assert table[column(condition, "target_id")].to_pylist() == own.target_ids.tolist()
        first = [tokens[0] for tokens in table[column(condition, "top_tokens")].to_pylist()]
        assert first == texts(own.top_ids[:, 0])
        assert numbers(table, column(condition, "top_probabilities")).shape == (len(records.positions), 4)


def test_columns_say_their_units_and_axes():
    schema = schema_of("gpt2")
    assert schema.metadata[b"model"] == b"tiny"
    about = schema.field(column(STANDARD, ATTENTION_ENTROPY)).metadata
    assert about == {b"unit": b"nats", b"axes": b"block head", b"shape": b"3 4"}
    about = schema.field(column(CONTROL, KL_FROM_STANDARD)).metadata
    assert about == {b"unit": b"nats", b"axes": b"layer", b"shape": b"4"}
    assert column(STANDARD, KL_FROM_STANDARD) not in schema.names


# --- parts -------------------------------------------------------------------------------------------------------


def trainer() -> L.Trainer:
    return L.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, barebones=True)


def write(folder: Path, part_bytes: int) -> tuple[list[Records], ShardWriter]:
    """Write the records of small batches as a process does, and return them."""
    module, one = module_of("gpt2"), trainer()
    writer = ShardWriter(schema_of("gpt2"), make_tokenizer("causal"), part_bytes)
    writer.folder = folder
    writer.setup(one, module, "predict")
    everything = []
    # The batches come in the order of their lengths in a run: the last sentences first, here.
    for index, batch in enumerate(reversed(batches_of("gpt2", 2))):
        everything.append(module.predict_step(batch))
        writer.write_on_batch_end(one, module, everything[-1], None, batch, index, 0)
    writer.on_predict_end(one, module)
    return everything, writer


def parts_of(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.parquet"))


def test_small_parts_hold_together_what_one_large_part_does(tmp_path: Path):
    everything, small = write(tmp_path / "small", part_bytes=1)
    _, large = write(tmp_path / "large", part_bytes=2**30)
    assert len(parts_of(tmp_path / "small")) == len(everything) == 4
    (whole,) = parts_of(tmp_path / "large")
    assert whole.relative_to(tmp_path / "large") == Path("task-00000-of-00001/rank-0000/part-000000.parquet")
    keys = [("sentence_id", "ascending"), ("position", "ascending")]
    pieces = pa.concat_tables([pq.read_table(path) for path in parts_of(tmp_path / "small")])
    assert pieces.sort_by(keys).equals(pq.read_table(whole))
    assert small.num_records == large.num_records == len(pieces) == sum(len(r.positions) for r in everything)
    assert small.num_sentences == len(SENTENCES)
    assert small.num_tokens == sum(r.num_tokens for r in everything)


def test_the_records_of_a_part_are_in_corpus_order(tmp_path: Path):
    write(tmp_path, part_bytes=2**30)
    (part,) = parts_of(tmp_path)
    table = pq.read_table(part)
    keys = list(zip(table["sentence_id"].to_pylist(), table["position"].to_pylist(), strict=True))
    assert keys == sorted(keys)
    assert keys[0][0] == 10


def test_a_part_appears_under_its_name_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    renamed = []

    def replace(source: Path, target: Path) -> None:
        assert not source.name.endswith(".parquet"), "a reader would take an unfinished file for a part"
        assert source.parent == target.parent, "a rename over file systems is a copy"
        assert not target.exists()
        assert len(pq.read_table(source)) > 0
        renamed.append(target)
        os.rename(source, target)

    monkeypatch.setattr(writer_module.os, "replace", replace)
    write(tmp_path, part_bytes=1)
    assert renamed == parts_of(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path not in renamed] == []


def test_a_part_that_cannot_be_written_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def write_half(table: pa.Table, path: Path, **_: object) -> None:
        path.write_bytes(b"PAR1 half")
        raise OSError("no space left on device")

    monkeypatch.setattr(writer_module.pq, "write_table", write_half)
    with pytest.raises(OSError, match="no space"):
        write(tmp_path, part_bytes=1)
    assert parts_of(tmp_path) == []


def test_a_process_without_records_writes_no_part(tmp_path: Path):
    one = trainer()
    writer = ShardWriter(schema_of("gpt2"), make_tokenizer("causal"))
    writer.folder = tmp_path
    writer.setup(one, module_of("gpt2"), "predict")
    writer.on_predict_end(one, module_of("gpt2"))
    assert parts_of(tmp_path) == []
    assert writer.num_records == 0
