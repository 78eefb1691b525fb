"""What stands where a corpus should: other encodings, damaged files, other things than text, pipes, no cache."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from text_files import (  # noqa: F401, the fixture is used by itself
    STREAMS_LEFT_OPEN,
    both_ways,
    left_files_are_closed_here,
    load,
    texts,
    written,
)

from llm_entropy.corpus import quiet_datasets, textfiles
from llm_entropy.errors import ReportedError

pytestmark = STREAMS_LEFT_OPEN


# --- encodings ---------------------------------------------------------------------------------------------------

CAFE = ["Ein Café.", "\u00a1Hola! \u00bfQu\u00e9 tal?"]


def in_format(suffix: str) -> str:
    """Return the sentences as a file of that suffix holds them."""
    if suffix.startswith(".json"):
        return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in CAFE)
    return "text\n" * (".csv" in suffix) + "".join(text + "\n" for text in CAFE)


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".txt", ".txt.gz", ".jsonl", ".jsonl.gz"])
@pytest.mark.parametrize("encoding", ["cp1252", "utf-8-sig", "utf-16"])
def test_an_encoding_is_found_by_its_mark_or_asked_for(tmp_path: Path, suffix: str, encoding: str):
    content = in_format(suffix).encode(encoding)
    path = written(tmp_path, f"a{suffix}", gzip.compress(content) if suffix.endswith(".gz") else content)
    if encoding == "cp1252":
        with pytest.raises(
            ReportedError, match=rf"data\.encoding: line \d of a{suffix} is not UTF-8 .*Caf.*; name the encoding"
        ):
            load(path)
        assert both_ways(path, encoding="cp1252") == CAFE
    elif encoding == "utf-16" and suffix.startswith(".json"):
        with pytest.raises(ReportedError, match="is UTF-16, and JSON is UTF-8; convert it: iconv"):
            load(path)
    else:
        assert both_ways(path) == CAFE


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "line", "end"),
    [
        ("a.txt", "x" * 999 + "\n", "caf\xe9\n"),
        ("a.csv", "x" * 999 + "\n", "caf\xe9\n"),
        ("a.jsonl", json.dumps({"text": "x" * 989}) + "\n", '{"text": "caf\xe9"}\n'),
    ],
)
def test_a_byte_that_is_not_utf8_far_down_is_named_by_file_and_line(
    tmp_path: Path, name: str, line: str, end: str, streaming: bool
):
    path = written(tmp_path, name, (line * 300 + end).encode("latin-1"))
    with pytest.raises(ReportedError, match=rf"line 301 of {name} is not UTF-8 \(byte 0xe9"):
        texts(load(path, streaming=streaming, **({"header": False} if name == "a.csv" else {})))


def test_utf16_without_a_mark_is_asked_for(tmp_path: Path):
    path = written(tmp_path, "a.txt", "one\ntwo\n".encode("utf-16-le"))
    with pytest.raises(ReportedError, match=r"a\.txt holds NUL bytes; if it is UTF-16 .* data\.encoding utf-16-le"):
        load(path)
    assert both_ways(path, encoding="utf-16-le") == ["one", "two"]


# --- damaged files -----------------------------------------------------------------------------------------------

LINES = b"".join(b"line %d of the corpus\n" % number for number in range(20_000))
ROWS = b"".join(b'{"text": "line %d"}\n' % number for number in range(20_000))
MANY = b"".join(b"%d %s\n" % (number, Random(number).randbytes(500).hex().encode()) for number in range(400))
PACKERS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": partial(lzma.compress, preset=0)}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize(("name", "content"), [("a.csv", b"text\n" + LINES), ("a.jsonl", ROWS), ("a.txt", MANY)])
@pytest.mark.parametrize("how", ["cut off", "damaged"])
def test_a_download_that_was_cut_off_or_damaged_is_one_sentence(
    tmp_path: Path, name: str, content: bytes, packer: str, streaming: bool, how: str
):
    packed = PACKERS[packer](content)
    place = len(packed) * 9 // 10
    bad = packed[:place] if how == "cut off" else packed[:place] + bytes(b ^ 255 for b in packed[place:])
    path = written(tmp_path, f"{name}.{packer}", bad)
    with pytest.raises(ReportedError, match=rf"data\.path: {name}\.{packer} is (cut off|damaged).*; fetch it") as error:
        texts(load(path, streaming=streaming))
    if how == "cut off":
        assert "is cut off" in str(error.value)


OTHER_FILES = {
    "a.csv": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer.*git lfs pull"),
    "a.jsonl": (b"<!DOCTYPE html>\n<html></html>\n", "web page"),
    "b.csv": (b"PK\x03\x04rest", "zip archive or an office document"),
    "a.txt": (gzip.compress(b"one\n"), r"compressed by gzip; add \.gz to its name"),
    "b.txt": (lzma.compress(b"one\n"), r"compressed by xz; add \.xz"),
    "a.parquet.gz": (gzip.compress(b"PAR1"), r"unpack a\.parquet\.gz first"),
    "c.txt.gz": (b"one\ntwo\n", "not compressed as its name says"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_a_file_that_is_something_else_is_refused_as_what_it_is(tmp_path: Path, name: str):
    content, message = OTHER_FILES[name]
    with pytest.raises(ReportedError, match=message) as error:
        load(written(tmp_path, name, content))
    assert str(error.value).startswith("data.path: ")
    assert name in str(error.value)


def test_a_file_packed_by_zstandard_is_read_or_what_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pa.output_stream(str(tmp_path / "a.csv.zst"), compression="zstd") as file:
        file.write(b"id;text\n1;one\n2;two\n")
    if textfiles.zstandard is not None:
        assert both_ways(tmp_path / "a.csv.zst") == ["one", "two"]
        whole = (tmp_path / "a.csv.zst").read_bytes()
        with pytest.raises(ReportedError, match=r"b\.csv\.zst is (cut off|damaged)"):
            load(written(tmp_path, "b.csv.zst", b"(\xb5/\xfd" + whole[5:12]))
    monkeypatch.setattr(textfiles, "zstandard", None)
    with pytest.raises(
        ReportedError, match=r"a\.csv\.zst needs a package to unpack it: pip install 'llm-entropy\[zstd\]'"
    ):
        load(tmp_path / "a.csv.zst")


# --- columns -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [pa.string_view(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_text_of_every_type_of_arrow_is_text(tmp_path: Path, kind: pa.DataType, suffix: str):
    table = pa.table({"n": [1, 2, 3, 4], "text": pa.array(["one", None, " ", "four"], pa.string()).cast(kind)})
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    assert both_ways(path) == ["one", "four"]
    assert load(path).skipped == [(1, "null"), (2, "blank")]


CHAT = {"turns": [{"speaker": "user", "line": "hi"}]}
NESTED = {
    "chat.jsonl": (CHAT, r"'turns' holds (lists of objects with speaker, line|a list)"),
    "words.jsonl": ({"tokens": ["the", "cat"]}, r"'tokens' holds (lists of text|a list)"),
    "tr.jsonl": (
        {"translation": {"en": "a", "de": "b"}},
        r"'translation' holds (objects|an object) with (en, de|de, en)",
    ),
    "squad.json": ({"version": "1", "data": [{"text": "a b"}]}, r"'data' holds (lists of objects with text|a list)"),
    "flags.jsonl": ({"a": True, "n": 1.5}, r"'a' holds true or false.*; 'n' holds (numbers|a number)"),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", NESTED)
def test_a_column_of_something_else_is_refused_as_what_it_holds(tmp_path: Path, name: str, streaming: bool):
    row, message = NESTED[name]
    path = written(tmp_path, name, (json.dumps(row) + "\n") * 2)
    with pytest.raises(ReportedError, match=rf"has no column of text: .*{message}.*; write the text of each row"):
        load(path, streaming=streaming)
    column = list(row)[-1]
    with pytest.raises(ReportedError, match=rf"data\.text_column: '{column}' of .* holds .*; expected text"):
        load(path, streaming=streaming, text_column=column)
    beside = written(tmp_path, "beside.jsonl", json.dumps({**row, "said": "a text"}) + "\n")
    assert texts(load(beside, streaming=streaming)) == ["a text"]


def test_dates_and_bytes_are_named_so(tmp_path: Path):
    columns = {"day": pa.array([0], pa.date32()), "raw": pa.array([b"x"]), "none": pa.nulls(1), "n": pa.array([1])}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    for name, held in (("day", "dates and times"), ("raw", "bytes"), ("n", "numbers")):
        with pytest.raises(ReportedError, match=rf"'{name}' of .* holds {held}; expected text"):
            load(tmp_path / "a.parquet", text_column=name)
    with pytest.raises(ReportedError, match="has no sentences; 1 rows hold no text"):
        load(tmp_path / "a.parquet", text_column="none")


MIXED = {
    "a number": ('{"text": 12}\n', "12"),
    "a list": ('{"text": ["x"]}\n', "a list"),
    "a truth": ('{"text": true}\n', "true or false, True"),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("column", [None, "text"])
@pytest.mark.parametrize("name", MIXED)
def test_a_row_that_is_not_text_is_named(tmp_path: Path, name: str, column: str | None, streaming: bool):
    line, held = MIXED[name]
    some = '{"text": "the cat", "n": 1}\n'
    for before, message in (
        (50, r"row 50, counted from 0|line 51 of"),
        (0, r"row 0, counted from 0|line 1 of|line 2 of"),
    ):
        path = written(tmp_path, f"a{before}.jsonl", some * before + line + some)
        with pytest.raises(ReportedError, match=rf"'text' .*is not text in every row: ({message})") as error:
            load(path, text_column=column, streaming=streaming)
        assert held in str(error.value) or before == 0


@pytest.mark.parametrize("streaming", [False, True])
def test_a_number_far_down_does_not_put_quotes_around_the_texts(tmp_path: Path, streaming: bool):
    # `datasets` reads 10 MB at a time.
    path = written(
        tmp_path, "a.jsonl", ('{"text": "' + "x" * 10_000 + '"}\n') * 1100 + '{"text": 12}\n{"text": "end"}\n'
    )
    with pytest.raises(
        ReportedError, match=r"'text' is not text in every row: line 1101 of a\.jsonl holds a number, 12"
    ):
        texts(load(path, streaming=streaming))


def test_a_file_of_numbers_beside_one_of_texts_is_named(tmp_path: Path):
    written(tmp_path, "a.jsonl", '{"text": "one"}\n')
    written(tmp_path, "b.jsonl", '{"text": null}\n{"text": 12}\n')
    for streaming in (False, True):
        with pytest.raises(ReportedError, match=r"line 2 of b\.jsonl holds a number, 12"):
            texts(load(tmp_path / "*.jsonl", streaming=streaming))


# --- pipes and paths ---------------------------------------------------------------------------------------------


def test_a_pipe_is_refused_as_a_pipe(tmp_path: Path):
    os.mkfifo(tmp_path / "corpus.jsonl")
    reader, writer = os.pipe()
    try:
        for path in (tmp_path / "corpus.jsonl", f"/dev/fd/{reader}", "/dev/null"):
            with pytest.raises(ReportedError, match=r"is a pipe or a device.*write it to a file first"):
                load(path)
    finally:
        os.close(reader)
        os.close(writer)


def test_a_path_that_leads_nowhere_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "link.csv").symlink_to("gone.csv")
    with pytest.raises(ReportedError, match=r"link\.csv' is a link to 'gone\.csv', which does not exist"):
        load(tmp_path / "link.csv")
    for address in ("https://example.org/corpus.csv", "s3://bucket/corpus.jsonl"):
        with pytest.raises(ReportedError, match="is an address; download the file"):
            load(address)
    for path in ("x" * 300 + ".csv", "~nobody-of-that-name/corpus.csv"):
        with pytest.raises(ReportedError, match=r"data\.path: could not look at"):
            load(path)


# --- the cache ---------------------------------------------------------------------------------------------------


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set the cache to a place that nobody can write to, not even root: below a file."""
    written(tmp_path, "file", "")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "datasets")
    monkeypatch.setattr(quiet_datasets.tempfile, "tempdir", str(tmp_path))
    quiet_datasets._temporary_cache.cache_clear()
    return tmp_path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".txt"])
def test_a_local_file_needs_no_cache(no_cache: Path, suffix: str, caplog: pytest.LogCaptureFixture):
    path = no_cache / f"a{suffix}"
    if suffix == ".parquet":
        Dataset.from_dict({"text": CAFE}).to_parquet(str(path))
    else:
        path.write_text(in_format(suffix), encoding="utf-8")
    with caplog.at_level("INFO", "llm_entropy"):
        assert both_ways(path) == CAFE
    assert caplog.text.count("cannot be written") == 1
    (folder,) = no_cache.glob("llm_entropy_*")
    assert any(folder.iterdir())


def test_a_hub_data_set_without_a_cache_is_told_so(no_cache: Path, monkeypatch: pytest.MonkeyPatch):
    def fails(*_: Any, **__: Any) -> None:
        raise NotADirectoryError(20, "Not a directory", str(no_cache / "file" / "datasets"))

    monkeypatch.setattr(datasets, "load_dataset", fails)
    with pytest.raises(ReportedError, match=r"needs a cache, but '.*datasets' cannot be written .*; set HF_HOME"):
        load("somebody/something")
