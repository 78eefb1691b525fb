"""What a run was: its folder, its configuration, its versions and counts."""

from __future__ import annotations

import json
import os
import platform
import resource
import secrets
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Optional

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

from llm_entropy.schema import SENTENCE
from llm_entropy.settings import ControlVectors, OutputSettings, Settings, to_plain

PACKAGES = ("llm_entropy", "torch", "lightning", "transformers", "datasets", "tokenizers", "numpy", "pandas", "pyarrow")
"""The packages whose versions a run records."""
Status = Literal["running", "complete", "failed"]
LISTED_ROWS = 1000
"""How many skipped or unread rows `run.json` lists; all are counted."""


def check_output(output: OutputSettings) -> None:
    """Make sure that a run can be written, and leave nothing behind.

    Args:
        output: Where the run will go.

    Raises:
        ValueError: The folder cannot be written, or the run's name is taken or is no name.
    """
    name = output.run_name
    if name is not None:
        if name in {"", ".", ".."} or Path(name).name != name:
            raise ValueError(f"output.run_name: got {name!r}; expected the name of a folder, without separators")
        if (Path(output.dir) / name).exists():
            raise ValueError(
                f"output.run_name: {Path(output.dir) / name} exists already and is never overwritten; "
                "choose another name, or remove it"
            )
    folder = Path(output.dir).absolute()
    created = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"output.dir: cannot write to {output.dir}: {error.strerror}; give another folder") from error
    finally:
        for parent in created:
            if parent.is_dir():
                parent.rmdir()


def create_run_dir(output: OutputSettings) -> Path:
    """Create the folder of a run, named as asked, or `run_{timestamp}_{8 hex}`, and return it."""
    name = output.run_name or f"run_{time.strftime('%Y%m%d_%H%M%S')}_{secrets.token_hex(4)}"
    run_dir = Path(output.dir) / name
    run_dir.mkdir(parents=True)
    return run_dir


def remove_run(run_dir: Path) -> None:
    """Remove the folder of a run that got no record, and the folder of runs if nothing else is in it."""
    shutil.rmtree(run_dir, ignore_errors=True)
    if run_dir.parent.is_dir() and not any(run_dir.parent.iterdir()):
        run_dir.parent.rmdir()


def write_config(run_dir: Path, settings: Settings, sentences: Optional[Sequence[str]] = None) -> None:
    """Write `config.yaml`: the configuration with every default filled in, ready for `--config`.

    What was given in memory, a vector or the corpus, becomes a file beside it.

    Args:
        run_dir: The run's folder.
        settings: Of the run.
        sentences: The corpus, where it was given in memory.
    """
    stored = _storable(settings, sentences, run_dir)
    _write(run_dir / "config.yaml", yaml.safe_dump(to_plain(stored), sort_keys=False, allow_unicode=True))


def _storable(settings: Settings, sentences: Optional[Sequence[str]], run_dir: Path) -> Settings:
    """Return settings that can be written as YAML and run again."""
    control = settings.analysis.control
    pair = control.control_vectors
    if pair is not None:
        positive, negative = (
            _stored_vector(run_dir, f"{name}_vector", getattr(pair, name)) for name in ("positive", "negative")
        )
        pair = ControlVectors(positive, negative)
    vector = _stored_vector(run_dir, "control_vector", control.control_vector)
    control = replace(control, control_vector=vector, control_vectors=pair)
    data = settings.data
    if sentences is not None:
        path = (run_dir / "sentences.jsonl").absolute()
        lines = [json.dumps({SENTENCE: sentence}) + "\n" for sentence in sentences]
        _write(path, "".join(lines))
        data = replace(data, path=str(path), text_column=SENTENCE)
    return replace(settings, analysis=replace(settings.analysis, control=control), data=data)


def _stored_vector(run_dir: Path, name: str, vector: Any) -> Any:
    """Return a vector that YAML can hold: numbers or a file; a tensor or an array becomes a file."""
    if not isinstance(vector, (torch.Tensor, np.ndarray)):
        return vector
    path = (run_dir / f"{name}.safetensors").absolute()
    temporary = path.with_name(f".{path.name}.tmp")
    save_file({name: torch.as_tensor(vector).detach().cpu().contiguous()}, temporary)
    os.replace(temporary, path)
    return str(path)


class Clock:
    """When a run started, and how long it has been."""

    def __init__(self) -> None:
        self.started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return round(time.perf_counter() - self._start, 3)


def describe_corpus(
    *, source: str, fingerprint: str, num_rows: int, num_sentences: int, skipped: Sequence[tuple[int, str]]
) -> dict[str, Any]:
    """Return what `run.json` says of the corpus; skipped rows are all counted, and the first ones listed."""
    return {
        "source": source,
        "fingerprint": fingerprint,
        "num_rows": num_rows,
        "num_sentences": num_sentences,
        "num_skipped": len(skipped),
        "skipped": [{"row": row, "reason": reason} for row, reason in skipped[:LISTED_ROWS]],
    }


def describe_model(
    about: dict[str, Any],
    *,
    num_sentences: int,
    num_examples: int,
    num_cut: int,
    unread: Sequence[int],
    num_processes: int,
    num_records: int,
    num_tokens: int,
    seconds: float,
) -> dict[str, Any]:
    """Return what `run.json` says of a model that is done.

    Args:
        about: What the model was, and how it was read.
        num_sentences: Sentences that gave records.
        num_examples: Rows that the model read; a masked model may make several of a sentence.
        num_cut: Sentences that were cut at the model's limit.
        unread: Ids of sentences without a token to read.
        num_processes: Processes that shared the work.
        num_records: Records of the first process.
        num_tokens: Tokens that the first process read.
        seconds: What predicting took the first process.
    """
    return {
        **about,
        "num_sentences": num_sentences,
        "num_examples": num_examples,
        "num_cut": num_cut,
        "num_unread": len(unread),
        "unread": list(unread[:LISTED_ROWS]),
        "num_processes": num_processes,
        "first_process": {
            "num_records": num_records,
            "num_tokens": num_tokens,
            "seconds": round(seconds, 3),
            "tokens_per_second": round(num_tokens / seconds, 1),
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        },
    }


def write_manifest(
    run_dir: Path,
    settings: Settings,
    status: Status,
    clock: Clock,
    corpus: dict[str, Any],
    models: dict[str, dict[str, Any]],
) -> None:
    """Write `run.json`.

    Args:
        run_dir: The run's folder.
        settings: Of the run.
        status: How far it is.
        clock: Since its start.
        corpus: As `describe_corpus` makes it.
        models: By key, as `describe_model` makes them; those that are done.
    """
    manifest = {
        "run": run_dir.name,
        "status": status,
        "mode": settings.analysis.mode,
        "started": clock.started,
        "seconds": clock.seconds,
        "seed": settings.seed,
        "corpus": corpus,
        "models": models,
        **_environment(),
    }
    _write(run_dir / "run.json", json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")


def read_manifest(run_dir: Path) -> dict[str, Any]:
    """Read `run.json`.

    Raises:
        ValueError: There is none.
    """
    path = run_dir / "run.json"
    if not path.is_file():
        raise ValueError(f"{run_dir}: holds no run.json; give the folder of a run, as analysis_outputs/run_...")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(manifest, dict)
    return manifest


def _environment() -> dict[str, Any]:
    """Return where a run ran: versions, machine."""
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "host": platform.node(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
