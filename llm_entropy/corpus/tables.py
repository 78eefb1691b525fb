"""Tables in text files: what separates their fields, what their quotes mean, and whether they have a header.

The dialect is found from the first rows, by reading them in every way there is; whatever is not the plain reading of
the file's suffix is logged. The rest of the file is held against it while it is read: a file that turns out to be
written otherwise is an error that names the line, and no row is merged or cut without a word.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mode
from typing import Any, NamedTuple

from llm_entropy.corpus.textfiles import encoding_of, open_text, read_head
from llm_entropy.errors import ReportedError
from llm_entropy.settings import DataSettings

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
"""What may stand between fields, and its name."""
QUOTINGS: dict[str, dict[str, Any]] = {
    "minimal": {"quoting": csv.QUOTE_MINIMAL},
    "backslash": {"quoting": csv.QUOTE_MINIMAL, "escapechar": "\\"},
    "none": {"quoting": csv.QUOTE_NONE},
}
"""What quotes mean, in the words that `csv` and pandas share: fields may stand in quotes, in which a quote is doubled;
the same with a backslash before it; nothing."""

_ENOUGH_ALIKE = 0.8
_LONGEST_FIELD = 2**31 - 1
_TEXT_NAME = re.compile(
    r"texts?|sentences?|prompts?|contents?|bod(y|ies)|documents?|docs?|stor(y|ies)|reviews?|comments?|passages?|"
    r"paragraphs?|utterances?|messages?|questions?|answers?|inputs?|outputs?|instructions?|responses?|titles?|"
    r"headlines?|summar(y|ies)|captions?|descriptions?|abstracts?|articles?|tweets?|posts?|words?|lines?",
    re.IGNORECASE,
)
"""Words that name columns of text, and hardly stand alone in a row of it."""
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\r?\n', re.IGNORECASE)
"""First line of a file made for Excel."""
_FIGURE = re.compile(r"[+-]?[.,]?\d")
_END_OF_SENTENCE = tuple(".?!,;:\u2026\u3002\uff1f\uff01\u0964")


class Dialect(NamedTuple):
    """How a table is written."""

    delimiter: str
    quoting: str
    """A key of `QUOTINGS`."""
    is_strict: bool
    """Whether text after a closing quote is an error: where the quoting was found, not asked for."""
    header: bool
    num_fields: int
    """Of the header, or of the first row."""
    num_skipped: int
    """Lines before the header."""
    encoding: str

    def pandas_options(self) -> dict[str, Any]:
        """Return the arguments of `pandas.read_csv` that read it."""
        # `na_filter` would turn the sentences "NA", "null" and "None" into missing values; blank lines are rows, so
        # that the number of a row is what an editor shows.
        options: dict[str, Any] = {"sep": self.delimiter, "na_filter": False, "skip_blank_lines": False}
        options |= {"encoding": self.encoding, **QUOTINGS[self.quoting]}
        if self.num_skipped:
            options["skiprows"] = self.num_skipped
        if not self.header:
            options |= {"header": None, "names": self.names()}
        return options

    def names(self) -> list[str]:
        """Return the names of the columns of a table without a header."""
        return ["text"] if self.num_fields == 1 else [f"column_{number + 1}" for number in range(self.num_fields)]


LINES = Dialect("\x1f", "none", is_strict=True, header=False, num_fields=1, num_skipped=0, encoding="utf-8")
"""A text file as a table of one column: a character that no text holds stands between its fields."""


class _Head(NamedTuple):
    """The beginning of a file."""

    text: str
    is_whole: bool
    """Whether the file ends with it."""
    num_before: int
    """Lines before it."""


class _Reading(NamedTuple):
    """The first rows of a file, read in one way."""

    delimiter: str
    quoting: str
    rows: list[list[str]]
    """[row], those without any field left out."""
    error: str
    """What is wrong with a later row, or nothing."""

    @property
    def width(self) -> int:
        return len(self.rows[0]) if self.rows else 0

    @property
    def share_alike(self) -> float:
        """Share of the rows that have as many fields as the first."""
        return sum(len(row) == self.width for row in self.rows) / max(1, len(self.rows))

    @property
    def is_even(self) -> bool:
        return not self.error and self.share_alike == 1

    @property
    def is_certain(self) -> bool:
        """Whether several columns have names, and all rows a field for each."""
        return self.is_even and self.width > 1 and all(map(_is_name, self.rows[0]))


# --- finding the dialect -----------------------------------------------------------------------------------------


def find_dialect(path: Path, plain: str, data: DataSettings) -> Dialect:
    """Return how a table is written: as the settings say, and for the rest as its first rows do.

    Args:
        path: A file of `csv` or `tsv`.
        plain: The delimiter that its suffix promises.
        data: `delimiter`, `quoting`, `header` and `encoding` go before what is found.

    Raises:
        ReportedError: Several dialects would do, or none does.
    """
    encoding = encoding_of(path, data.encoding)
    head, is_whole = read_head(path, encoding)
    excel = _SEPARATOR_LINE.match(head)
    body = head[excel.end() :] if excel else head
    delimiter = data.delimiter or (excel[1] if excel else None)
    quotings = list(QUOTINGS) if data.quoting == "auto" else [data.quoting]
    wanted = [delimiter] if delimiter else [plain, *(other for other in DELIMITERS if other != plain)]
    readings = (_with_quotes(_Head(body, is_whole, bool(excel)), one, quotings) for one in wanted)
    best = next(readings)
    if not best.rows and not best.error:
        raise ReportedError(f"data.path: {path.name} holds blank lines alone; expected at least one sentence")
    if not (delimiter or best.is_certain):
        best = _with_delimiter([best, *readings], path)
    if best.error and data.quoting == "auto":
        raise ReportedError(
            f"data.quoting: {path.name}: {best.error}; double the quotes inside of quoted text, or set data.quoting "
            "to none (quotes are text) or minimal (read it all the same)"
        )
    header = _has_header(best.rows, data.text_column) if data.header == "auto" else data.header
    blank = re.match(r"(?:[ \t]*\r?\n)*", body) if header else None
    return Dialect(
        delimiter=best.delimiter,
        quoting=best.quoting,
        is_strict=data.quoting == "auto",
        header=header,
        num_fields=best.width if header else mode(map(len, best.rows)),
        num_skipped=bool(excel) + (blank[0].count("\n") if blank else 0),
        encoding=encoding,
    )


def _with_quotes(head: _Head, delimiter: str, quotings: Sequence[str]) -> _Reading:
    """Read the first rows with a delimiter, and with the quoting that fits them."""
    minimal = _read(head, delimiter, quotings[0])
    if len(quotings) == 1 or '"' not in head.text:
        return minimal
    none = _read(head, delimiter, "none")
    if not minimal.error:
        # Quoted text may hold line ends. But where each line is a row by itself, the quotes are those of the text.
        is_merged = len(minimal.rows) < len(none.rows) and minimal.width == none.width > 1 and none.is_even
        return none if is_merged else minimal
    backslash = _read(head, delimiter, "backslash") if '\\"' in head.text else None
    if backslash is not None and not backslash.error:
        return backslash
    return none if none.is_even else minimal


def _read(head: _Head, delimiter: str, quoting: str) -> _Reading:
    # In strict mode a closing quote has to be followed by a delimiter.
    reader = csv.reader(io.StringIO(head.text, newline=""), delimiter=delimiter, strict=True, **QUOTINGS[quoting])
    rows: list[list[str]] = []
    error = ""
    while True:
        first = head.num_before + reader.line_num + 1
        try:
            row = _next_row(reader)
        except csv.Error as what:
            at_end = "end of data" in str(what)
            error = "" if at_end and not head.is_whole else f"line {first}: {_plainly(what, delimiter)}"
            row = None
        if row is None:
            return _Reading(delimiter, quoting, rows, error)
        if row:
            rows.append(row)


def _with_delimiter(readings: Sequence[_Reading], path: Path) -> _Reading:
    """Choose between readings, the first of which is what the suffix promises."""
    plain = readings[0]
    even = [reading for reading in readings if reading.is_even and reading.width > 1]
    named = [reading for reading in even if reading.is_certain]
    for several in (named, even):
        if several and (several[0] is plain or len(several) == 1):
            return several[0]
        if several:
            names = " or ".join(DELIMITERS[reading.delimiter] for reading in several)
            raise ReportedError(f"data.delimiter: {path.name} may be separated by {names}; set data.delimiter")
    if plain.width > 1:
        return plain
    # A few rows are not like the others; they are found, and reported, when the file is read.
    for reading in sorted(readings, key=lambda reading: -reading.share_alike):
        least = 0.5 if reading.rows and all(map(_is_name, reading.rows[0])) else _ENOUGH_ALIKE
        if reading.width > 1 and reading.share_alike >= least:
            return reading
    return plain


def _has_header(rows: Sequence[Sequence[str]], text_column: str | None) -> bool:
    """Return whether the first row names the columns; it does if nothing says otherwise."""
    if not rows or text_column in rows[0]:
        return True
    first, others = rows[0], [row for row in rows[1:] if len(row) == len(rows[0])]
    columns = [[row[number].strip() for row in others] for number in range(len(first))]
    pairs = [(name.strip(), list(filter(None, column))) for name, column in zip(first, columns, strict=True)]
    if any(name in column for name, column in pairs if name and not _TEXT_NAME.fullmatch(name)):
        return False
    if any(name and _is_name(name) and column and all(map(_FIGURE.match, column)) for name, column in pairs):
        return True
    if any(_FIGURE.match(name) for name in first):
        return False
    return all(map(_is_name, first))


def _is_name(field: str) -> bool:
    """Return whether a field may name a column: one word, or a few, the last of which stands for text."""
    words = field.split()
    if not words:
        return True
    if field != field.strip() or field.endswith(_END_OF_SENTENCE) or '"' in field or _FIGURE.match(field):
        return False
    return len(words) == 1 or (len(words) <= 4 and _TEXT_NAME.fullmatch(words[-1]) is not None)


def differences(dialect: Dialect, other: Dialect) -> str:
    """Return in what two tables are not written alike, in words; nothing where they are."""
    said = []
    for key, is_of, was_of in zip(Dialect._fields, dialect, other, strict=True):
        if is_of != was_of and key != "num_fields" and not str(is_of).startswith("utf-8"):
            said.append(f"{key.replace('num_skipped', 'lines before the first row')} {is_of!r}, not {was_of!r}")
    if not (dialect.header or other.header) and dialect.num_fields != other.num_fields:
        said.append(f"{dialect.num_fields} fields, not {other.num_fields}")
    return ", ".join(said)


def assumptions(dialect: Dialect, plain: str, first_row: Sequence[str]) -> list[str]:
    """Return what was assumed of a table beyond the plain reading of its suffix, in words.

    Args:
        dialect: Of the table.
        plain: The delimiter that its suffix promises.
        first_row: As it stands in the file.
    """
    said = []
    if dialect.delimiter != plain:
        said.append(f"fields end in {DELIMITERS.get(dialect.delimiter, repr(dialect.delimiter))}")
    if dialect.quoting != "minimal":
        said.append({"none": "quotes are text", "backslash": "quotes are escaped by a backslash"}[dialect.quoting])
    if not dialect.header:
        said.append(f"no header: the first row is {_short(first_row)}, the columns are {', '.join(dialect.names())}")
    elif len(first_row) == 1 and not _TEXT_NAME.fullmatch(first_row[0]):
        said.append(f"the first line is the header: {_short(first_row)}")
    if dialect.encoding not in ("utf-8", "utf-8-sig"):
        said.append(f"the encoding is {dialect.encoding}")
    return said


def first_row(path: Path, dialect: Dialect) -> list[str]:
    """Return the header of a table, or its first row where it has none."""
    head, _ = read_head(path, dialect.encoding)
    rows = csv.reader(io.StringIO(head, newline=""), delimiter=dialect.delimiter, **QUOTINGS[dialect.quoting])
    for row in rows:
        if row and rows.line_num > dialect.num_skipped:
            return row
    return []


def _short(row: Sequence[str]) -> str:
    words = ", ".join(map(repr, row))
    return words if len(words) <= 100 else f"{words[:100]}..."


# --- holding a file against it -----------------------------------------------------------------------------------


def check_rows(path: Path, dialect: Dialect) -> Iterator[int]:
    """Read a table row by row, and yield how many lines each takes, the header left out.

    Raises:
        ReportedError: A row has more fields than the header, or its quotes are not as in the first rows.
    """
    options = QUOTINGS[dialect.quoting]
    with open_text(path, dialect.encoding) as text:
        for _ in range(dialect.num_skipped):
            text.readline()
        reader = csv.reader(text, delimiter=dialect.delimiter, strict=dialect.is_strict, **options)
        is_header = dialect.header
        while True:
            first = reader.line_num + dialect.num_skipped + 1
            try:
                row = _next_row(reader)
            except csv.Error as error:
                raise ReportedError(
                    f"data.quoting: line {first} of {path.name}: {_plainly(error, dialect.delimiter)}; double the "
                    "quotes inside of quoted text, or set data.quoting to none (quotes are text) or minimal (read "
                    "it all the same)"
                ) from error
            if row is None:
                return
            if len(row) > dialect.num_fields:
                raise ReportedError(_too_many_fields(path, dialect, first, row))
            if not is_header:
                yield reader.line_num + dialect.num_skipped - first + 1
            is_header = False


def _too_many_fields(path: Path, dialect: Dialect, line: int, row: Sequence[str]) -> str:
    than = "the header" if dialect.header else "the first rows"
    spaced = any(field.startswith(" ") and field.lstrip().startswith('"') for field in row)
    space = "; a quote after a space is text: write no space before it" if spaced else ""
    one_column = "; a file of one sentence on each line is named .txt" if dialect.num_fields == 1 else ""
    return (
        f"data.path: line {line} of {path.name} has {len(row)} fields, more fields than {than} "
        f"({dialect.num_fields}), separated by {DELIMITERS.get(dialect.delimiter, repr(dialect.delimiter))}: "
        f"{_short(row)}; quote text with separators, or set data.delimiter{space}{one_column}"
    )


def _next_row(reader: Any) -> list[str] | None:
    """Return the next row, however long its fields; None: there is none."""
    limit = csv.field_size_limit(_LONGEST_FIELD)
    try:
        row: list[str] | None = next(reader, None)
    finally:
        csv.field_size_limit(limit)
    return row


def _plainly(error: csv.Error, delimiter: str) -> str:
    if "end of data" in str(error):
        return "a quote is opened and never closed"
    if "expected after" in str(error):
        return f"text goes on after a closing quote, where {DELIMITERS.get(delimiter, repr(delimiter))} are expected"
    return str(error)
