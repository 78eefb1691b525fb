"""Settings that can be written as YAML and run again: what was given in memory becomes files of the run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

from datasets import Dataset
from safetensors.torch import save_file

from llm_entropy.corpus.chats import ChatText
from llm_entropy.schema.shards import SENTENCE
from llm_entropy.settings import ControlSettings, ControlVectors, ExtractionSettings, Settings
from llm_entropy.settings.fields import holds_arrays
from llm_entropy.steering.tensors import as_vector
from llm_entropy.store import files
from llm_entropy.store.manifest import SENTENCES


def storable(
    settings: Settings,
    sentences: Optional[Sequence[Any]],
    run_dir: Path,
    *,
    columns: Optional[Dataset] = None,
) -> Settings:
    """Write the vectors and sentences of a run that were given in memory, and return settings that name the files.

    Args:
        settings: Of the run.
        sentences: The corpus, or the rows of pairs of an extraction, where it was given in memory.
        run_dir: The run's folder.
        columns: What goes with its sentences.
    """
    if isinstance(settings, ExtractionSettings):
        if sentences is None:
            return settings
        path = (run_dir / SENTENCES).absolute()
        files.write_text(path, "".join(json.dumps(row) + "\n" for row in sentences))
        return replace(settings, data=replace(settings.data, path=str(path)))
    analysis = settings.analysis
    control = _stored_control(run_dir, "", analysis.control)
    conditions = {name: _stored_control(run_dir, f"{name}_", own) for name, own in analysis.conditions.items()}
    data = settings.data
    if sentences is not None:
        path = (run_dir / SENTENCES).absolute()
        beside = [{} for _ in sentences] if columns is None else columns.to_list()
        texts = [json.loads(text) if isinstance(text, ChatText) else text for text in sentences]
        rows = [{SENTENCE: sentence, **own} for sentence, own in zip(texts, beside, strict=True)]
        lines = [json.dumps(row) + "\n" for row in rows]
        files.write_text(path, "".join(lines))
        data = replace(data, path=str(path), text_column=SENTENCE)
    return replace(settings, analysis=replace(analysis, control=control, conditions=conditions), data=data)


def _stored_control(run_dir: Path, prefix: str, control: ControlSettings) -> ControlSettings:
    """Return the settings of a vector that YAML can hold; files begin with a prefix."""
    pair = control.control_vectors
    if pair is not None:
        pair = ControlVectors(
            *(
                _stored_vector(run_dir, f"{prefix}{name}_vector", getattr(pair, name))
                for name in ("positive", "negative")
            )
        )
    vector = _stored_vector(run_dir, f"{prefix}control_vector", control.control_vector)
    return replace(control, control_vector=vector, control_vectors=pair)


def _stored_vector(run_dir: Path, name: str, vector: Any) -> Any:
    """Return a vector that YAML can hold: numbers or a file; tensors, arrays and lists of them become a file."""
    if not holds_arrays(vector):
        return vector
    path = (run_dir / f"{name}.safetensors").absolute()
    with files.written_whole(path) as temporary:
        save_file({name: as_vector(vector)}, temporary)
    return str(path)
