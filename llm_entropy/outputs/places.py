"""Where the outputs of a run lie, and what they are called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llm_entropy.settings import COMPARATIVE, COMPARISON_METRICS, Comparison, Condition


@dataclass(frozen=True)
class Place:
    """The files of one model under a condition, or in a comparison."""

    folder: Path
    """Holds `data`, `plots` and `predictions`."""
    model: str
    """The model's key, the first part of every file name."""
    is_compared: bool = False
    """Whether it is a comparison's."""

    def metric(self, metric: str) -> Path:
        """Return the CSV file of a metric."""
        mark = "_comparative" if self.is_compared and metric not in COMPARISON_METRICS else ""
        return self.folder / "data" / f"{self.model}_{metric}{mark}.csv"

    @property
    def token_probabilities(self) -> Path:
        """The CSV file of the tokens that are followed over the layers."""
        return self.folder / "data" / f"{self.model}_token_probabilities.csv"

    @property
    def sentences(self) -> Path:
        """The CSV file of the sentences, with columns of the corpus."""
        return self.folder / "data" / f"{self.model}_sentences.csv"

    @property
    def answers(self) -> Path:
        """The CSV file of the answers; the Parquet file beside it has the same name."""
        return self.folder / "data" / f"{self.model}_answers.csv"

    @property
    def groups(self) -> Path:
        """The CSV file of the groups of sentences."""
        return self.folder / "data" / f"{self.model}_groups.csv"

    @property
    def group_differences(self) -> Path:
        """The CSV file of the differences between groups."""
        return self.folder / "data" / f"{self.model}_group_differences.csv"

    @property
    def records(self) -> Path:
        """The Parquet file of all records."""
        return self.folder / "data" / f"{self.model}.parquet"

    def words(self, suffix: str) -> Path:
        """Return the table of words, `.csv` or `.parquet`."""
        return self.folder / "data" / f"{self.model}_words{suffix}"

    @property
    def predictions(self) -> Path:
        """The CSV file of the most likely tokens."""
        mark = "comparative_" if self.is_compared else ""
        return self.folder / "predictions" / f"{self.model}_{mark}predictions.csv"

    @property
    def generations(self) -> Path:
        """The CSV file of the texts that the model wrote."""
        return self.folder / "predictions" / f"{self.model}_generations.csv"

    @property
    def texts(self) -> Path:
        """The CSV file of what is counted in these texts."""
        return self.folder / "data" / f"{self.model}_texts.csv"

    def plot(self, name: str) -> Path:
        """Return the file of a figure."""
        return self.folder / "plots" / f"{self.model}_{name}.png"


def place_of_condition(run_dir: Path, condition: Condition, model: str) -> Place:
    """Return where the files of a condition are.

    Args:
        run_dir: The run's folder, or one that is laid out like it.
        condition: One that keeps tokens.
        model: The model's key; `models` for what shows all of them.
    """
    return Place(run_dir / condition.folder, model)


def place_of_comparison(run_dir: Path, comparison: Comparison, model: str) -> Place:
    """Return where the files of a comparison are.

    Args:
        run_dir: The run's folder, or one that is laid out like it.
        comparison: Its other condition keeps tokens.
        model: The model's key.
    """
    return Place(run_dir / comparison.other.comparison_folder, model, is_compared=True)


def place_of_comparisons(run_dir: Path, model: str) -> Place:
    """Return where the files are that show all comparisons of a model together.

    Args:
        run_dir: The run's folder, or one that is laid out like it.
        model: The model's key.
    """
    return Place(run_dir / COMPARATIVE, model, is_compared=True)


def placebos_path(run_dir: Path, model: str) -> Path:
    """Return where the table of a model's placebos is, if the run has any.

    Args:
        run_dir: The run's folder, or one that is laid out like it.
        model: The model's key.
    """
    return run_dir / COMPARATIVE / "data" / f"{model}_placebos.parquet"


def summary_path(run_dir: Path, model: str) -> Path:
    """Return where the summary of a model's comparisons is, if the run compares.

    Args:
        run_dir: The run's folder, or one that is laid out like it.
        model: The model's key.
    """
    return run_dir / COMPARATIVE / "data" / f"{model}_summary.csv"


def doses_path(run_dir: Path, model: str) -> Path:
    """Return where the table of a model's doses is, if a vector has several strengths.

    Args:
        run_dir: The run's folder, or one that is laid out like it.
        model: The model's key.
    """
    return run_dir / COMPARATIVE / "data" / f"{model}_dose.csv"
