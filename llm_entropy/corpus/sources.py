"""Where rows come from: files, folders, saved data sets, the hub.

All reading goes through `datasets`, and whatever goes wrong in it leaves here as one line.
"""

from __future__ import annotations

import atexit
import glob
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, Optional

import datasets
import pandas as pd
from datasets import Dataset, Features, IterableDataset, Value

from llm_entropy import builtin
from llm_entropy.corpus import jsonrows, tables
from llm_entropy.corpus.textfiles import DAMAGED, Check, TextFiles, compression_of, encoding_of, reason_of
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

_STREAMS = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")
"""Names of what a shell opens for a program: gone with it, even where it is a file."""
_READ_ERRORS = (
    datasets.exceptions.DatasetsError,
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    TypeError,
    StopIteration,
    *DAMAGED,
)


class Rows(NamedTuple):
    """What `data.path` stands for."""

    rows: Dataset | IterableDataset
    source: str
    """What it was found to be, for people."""
    files: str = ""
    """Of a stream: its files, how they are read, and what tells that they are still the same."""
    text: Optional[TextFiles] = None
    """Files of text, in which a place can be named."""
    is_whole: bool = True
    """Whether the rows are all of these files, not a slice."""


def open_rows(data: DataSettings, path: str) -> Rows:
    """Return the rows that `data.path` stands for."""
    if path.startswith(builtin.PREFIX):
        path = str(builtin.data_file(path.removeprefix(builtin.PREFIX)))
    with as_value_error(f"data.path: could not look at {path!r}"):
        local = Path(path).expanduser()
        mode = _mode_of(local)
        if stat.S_ISDIR(mode):
            return _open_folder(data, local, path)
        if mode and (not stat.S_ISREG(mode) or str(local).startswith(_STREAMS)):
            raise ReportedError(
                f"data.path: {path!r} is a pipe or a device, which can be read but once; a run reads its corpus again "
                "for each process, and to resume: write it to a file first, and name that"
            )
        if mode:
            return _open_files(data, {"train": [local]}, f"file {path}")
        if glob.has_magic(path):
            return _open_glob(data, local, path)
    if local.is_symlink():
        raise ReportedError(f"data.path: {path!r} is a link to {os.readlink(local)!r}, which does not exist")
    if "://" in path:
        raise ReportedError(f"data.path: {path!r} is an address; download the file, or give the name of a hub data set")
    # A hub name is `name` or `owner/name`.
    looks_local = local.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1
    if looks_local or _is_file_name(local) or (local.parent != Path() and local.parent.exists()):
        raise ReportedError(f"data.path: there is no file or folder {path!r}")
    _refuse_unused(data, path)
    return _open_hub(data, path)


