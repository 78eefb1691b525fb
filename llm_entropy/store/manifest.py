"""What a run was: its folder, its configuration, its versions and counts."""

from __future__ import annotations

import json
import secrets
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Optional

import yaml

from llm_entropy.errors import ReportedError
from llm_entropy.settings import OutputSettings, Settings, to_plain
from llm_entropy.store import files
from llm_entropy.store.ledger import Ledger, Marker

Status = Literal["running", "stopped", "failed", "complete"]
CONFIG, MANIFEST, MODEL, SENTENCES = "config.yaml", "run.json", "model.json", "sentences.jsonl"
VECTORS = "*_vector.safetensors"
"""Files of vectors that were given in memory."""
CREATE_LOCK = f"{files.LOCKS}/create.lock"
"""The first file of a run: whoever holds it writes the others. Where it is, they are ours and can be written anew."""
CHECKPOINTS = "hpc_ckpt_*"
"""What Lightning's requeueing leaves; under SLURM it loads such a file over the weights of the model it was given."""
LISTED_ROWS = 1000
"""How many skipped or unread rows `run.json` lists; all are counted."""


def check_output(output: OutputSettings, *, may_exist: bool) -> None:
    """Make sure that a run can be written, and leave nothing behind.

    Args:
        output: Where the run will go.
        may_exist: Whether the run may have been begun already.

    Raises:
        ReportedError: The folder cannot be written, or the run's name is taken or is no name.
    """
    name = output.run_name
    if name is not None:
        if name in {"", ".", ".."} or Path(name).name != name:
            raise ReportedError(f"output.run_name: got {name!r}; expected the name of a folder, without separators")
        run_dir = Path(output.dir) / name
        if run_dir.exists() and not may_exist:
            raise _exists(run_dir)
        if run_dir.exists() and (foreign := _foreign(run_dir)):
            raise ReportedError(
                f"output.run_name: {run_dir} exists and is no run ({foreign}); choose another name, or remove it"
            )
        for checkpoint in run_dir.glob(CHECKPOINTS):
            raise ReportedError(f"{checkpoint}: Lightning would load it over the models' weights; remove it")
    folder = Path(output.dir).absolute()
    created = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder):
            pass
    except OSError as error:
        raise ReportedError(
            f"output.dir: cannot write to {output.dir}: {error.strerror}; give another folder"
        ) from error
    finally:
        for parent in created:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


def _exists(run_dir: Path) -> ReportedError:
    return ReportedError(
        f"output.run_name: {run_dir} exists already and is never overwritten; choose another name, or add --resume to "
        "continue it"
    )


def _foreign(run_dir: Path) -> str:
    """Return what shows that a folder is neither a run nor one that was begun to be created; empty where nothing does.

    Creating a run can be killed at any point. What it leaves is taken over: an empty folder, or some of its files.
    """
    if not run_dir.is_dir():
        return "it is a file"
    if (run_dir / MANIFEST).is_file():
        return ""
    ours = {CONFIG, SENTENCES, *(path.name for path in run_dir.glob(VECTORS))}
    known = {f".{MANIFEST}.lock", files.LOCKS, *(path.name for path in files.temporaries(run_dir))}
    if (run_dir / CREATE_LOCK).is_file():
        known |= ours
    names = sorted(path.name for path in run_dir.iterdir() if path.name not in known)
    return f"it holds {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}, but no {MANIFEST}" if names else ""


def find_run(output: OutputSettings) -> Optional[Path]:
    """Return the folder of the run that is named, if it has been begun."""
    if output.run_name is None:
        return None
    run_dir = Path(output.dir) / output.run_name
    return run_dir if (run_dir / MANIFEST).is_file() else None


def create_run(
    output: OutputSettings, about: dict[str, Any], *, storable: Callable[[Path], Settings], may_exist: bool
) -> tuple[Path, bool]:
    """Create the folder of a run, named as asked, or `run_{timestamp}_{8 hex}`, with `config.yaml` and `run.json`.

    Of several processes that create it at once one succeeds, and the others find what it wrote. What a process has left
    that was killed before it wrote `run.json`, the last file, is replaced.

    Args:
        output: Where the run goes.
        about: What `run.json` says.
        storable: Given the folder, writes what `config.yaml` cannot hold and returns what it can.
        may_exist: Whether others may be creating it at this moment, or may have begun to.

    Returns:
        The folder, and whether this process has created the run.

    Raises:
        ReportedError: It cannot be written.
    """
    name = output.run_name or f"run_{time.strftime('%Y%m%d_%H%M%S')}_{secrets.token_hex(4)}"
    run_dir = Path(output.dir) / name
    try:
        Path(output.dir).mkdir(parents=True, exist_ok=True)
        _make_folder(run_dir, may_exist)
        with files.held(run_dir / CREATE_LOCK) as lock:
            if (run_dir / MANIFEST).exists():
                return run_dir, False
            if lock.is_real:
                for temporary in files.temporaries(run_dir):
                    temporary.unlink()
            config = yaml.safe_dump(to_plain(storable(run_dir)), sort_keys=False, allow_unicode=True)
            files.write_text(run_dir / CONFIG, config)
            return run_dir, files.create_text(run_dir / MANIFEST, _json({"run": name, **about}))
    except OSError as error:
        if not may_exist:
            remove_run(run_dir)
        raise ReportedError(f"output.dir: cannot write to {run_dir}: {error.strerror}; give another folder") from error


def _make_folder(run_dir: Path, may_exist: bool) -> None:
    try:
        run_dir.mkdir()
    except FileExistsError:
        if not may_exist:
            raise _exists(run_dir) from None


