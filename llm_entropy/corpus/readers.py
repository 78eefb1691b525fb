"""How files of each format are read: what is looked at before, and what `datasets` is told."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Optional

import datasets
import pandas as pd
from datasets import Features, Value

from llm_entropy.corpus import jsonrows, tables
from llm_entropy.corpus.quiet_datasets import as_value_error, listed
from llm_entropy.corpus.textfiles import Check, compression_of, encoding_of
from llm_entropy.errors import ReportedError
from llm_entropy.settings import DataSettings

log = logging.getLogger(__name__)


class FileFormat(NamedTuple):
    """How `datasets` reads files of one suffix."""

    builder: str
    """Name of the builder."""
    settings: tuple[str, ...] = ()
    """Keys of `data` that say how the text is written."""
    delimiter: str = ""
    """Of a table, what stands between fields unless it is found to be something else."""

    @property
    def is_text(self) -> bool:
        """Whether it may be compressed, and has an encoding."""
        return bool(self.settings)


_DIALECT = ("delimiter", "quoting", "header", "encoding")
FORMATS = {
    ".csv": FileFormat("csv", _DIALECT, ","),
    ".tsv": FileFormat("csv", _DIALECT, "\t"),
    ".json": FileFormat("json", ("encoding",)),
    ".jsonl": FileFormat("json", ("encoding",)),
    ".parquet": FileFormat("parquet"),
    ".arrow": FileFormat("arrow"),
    ".txt": FileFormat("text", ("encoding",)),
}
"""By suffix; those of text may be followed by one of `COMPRESSIONS`."""


class Read(NamedTuple):
    """How some files are read."""

    builder: str
    options: dict[str, Any]
    """Arguments of the builder."""
    encoding: str = "utf-8"
    check: Optional[Check] = None


def _read_tables(data: DataSettings, files: Sequence[Path]) -> Read:
    plain = [_format_of(path).delimiter for path in files]
    dialects = [tables.find_dialect(path, delimiter, data) for path, delimiter in zip(files, plain, strict=True)]
    for path, dialect in zip(files, dialects, strict=True):
        differences = tables.differences(dialect, dialects[0])
        if differences:
            raise ReportedError(
                f"data.path: {path.name} is not written as {files[0].name} is: {differences}; give a glob for files "
                f"that are alike, or set {', '.join(f'data.{key}' for key in _DIALECT)}"
            )
    dialect = dialects[0]
    if any(one.encoding == "utf-8-sig" for one in dialects):
        dialect = dialect._replace(encoding="utf-8-sig")
    options = dialect.pandas_options()
    names = _columns_of(files, dialect)
    said = tables.assumptions(dialect, plain[0], tables.first_row(files[0], dialect))
    if said:
        settings = ", ".join(f"data.{key}" for key in _DIALECT)
        log.info("%s: %s; if this is wrong, set one of %s", files[0].name, "; ".join(said), settings)
    # Read as text whatever it looks like: a type guessed from the first rows fails at a later one.
    options |= {"features": Features({name: Value("string") for name in names})}
    return Read("csv", options, dialect.encoding, partial(_check_table, dialect))


def _read_json(data: DataSettings, files: Sequence[Path]) -> Read:
    encoding = _one_encoding(data, files)
    if encoding.lower().replace("_", "-").startswith(("utf-16", "utf-32")):
        raise ReportedError(
            f"data.encoding: {files[0].name} is {encoding.upper()}, and JSON is UTF-8; convert it: "
            f"iconv -f {encoding.upper()} -t UTF-8 {files[0].name} > NAME.jsonl"
        )
    options = {} if encoding.startswith("utf-8") else {"encoding": encoding}
    return Read("json", options, encoding, partial(_check_json, encoding))


def _read_text(data: DataSettings, files: Sequence[Path]) -> Read:
    encoding = _one_encoding(data, files)
    features = Features({"text": Value("string")})
    if encoding != "utf-8" and any(map(compression_of, files)):
        # The builder of text would take the encoding of a compressed file from the terminal: one field to a line.
        options = tables.LINES.pandas_options() | {"encoding": encoding}
        return Read("csv", options | {"features": features}, encoding)
    return Read("text", {"encoding": encoding, "features": features}, encoding)


def _read_binary(builder: str, data: DataSettings, files: Sequence[Path]) -> Read:
    return Read(builder, {})


READERS: dict[str, Callable[[DataSettings, Sequence[Path]], Read]] = {
    "csv": _read_tables,
    "json": _read_json,
    "text": _read_text,
    "parquet": partial(_read_binary, "parquet"),
    "arrow": partial(_read_binary, "arrow"),
}
"""By builder: looks at files before they are read."""


def _check_table(dialect: tables.Dialect, path: Path, column: Optional[str]) -> Iterator[int]:
    return tables.check_rows(path, dialect)


def _check_json(encoding: str, path: Path, column: Optional[str]) -> Iterator[int]:
    return jsonrows.check_rows(path, column, encoding)


def _one_encoding(data: DataSettings, files: Sequence[Path]) -> str:
    encodings = [encoding_of(path, data.encoding) for path in files]
    # Where some files have a byte order mark, all can be read as if they had.
    if set(encodings) == {"utf-8", "utf-8-sig"}:
        return "utf-8-sig"
    other = next((number for number, encoding in enumerate(encodings) if encoding != encodings[0]), None)
    if other is not None:
        raise ReportedError(
            f"data.encoding: {files[0].name} is {encodings[0]}, {files[other].name} is {encodings[other]}; "
            "give a glob for files that are alike"
        )
    if encodings[0] not in ("utf-8", "utf-8-sig"):
        log.info("%s: the encoding is %s; see data.encoding", files[0].name, encodings[0])
    return encodings[0]


def _columns_of(files: Sequence[Path], dialect: tables.Dialect) -> list[str]:
    """Return the columns that all the tables have, in the words that pandas uses for unnamed and repeated ones."""
    headers, num_rows = [], 0
    for path in files:
        # pandas would take surplus fields of the first row for row labels, and leave them out without a word.
        num_rows += next(tables.check_rows(path, dialect), 0)
        head = pd.read_csv(path, nrows=0, dtype=str, **dialect.pandas_options())
        headers.append(list(map(str, head.columns)))
        if headers[-1] != headers[0]:
            raise ReportedError(
                f"data.path: {path.name} has the columns {listed(headers[-1])}, others {listed(headers[0])}"
            )
    if not num_rows:
        raise ReportedError(f"data.path: {files[0].name} has a header ({listed(headers[0])}), but no rows below it")
    return headers[0]


def files_of_folder(folder: Path) -> dict[str, list[Path]]:
    """Return the readable files of a folder by split, which `datasets` reads from names like `test.csv`."""
    with as_value_error(f"data.path: nothing to read in the folder {str(folder)!r}"):
        patterns = datasets.data_files.get_data_patterns(str(folder.absolute()))
        found = datasets.data_files.DataFilesDict.from_patterns(patterns, base_path=str(folder.absolute()))
    readable = {
        str(split): [Path(name) for name in names if is_file_name(Path(name))] for split, names in found.items()
    }
    readable = {split: sorted(paths) for split, paths in readable.items() if paths}
    if not readable:
        raise ReportedError(f"data.path: the folder {str(folder)!r} holds no file named {listed(FORMATS)}")
    return readable


def format_of_all(files: Sequence[Path]) -> FileFormat:
    """Return the format of files.

    Raises:
        ReportedError: One is of no known format, they are of several, or all are empty.
    """
    unknown = next((path for path in files if not is_file_name(path)), None)
    if unknown is not None:
        packed = compression_of(unknown) and Path(unknown.stem).suffix.lower() in FORMATS
        how = (
            f"unpack {unknown.name} first"
            if packed
            else f"expected one of {listed(FORMATS)}; save a table as csv, a text as txt"
        )
        raise ReportedError(f"data.path: cannot read {str(unknown)!r}; {how}")
    first = _format_of(files[0])
    other = next((path for path in files if _format_of(path) != first), None)
    if other is not None:
        raise ReportedError(
            f"data.path: files of several formats, {files[0].name!r} and {other.name!r}; give a glob for one"
        )
    if not any(path.stat().st_size for path in files):
        raise ReportedError(f"data.path: {str(files[0])!r} is empty; expected at least one sentence")
    return first


def is_file_name(path: Path) -> bool:
    """Whether a name is that of a file that can be read, compressed or not."""
    name = Path(path.stem if compression_of(path) else path.name)
    found = FORMATS.get(name.suffix.lower())
    return found is not None and (found.is_text or not compression_of(path))


def _format_of(path: Path) -> FileFormat:
    return FORMATS[Path(path.stem if compression_of(path) else path.name).suffix.lower()]


def refuse_unused(data: DataSettings, name: str, used: Sequence[str] = ()) -> None:
    """Refuse settings of text files, or of hub data sets, that have no effect on what is read."""
    plain = DataSettings()
    for key in (*_DIALECT, "name"):
        if key not in used and getattr(data, key) != getattr(plain, key):
            raise ReportedError(f"data.{key}: got {getattr(data, key)!r}, which has no effect on {name}; leave it out")
