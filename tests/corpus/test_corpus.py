from __future__ import annotations

import csv
import gzip
import json
import os
import time
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from datasets import Dataset, DatasetDict
from text_files import STREAMS_LEFT_OPEN, texts

import llm_entropy.builtin
from llm_entropy.corpus.corpus import Corpus
from llm_entropy.corpus.picking import corpus_of_sentences, load_corpus
from llm_entropy.settings import AnalysisSettings, DataSettings, Settings, to_plain
from llm_entropy.settings.configuration import read_config
from llm_entropy.store.windows import ROWS_PER_FILE, WINDOW_ROWS, Task

HARD = [
    'a quote " and, a comma',
    "a line\nand another\r\nand a third",
    "\u4e2d\u6587\u53e5\u5b50\uff0c\u5e26\u6807\u70b9\u3002",
    "emoji \U0001f408\u200d\u2b1b and \U0001f469\U0001f3fd\u200d\U0001f680",
    "NA",
    "null",
    "None",
    "nan",
    " leading and trailing ",
    "a tab\there",
]

pytestmark = STREAMS_LEFT_OPEN


def load(path: Any, num_sentences: Any = None, seed: int = 0, **settings: Any) -> Corpus:
    data = DataSettings(path=None if path is None else str(path), **settings)
    return load_corpus(data, num_sentences, seed, quiet=True)


def ids(corpus: Corpus) -> list[int]:
    return [number for window in corpus.windows(Task()) for number in window.sentence_ids]