def _mode_of(path: Path) -> int:
    """Return what `stat` says that a path is; 0: nothing."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _open_folder(data: DataSettings, folder: Path, path: str) -> Rows:
    if not any((folder / name).exists() for name in ("dataset_dict.json", "dataset_info.json")):
        return _open_files(data, _files_of_folder(folder), f"folder {path}")
    _refuse_unused(data, path)
    return Rows(_open_saved(data, folder), f"saved data set {path}")


def _open_glob(data: DataSettings, pattern: Path, path: str) -> Rows:
    found = [Path(name) for name in sorted(glob.glob(str(pattern), recursive=True)) if Path(name).is_file()]
    if not found:
        raise ReportedError(f"data.path: no file matches {path!r}")
    return _open_files(data, {"train": found}, f"{len(found)} files {path}")


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
        usual = Path(datasets.config.HF_DATASETS_CACHE)
        if not _is_writable(usual):
            raise ReportedError(
                f"data.path: {name!r} is no local file, and a data set of the hub needs a cache, but {str(usual)!r} "
                f"cannot be written ({_first_words(error)}); set HF_HOME to a folder that can"
            ) from error
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


# --- files -------------------------------------------------------------------------------------------------------


def _open_files(data: DataSettings, files: dict[str, list[Path]], source: str) -> Rows:
    """Read files, by split, all of one format."""
    every = [path for paths in files.values() for path in paths]
    file_format = _format_of_all(every)
    _refuse_unused(data, every[0].name, file_format.settings)
    what = f"data.path: could not read {str(every[0])!r} as {file_format.builder} (data.split is {data.split!r})"
    with as_value_error(what):
        read = _READERS[file_format.builder](data, every)
    text = TextFiles(files.get(data.split, every), read.encoding, read.check) if file_format.is_text else None
    with as_value_error(what, text):
        rows = datasets.load_dataset(
            read.builder,
            # `datasets` takes names for patterns.
            data_files={split: [glob.escape(str(path.absolute())) for path in paths] for split, paths in files.items()},
            split=data.split,
            streaming=data.streaming,
            cache_dir=cache_folder(),
            **read.options,
        )
    return Rows(rows, source, _content_of(every, read) if data.streaming else "", text, data.split in files)


class _Read(NamedTuple):
    """How some files are read."""

    builder: str
    options: dict[str, Any]
    """Arguments of the builder."""
    encoding: str = "utf-8"
    check: Optional[Check] = None


def _read_tables(data: DataSettings, files: Sequence[Path]) -> _Read:
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
        log.info("%s: %s; see data.delimiter, data.quoting, data.header, data.encoding", files[0].name, "; ".join(said))
    # Read as text whatever it looks like: a type guessed from the first rows fails at a later one.
    options |= {"features": Features({name: Value("string") for name in names})}
    return _Read("csv", options, dialect.encoding, partial(_check_table, dialect))


def _read_json(data: DataSettings, files: Sequence[Path]) -> _Read:
    encoding = _one_encoding(data, files)
    if encoding.lower().replace("_", "-").startswith(("utf-16", "utf-32")):
        raise ReportedError(
            f"data.encoding: {files[0].name} is {encoding.upper()}, and JSON is UTF-8; convert it: "
            f"iconv -f {encoding.upper()} -t UTF-8 {files[0].name} > NAME.jsonl"
        )
    options = {} if encoding.startswith("utf-8") else {"encoding": encoding}
    return _Read("json", options, encoding, partial(_check_json, encoding))


def _read_text(data: DataSettings, files: Sequence[Path]) -> _Read:
    encoding = _one_encoding(data, files)
    features = Features({"text": Value("string")})
    if encoding != "utf-8" and any(map(compression_of, files)):
        # The builder of text would take the encoding of a compressed file from the terminal: one field to a line.
        options = tables.LINES.pandas_options() | {"encoding": encoding}
        return _Read("csv", options | {"features": features}, encoding)
    return _Read("text", {"encoding": encoding, "features": features}, encoding)


def _read_binary(builder: str, data: DataSettings, files: Sequence[Path]) -> _Read:
    return _Read(builder, {})


_READERS: dict[str, Callable[[DataSettings, Sequence[Path]], _Read]] = {
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


def check_text(opened: Rows, column: str) -> None:
    """Hold every row of text files against what the first ones promise, and count them.

    Raises:
        ReportedError: A row is not like the others, or rows were merged.
    """
    if opened.text is None or not isinstance(opened.rows, Dataset):
        return
    num_counted = num_long = 0
    for num_lines in opened.text.checked(column):
        num_counted += 1
        num_long += num_lines > 1
    if opened.is_whole and num_counted > len(opened.rows):
        raise fewer_rows(opened.source, num_counted, len(opened.rows))
    if num_long:
        log.info("%s: %d of %d rows span several lines, in quotes", opened.source, num_long, num_counted)


def fewer_rows(source: str, num_counted: int, num_read: int) -> ReportedError:
    """Return the error for rows that were merged by the reader."""
    return ReportedError(
        f"data.quoting: {source} has {num_counted:,} rows, of which only {num_read:,} were read; set data.quoting to "
        "what the quotes mean"
    )


def _content_of(files: Sequence[Path], read: _Read) -> str:
    """Return what tells that files, and the way in which they are read, are still the same."""
    ages = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return str((ages, read.builder, sorted((key, str(value)) for key, value in read.options.items())))


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
                f"data.path: {path.name} has the columns {_listed(headers[-1])}, others {_listed(headers[0])}"
            )
    if not num_rows:
        raise ReportedError(f"data.path: {files[0].name}: there are no rows below the header {_listed(headers[0])}")
    return headers[0]


def _files_of_folder(folder: Path) -> dict[str, list[Path]]:
    """Return the readable files of a folder by split, which `datasets` reads from names like `test.csv`."""
    with as_value_error(f"data.path: nothing to read in the folder {str(folder)!r}"):
        patterns = datasets.data_files.get_data_patterns(str(folder.absolute()))
        found = datasets.data_files.DataFilesDict.from_patterns(patterns, base_path=str(folder.absolute()))
    readable = {
        str(split): [Path(name) for name in names if _is_file_name(Path(name))] for split, names in found.items()
    }
    readable = {split: sorted(paths) for split, paths in readable.items() if paths}
    if not readable:
        raise ReportedError(f"data.path: the folder {str(folder)!r} holds no file named {_listed(FORMATS)}")
    return readable


def _format_of_all(files: Sequence[Path]) -> FileFormat:
    unknown = next((path for path in files if not _is_file_name(path)), None)
    if unknown is not None:
        packed = compression_of(unknown) and Path(unknown.stem).suffix.lower() in FORMATS
        how = f"unpack {unknown.name} first" if packed else f"expected a file named {_listed(FORMATS)}"
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


def _is_file_name(path: Path) -> bool:
    name = Path(path.stem if compression_of(path) else path.name)
    found = FORMATS.get(name.suffix.lower())
    return found is not None and (found.is_text or not compression_of(path))


def _format_of(path: Path) -> FileFormat:
    return FORMATS[Path(path.stem if compression_of(path) else path.name).suffix.lower()]


def _refuse_unused(data: DataSettings, name: str, used: Sequence[str] = ()) -> None:
    """Refuse settings of text files that say nothing of what is read."""
    plain = DataSettings()
    for key in _DIALECT:
        if key not in used and getattr(data, key) != getattr(plain, key):
            raise ReportedError(f"data.{key}: got {getattr(data, key)!r}, which says nothing of {name}; leave it out")


# --- the cache ---------------------------------------------------------------------------------------------------


def cache_folder() -> Optional[str]:
    """Return where `datasets` may keep what it makes of local files: None for its cache, if that can be written."""
    usual = Path(datasets.config.HF_DATASETS_CACHE)
    return None if _is_writable(usual) else _temporary_cache(str(usual))


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@cache
def _temporary_cache(usual: str) -> str:
    """Make a folder that goes when the program ends."""
    folder = tempfile.mkdtemp(prefix="llm_entropy_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    log.info("%s cannot be written: the corpus is kept in %s until the end", usual, folder)
    return folder


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
def as_value_error(what: str, text: Optional[TextFiles] = None) -> Iterator[None]:
    """Turn whatever `datasets` raises into one line, and keep it from printing the same first.

    Args:
        what: Could not be done.
        text: The files that are read, so that the one at fault, and the line, can be named.
    """
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    except ReportedError:
        raise
    except _READ_ERRORS as error:
        cause = error.__cause__ or error
        raise ReportedError((text and reason_of(cause, text)) or f"{what}: {_first_words(cause)}") from error
    finally:
        datasets.logging.set_verbosity(verbosity)


def _first_words(error: BaseException) -> str:
    words = " ".join(str(error).split())
    return (words[:300] or type(error).__name__).rstrip(".")


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(map(str, names))
