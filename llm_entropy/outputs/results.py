"""What a run left, for Python: tables as data frames, read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from llm_entropy.errors import ReportedError
from llm_entropy.outputs.places import Place, place_of_comparison, place_of_condition
from llm_entropy.outputs.reading import read_comparison, read_doses, read_metric, read_placebos, read_summary
from llm_entropy.outputs.report import REPORT, ReportPage
from llm_entropy.outputs.shown import html_of_line, html_of_model, html_of_run, listed, tidy
from llm_entropy.outputs.summaries import EffectRow, SummaryRow
from llm_entropy.settings import COMPARISON_METRICS, AnalysisSettings, Comparison, Condition, Mode, compared
from llm_entropy.settings.plots import LENS_GRID

if TYPE_CHECKING:
    import pandas as pd

    from llm_entropy.outputs.plots.canvas import NotebookFigure


@dataclass(frozen=True, repr=False)
class ConditionResult(Mapping[str, "pd.DataFrame"]):
    """The tables of one model under one condition, or in one comparison, by metric: a column per layer."""

    place: Place
    """Where its files are."""
    metrics: tuple[str, ...]
    read: Callable[[str], pd.DataFrame]
    """Reads a metric: of a condition a row per sentence, of a comparison four."""
    name: str = ""
    """As in `ModelResult`."""
    of: Optional[tuple[Path, Condition | Comparison]] = None
    """The run's folder, and the condition or the comparison."""

    def __getitem__(self, metric: str) -> pd.DataFrame:
        """Return a metric, rows in sentence order.

        Raises:
            KeyError: The run did not measure it.
        """
        if metric not in self.metrics:
            raise KeyError(f"{metric!r}: the run has {', '.join(self.metrics)}")
        return self.read(metric)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the metrics."""
        return iter(self.metrics)

    def __len__(self) -> int:
        """Return the number of metrics."""
        return len(self.metrics)

    def __repr__(self) -> str:
        """Return one line."""
        return f"<{type(self).__name__} {self.place.model}, {self.name}: {listed(self)}>"

    def _repr_html_(self) -> str:
        return html_of_line(repr(self))

    def plot(self, metric: str, *, sentence: Optional[int] = None) -> NotebookFigure:
        """Return a metric over depth as a matplotlib figure; of a comparison both conditions, with the interval.

        Args:
            metric: Its name; or `lens_grid`, each layer's own most likely token, of a comparison side by side.
            sentence: `lens_grid`: whose positions are drawn, by its row in the tables, from 0 on; None: the first that
                is read at several positions, or where each is read at one, several sentences.

        Raises:
            KeyError: The run did not measure it, or did not record it (`analysis.lens_tokens`).
            ReportedError: There is no such sentence, or a metric was asked for of one.
        """
        from llm_entropy.outputs.replot import plot_comparison, plot_condition, plot_lens_grid

        assert self.of is not None
        run_dir, shown = self.of
        if metric == LENS_GRID:
            return plot_lens_grid(run_dir, self.place.model, shown, sentence)
        if metric not in self.metrics:
            raise KeyError(f"{metric!r}: the run has {', '.join(self.metrics)}")
        if sentence is not None:
            raise ReportedError(f"sentence: got {sentence}, but {metric} is drawn for all of them; leave it out")
        if isinstance(shown, Comparison):
            return plot_comparison(run_dir, self.place.model, shown, metric)
        return plot_condition(run_dir, self.place.model, shown, metric)

    def tidy(self) -> pd.DataFrame:
        """Return all metrics as one long table: a row per metric, sentence and layer.

        Returns:
            Columns model, condition, metric, row (the sentence's number), sentence, layer (or block), value; of a
            comparison quantity too.
        """
        import pandas as pd

        about = {"model": self.place.model, "condition": self.name}
        return pd.concat([tidy(self[metric], **about, metric=metric) for metric in self], ignore_index=True)

    @property
    def predictions(self) -> pd.DataFrame:
        """The most likely tokens of the final layer: columns Sentence, Token, Probability, Analysis."""
        import pandas as pd

        return pd.read_csv(self.place.predictions, keep_default_na=False, encoding="utf-8")

    @property
    def generations(self) -> pd.DataFrame:
        """What the model wrote, with `positions: generated`: Sentence, Continuation, Analysis, tokens, kept columns."""
        import pandas as pd

        return pd.read_csv(self.place.generations, keep_default_na=False, encoding="utf-8")

    @property
    def texts(self) -> pd.DataFrame:
        """What is counted in these texts, a row per sentence: length, distinct-1 and -2, longest repetition.

        In a comparison also the surprisal under the standard model and KL from it, both at the last layer.
        """
        import pandas as pd

        return pd.read_csv(self.place.texts, index_col="sentence", na_values={}, encoding="utf-8")

    @property
    def answers(self) -> pd.DataFrame:
        """The answers of a condition, a row per sentence that has one, as `{model}_answers.parquet` holds them.

        Raises:
            FileNotFoundError: The run had none (`data.target_column`), or wrote no Parquet.
        """
        import pandas as pd

        return pd.read_parquet(self.place.answers.with_suffix(".parquet"))

    @property
    def records(self) -> pd.DataFrame:
        """Every record, one row each, as `output.parquet` writes them."""
        import pandas as pd

        return pd.read_parquet(self.place.records)

    @property
    def words(self) -> pd.DataFrame:
        """The words of a condition, one row each; the run needs `analysis.words` and `output.parquet`."""
        import pandas as pd

        return pd.read_parquet(self.place.words(".parquet"))


@dataclass(frozen=True, repr=False)
class ModelResult(Mapping[str, ConditionResult]):
    """The tables of one model: of the conditions by name, then of the comparisons by folder, as `comparative`.

    With several steered conditions the comparisons are `comparative/control_+1` and so on.
    """

    run_dir: Path
    model: str
    """The model's key."""
    analysis: AnalysisSettings
    overview: list[SummaryRow]
    """The means of each metric, as the terminal shows them."""
    effects: list[EffectRow]
    """What each condition changes at the last layer, and where it changes most; as the terminal shows it."""

    def __getitem__(self, name: str) -> ConditionResult:
        """Return the tables of a condition, or of a comparison.

        Raises:
            KeyError: The run did not have it.
        """
        if name not in self._tables:
            raise KeyError(f"{name!r}: the run has {', '.join(self)}")
        return self._tables[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the conditions, then over those of the comparisons; placebos have no tables."""
        return iter(self._tables)

    def __len__(self) -> int:
        """Return the number of conditions and comparisons."""
        return len(self._tables)

    def __repr__(self) -> str:
        """Return one line."""
        return f"<{type(self).__name__} {self.model}: {listed(self)}>"

    def _repr_html_(self) -> str:
        return html_of_line(repr(self)) + html_of_model(self.overview, self.effects)

    def plot(self, metric: str, *, sentence: Optional[int] = None) -> NotebookFigure:
        """Return a metric of the first condition, the standard one where it was run, as a matplotlib figure.

        Of `lens_grid` it is the first comparison, where the run compares: both conditions side by side.

        Args:
            metric: As in `ConditionResult.plot`.
            sentence: Likewise.

        Raises:
            KeyError: The run did not measure it, or did not record it.
            ReportedError: As in `ConditionResult.plot`.
        """
        shown = list(self.values())
        compared_first = sorted(shown, key=lambda one: not (one.of and isinstance(one.of[1], Comparison)))
        return (compared_first if metric == LENS_GRID else shown)[0].plot(metric, sentence=sentence)

    def tidy(self) -> pd.DataFrame:
        """Return all metrics of all conditions as one long table, as `ConditionResult.tidy`; without comparisons."""
        import pandas as pd

        own = [one.tidy() for one in self.values() if one.of is not None and isinstance(one.of[1], Condition)]
        return pd.concat(own, ignore_index=True)

    @property
    def summary(self) -> pd.DataFrame:
        """What each condition changes, and how surely: a row per condition, metric and layer.

        The columns are those of `comparative/data/{model}_summary.csv`; no row where the run compares nothing.
        """
        return read_summary(self.run_dir, self.model)

    @property
    def doses(self) -> pd.DataFrame:
        """How metrics grow with the strength of each vector: the rows of `comparative/data/{model}_dose.csv`."""
        return read_doses(self.run_dir, self.model)

    @property
    def placebos(self) -> pd.DataFrame:
        """What the placebos changed: a row for each of them, metric and layer; no row where the run has none."""
        return read_placebos(self.run_dir, self.model)

    @cached_property
    def _tables(self) -> dict[str, ConditionResult]:
        run_dir, model = self.run_dir, self.model
        metrics, conditions = tuple(self.analysis.metrics), self.analysis.run_conditions
        tables = {
            condition.name: ConditionResult(
                place_of_condition(run_dir, condition, model),
                metrics,
                partial(read_metric, run_dir, model, condition),
                condition.name,
                (run_dir, condition),
            )
            for condition in conditions
            if condition.keeps_tokens
        }
        return tables | {
            comparison.other.comparison_folder: ConditionResult(
                place_of_comparison(run_dir, comparison, model),
                (*metrics, *COMPARISON_METRICS),
                partial(read_comparison, run_dir, model, comparison),
                comparison.other.comparison_folder,
                (run_dir, comparison),
            )
            for comparison in compared(conditions)
            if comparison.other.keeps_tokens
        }


@dataclass(frozen=True, repr=False)
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

    @property
    def report(self) -> Optional[ReportPage]:
        """The run's report.html: a notebook shows the page; None where there is none."""
        page = ReportPage(self.run_dir / REPORT)
        return page if page.path.is_file() else None

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

    def __repr__(self) -> str:
        """Return one line."""
        return f"<{type(self).__name__} {self.mode}, in {self.run_dir}: {listed(self)}>"

    def _repr_html_(self) -> str:
        models = [(key, html_of_model(model.overview, model.effects)) for key, model in self.items()]
        return html_of_run(self.mode, self.run_dir, models)

    def plot(self, metric: str) -> NotebookFigure:
        """Return the means of all models over relative depth, in the first condition, as a matplotlib figure.

        Raises:
            KeyError: The run did not measure it.
        """
        from llm_entropy.outputs.replot import plot_models

        firsts = {key: next(iter(model.values())) for key, model in self.items()}
        measured = [key for key, first in firsts.items() if metric in first.metrics]
        if not measured:
            every = dict.fromkeys(name for first in firsts.values() for name in first.metrics)
            raise KeyError(f"{metric!r}: the run has {', '.join(every)}")
        of = firsts[measured[0]].of
        assert of is not None
        assert isinstance(of[1], Condition)
        return plot_models(self.run_dir, measured, of[1], metric)

    def tidy(self) -> pd.DataFrame:
        """Return all metrics of all models and conditions as one long table, as `ConditionResult.tidy`."""
        import pandas as pd

        return pd.concat([model.tidy() for model in self.values()], ignore_index=True)