def write_csv(path: Path, header: list[str], rows: list[list[Any]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return path


def write_lines(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


# --- the built-in corpus -----------------------------------------------------------------------------------------


@pytest.fixture
def ten_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": f"Fact {i} is", "masked": f"Fact {i} is [MASK].", "topic": "facts"} for i in range(10)]
    monkeypatch.setattr(llm_entropy.builtin, "read_sentences", lambda: rows)


@pytest.mark.usefixtures("ten_facts")
def test_the_builtin_corpus_gives_prompts_to_causal_and_masks_to_masked_models():
    corpus = load(None, 3)
    causal, masked = corpus.for_kind("causal"), corpus.for_kind("masked")
    assert texts(causal) == [f"Fact {i} is" for i in ids(corpus)]
    assert texts(masked) == [f"Fact {i} is [MASK]." for i in ids(corpus)]
    assert ids(causal) == ids(masked) == ids(corpus)


@pytest.mark.usefixtures("ten_facts")
def test_more_sentences_than_there_are_is_an_error_that_says_how_many():
    with pytest.raises(ValueError, match=r"analysis\.num_sentences: got 11, but .* has only 10 sentences"):
        load(None, 11)
    assert load(None, 10).num_sentences == 10


def test_without_a_number_all_of_a_corpus_is_read_and_ten_of_the_built_in_sentences(tmp_path: Path):
    path = write_lines(tmp_path / "a.txt", [f"sentence {i}" for i in range(12)])
    number = Settings().analysis.num_sentences
    for streaming in (False, True):
        assert len(texts(load(path, number, streaming=streaming))) == 12
    assert corpus_of_sentences(["one", "two"] * 6, number, 0).num_sentences == 12
    assert load(None, number).num_sentences == 10
    assert ids(load(None, number)) == ids(load(None, 10))


def test_a_stored_configuration_says_the_same_number_again(tmp_path: Path):
    for number in ("auto", None, 3):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(to_plain(Settings(analysis=AnalysisSettings(num_sentences=number)))))
        assert read_config(path).analysis.num_sentences == number


def test_other_corpora_give_every_kind_the_same_text(tmp_path: Path):
    corpus = load(write_lines(tmp_path / "a.txt", ["one", "two"]))
    assert texts(corpus.for_kind("causal")) == texts(corpus.for_kind("masked")) == ["one", "two"]


# --- formats -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz", ".json", ".jsonl", ".jsonl.gz", ".parquet", ".arrow"])
@pytest.mark.parametrize("streaming", [False, True])
def test_every_format_gives_the_text_unchanged(tmp_path: Path, suffix: str, streaming: bool):
    # `datasets` cannot read compressed files with brackets in their names.
    path = tmp_path / (f"corpus{suffix}" if suffix.endswith(".gz") else f"corpus [1]{suffix}")
    rows = [{"id": i, "text": text} for i, text in enumerate(HARD)]
    if suffix in (".csv", ".tsv", ".csv.gz"):
        plain = write_csv(
            tmp_path / "plain",
            ["id", "text"],
            [list(row.values()) for row in rows],
            delimiter="\t" if suffix == ".tsv" else ",",
        )
        path.write_bytes(gzip.compress(plain.read_bytes()) if suffix.endswith(".gz") else plain.read_bytes())
    elif suffix in (".jsonl", ".jsonl.gz"):
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    elif suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    elif suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(str(path))
    else:
        with datasets.arrow_writer.ArrowWriter(path=str(path)) as writer:
            writer.write_table(Dataset.from_list(rows).data.table)
    corpus = load(path, len(HARD), streaming=streaming)
    assert texts(corpus) == HARD
    assert ids(corpus) == list(range(len(HARD)))
    assert corpus.skipped == []
    assert corpus.num_rows == len(HARD)


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz"])
def test_a_text_file_holds_a_sentence_on_each_line(tmp_path: Path, suffix: str):
    path = tmp_path / f"a{suffix}"
    # `datasets` leaves the byte order mark at the beginning of a compressed file.
    mark = "" if suffix.endswith(".gz") else "\ufeff"
    content = (mark + 'first\n\n\u4e8c\r\n   \nthird, "quoted"').encode()
    path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    corpus = load(path)
    assert texts(corpus) == ["first", "\u4e8c", 'third, "quoted"']
    assert ids(corpus) == [0, 2, 4]
    assert corpus.skipped == [(1, "blank"), (3, "blank")]
    assert corpus.num_rows == 5


def test_a_glob_reads_all_its_files_in_order(tmp_path: Path):
    for name in "bca":
        write_lines(tmp_path / f"{name}.txt", [f"{name} 0", f"{name} 1"])
    corpus = load(tmp_path / "*.txt")
    assert texts(corpus) == ["a 0", "a 1", "b 0", "b 1", "c 0", "c 1"]
    assert ids(corpus) == list(range(6))


def test_a_folder_gives_the_files_of_the_split(tmp_path: Path):
    folder = tmp_path / "folder"
    folder.mkdir()
    write_csv(folder / "train.csv", ["text"], [["to learn"]])
    write_csv(folder / "test.csv", ["text"], [["to examine"]])
    (folder / "README.md").write_text("no data")
    assert texts(load(folder)) == ["to learn"]
    assert texts(load(folder, split="test")) == ["to examine"]
    with pytest.raises(ValueError, match=r"data\.split is 'dev'.*train.*test"):
        load(folder, split="dev")


def test_a_folder_without_splits_is_read_whole(tmp_path: Path):
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    write_lines(folder / "1.jsonl", ['{"text": "one"}'])
    write_lines(folder / "deep" / "2.jsonl", ['{"text": "two"}'])
    assert sorted(texts(load(folder))) == ["one", "two"]


def test_a_saved_data_set_is_read_with_and_without_splits(tmp_path: Path):
    rows = Dataset.from_dict({"text": ["one", None, "three"], "n": [1, 2, 3]})
    rows.save_to_disk(str(tmp_path / "plain"))
    DatasetDict({"train": rows, "test": rows.select([2])}).save_to_disk(str(tmp_path / "splits"))
    plain = load(tmp_path / "plain")
    assert (texts(plain), ids(plain), plain.skipped) == (["one", "three"], [0, 2], [(1, "null")])
    assert texts(load(tmp_path / "splits", split="test")) == ["three"]
    assert texts(load(tmp_path / "splits", 1, streaming=True)) == ["one"]
    with pytest.raises(ValueError, match=r"no split 'dev'; it has train, test"):
        load(tmp_path / "splits", split="dev")


def test_a_slice_of_the_split_is_taken(tmp_path: Path):
    assert texts(load(write_lines(tmp_path / "a.txt", list("abcd")), split="train[1:3]")) == ["b", "c"]


def test_a_csv_column_whose_type_changes_late_is_still_read(tmp_path: Path):
    # The builder guesses types in pieces of 10,000 rows.
    rows = [[i, f"sentence {i}"] for i in range(10_000)] + [["", "without a number"], ["x7", "the last"]]
    corpus = load(write_csv(tmp_path / "a.csv", ["n", "text"], rows), text_column="text")
    assert texts(corpus)[-2:] == ["without a number", "the last"]


def test_a_csv_file_that_has_changed_is_read_anew(tmp_path: Path):
    path = write_csv(tmp_path / "a.csv", ["text"], [["before"]])
    assert texts(load(path)) == ["before"]
    write_csv(path, ["text"], [["after"]])
    os.utime(path, (time.time() + 5, time.time() + 5))
    assert texts(load(path)) == ["after"]


# --- the text column ---------------------------------------------------------------------------------------------


def test_the_only_column_with_words_is_found_among_numbers_and_blanks(tmp_path: Path):
    header = ["id", "price", "note", "sentence", "share"]
    rows = [["007", "1,200.50", "", "1984 was a year", "50%"], ["8", "-3e5", " ", "42", ".5"]]
    assert texts(load(write_csv(tmp_path / "a.csv", header, rows))) == ["1984 was a year", "42"]
    lines = [json.dumps({"id": "1", "text": "one"}), json.dumps({"id": "2", "text": "two"})]
    assert texts(load(write_lines(tmp_path / "a.jsonl", lines))) == ["one", "two"]


def test_of_several_text_columns_the_user_chooses(tmp_path: Path):
    path = write_csv(tmp_path / "a.csv", ["title", "body"], [["A", "a text"], ["B", "another"]])
    with pytest.raises(ValueError, match=r"data\.text_column: .* several text columns, title, body"):
        load(path)
    assert texts(load(path, text_column="body")) == ["a text", "another"]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_missing_column_is_an_error_with_the_columns_and_the_nearest_one(tmp_path: Path, streaming: bool):
    path = write_csv(tmp_path / "a.csv", ["title", "sentence"], [["A", "a text"]])
    with pytest.raises(ValueError, match=r"no column 'sentense' \(did you mean 'sentence'\?\); it has title, sentence"):
        load(path, 1, text_column="sentense", streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_column_without_text_is_refused(tmp_path: Path, streaming: bool, suffix: str):
    path = tmp_path / f"a{suffix}"
    rows = Dataset.from_dict({"n": [1, 2], "text": ["one", "two"]})
    rows.to_csv(str(path)) if suffix == ".csv" else rows.to_parquet(str(path))
    with pytest.raises(ValueError, match=r"data\.text_column: 'n' of .* holds .*; expected text"):
        load(path, 1, text_column="n", streaming=streaming)
    assert texts(load(path, 1, streaming=True)) == ["one"]


def test_columns_of_numbers_alone_are_no_corpus(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no column of text: 'n' holds numbers alone; 'm' holds numbers alone"):
        load(write_csv(tmp_path / "a.csv", ["n", "m"], [["1", "2.5"], ["3", ""]]))


# --- picking -----------------------------------------------------------------------------------------------------


def test_the_pick_keeps_corpus_order_and_depends_on_seed_and_rows_alone(tmp_path: Path):
    lines = [f"sentence {i}" for i in range(100)]
    text = write_lines(tmp_path / "a.txt", lines)
    table = write_csv(tmp_path / "a.csv", ["n", "s"], [[i, line] for i, line in enumerate(lines)])
    first, second, other = load(text, 20), load(table, 20), load(text, 20, seed=1)
    assert ids(first) == sorted(ids(first)) == ids(second)
    assert texts(first) == [lines[i] for i in ids(first)]
    assert first.fingerprint == second.fingerprint, "the content is the same, wherever it came from"
    assert ids(other) != ids(first)
    assert other.fingerprint != first.fingerprint
    assert set(ids(load(text, 5))) < set(ids(first)), "a larger pick holds the smaller one"


def test_a_pick_never_takes_a_blank_row(tmp_path: Path):
    lines = ["" if i % 3 else f"sentence {i}" for i in range(60)]
    path = write_lines(tmp_path / "a.txt", lines)
    corpus = load(path, 20)
    assert ids(corpus) == list(range(0, 60, 3))
    assert len(corpus.skipped) == 40
    with pytest.raises(ValueError, match=r"got 21, but .* has only 20 sentences; 40 rows hold no text"):
        load(path, 21)


def test_blank_rows_of_a_csv_keep_their_numbers(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text('text,n\none,1\n\n"\n",2\nfour,\n', encoding="utf-8")
    corpus = load(path)
    assert (ids(corpus), texts(corpus)) == ([0, 3], ["one", "four"])
    assert corpus.skipped == [(1, "blank"), (2, "blank")]


def test_streaming_takes_the_first_sentences_and_reads_no_further(tmp_path: Path):
    lines = [json.dumps({"text": text}) for text in ("one", " ", "three", "four")]
    # A line that cannot be read stands far enough behind that only a reader of the whole file meets it.
    later = [json.dumps({"text": "x" * 1000})] * 30_000
    path = write_lines(tmp_path / "a.jsonl", [*lines, *later, "{broken"])
    corpus = load(path, 3, streaming=True)
    assert (ids(corpus), texts(corpus)) == ([0, 2, 3], ["one", "three", "four"])
    assert (corpus.skipped, corpus.num_rows) == ([(1, "blank")], 4)


def test_streaming_needs_enough_rows(tmp_path: Path):
    path = write_lines(tmp_path / "a.txt", ["one", "", "three"])
    with pytest.raises(ValueError, match=r"got 3, but .* has only 2 sentences; 1 rows hold no text"):
        load(path, 3, streaming=True)


# --- what cannot be read -----------------------------------------------------------------------------------------

BAD_FILES = {
    "empty.txt": (b"", "is empty"),
    "empty.csv": (b"", "is empty"),
    "empty.json": (b"", "is empty"),
    "header.csv": (b"text\n", r"has a header \(text\), but no rows below"),
    "none.json": (b"[]", "no"),
    "blank.txt": (b"\n \n\t\n", "no sentences; 3 rows hold no text"),
    "blank.csv": (b'text,more\n"",""\n" ",\n', "no sentences; 2 rows hold no text"),
    "broken.json": (b"{no json", "could not read"),
    "broken.parquet": (b"no parquet", "could not read"),
    "broken.arrow": (b"no arrow", "could not read"),
    "broken.csv.gz": (b"no gzip", "damaged, or not compressed as its name says"),
    "latin.txt": ("café\n".encode("latin-1"), r"line 1 of latin\.txt is not UTF-8 \(byte 0xe9;.*'café'\); name the"),
    "latin.csv": ("text\ncafé\n".encode("latin-1"), r"data\.encoding: line 2 of latin\.csv is not UTF-8"),
    "comma.csv": (b"text\nHello, world\n", "more fields than the header"),
    "later.csv": (
        b"text\nHello\nHello, world\n",
        r"line 3 of later\.csv has 2 fields, more fields than the header \(1\)",
    ),
    "text.pdf": (b"%PDF", r"expected one of \.csv.*; save a table as csv"),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_cannot_be_read_is_one_line_of_error(
    tmp_path: Path, name: str, streaming: bool, capfd: pytest.CaptureFixture[str]
):
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path / name, 2, streaming=streaming)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(("data.", "analysis."))
    assert name in str(caught.value)
    assert capfd.readouterr().err == "", "the library prints the same error again"


@pytest.mark.parametrize(
    "path", ["missing.csv", "missing.txt.gz", "./missing", "data/missing", "/no/such/place", "*.csv", "a/b/c"]
)
def test_a_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"data\.path: (there is no file or folder|no file matches)") as caught:
        load(path)
    assert repr(path) in str(caught.value)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_data_set_that_cannot_be_reached_is_one_line_with_the_ways_out(
    monkeypatch: pytest.MonkeyPatch, streaming: bool
):
    # What the environment variables of the two libraries set when they are imported.
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"data\.path: 'nobody/nothing' .* local file") as caught:
        load("nobody/nothing", 3, streaming=streaming)
    assert "\n" not in str(caught.value)


def test_files_of_several_formats_are_not_read_as_one(tmp_path: Path):
    write_lines(tmp_path / "a.txt", ["one"])
    write_csv(tmp_path / "b.csv", ["text"], [["two"]])
    with pytest.raises(ValueError, match=r"several formats, 'a\.txt' and 'b\.csv'"):
        load(tmp_path / "[ab].*")


def test_csv_files_with_other_columns_are_not_read_as_one(tmp_path: Path):
    write_csv(tmp_path / "a.csv", ["text"], [["one"]])
    write_csv(tmp_path / "b.csv", ["sentence"], [["two"]])
    with pytest.raises(ValueError, match=r"b\.csv has the columns sentence, others text"):
        load(tmp_path / "*.csv")


# --- whole streams -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".txt"])
def test_a_stream_gives_what_the_mapped_corpus_gives(tmp_path: Path, suffix: str):
    lines = [" " if i % 1000 == 7 else f"sentence {i}" for i in range(2 * WINDOW_ROWS + 100)]
    path = tmp_path / f"a{suffix}"
    rows = Dataset.from_dict({"text": lines})
    {
        ".csv": lambda: rows.to_csv(path),
        ".jsonl": lambda: rows.to_json(path),
        ".parquet": lambda: rows.to_parquet(path, batch_size=1000),
        ".txt": lambda: write_lines(path, lines),
    }[suffix]()
    stream, mapped = load(path, streaming=True), load(path)
    assert (stream.num_windows, stream.num_files, stream.num_sentences) == (None, 1, None)
    assert (ids(stream), texts(stream)) == (ids(mapped), texts(mapped))
    skipped = [pair for window in stream.windows(Task()) for pair in window.skipped]
    assert skipped == mapped.skipped


def test_files_of_a_stream_are_counted_each_by_itself(tmp_path: Path):
    write_lines(tmp_path / "a.txt", ["one", "two"])
    write_lines(tmp_path / "b.txt", ["three"])
    corpus = load(tmp_path / "*.txt", streaming=True)
    assert corpus.num_files == 2
    assert ids(corpus) == [0, 1, ROWS_PER_FILE]


def test_the_fingerprint_of_a_stream_changes_with_its_files(tmp_path: Path):
    path = write_lines(tmp_path / "a.txt", ["one", "two"])
    before = load(path, streaming=True).fingerprint
    assert load(path, streaming=True).fingerprint == before
    write_lines(path, ["one", "two", "three"])
    assert load(path, streaming=True).fingerprint != before


def test_a_stream_that_breaks_off_is_one_line_of_error(tmp_path: Path):
    lines = [json.dumps({"text": f"{'x' * 1000} {i}"}) for i in range(30_000)]
    corpus = load(write_lines(tmp_path / "a.jsonl", [*lines, "{broken"]), streaming=True)
    with pytest.raises(ValueError, match=r"line 30001 of a\.jsonl is not JSON"):
        list(corpus.windows(Task()))


def test_the_fingerprint_is_that_of_the_texts_however_they_are_stored(tmp_path: Path):
    lines = [f"line {i}" * (i % 5 + 1) for i in range(30_000)]
    path = tmp_path / "a.parquet"
    Dataset.from_dict({"text": lines}).to_parquet(path, batch_size=777)
    text = load(write_lines(tmp_path / "b.txt", lines))
    assert load(path).fingerprint == text.fingerprint
    lines[5], lines[6] = lines[5] + lines[6][:1], lines[6][1:]
    assert load(write_lines(tmp_path / "c.txt", lines)).fingerprint != text.fingerprint
    assert load(tmp_path / "b.txt", 29_999).fingerprint != text.fingerprint
