"""The sections of the configuration."""

import difflib
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Literal, Optional, Union

from llm_entropy.errors import ReportedError
from llm_entropy.settings.conditions import Condition, Mode, make_conditions, mode_of
from llm_entropy.settings.control import ControlSettings
from llm_entropy.settings.data import DataSettings
from llm_entropy.settings.fields import check_at_least, make_plain_
from llm_entropy.settings.metrics import DEFAULT_METRICS, METRICS, beside_sinks
from llm_entropy.settings.plots import LENS_GRID, PLOTS, PlotFormat

LEAST_FROM_SHANNON = 0.02
"""How near an order a of Rényi's entropy may come to 1: float32 leaves an error of about 1e-6 / abs(a - 1) nats."""

DEFAULT_NEW_TOKENS = 32
"""Most tokens that are written where the settings do not say it."""


@dataclass
class AnalysisSettings:
    """What is measured, where, and under which conditions."""

    num_sentences: Optional[Union[int, Literal["auto"]]] = "auto"
    """Number of sentences, picked by `seed`, in corpus order; null: all; auto: all of a corpus, 10 built-in ones."""
    temperature: float = 1.0
    """Every logit is divided by it."""
    use_sampling: bool = False
    """Sample the tokens that are predicted or written, instead of taking the most likely ones."""
    compare_control: bool = False
    """Compare control with standard; false: run control alone if it is enabled, otherwise standard alone."""
    positions: Literal["last", "all", "generated"] = "last"
    """Where causal models are read: at the last token, at all tokens, or at the tokens that they write (generated)."""
    max_new_tokens: Optional[int] = None
    """`positions: generated`: largest number of tokens to write; null: 32."""
    top_p: Optional[float] = None
    """`positions: generated`: sample among the most likely tokens that together have this probability; null: all."""
    mask_strategy: Literal["last", "random", "each", "within_word_l2r"] = "last"
    """Which token masked models mask; each: each in turn; within_word_l2r: each in turn, with the rest of its word."""
    words: bool = False
    """Make a table of words. Causal models need positions: all, masked ones mask_strategy: within_word_l2r."""
    lens: Literal["logit", "raw", "tuned"] = "logit"
    """How a layer becomes logits: the model's own norm and head, the head alone, or a trained affine map first."""
    lens_path: Optional[str] = None
    """Folder of a tuned lens (`params.pt` or `params.safetensors`); `{model}` stands for the model's key."""
    metrics: list[str] = field(default_factory=lambda: list(DEFAULT_METRICS))
    """Names of the metrics; models with attention sinks have `sink_mass` beside those of the attention."""
    renyi_order: float = 2.0
    """Order a of `renyi_entropy`, ln(sum p^a) / (1 - a)."""
    top_k: int = 5
    """How many tokens of the final layer the predictions list."""
    tracked_tokens: int = 3
    """Number of the final layer's most likely tokens whose probability is tracked over the layers."""
    lens_tokens: bool = False
    """Record each layer's own most likely token and its probability: the report's lens grid, and the plot of it."""
    control: ControlSettings = field(default_factory=ControlSettings)
    """The control condition."""
    conditions: dict[str, ControlSettings] = field(default_factory=dict)
    """Further steered conditions, by name; each has all keys of `control`."""

    def __post_init__(self) -> None:
        make_plain_(self, "analysis")
        if isinstance(self.num_sentences, int):
            check_at_least("analysis.num_sentences", self.num_sentences, 1, "or null for the whole corpus")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ReportedError(f"analysis.temperature: got {self.temperature}; expected a number above 0")
        order = self.renyi_order
        if not (math.isfinite(order) and order > 0 and abs(order - 1) >= LEAST_FROM_SHANNON):
            raise ReportedError(
                f"analysis.renyi_order: got {order}; expected a number above 0, and not within {LEAST_FROM_SHANNON} of "
                "1, where it is the entropy"
            )
        self._check_generation()
        check_at_least("analysis.top_k", self.top_k, 1)
        check_at_least("analysis.tracked_tokens", self.tracked_tokens, 1)
        if not self.metrics:
            raise ReportedError(f"analysis.metrics: got an empty list; expected some of {', '.join(METRICS)}")
        for name in self.metrics:
            if name not in METRICS:
                raise ReportedError(
                    f"analysis.metrics: got {name!r}{_meant(name, METRICS)}; expected some of {', '.join(METRICS)}"
                )
        self.metrics = [name for name in METRICS if name in self.metrics]
        if self.lens == "tuned" and self.lens_path is None:
            raise ReportedError(
                "analysis.lens_path: got null, but analysis.lens is tuned, which needs the folder of a trained lens; "
                "give --analysis.lens_path FOLDER"
            )
        self.run_conditions  # noqa: B018 - what is wrong with them is found before anything is done

    def _check_generation(self) -> None:
        """Refuse settings of generated text that are out of range, or without effect."""
        for name in ("max_new_tokens", "top_p"):
            if getattr(self, name) is not None and not self.is_generated:
                raise ReportedError(
                    f"analysis.{name}: got {getattr(self, name)}, but analysis.positions is {self.positions}; set the "
                    "positions to generated, or leave it out"
                )
        if self.max_new_tokens is not None:
            check_at_least("analysis.max_new_tokens", self.max_new_tokens, 1)
        if self.top_p is None:
            return
        if not 0 < self.top_p <= 1:
            raise ReportedError(f"analysis.top_p: got {self.top_p}; expected a number above 0, up to 1")
        if not self.use_sampling:
            raise ReportedError(
                f"analysis.top_p: got {self.top_p}, but analysis.use_sampling is false; set it to true, or leave "
                "top_p out"
            )

    @property
    def is_generated(self) -> bool:
        """Whether the model writes the text that is read."""
        return self.positions == "generated"

    @property
    def num_new_tokens(self) -> int:
        """Most tokens that the model writes behind a sentence; 0: it writes none."""
        if not self.is_generated:
            return 0
        return DEFAULT_NEW_TOKENS if self.max_new_tokens is None else self.max_new_tokens

    @property
    def run_conditions(self) -> tuple[Condition, ...]:
        """The conditions of the run, in order."""
        return make_conditions(self.control, self.conditions, compares=self.compare_control)

    @property
    def mode(self) -> Mode:
        """What the run writes: `comparative`, `control` or `standard`."""
        return mode_of(self.run_conditions)


