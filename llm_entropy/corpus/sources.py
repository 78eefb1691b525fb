"""Where rows come from: files, folders, saved data sets, the hub. All reading goes through `datasets`."""

from __future__ import annotations

import glob
import logging
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Optional

import datasets
from datasets import Dataset, IterableDataset

from llm_entropy import builtin
from llm_entropy.corpus.quiet_datasets import (
    READ_ERRORS,
    as_value_error,
    cache_folder,
    first_words,
    is_writable,
    listed,
)
from llm_entropy.corpus.readers import READERS, Read, files_of_folder, format_of_all, is_file_name, refuse_unused
from llm_entropy.corpus.textfiles import TextFiles
from llm_entropy.errors import ReportedError
from llm_entropy.settings import DataSettings

log = logging.getLogger(__name__)

_STREAMS = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")
"""Names of what a shell opens for a program: gone with it, even where it is a file."""


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
                f"data.path: {path!r} is a pipe or a device, which can be read only once, and a run reads its corpus "
                "several times; write it to a file first, and give that file"
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
    if looks_local or is_file_name(local) or (local.parent != Path() and local.parent.exists()):
        raise ReportedError(f"data.path: there is no file or folder {path!r}")
    refuse_unused(data, path, ("name",))
    return _open_hub(data, path)


def _mode_of(path: Path) -> int:
    """Return what `stat` says that a path is; 0: nothing."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _open_folder(data: DataSettings, folder: Path, path: str) -> Rows:
    if not any((folder / name).exists() for name in ("dataset_dict.json", "dataset_info.json")):
        return _open_files(data, files_of_folder(folder), f"folder {path}")
    refuse_unused(data, path)
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
        raise ReportedError(f"data.split: {str(folder)!r} has no split {data.split!r}; it has {listed(saved)}")
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
        if not is_writable(usual):
            raise ReportedError(
                f"data.path: {name!r} is no local file, and a data set of the hub needs a cache, but {str(usual)!r} "
                f"cannot be written ({first_words(error)}); set HF_HOME to a folder that can"
            ) from error
        raise ReportedError(
            f"data.path: {name!r} is no local file, and no data set of that name could be fetched from the hub or "
            f"found in the cache ({first_words(error)}); check the name, go online once so that it is cached, "
            "or give a local file, or null for the built-in sentences"
        ) from error
    except READ_ERRORS as error:
        keys = f"data.name is {data.name!r}, data.split is {data.split!r}"
        raise ReportedError(
            f"data.path: could not load the data set {name!r} ({keys}): {first_words(error)}"
        ) from error


def _open_files(data: DataSettings, files: dict[str, list[Path]], source: str) -> Rows:
    """Read files, by split, all of one format."""
    every = [path for paths in files.values() for path in paths]
    file_format = format_of_all(every)
    refuse_unused(data, every[0].name, file_format.settings)
    what = f"data.path: could not read {str(every[0])!r} as {file_format.builder} (data.split is {data.split!r})"
    with as_value_error(what):
        read = READERS[file_format.builder](data, every)
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


def _content_of(files: Sequence[Path], read: Read) -> str:
    """Return what tells that files, and the way in which they are read, are still the same."""
    ages = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return str((ages, read.builder, sorted((key, str(value)) for key, value in read.options.items())))
