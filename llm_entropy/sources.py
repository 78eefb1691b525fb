"""Where rows come from: files, folders, saved data sets, the hub; and which of their columns holds the text.

All reading goes through `datasets`, and whatever goes wrong in it leaves here as one line.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, IterableDataset, Value

from llm_entropy.errors import ReportedError
from llm_entropy.settings import DataSettings


class FileFormat(NamedTuple):
    """How `datasets` reads files of one suffix."""

    builder: str
    """Name of the builder."""
    options: dict[str, Any]
    """Its arguments."""


# `na_filter` would turn the sentences "NA", "null" and "None" into missing values; blank lines are rows, so that the
# number of a row is what an editor shows.
_CSV = {"na_filter": False, "skip_blank_lines": False}
FORMATS = {
    ".csv": FileFormat("csv", {"sep": ",", **_CSV}),
    ".tsv": FileFormat("csv", {"sep": "\t", **_CSV}),
    ".json": FileFormat("json", {}),
    ".jsonl": FileFormat("json", {}),
    ".parquet": FileFormat("parquet", {}),
    ".arrow": FileFormat("arrow", {}),
    ".txt": FileFormat("text", {"encoding": "utf-8-sig", "features": Features({"text": Value("string")})}),
}
"""By suffix; each may be followed by one of `COMPRESSIONS`."""
COMPRESSIONS = (".gz", ".bz2", ".xz")

BLANK = "blank"
"""Without any text: empty, or white space alone."""

_NUMBER = r"^[+-]?(\d[\d.,_]*|[.,]\d+)([eE][+-]?\d+)?%?$"
_READ_ERRORS = (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError, TypeError, StopIteration)
ROWS_AT_ONCE = 10_000
"""How many rows are looked at together."""
_ROWS_TO_JUDGE = 100


class Rows(NamedTuple):
    """What `data.path` stands for."""

    rows: Dataset | IterableDataset
    source: str
    """What it was found to be, for people."""
    files: str = ""
    """Of a stream: its files, and what tells that they are still the same."""


def open_rows(data: DataSettings, path: str) -> Rows:
    """Return the rows that `data.path` stands for."""
    local = Path(path).expanduser()
    if local.is_dir() and any((local / name).exists() for name in ("dataset_dict.json", "dataset_info.json")):
        return Rows(_open_saved(data, local), f"saved data set {path}")
    if local.is_dir():
        return _open_files(data, _files_of_folder(local), f"folder {path}")
    if local.is_file():
        return _open_files(data, {"train": [local]}, f"file {path}")
    if glob.has_magic(path):
        found = [Path(name) for name in sorted(glob.glob(str(local), recursive=True)) if Path(name).is_file()]
        if not found:
            raise ReportedError(f"data.path: no file matches {path!r}")
        return _open_files(data, {"train": found}, f"{len(found)} files {path}")
    # A hub name is `name` or `owner/name`.
    looks_local = local.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1
    if looks_local or _format_of(local) is not None or (local.parent != Path() and local.parent.exists()):
        raise ReportedError(f"data.path: there is no file or folder {path!r}")
    return _open_hub(data, path)


def _open_saved(data: DataSettings, folder: Path) -> Dataset:
    with as_value_error(f"data.path: could not read the saved data set {str(folder)!r}"):
        saved = datasets.load_from_disk(str(folder))
    if isinstance(saved, Dataset):
        return saved
    if data.split not in saved:
        raise ReportedError(f"data.split: {str(folder)!r} has no split {data.split!r}; it has {_listed(saved)}")
    return saved[data.split]


def _open_hub(data: DataSettings, name: str) -> Rows:
    source = f"hub data set {name}" + (f" ({data.name})" if data.name else "")
    try:
        rows = datasets.load_dataset(name, data.name, split=data.split, streaming=data.streaming)
        if not data.streaming:
            return Rows(rows, source)
        files = datasets.load_dataset_builder(name, data.name).config.data_files or {}
        # the addresses of files on the hub hold their commit
        return Rows(rows, source, str({split: sorted(map(str, paths)) for split, paths in sorted(files.items())}))
    except OSError as error:
        raise ReportedError(
            f"data.path: {name!r} is no local file, and no data set of that name could be fetched from the hub or "
            f"found in the cache ({_first_words(error)}); check the name, go online once so that it is cached, "
            "or give a local file, or null for the built-in sentences"
        ) from error
    except _READ_ERRORS as error:
        keys = f"data.name is {data.name!r}, data.split is {data.split!r}"
        raise ReportedError(
            f"data.path: could not load the data set {name!r} ({keys}): {_first_words(error)}"
        ) from error


def _open_files(data: DataSettings, files: dict[str, list[Path]], source: str) -> Rows:
    """Read files, by split, all of one format."""
    every = [path for paths in files.values() for path in paths]
    unknown = [path for path in every if _format_of(path) is None]
    if unknown:
        raise ReportedError(f"data.path: cannot read {str(unknown[0])!r}; expected a file named {_listed(FORMATS)}")
    builder, options = _format_of(every[0]) or FORMATS[".txt"]
    other = [path for path in every if _format_of(path) != (builder, options)]
    if other:
        raise ReportedError(
            f"data.path: files of several formats, {every[0].name!r} and {other[0].name!r}; give a glob for one"
        )
    if not any(path.stat().st_size for path in every):
        raise ReportedError(f"data.path: {str(every[0])!r} is empty; expected at least one sentence")
    with as_value_error(f"data.path: could not read {str(every[0])!r} as {builder} (data.split is {data.split!r})"):
        if builder == "csv":
            # Read as text whatever it looks like: a type guessed from the first rows fails at a later one.
            options = {**options, "features": Features({name: Value("string") for name in _csv_header(every, options)})}
        rows = datasets.load_dataset(
            builder,
            # `datasets` takes names for patterns.
            data_files={split: [glob.escape(str(path.absolute())) for path in paths] for split, paths in files.items()},
            split=data.split,
            streaming=data.streaming,
            **options,
        )
    ages = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in every] if data.streaming else ""
    return Rows(rows, source, str(ages))


def _files_of_folder(folder: Path) -> dict[str, list[Path]]:
    """Return the readable files of a folder by split, which `datasets` reads from names like `test.csv`."""
    with as_value_error(f"data.path: nothing to read in the folder {str(folder)!r}"):
        patterns = datasets.data_files.get_data_patterns(str(folder.absolute()))
        found = datasets.data_files.DataFilesDict.from_patterns(patterns, base_path=str(folder.absolute()))
    readable = {str(split): [Path(name) for name in names if _format_of(Path(name))] for split, names in found.items()}
    readable = {split: sorted(paths) for split, paths in readable.items() if paths}
    if not readable:
        raise ReportedError(f"data.path: the folder {str(folder)!r} holds no file named {_listed(FORMATS)}")
    return readable


def _csv_header(files: Sequence[Path], options: dict[str, Any]) -> list[str]:
    """Return the columns that all the files have, in the words that pandas uses for unnamed and repeated ones."""
    headers, num_rows = [], 0
    for path in files:
        head = pd.read_csv(path, nrows=1, dtype=str, **options)
        if len(head) and not isinstance(head.index, pd.RangeIndex):
            # pandas would take the surplus for row labels, and leave it out without a word.
            raise ReportedError(
                f"the first row of {path.name} has more fields than the header; quote text with separators"
            )
        num_rows += len(head)
        headers.append(list(map(str, head.columns)))
        if headers[-1] != headers[0]:
            raise ReportedError(f"{path.name} has the columns {_listed(headers[-1])}, others {_listed(headers[0])}")
    if not num_rows:
        raise ReportedError(f"there are no rows below the header {_listed(headers[0])}")
    return headers[0]


def _format_of(path: Path) -> FileFormat | None:
    name = path.name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return FORMATS.get(Path(name).suffix)


# --- finding the text --------------------------------------------------------------------------------------------


def text_column(rows: Dataset | IterableDataset, data: DataSettings, source: str) -> str:
    """Return the column to read: the one asked for, or the only one that holds text."""
    if isinstance(rows, IterableDataset):
        with as_value_error(f"data.path: could not read {source}"):
            rows = _head(rows)
    names: list[str] = rows.column_names
    if not names:
        raise ReportedError(f"data.path: {source} has no rows")
    asked = data.text_column
    if asked is not None and asked not in names:
        near = get_close_matches(asked, names, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ReportedError(f"data.text_column: {source} has no column {asked!r}{hint}; it has {_listed(names)}")
    looks = {name: _looks_of(rows, name) for name in ([asked] if asked else names)}
    if asked is not None:
        if looks[asked] in ("", "numbers"):
            raise ReportedError(
                f"data.text_column: {asked!r} of {source} holds no text but {looks[asked] or 'other things'}"
            )
        return asked
    # A corpus of blanks has no column to choose: which one it is does not matter for saying so.
    blank = [name for name in names if looks[name] == BLANK]
    candidates = [name for name in names if looks[name] == "text"] or blank[:1]
    if len(candidates) != 1:
        found = f"several text columns, {_listed(candidates)}" if candidates else "no text column"
        raise ReportedError(f"data.text_column: {source} has {found}; name the one to read (columns: {_listed(names)})")
    return candidates[0]


def _head(rows: IterableDataset) -> Dataset:
    """Return the first rows of a stream, as far as they are text; columns of anything else are there, but null."""
    head = list(rows.take(_ROWS_TO_JUDGE))
    columns: dict[str, list[Any]] = {
        name: [row[name] for row in head] for name in rows.column_names or (head[0] if head else ())
    }
    texts = {name: all(value is None or isinstance(value, str) for value in column) for name, column in columns.items()}
    return Dataset.from_dict(
        {name: column if texts[name] else [None] * len(head) for name, column in columns.items()},
        Features({name: Value("string" if is_text else "null") for name, is_text in texts.items()}),
    )


def _looks_of(rows: Dataset, name: str) -> str:
    """Return `text`, `numbers` or `blank` for a column of strings, and an empty string for any other."""
    feature = rows.features[name]
    if not (isinstance(feature, Value) and feature.dtype in ("string", "large_string")):
        return ""
    looks = BLANK
    for column in column_chunks(rows, name):
        text = pc.utf8_trim_whitespace(column.drop_null())
        text = text.filter(pc.not_equal(pc.binary_length(text), 0))
        if not pc.all(pc.match_substring_regex(text, _NUMBER), min_count=0).as_py():
            return "text"
        looks = "numbers" if len(text) else looks
    return looks


def column_chunks(rows: Dataset, name: str) -> Iterator[pa.ChunkedArray]:
    """Yield a column, some rows at a time, so that a corpus need not fit into memory."""
    for table in rows.select_columns([name]).with_format("arrow").iter(batch_size=ROWS_AT_ONCE):
        yield table.column(name)


# --- how `datasets` is spoken to ---------------------------------------------------------------------------------


@contextmanager
def progress_bars(*, shown: bool) -> Iterator[None]:
    """Hide the progress bars of `datasets` unless they are wanted."""
    if shown or datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


@contextmanager
def as_value_error(what: str) -> Iterator[None]:
    """Turn whatever `datasets` raises into one line, and keep it from printing the same first."""
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    except _READ_ERRORS as error:
        raise ReportedError(f"{what}: {_first_words(error.__cause__ or error)}") from error
    finally:
        datasets.logging.set_verbosity(verbosity)


def _first_words(error: BaseException) -> str:
    words = " ".join(str(error).split())
    return (words[:300] or type(error).__name__).rstrip(".")


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(map(str, names))
