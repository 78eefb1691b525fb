"""What is done: the marker beside each part of the shards, and what all markers say together.

A part counts once its marker is there, and the marker is written last. So whatever happens to a process, what it has
left is either done, and is never done again, or does not exist.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Optional

from llm_entropy.errors import ReportedError
from llm_entropy.schema.batches import BatchKey, Slice, WindowNotes
from llm_entropy.store import files
from llm_entropy.store.windows import WINDOWS_PER_FILE, Task

PART_SUFFIX = ".parquet"
MARKER_SUFFIX = ".json"


def task_folder(model_folder: Path, task: Task) -> Path:
    """Return where a task writes: `shards/{model}/task-00003-of-00016`."""
    return model_folder / f"task-{task.index:05d}-of-{task.count:05d}"


def rank_folder(model_folder: Path, task: Task, rank: int) -> Path:
    """Return where a process of a task writes: `.../rank-0001`."""
    return task_folder(model_folder, task) / f"rank-{rank:04d}"


@dataclass(frozen=True)
class Marker:
    """What is known of a part; written when the part is whole."""

    part: Path
    """The part's file."""
    checksum: str
    """Of the file, behind the algorithm's name: see `files.checksum`."""
    num_bytes: int
    """Its size."""
    config_hash: str
    """Names everything that decides what a record is; the same in all parts of a run."""
    num_records: int
    first_id: int
    """Lowest sentence id among the records; 0 where there are none."""
    end_id: int
    """One past the highest sentence id; 0 where there are no records."""
    batches: list[tuple[BatchKey, int]]
    """The batches in it, and how many records each has."""
    notes: dict[int, WindowNotes]
    """By window, for those whose first batch is in it."""
    process: dict[str, Any]
    """Who wrote it, what it took, and where: see `writer`."""

    @property
    def path(self) -> Path:
        """Where the marker is: beside its part."""
        return self.part.with_suffix(MARKER_SUFFIX)

    def write(self) -> None:
        """Write the marker."""
        about = {
            "part": self.part.name,
            "checksum": self.checksum,
            "num_bytes": self.num_bytes,
            "config_hash": self.config_hash,
            "num_records": self.num_records,
            "first_id": self.first_id,
            "end_id": self.end_id,
            "batches": [[*astuple(key), num_records] for key, num_records in self.batches],
            "notes": {str(window): asdict(notes) for window, notes in self.notes.items()},
            "process": self.process,
        }
        files.write_text(self.path, json.dumps(about) + "\n")

    @classmethod
    def read(cls, path: Path) -> Marker:
        """Read a marker.

        Raises:
            ReportedError: It cannot be read.
        """
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                part=path.with_name(about["part"]),
                checksum=_checksum(about),
                num_bytes=about["num_bytes"],
                config_hash=about["config_hash"],
                num_records=about["num_records"],
                first_id=about["first_id"],
                end_id=about["end_id"],
                batches=[(BatchKey(*numbers[:3]), numbers[3]) for numbers in about["batches"]],
                notes={int(window): _notes(notes) for window, notes in about["notes"].items()},
                process=about["process"],
            )
        except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise ReportedError(
                f"{path}: is no marker of a part ({type(error).__name__}); remove it, and resume the run"
            ) from error

    def check(self, *, content: bool) -> None:
        """Make sure that the part is the one that was marked.

        Args:
            content: Whether its bytes are compared too, and not only their number.

        Raises:
            ReportedError: The part is missing, or is not what was written.
        """
        way_out = f"remove it and {self.path.name}, and resume the run"
        if not self.part.is_file():
            raise ReportedError(f"{self.part}: is missing, though {self.path.name} says that it was written; {way_out}")
        size = self.part.stat().st_size
        if size != self.num_bytes:
            raise ReportedError(f"{self.part}: is corrupt, {size} bytes instead of {self.num_bytes}; {way_out}")
        if not content:
            return
        algorithm = self.checksum.partition(":")[0]
        if algorithm not in files.ALGORITHMS:
            known = ", ".join(files.ALGORITHMS)
            raise ReportedError(f"{self.path}: the checksum {self.checksum!r} is of no known kind ({known}); {way_out}")
        if files.checksum(self.part, algorithm) != self.checksum:
            raise ReportedError(f"{self.part}: is corrupt, its checksum is not the one in {self.path.name}; {way_out}")


def _checksum(about: dict[str, Any]) -> str:
    """Return the checksum of a marker; older ones have SHA-256, in a field of that name."""
    return str(about["checksum"]) if "checksum" in about else f"sha256:{about['sha256']}"


def _notes(about: dict[str, Any]) -> WindowNotes:
    skipped = [(int(row), str(reason)) for row, reason in about["skipped"]]
    slices = [Slice(*numbers) for numbers in about.get("slices", ())]
    return WindowNotes(**{**about, "skipped": skipped, "slices": slices})


@dataclass
class WindowState:
    """How far a window is."""

    num_batches: int
    done: dict[int, int] = field(default_factory=dict)
    """By batch, how many records it has."""
    notes: Optional[WindowNotes] = None

    @property
    def is_complete(self) -> bool:
        """Whether every batch is done."""
        return len(self.done) == self.num_batches

    @property
    def num_records(self) -> int:
        """Records of the batches that are done."""
        return sum(self.done.values())


@dataclass
class Ledger:
    """What is done of one model."""

    markers: list[Marker] = field(default_factory=list)
    """Of every part, by path."""
    windows: dict[int, WindowState] = field(default_factory=dict)
    """Those of which any batch is done, by number."""

    @property
    def done(self) -> Done:
        """What need not be done again."""
        complete = {window for window, state in self.windows.items() if state.is_complete}
        partial = {window: set(state.done) for window, state in self.windows.items() if not state.is_complete}
        return Done(complete, partial)

    def notes(self) -> Iterator[tuple[int, WindowNotes]]:
        """Iterate over what is known of the windows, ascending."""
        for window in sorted(self.windows):
            notes = self.windows[window].notes
            if notes is not None:
                yield window, notes


