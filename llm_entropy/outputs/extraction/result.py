"""What an extraction left, for Python, and where it lies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

FOLDER = "vectors"


def vector_path(run_dir: Path, model: str) -> Path:
    """Return the file of a model's vectors, which `control.control_vector` takes."""
    return run_dir / FOLDER / f"{model}.safetensors"


def quality_path(run_dir: Path, model: str) -> Path:
    """Return the table of a model's quality by block."""
    return run_dir / FOLDER / f"{model}_quality.csv"


def quality_plot_path(run_dir: Path, model: str) -> Path:
    """Return the plot of the same."""
    return run_dir / FOLDER / f"{model}_quality.png"


@dataclass(frozen=True)
class ExtractedVectors:
    """The vectors of one model."""

    run_dir: Path
    model: str
    """The model's key."""

    @property
    def path(self) -> Path:
        """The file, for `control_vector`."""
        return vector_path(self.run_dir, self.model)

    @property
    def vector(self) -> Tensor:
        """[L, hidden], a vector for the output of each block."""
        from safetensors.torch import load_file

        return load_file(self.path)["control_vector"]

    @property
    def quality(self) -> pd.DataFrame:
        """A row per block; `docs/howto/extract.md` explains the columns."""
        import pandas as pd

        return pd.read_csv(quality_path(self.run_dir, self.model))

    @property
    def best_block(self) -> int:
        """The block at which positive and negative texts that are left out are told apart best."""
        best = self.quality.sort_values(["auroc", "d_prime"], ascending=False, kind="stable").iloc[0]
        return int(best["block"])


@dataclass(frozen=True)
class ExtractionResult(Mapping[str, ExtractedVectors]):
    """A finished extraction: `result["gpt2"].vector`, `result["gpt2"].quality`."""

    run_dir: Path
    """The folder that holds everything."""
    models: tuple[str, ...] = ()
    """The models' keys; empty on processes other than the first, and in a task of an array."""
    is_global_zero: bool = True
    """Whether this is the first process, which makes the vectors."""

    def __getitem__(self, model: str) -> ExtractedVectors:
        """Return what a model gave.

        Raises:
            KeyError: The run has no such model.
        """
        if model not in self.models:
            raise KeyError(f"{model!r}: the run has {', '.join(self.models)}")
        return ExtractedVectors(self.run_dir, model)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the models' keys."""
        return iter(self.models)

    def __len__(self) -> int:
        """Return the number of models."""
        return len(self.models)