def remove_run(run_dir: Path) -> None:
    """Remove the folder of a run that got no record, and the folder of runs if nothing else is in it."""
    shutil.rmtree(run_dir, ignore_errors=True)
    if run_dir.parent.is_dir() and not any(run_dir.parent.iterdir()):
        run_dir.parent.rmdir()


def write_model(run_dir: Path, key: str, about: dict[str, Any]) -> dict[str, Any]:
    """Write down what a model is, in `shards/{model}/model.json`, unless that was done before.

    Returns what was written first: other processes of the run have gone by it.

    Args:
        run_dir: The run's folder.
        key: The model's.
        about: What the model is, and how it is read.
    """
    folder = run_dir / "shards" / key
    folder.mkdir(parents=True, exist_ok=True)
    files.create_text(folder / MODEL, _json(about))
    return _read(folder / MODEL)


def read_model(run_dir: Path, key: str) -> Optional[dict[str, Any]]:
    """Return what `write_model` wrote; None if no process has come so far."""
    path = run_dir / "shards" / key / MODEL
    return _read(path) if path.is_file() else None


def describe_corpus(
    *,
    source: str,
    fingerprint: str,
    num_rows: Optional[int],
    num_sentences: Optional[int],
    num_windows: Optional[int],
    num_files: int,
    skipped: Sequence[tuple[int, str]],
) -> dict[str, Any]:
    """Return what `run.json` says of the corpus; skipped rows are all counted, and the first ones listed.

    Of a stream the numbers are not known (None) before it has been read.
    """
    return {
        "source": source,
        "fingerprint": fingerprint,
        "num_rows": num_rows,
        "num_sentences": num_sentences,
        "num_windows": num_windows,
        "num_files": num_files,
        "num_skipped": None if num_rows is None else len(skipped),
        "skipped": [{"row": row, "reason": reason} for row, reason in skipped[:LISTED_ROWS]],
    }


def corpus_totals(ledger: Ledger) -> dict[str, Any]:
    """Return what a stream has turned out to hold, as `describe_corpus` says it, from the records of one model."""
    notes = [notes for _, notes in ledger.notes()]
    skipped = [pair for one in notes for pair in one.skipped]
    num_rows = sum(one.num_rows for one in notes)
    return {
        "num_rows": num_rows,
        "num_sentences": num_rows - len(skipped),
        "num_skipped": len(skipped),
        "skipped": [{"row": row, "reason": reason} for row, reason in skipped[:LISTED_ROWS]],
    }


def model_totals(ledger: Ledger) -> dict[str, Any]:
    """Return what `run.json` says of the work on a model: counts, and what each process of each task did.

    Args:
        ledger: All markers of the model.
    """
    notes = [notes for _, notes in ledger.notes()]
    unread = [number for one in notes for number in one.unread]
    processes = [_process(markers) for markers in _by_process(ledger.markers)]
    num_tokens = sum(process["num_tokens"] for process in processes)
    seconds = sum(process["seconds"] for process in processes)
    return {
        "num_sentences": sum(one.num_sentences for one in notes),
        "num_examples": sum(one.num_examples for one in notes),
        "num_records": sum(marker.num_records for marker in ledger.markers),
        "num_tokens": num_tokens,
        "num_cut": sum(one.num_cut for one in notes),
        "num_own_start": sum(one.num_own_start for one in notes),
        "num_unread": len(unread),
        "unread": unread[:LISTED_ROWS],
        "num_parts": len(ledger.markers),
        "process_seconds": round(seconds, 3),
        "tokens_per_process_second": _rate(num_tokens, seconds),
        "processes": processes,
    }


def _by_process(markers: Sequence[Marker]) -> list[list[Marker]]:
    groups: dict[tuple[Any, ...], list[Marker]] = defaultdict(list)
    for marker in markers:
        process = marker.process
        groups[(*process["task"], process["rank"][0], process["started"], process["launch"])].append(marker)
    return [groups[key] for key in sorted(groups)]


def _process(markers: Sequence[Marker]) -> dict[str, Any]:
    """Return what a process did, from the markers of its parts."""
    last = max(markers, key=lambda marker: marker.part.name).process
    totals = {name: sum(marker.process[name] for marker in markers) for name in ("num_examples", "num_tokens")}
    seconds = sum(marker.process["seconds"] for marker in markers)
    return {
        **last,
        "num_parts": len(markers),
        "num_records": sum(marker.num_records for marker in markers),
        **totals,
        "seconds": round(seconds, 3),
        "tokens_per_second": _rate(totals["num_tokens"], seconds),
    }


def _rate(number: int, seconds: float) -> Optional[float]:
    return round(number / seconds, 1) if seconds else None


def read_manifest(run_dir: Path) -> dict[str, Any]:
    """Read `run.json`.

    Raises:
        ReportedError: There is none.
    """
    path = run_dir / MANIFEST
    if not path.is_file():
        raise ReportedError(f"{run_dir}: holds no run.json; give the folder of a run, as analysis_outputs/run_...")
    return _read(path)


def update_manifest(run_dir: Path, status: Status, **about: Any) -> None:
    """Write `run.json` anew, with another status and what else has changed."""
    files.write_text(run_dir / MANIFEST, _json({**read_manifest(run_dir), "status": status, **about}))


def _read(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ReportedError(f"{path}: is no JSON ({error}); it was written by something else") from error
    assert isinstance(about, dict)
    return about


def _json(about: dict[str, Any]) -> str:
    return json.dumps(about, indent=2, ensure_ascii=False) + "\n"


def written_by(about: Mapping[str, Any]) -> str:
    """Return which llm_entropy began a run, as `run.json` says: its version, and the commit where that is known."""
    version = about.get("versions", {}).get("llm_entropy", "of that time")
    return f"{version} (commit {about['git_commit']})" if about.get("git_commit") else str(version)