class Missing(NamedTuple):
    """A window that is not complete."""

    window: int
    """Its number."""
    batches: Optional[list[int]]
    """Which of its batches are missing; None where nobody knows how many it has."""
    num_batches: Optional[int]
    """How many it has."""
    reaches_on: bool = False
    """Whether the file of a stream may go on behind this window."""


class Expected(NamedTuple):
    """What a complete run has."""

    num_windows: Optional[int]
    """Of the corpus; None for a stream, whose windows are told by those who read its files to the end."""
    num_files: int = 1
    """Of the stream."""


def find_missing(ledger: Ledger, expected: Expected) -> list[Missing]:
    """Return the windows that are not complete, ascending; none where the model is complete.

    Args:
        ledger: Of the model.
        expected: What must be there.
    """
    if expected.num_windows is not None:
        return [missing for w in range(expected.num_windows) if (missing := _missing(ledger, w))]
    last_known: dict[int, int] = {}  # by file
    for window in ledger.windows:
        file = window // WINDOWS_PER_FILE
        last_known[file] = max(window, last_known.get(file, window))
    found = []
    for file in range(expected.num_files):
        first = file * WINDOWS_PER_FILE
        end = last_known.get(file, first - 1) + 1
        found += [missing for w in range(first, end) if (missing := _missing(ledger, w))]
        last = ledger.windows.get(end - 1)
        if last is None or last.notes is None or not last.notes.is_last:
            # its first batch tells whether the file ends with it, and that may be the one that is missing
            is_known = last is not None and last.notes is None
            if not is_known:
                found.append(Missing(end, None, None, reaches_on=True))
    return found


def _missing(ledger: Ledger, window: int) -> Optional[Missing]:
    state = ledger.windows.get(window)
    if state is None:
        return Missing(window, None, None)
    if state.is_complete:
        return None
    batches = [index for index in range(state.num_batches) if index not in state.done]
    return Missing(window, batches, state.num_batches)


@dataclass(frozen=True)
class Done:
    """Batches that need not be done again."""

    complete: set[int] = field(default_factory=set)
    """Windows of which nothing is left."""
    partial: dict[int, set[int]] = field(default_factory=dict)
    """By window, the batches of it that are done."""

    def left(self, window: int, batches: Sequence[int]) -> list[int]:
        """Return those of a window's batches that are not done."""
        if window in self.complete:
            return []
        done = self.partial.get(window, set())
        return [index for index in batches if index not in done]


def find_markers(model_folder: Path, task: Optional[Task] = None) -> list[Path]:
    """Return the markers below `shards/{model}`, by name; none where there is no such folder.

    Args:
        model_folder: Where to look.
        task: Leave out other tasks of its array: they own other batches, and there may be thousands of them.
    """
    folders = sorted(model_folder.glob("task-*"))
    if task is not None:
        own = task_folder(model_folder, task)
        folders = [path for path in folders if path == own or not path.name.endswith(f"-of-{task.count:05d}")]
    return [marker for folder in folders for marker in sorted(folder.glob(f"rank-*/part-*{MARKER_SUFFIX}"))]


def read_ledger(model_folder: Path, config_hash: str, task: Optional[Task] = None) -> Ledger:
    """Read the markers of a model.

    Args:
        model_folder: `shards/{model}` of the run.
        config_hash: What the parts must have been made with.
        task: Leave out other tasks of its array.

    Raises:
        ReportedError: A marker cannot be read, a part is missing or of another size or run, or a batch is there twice.
    """
    ledger = Ledger()
    for path in find_markers(model_folder, task):
        marker = Marker.read(path)
        if marker.config_hash != config_hash:
            raise ReportedError(
                f"{path}: was written with another configuration ({marker.config_hash}, expected {config_hash}); "
                "it does not belong to this run: remove it and its part"
            )
        marker.check(content=False)
        for key, num_records in marker.batches:
            state = ledger.windows.setdefault(key.window, WindowState(key.num_batches))
            if state.num_batches != key.num_batches or key.index in state.done:
                _refuse_double(key, marker, ledger.markers)
            state.done[key.index] = num_records
        for window, notes in marker.notes.items():
            ledger.windows[window].notes = notes
        ledger.markers.append(marker)
    return ledger


def _refuse_double(key: BatchKey, marker: Marker, before: Sequence[Marker]) -> NoReturn:
    # Looked for now: a table of every batch of a large run would take more memory than all else.
    other = next((one for one in before if any(own == key for own, _ in one.batches)), None)
    if other is None:
        raise ReportedError(
            f"{marker.part}: window {key.window} has {key.num_batches} batches here, and another number elsewhere; "
            "remove this part and its marker, and resume the run"
        )
    raise ReportedError(
        f"{marker.part}: sentences with ids from {marker.first_id} to {marker.end_id - 1} are there more than once, "
        f"batch {key.index} of window {key.window} also in {other.part}; two processes have done the same work: remove "
        "this part and its marker, and resume the run"
    )


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed left half-done: temporary files, and parts without a marker.

    Args:
        folder: A task's, which no living process writes to.
    """
    for path in list(folder.glob("rank-*/*")):
        unmarked = path.suffix == PART_SUFFIX and not path.with_suffix(MARKER_SUFFIX).exists()
        if path.name.endswith(".tmp") or unmarked:
            path.unlink(missing_ok=True)