@dataclass
class ModelSettings:
    """Which model, and how it is loaded."""

    KEY: ClassVar[str] = "ModelSettings"
    """Its place in messages, until it has a key."""

    name: str
    """A hub name, a local folder, or `builtin:tiny-gpt2`, `builtin:tiny-bert`."""
    revision: Optional[str] = None
    """Branch, tag or commit of a hub model."""
    gguf_file: Optional[str] = None
    """A GGUF file in the folder or hub repository `name`; it is dequantised. `name` may also be the file itself."""
    adapter: Optional[str] = None
    """A PEFT adapter (LoRA, ...): a folder or hub name. It is merged into the model in float32."""
    dtype: Optional[Literal["float32", "bfloat16", "float16", "auto"]] = None
    """Type of the weights; auto: that of the checkpoint; null: what `trainer.precision` says."""
    trust_remote_code: bool = False
    """Run code that lies beside the model's weights, from the hub or its folder; false: such a model is refused."""
    output_hidden_states: bool = True
    """Has no effect; it is accepted because older configurations have it."""

    def __post_init__(self) -> None:
        make_plain_(self, self.KEY)


@dataclass
class TrainerSettings:
    """Where it runs: arguments of Lightning's Trainer."""

    accelerator: str = "auto"
    """cpu, gpu, ... or auto."""
    devices: Union[int, list[int], str] = "auto"
    """Number of devices on each node, or a list of them."""
    num_nodes: int = 1
    """Number of nodes."""
    strategy: str = "auto"
    """Lightning's strategy."""
    precision: Literal["32-true", "bf16-true", "16-true"] = "32-true"
    """Type of the weights and of the forward pass. The statistics are always float32."""

    def __post_init__(self) -> None:
        make_plain_(self, "trainer")


@dataclass
class OutputSettings:
    """What is written, and where."""

    dir: str = "analysis_outputs"
    """Folder of the runs."""
    run_name: Optional[str] = None
    """Name of this run's folder; null: run_{timestamp}_{id}."""
    csv: bool = True
    """Whether tables and predictions are also written as CSV. Turn it off beyond a million sentences."""
    plots: Union[bool, list[str]] = True
    """Whether plots are drawn, or a list of metrics and kinds of plot, as [layer_impact, entropy]."""
    plot_format: PlotFormat = "png"
    """File format of the plots."""
    parquet: bool = True
    """Whether every record is written as Parquet."""
    report: bool = True
    """Whether report.html is made, one page with the findings of the run."""
    part_megabytes: float = 16.0
    """Megabytes of records that a process collects before it writes them to a shard file."""
    part_seconds: float = 60.0
    """Most seconds between two shard files of a process, which a kill can lose; 0: a file after every batch."""

    def __post_init__(self) -> None:
        make_plain_(self, "output")
        for name in self.plots if isinstance(self.plots, list) else ():
            if name not in PLOTS:
                raise ReportedError(
                    f"output.plots: got {name!r}{_meant(name, PLOTS)}; expected true, false, or some of "
                    f"{', '.join(PLOTS)}"
                )
        check_at_least("output.part_megabytes", self.part_megabytes, 0)
        check_at_least("output.part_seconds", self.part_seconds, 0)

    @property
    def draws(self) -> bool:
        """Whether any plot is drawn."""
        return bool(self.plots)


