"""Tables of every dialect: the right rows, and a word about what was assumed, or one sentence."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
from text_files import (  # noqa: F401, the fixture is used by itself
    STREAMS_LEFT_OPEN,
    both_ways,
    left_files_are_closed_here,
    load,
    texts,
    written,
)

from llm_entropy.errors import ReportedError

pytestmark = STREAMS_LEFT_OPEN
DOG, CAT = "The dog barks.", "The cat sleeps, mostly."


# --- dialects ----------------------------------------------------------------------------------------------------

QUOTED = '"She said ""yes"", and left."'
DIALECTS: dict[str, tuple[str, str, list[str], str]] = {
    # name: file, content, sentences, what the log says
    "plain": ("a.csv", f'id,text\n1,{DOG}\n2,"{CAT}"\n', [DOG, CAT], ""),
    "plain, of one column": ("a.csv", f'text\n{DOG}\n"{CAT}"\n', [DOG, CAT], ""),
    "plain, Windows' line ends": ("a.csv", f'id,text\r\n1,{DOG}\r\n2,"{CAT}"\r\n', [DOG, CAT], ""),
    "plain tsv": ("a.tsv", f"id\ttext\n1\t{DOG}\n2\t{CAT}\n", [DOG, CAT], ""),
    "lines in quotes": ("a.csv", f'id,text\n1,"one\ntwo"\n2,{DOG}\n', ["one\ntwo", DOG], "1 of 2 rows span several"),
    "semicolons": ("a.csv", f"id;text\n1;{DOG}\n2;{CAT}\n", [DOG, CAT], "semicolons"),
    "semicolons, a comma in each text": ("a.csv", f"id;text\n1;{CAT}\n2;{CAT}!\n", [CAT, CAT + "!"], "semicolons"),
    "semicolons, decimal commas": ("a.csv", f"w;text\n1,5;{DOG}\n2,5;Well, yes.\n", [DOG, "Well, yes."], "semico"),
    "semicolons in quotes": (
        "a.csv",
        f'id;text\n1;{QUOTED}\n2;"a; b"\n',
        ['She said "yes", and left.', "a; b"],
        "semi",
    ),
    "semicolons in a text": ("a.csv", f'id,text\n1,"one; two"\n2,{DOG}\n', ["one; two", DOG], ""),
    "Excel's first line": ("a.csv", f"sep=;\r\nid;text\r\n1;{DOG}\r\n2;{CAT}\r\n", [DOG, CAT], "semicolons"),
    "blank lines first": ("a.csv", f"\n\nid,text\n1,{DOG}\n", [DOG], ""),
    "tabs in a csv": ("a.csv", f"id\ttext\n1\t{DOG}\n2\t{CAT}\n", [DOG, CAT], "tabs"),
    "commas in a tsv": ("a.tsv", f'id,text\n1,{DOG}\n2,"{CAT}"\n', [DOG, CAT], "commas"),
    "bars": ("a.csv", f"id|text\n1|{DOG}\n2|{CAT}\n", [DOG, CAT], "bars"),
    "a row too short": ("a.csv", f"id;text\n1;{DOG}\n2\n3;{CAT}\n4;x\n5;y\n", [DOG, CAT, "x", "y"], "semicolons"),
    "no header, one column": ("a.csv", f'{DOG}\n"{CAT}"\n', [DOG, CAT], "no header.*The dog barks"),
    "no header, no full stop": ("a.csv", "It rains\nIt snows\n", ["It rains", "It snows"], "no header"),
    "no header, ids": ("a.csv", f'1,{DOG}\n2,"{CAT}"\n', [DOG, CAT], "no header.*column_1, column_2"),
    "no header, ids of letters": ("a.tsv", f"a\t{DOG}\na\t{CAT}\n", [DOG, CAT], "no header"),
    "no header, a single row": ("a.csv", f"1,{DOG}\n", [DOG], "no header"),
    "no header, tsv": ("a.tsv", f"{DOG}\n{CAT}\n", [DOG, CAT], "no header"),
    "no header, blank lines kept": ("a.csv", f"{DOG}\n\nIt rains.\n", [DOG, "It rains."], "no header"),
    "a header of questions": ("a.csv", f"Time,Why so?\n2026-01-01,{DOG}\n2026-01-02,Perhaps\n", [DOG, "Perhaps"], ""),
    "a header of words": ("a.csv", f"Input text\n{DOG}\nIt rains.\n", [DOG, "It rains."], "header: 'Input text'"),
    "a header of an index": ("a.csv", f',text\n0,{DOG}\n1,"{CAT}"\n', [DOG, CAT], ""),
    "a header that comes again": ("a.csv", f"text\n{DOG}\ntext\n", [DOG, "text"], ""),
    "one word above others": (
        "a.csv",
        "fruit\napple\npear\n",
        ["apple", "pear"],
        "the first line is the header: 'fruit'",
    ),
    "quotes that merge rows": (
        "a.tsv",
        'id\ttext\n1\t"Hello\n2\tBye"\n3\tx\n',
        ['"Hello', 'Bye"', "x"],
        "quotes are text",
    ),
    "quotes never closed": ("a.tsv", 'id\ttext\n1\t"Hello\n2\tBye\n', ['"Hello', "Bye"], "quotes are text"),
    "quotes around a part": (
        "a.tsv",
        'id\ttext\n1\t"Yes", he said\n2\tx\n',
        ['"Yes", he said', "x"],
        "quotes are text",
    ),
    "quotes within": ("a.csv", 'id,text\n1,A 5" disk\n2,x\n', ['A 5" disk', "x"], ""),
    "backslashes": ("a.csv", 'id,text\n1,"a \\"b\\", c"\n2,x\n', ['a "b", c', "x"], "backslash"),
    "one column, quotes around a part": (
        "a.csv",
        'text\n"Yes" he said\nx\n',
        ['"Yes" he said', "x"],
        "quotes are text",
    ),
}


@pytest.mark.parametrize("name", DIALECTS)
def test_a_table_of_any_dialect_gives_its_rows_and_the_log_says_what_was_assumed(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
):
    file, content, expected, said = DIALECTS[name]
    column = "Why so?" if "Why" in content else "column_2" if "letters" in name else None
    with caplog.at_level(logging.INFO, "llm_entropy"):
        assert both_ways(written(tmp_path, file, content), text_column=column) == expected
    if said:
        assert re.search(said, caplog.text)
    else:
        assert caplog.text == ""


def test_settings_go_before_what_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = written(tmp_path, "a.csv", f"{DOG};x\n1;y\n")
    assert both_ways(path, delimiter=";", header=True, text_column="x") == ["y"]
    assert both_ways(path, delimiter=";", header=False, text_column="column_1") == [DOG, "1"]
    assert both_ways(path, delimiter=",", header=False) == [f"{DOG};x", "1;y"]
    quoted = written(tmp_path, "b.csv", 'text\n"one\ntwo"\n"Yes" he said\n')
    assert both_ways(quoted, quoting="none") == ['"one', 'two"', '"Yes" he said']
    assert both_ways(quoted, quoting="minimal") == ["one\ntwo", "Yes he said"]
    tabs = written(tmp_path, "c.csv", "text\tn\nOne, two\t1\n")
    for tab in ("tab", "\\t", "\t"):
        assert both_ways(tabs, delimiter=tab) == ["One, two"]
    assert both_ways(written(tmp_path, "d.csv", "text~n\nOne~1\nTwo~2\n"), delimiter="~") == ["One", "Two"]


TABLE_ERRORS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "two delimiters would do": ("a.tsv", "a;b,c\n1;2,x\n", {}, r"a\.tsv may be separated by commas or semi"),
    "a row too long": ("a.csv", "id;text\n1;a\n2;b;c\n3;d\n", {}, r"line 3 of a\.csv has 3 fields, more fields than"),
    "prose with commas": ("a.csv", "text\nHello, you\nx\n", {}, r"line 2 .*more fields than the header.*named \.txt"),
    "a row too long below no header": ("a.csv", "1,It is.\n2,It was.\n3,a,b\n4,c\n", {}, r"line 3 of a\.csv has 3"),
    "quotes of both kinds": ("a.csv", 'id,text\n1,"a, b"\n2,"c" d\n', {}, r"line 3: text goes on after a closing"),
    "a quote after a space": (
        "a.csv",
        'id, text\n1, "a, b"\n',
        {},
        r"line 2 .* 3 fields.*a quote after a space is text",
    ),
    "blank lines": ("a.csv", "\n\n\n", {}, r"a\.csv holds blank lines alone"),
    "blank lines, no header": ("a.csv", "\n\n\n", {"header": False}, r"a\.csv holds blank lines alone"),
    "a quote never closed": ("a.csv", 'id,text\n1,"a, b"\n2,"c, d\n', {}, r"line 3: a quote is opened and never"),
    "a wrong delimiter": ("a.csv", "id,text\n1,a\n", {"delimiter": ";", "text_column": "text"}, r"no column 'text'"),
    "a column without a header": ("a.csv", "It is.\nIt was.\n", {"text_column": "says"}, r"no column 'says'.* text"),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", TABLE_ERRORS)
def test_a_table_that_cannot_be_right_is_an_error_that_names_the_line(tmp_path: Path, name: str, streaming: bool):
    file, content, settings, message = TABLE_ERRORS[name]
    with pytest.raises(ReportedError, match=message):
        load(written(tmp_path, file, content), 2, streaming=streaming, **settings)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("late", "message"),
    [
        ('1,"Yes" he said', r"line 302 of a\.csv: text goes on after a closing quote"),
        ("1,a,b", r"line 302 of a\.csv has 3 fields"),
        ('1,"never closed', r"line 302 of a\.csv: a quote is opened and never closed"),
    ],
)
def test_a_row_far_down_that_is_not_like_the_first_ones_is_an_error(
    tmp_path: Path, streaming: bool, late: str, message: str
):
    many = f'1,"a, {"b" * 1000}"\n' * 300  # more than is looked at before
    content = f"id,text\n{many}{late}\n"
    with pytest.raises(ReportedError, match=message):
        texts(load(written(tmp_path, "a.csv", content), streaming=streaming))


def test_files_of_several_dialects_are_not_read_as_one(tmp_path: Path):
    written(tmp_path, "a.csv", f"id,text\n1,{DOG}\n")
    written(tmp_path, "b.csv", f"id;text\n2;{DOG}\n")
    with pytest.raises(ReportedError, match=r"b\.csv is not written as a\.csv is: delimiter ';', not ','"):
        load(tmp_path / "*.csv")
    written(tmp_path, "b.csv", f"2,{DOG}\n")
    with pytest.raises(ReportedError, match=r"b\.csv is not written as a\.csv is: header False, not True"):
        load(tmp_path / "*.csv")
    written(tmp_path, "b.csv", f"\ufeffid,text\n2,{CAT[:8]}\n")
    assert both_ways(tmp_path / "*.csv") == [DOG, CAT[:8]]


def test_another_dialect_gives_another_fingerprint(tmp_path: Path):
    path = written(tmp_path, "a.csv", f"text\n{DOG}\n")
    for streaming in (False, True):
        with_header, without = (load(path, streaming=streaming, header=header).fingerprint for header in (True, False))
        assert with_header != without
        assert load(path, streaming=streaming).fingerprint == with_header


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"delimiter": ", "}, r"data\.delimiter: got ', '; expected one character, or tab"),
        ({"encoding": "latin-99"}, r"data\.encoding: got 'latin-99'; expected a name such as"),
        ({"encoding": "base64"}, r"data\.encoding: got 'base64'"),
        ({"delimiter": ";"}, r"data\.delimiter: got ';', which has no effect on a\.jsonl; leave it out"),
        ({"header": False}, r"data\.header: got False, which has no effect on a\.jsonl"),
        ({"name": "en"}, r"data\.name: got 'en', which has no effect on a\.jsonl; leave it out"),
    ],
)
def test_a_setting_that_says_nothing_is_refused(tmp_path: Path, settings: dict[str, Any], message: str):
    path = written(tmp_path, "a.jsonl", '{"text": "one"}\n')
    with pytest.raises(ReportedError, match=message):
        load(path, **settings)
