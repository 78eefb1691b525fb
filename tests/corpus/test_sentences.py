"""Sentences given in memory: lists, columns, frames, and what is taken for sentences by mistake."""

from __future__ import annotations

import io
import re
from collections import deque
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from llm_entropy.corpus.picking import corpus_of_sentences
from llm_entropy.corpus.sentences import refuse_data_beside, texts_of
from llm_entropy.errors import ReportedError
from llm_entropy.settings import DataSettings

TEXTS = ["the cat sat", "why does iron rust", "月亮 😀"]
IDS = [7, 8, 9]
NONE = DataSettings()
TABLE = {"id": IDS, "sentence": TEXTS}


@pytest.mark.parametrize(
    "make",
    [
        lambda: TEXTS,
        lambda: tuple(TEXTS),
        lambda: iter(TEXTS),
        lambda: map(str, TEXTS),
        lambda: deque(TEXTS),
        lambda: dict.fromkeys(TEXTS).keys(),
        lambda: np.array(TEXTS),
        lambda: np.array(TEXTS, object),
        lambda: pd.Series(TEXTS, index=[3, 2, 1]),
        lambda: pd.Series(TEXTS, dtype="category"),
        lambda: pa.array(TEXTS),
        lambda: pa.chunked_array([TEXTS[:1], TEXTS[1:]]),
        lambda: Dataset.from_dict(TABLE)["sentence"],
        lambda: TABLE,
        lambda: pd.DataFrame(TABLE, index=[3, 2, 1]),
        lambda: pa.table(TABLE),
        lambda: Dataset.from_dict(TABLE),
        lambda: Dataset.from_dict(TABLE).with_format("numpy"),
        lambda: Dataset.from_dict(TABLE).to_iterable_dataset(),
    ],
)
def test_sentences_are_read_from_whatever_holds_them(make: Callable[[], Any]) -> None:
    assert texts_of(make(), NONE, None) == TEXTS


@pytest.mark.parametrize(
    "holder",
    [
        pd.Series,
        pa.array,
        lambda rows: np.array(rows, object),
        lambda rows: pd.DataFrame({"id": range(5), "text": rows}),
        lambda rows: {"text": rows},
        lambda rows: Dataset.from_dict({"text": rows}),
    ],
)
def test_rows_without_a_value_are_counted_as_those_of_a_file_are(holder: Callable[[list[Any]], Any]) -> None:
    texts = texts_of(holder([TEXTS[0], None, TEXTS[1], " ", TEXTS[2]]), NONE, None)
    assert texts == [TEXTS[0], None, TEXTS[1], " ", TEXTS[2]]
    corpus = corpus_of_sentences(texts, None, 0)
    assert corpus.skipped == [(1, "null"), (3, "blank")]
    assert corpus.num_rows == 5


def test_the_text_column_is_named_where_there_are_several() -> None:
    frame = pd.DataFrame({"id": IDS, "title": ["a", "b", "c"], "body": TEXTS})
    for table in (frame, Dataset.from_pandas(frame), frame.to_dict("list")):
        with pytest.raises(ReportedError, match=r"data\.text_column: the \w.* of sentences has several text columns"):
            texts_of(table, NONE, None)
        assert texts_of(table, DataSettings(text_column="body"), None) == TEXTS
        with pytest.raises(ReportedError, match="has no column 'boddy'"):
            texts_of(table, DataSettings(text_column="boddy"), None)


def test_no_more_of_a_stream_is_read_than_is_wanted() -> None:
    def rows() -> Any:
        for number in count():
            assert number < 200, "reads on"
            yield {"text": f"sentence {number}" if number % 2 else None}

    texts = texts_of(IterableDataset.from_generator(rows), NONE, 60)
    assert len(texts) == 120
    assert corpus_of_sentences(texts, 60, 0).ids.tolist() == list(range(1, 120, 2))


@pytest.mark.parametrize(
    ("sentences", "message"),
    [
        (TEXTS[0], "got str; expected several texts; give a single one as a list, [text]"),
        (np.array(TEXTS[0]), "got str; expected several texts"),
        (b"bytes", "got bytes; expected several texts"),
        (Path("corpus.txt"), "Path; expected texts; give the path of a file as data"),
        (io.StringIO("a\nb\n"), "got StringIO; expected texts; give the path of the file as data"),
        (set(TEXTS), "got set; expected texts in an order"),
        (DatasetDict(train=Dataset.from_dict(TABLE)), "got DatasetDict; expected one of its splits"),
        (5, "got int; expected a list of texts"),
        ([*TEXTS, None], "got None at index 3; expected text"),
        ((text for text in [TEXTS[0], 2.5]), "got 2.5 (float) at index 1; expected text"),
        (pd.Series([TEXTS[0], 7]), "got 7 (int) at index 1; expected text"),
        (np.arange(3), "got 0 (int) at index 0; expected text"),
        ([["the", "cat"]], "got ['the', 'cat'] (list) at index 0; expected text"),
        ([{"text": TEXTS[0]}], "(dict) at index 0; expected text"),
        ([*TEXTS, "half \ud83d"], "got half a character (a lone surrogate) in the text at index 3"),
        ([], "got no text in 0 rows"),
        (["", "  "], "got no text in 2 rows"),
        (dict.fromkeys(TEXTS), "got dict whose values are no columns"),
        ({"a": "one text", "b": "another"}, "got dict whose values are no columns"),
        ({"a": TEXTS, "b": TEXTS[:1]}, "got dict with columns of [1, 3] rows"),
        (pd.DataFrame({"id": IDS, "n": IDS}), "got DataFrame without a column of text; its columns are id, n"),
        (pd.DataFrame({"text": [TEXTS[0], 5]}), "got 5 (int) at index 1 of 'text'; expected text"),
        (pd.DataFrame([["a", "b"]], columns=["t", "t"]), "got DataFrame with two columns of one name"),
    ],
)
def test_what_is_no_sentences_is_refused_with_what_to_do(sentences: Any, message: str) -> None:
    with pytest.raises(ReportedError, match=rf"^sentences: .*{re.escape(message)}"):
        texts_of(sentences, NONE, None)


def test_a_named_column_of_what_has_none_is_refused() -> None:
    with pytest.raises(
        ReportedError, match=r"data\.text_column: got 'text', but sentences of type list have no columns"
    ):
        texts_of(TEXTS, DataSettings(text_column="text"), None)


def test_settings_that_name_another_corpus_are_refused_beside_sentences() -> None:
    refuse_data_beside(DataSettings(text_column="text", max_length=9, tokens_per_batch=10, num_workers=1))
    for data in (DataSettings(path="corpus.csv"), DataSettings(streaming=True), DataSettings(split="test")):
        with pytest.raises(ReportedError, match=r"data\.\w+: got .* beside sentences that are given"):
            refuse_data_beside(data)