LOADED_PREFIX = "loaded:"
"""Begins the name of a model that was given in memory; the class of the model follows."""


def is_loaded(model: Union[str, ModelSettings]) -> bool:
    """Whether settings stand for a model that was given in memory."""
    return (model if isinstance(model, str) else model.name).startswith(LOADED_PREFIX)


def default_models() -> dict[str, Union[str, ModelSettings]]:
    """Return the models of the default analysis: one causal, one masked."""
    return {"gpt2": ModelSettings("gpt2"), "bert": ModelSettings("google-bert/bert-base-uncased")}


@dataclass
class Settings:
    """All settings of a run, as its `config.yaml` holds them."""

    COMMAND: ClassVar[str] = "predict"
    """The command that runs it."""

    seed: int = 0
    """Seed of every random choice: sentences, masks, tokens, placebos, resamples."""
    analysis: AnalysisSettings = field(default_factory=AnalysisSettings)
    models: dict[str, Union[str, ModelSettings]] = field(default_factory=default_models)
    data: DataSettings = field(default_factory=DataSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    output: OutputSettings = field(default_factory=OutputSettings)

    def __post_init__(self) -> None:
        _refuse_loaded(self.models)
        make_plain_(self)
        check_at_least("seed", self.seed, 0)
        if self.analysis.is_generated and self.data.target_column is not None:
            raise ReportedError(
                f"data.target_column: got {self.data.target_column!r}, but analysis.positions is generated; answers "
                "are read behind the sentences as they are, so set the positions to last, or leave the answers out"
            )
        self._refuse_columns_of_outputs()
        for name in self.output.plots if isinstance(self.output.plots, list) else ():
            if name in METRICS and name not in beside_sinks(self.analysis.metrics):
                raise ReportedError(
                    f"output.plots: got {name!r}, which the run does not measure; analysis.metrics has "
                    f"{', '.join(self.analysis.metrics)}"
                )
        if isinstance(self.output.plots, list) and LENS_GRID in self.output.plots and not self.analysis.lens_tokens:
            raise ReportedError(
                f"output.plots: got {LENS_GRID!r}, which the run does not record; set analysis.lens_tokens to true"
            )
        if not self.models:
            raise ReportedError("models: got none; expected at least one, as {gpt2: {name: gpt2}}")
        for key in self.models:
            if not key or not all(character.isalnum() or character in "-_." for character in key):
                raise ReportedError(
                    f"models: the key {key!r} is used in file names; use only letters, digits, '-', '_' and '.'"
                )

    def _refuse_columns_of_outputs(self) -> None:
        """Refuse to keep a column by the name of one that a table has; those of every run are refused as it is read."""
        answers, is_generated = self.data.target_column is not None, self.analysis.is_generated
        tables = {"words": self.analysis.words, "generated text": is_generated, "answers": answers}
        for what in (what for what, is_made in tables.items() if is_made):
            for name in self.data.keep_columns:
                if name in TABLE_COLUMNS[what]:
                    raise ReportedError(
                        f"data.keep_columns: the tables of {what} already have a column {name!r}; rename the column of "
                        "the corpus"
                    )


TABLE_COLUMNS = {
    "words": ("word", "start", "end", "num_tokens", "corrected_surprisal", "entropy_before"),
    "generated text": ("Sentence", "Continuation", "Analysis", "tokens", "continuation"),
    "answers": (
        *("target", "foil", "target_surprisal", "foil_surprisal", "target_rank", "target_probability"),
        "preferred_from",
    ),
}
"""Columns of tables that not every run has, which no column of the corpus beside them may be called."""


def _refuse_loaded(models: Any) -> None:
    """Refuse a loaded model in the settings: they are written to a file, which can only name a folder or the hub."""
    for key, model in models.items() if isinstance(models, Mapping) else ():
        if not isinstance(model, (str, os.PathLike, Mapping, ModelSettings)):
            raise ReportedError(
                f"models.{key}: got {type(model).__name__}; expected a hub name, a folder, or settings; save a model "
                "that is loaded, and its tokenizer, with save_pretrained(FOLDER), and give the folder"
            )


def _meant(name: str, known: Iterable[str]) -> str:
    """Return a question for the known name that is nearest to an unknown one; empty: none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def to_plain(settings: Any) -> Any:
    """Return settings as plain dicts, lists and numbers, ready for YAML."""
    if isinstance(settings, dict):
        return {key: to_plain(value) for key, value in settings.items()}
    if isinstance(settings, (list, tuple)):
        return [to_plain(value) for value in settings]
    if is_dataclass(settings):
        return {item.name: to_plain(getattr(settings, item.name)) for item in fields(settings)}
    return settings
