"""What a run left, for Python: tables as data frames, read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llm_entropy.outputs.summaries import SummaryRow, read_metric
from llm_entropy.settings import COMPARATIVE, KL_FROM_STANDARD, AnalysisSettings, Mode

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ConditionResult(Mapping[str, "pd.DataFrame"]):
    """The tables of one model under one condition, by metric: a row per sentence, a column per layer."""

    run_dir: Path
    condition: str
    model: str
    metrics: tuple[str, ...]

    def __getitem__(self, metric: str) -> pd.DataFrame:
        """Return a metric, rows in sentence order.

        Raises:
            KeyError: The run did not measure it.
        """
        if metric not in self.metrics:
            raise KeyError(f"{metric!r}: the run has {', '.join(self.metrics)}")
        return read_metric(self.run_dir, self.condition, self.model, metric)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the metrics."""
        return iter(self.metrics)

    def __len__(self) -> int:
        """Return the number of metrics."""
        return len(self.metrics)

    @property
    def predictions(self) -> pd.DataFrame:
        """The most likely tokens of the final layer: columns Sentence, Token, Probability, Analysis."""
        import pandas as pd

        name = "comparative_predictions" if self.condition == COMPARATIVE else "predictions"
        path = self.run_dir / self.condition / "predictions" / f"{self.model}_{name}.csv"
        return pd.read_csv(path, keep_default_na=False, encoding="utf-8")

    @property
    def records(self) -> pd.DataFrame:
        """Every record, one row each, as `output.parquet` writes them."""
        import pandas as pd

        return pd.read_parquet(self.run_dir / self.condition / "data" / f"{self.model}.parquet")


@dataclass(frozen=True)
class ModelResult(Mapping[str, ConditionResult]):
    """The tables of one model, by condition; `comparative` too, where the run compares."""

    run_dir: Path
    model: str
    """The model's key."""
    analysis: AnalysisSettings
    summary: list[SummaryRow]
    """Each metric in three numbers, as the terminal shows it."""

    def __getitem__(self, condition: str) -> ConditionResult:
        """Return the tables of a condition.

        Raises:
            KeyError: The run did not have it.
        """
        if condition not in tuple(self):
            raise KeyError(f"{condition!r}: the run has {', '.join(self)}")
        metrics = tuple(self.analysis.metrics)
        if condition == COMPARATIVE:
            metrics = (*metrics, KL_FROM_STANDARD)
        return ConditionResult(self.run_dir, condition, self.model, metrics)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the conditions."""
        yield from self.analysis.conditions
        if self.analysis.mode == COMPARATIVE:
            yield COMPARATIVE

    def __len__(self) -> int:
        """Return the number of conditions."""
        return len(tuple(iter(self)))


@dataclass(frozen=True)
class RunResult(Mapping[str, ModelResult]):
    """A finished run: `result["gpt2"]["standard"]["entropy"]` is a data frame, a row per sentence."""

    run_dir: Path
    """The folder that holds everything."""
    mode: Mode
    """What was written: `standard`, `control` or `comparative`."""
    models: dict[str, ModelResult]
    """By the models' keys; empty on processes other than the first."""
    is_global_zero: bool = True
    """Whether this is the first process, which makes the tables."""

    def __getitem__(self, model: str) -> ModelResult:
        """Return what a model gave.

        Raises:
            KeyError: The run has no such model.
        """
        if model not in self.models:
            raise KeyError(f"{model!r}: the run has {', '.join(self.models)}")
        return self.models[model]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the models' keys."""
        return iter(self.models)

    def __len__(self) -> int:
        """Return the number of models."""
        return len(self.models)
