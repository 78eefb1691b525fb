"""The settings of a run: the typed, documented shape of its configuration, and what a metric is called.

Plain data: nothing here imports anything heavy, not even for type checkers, so that help and errors are quick.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Optional, Union

from llm_entropy.errors import ReportedError
from llm_entropy.settings.fields import ARRAYS, make_plain_

STANDARD = "standard"
"""Name of the condition without steering."""
CONTROL = "control"
"""Name of the steered condition."""
COMPARATIVE = "comparative"
"""Name of the folder, and of the mode, in which both conditions are compared."""

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
"""Where Lightning looks for a process's number, whether or not anybody has started several."""

Kind = Literal["causal", "masked"]
Mode = Literal["standard", "control", "comparative"]


# --- metrics -----------------------------------------------------------------------------------------------------


class Metric(NamedTuple):
    """What a metric is called and measured in."""

    label: str
    """The words on a plot's axis."""
    unit: str
    """`nats`, `logits`, `tokens`, `nats squared`, or empty for a pure number."""
    axis: Literal["layer", "block"]
    """What the values run over: layers 0..L, or blocks 0..L-1."""


METRICS: dict[str, Metric] = {
    "entropy": Metric("entropy", "nats", "layer"),
    "perplexity": Metric("perplexity", "", "layer"),
    "margin": Metric("margin", "logits", "layer"),
    "kl_divergence": Metric("KL from uniform", "nats", "layer"),
    "surprisal": Metric("surprisal", "nats", "layer"),
    "attention_entropy": Metric("attention entropy", "nats", "block"),
    "kl_to_final": Metric("KL to the final layer", "nats", "layer"),
    "target_rank": Metric("rank of the target", "tokens", "layer"),
    "varentropy": Metric("varentropy", "nats squared", "layer"),
}
"""Every metric that `analysis.metrics` may name, in the order of the outputs."""

DEFAULT_METRICS = ("entropy", "perplexity", "margin", "kl_divergence", "attention_entropy", "surprisal")

ATTENTION_ENTROPY = "attention_entropy"
"""The one metric that is read from the attention instead of from a lens."""
KL_FROM_STANDARD = "kl_from_standard"
COMPARISON_METRICS: dict[str, Metric] = {KL_FROM_STANDARD: Metric("KL from standard to control", "nats", "layer")}
"""Metrics that need two conditions; they are always measured in a comparison."""


# --- settings ----------------------------------------------------------------------------------------------------

VectorLike = Union[str, list[float], list[list[float]]]


@dataclass
class ControlVectors:
    """A pair of control vectors, of which `direction` chooses one."""

    positive: Optional[VectorLike] = field(default=None, metadata=ARRAYS)
    """A file, or numbers: [hidden], [blocks, hidden] or [blocks + 1, hidden]; a shorter list is repeated."""
    negative: Optional[VectorLike] = field(default=None, metadata=ARRAYS)
    """As `positive`."""

    def __post_init__(self) -> None:
        make_plain_(self, "analysis.control.control_vectors")


@dataclass
class ControlSettings:
    """How the control condition steers the model."""

    enabled: Optional[bool] = None
    """Whether the control condition is run; null: if a vector is given."""
    control_vector: Optional[VectorLike] = field(default=None, metadata=ARRAYS)
    """A file (.pt, .safetensors, .npy, .gguf; `{model}` in it stands for the model's key), or numbers."""
    control_vectors: Optional[ControlVectors] = None
    """A pair to choose from by `direction`; `control_vector` goes before it."""
    direction: Literal["positive", "negative"] = "positive"
    """Which of `control_vectors` acts; for a single `control_vector`, negative turns its sign."""
    strength: float = 1.0
    """Factor on every vector."""
    layer_weights: Optional[list[float]] = None
    """A factor for each block (or one more, the first for the embeddings); other lengths are interpolated."""
    token_weights: Optional[list[float]] = None
    """Factors interpolated over the real tokens of each sentence."""

    def __post_init__(self) -> None:
        make_plain_(self, "analysis.control")
        _check_finite("analysis.control.strength", [self.strength])
        _check_finite("analysis.control.layer_weights", self.layer_weights)
        _check_finite("analysis.control.token_weights", self.token_weights)

    @property
    def has_vector(self) -> bool:
        """Whether any vector is given, whatever `enabled` says."""
        pair = self.control_vectors or ControlVectors()
        return any(vector is not None for vector in (self.control_vector, pair.positive, pair.negative))


@dataclass
class AnalysisSettings:
    """What is measured, where, and under which conditions."""

    num_sentences: Optional[Union[int, Literal["auto"]]] = "auto"
    """How many sentences, picked by `seed`, in corpus order; null: all; auto: all of a corpus, 10 built-in ones."""
    temperature: float = 1.0
    """Every logit is divided by it."""
    use_sampling: bool = False
    """Take a sampled token, instead of the most likely one, where the target is the predicted token."""
    compare_control: bool = False
    """Run standard and control and compare them; false: run what is enabled alone."""
    positions: Literal["last", "all"] = "last"
    """Causal models: the last token, or every token, of a sentence."""
    mask_strategy: Literal["last", "random", "each"] = "last"
    """Masked models: which token of a sentence without a mask token is masked."""
    lens: Literal["logit", "raw", "tuned"] = "logit"
    """How a layer becomes logits: the model's own norm and head, the head alone, or a trained affine map first."""
    lens_path: Optional[str] = None
    """Folder of a tuned lens (`params.pt` or `params.safetensors`); `{model}` stands for the model's key."""
    metrics: list[str] = field(default_factory=lambda: list(DEFAULT_METRICS))
    """Names of the metrics."""
    top_k: int = 5
    """How many tokens of the final layer the predictions list."""
    tracked_tokens: int = 3
    """For how many of them the probability is followed over the layers."""
    control: ControlSettings = field(default_factory=ControlSettings)
    """The control condition."""

    def __post_init__(self) -> None:
        make_plain_(self, "analysis")
        if isinstance(self.num_sentences, int):
            _check_at_least("analysis.num_sentences", self.num_sentences, 1, "or null for the whole corpus")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ReportedError(f"analysis.temperature: got {self.temperature}; expected a number above 0")
        _check_at_least("analysis.top_k", self.top_k, 1)
        _check_at_least("analysis.tracked_tokens", self.tracked_tokens, 1)
        if not self.metrics:
            raise ReportedError(f"analysis.metrics: got an empty list; expected some of {', '.join(METRICS)}")
        for name in self.metrics:
            if name not in METRICS:
                raise ReportedError(f"analysis.metrics: got {name!r}; expected some of {', '.join(METRICS)}")
        self.metrics = [name for name in METRICS if name in self.metrics]
        if self.lens == "tuned" and self.lens_path is None:
            raise ReportedError("analysis.lens_path: the tuned lens needs the folder of a trained lens")
        wants_control = self.compare_control or self.control.enabled
        if wants_control and not self.control.has_vector:
            key = "compare_control" if self.compare_control else "control.enabled"
            raise ReportedError(
                f"analysis.{key} is true, but there is no control vector; "
                "give analysis.control.control_vector (--control-vector FILE) or analysis.control.control_vectors"
            )
        if self.compare_control and self.control.enabled is False:
            raise ReportedError("analysis.compare_control is true, but analysis.control.enabled is false; change one")

    @property
    def mode(self) -> Mode:
        """What the run writes: `comparative`, `control` or `standard`."""
        if self.compare_control:
            return "comparative"
        enabled = self.control.has_vector if self.control.enabled is None else self.control.enabled
        return "control" if enabled else "standard"

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions of the run, the standard one first."""
        return {"comparative": (STANDARD, CONTROL), "control": (CONTROL,), "standard": (STANDARD,)}[self.mode]


@dataclass
class ModelSettings:
    """Which model, and how it is loaded."""

    name: str
    """A hub name, a local folder, or `builtin:tiny-gpt2`, `builtin:tiny-bert`."""
    revision: Optional[str] = None
    """Branch, tag or commit of a hub model."""
    dtype: Optional[Literal["float32", "bfloat16", "float16"]] = None
    """Type of the weights; null: what `trainer.precision` says."""
    trust_remote_code: bool = False
    """Allow the model's own code to run."""
    output_hidden_states: bool = True
    """Accepted, without effect: layers are always read."""

    def __post_init__(self) -> None:
        make_plain_(self, "ModelSettings")


@dataclass
class DataSettings:
    """Which sentences."""

    path: Optional[str] = None
    """A file or glob (csv, tsv, json, jsonl, parquet, arrow, txt), a saved data set, or a hub name; null: built in."""
    name: Optional[str] = None
    """Configuration of a hub data set."""
    split: str = "train"
    """Split of the data set."""
    text_column: Optional[str] = None
    """Column that holds the sentences; null: the only text column."""
    delimiter: Optional[str] = None
    """csv, tsv: the character between fields, or `tab`; null: found among `,` `;` `|` and the tab."""
    quoting: Literal["auto", "minimal", "backslash", "none"] = "auto"
    """csv, tsv: fields may stand in quotes; the same, with a backslash before quotes in them; quotes are text."""
    header: Union[bool, Literal["auto"]] = "auto"
    """csv, tsv: whether the first line names the columns; auto: found."""
    encoding: Optional[str] = None
    """csv, tsv, json, jsonl, txt: of the files, such as cp1252; null: UTF-8, or what a byte order mark says."""
    streaming: bool = False
    """Read rows as they come, instead of fetching the whole data set first: for corpora larger than the disk."""
    max_length: Optional[int] = None
    """Most tokens of a sentence; null: what the model allows. Longer sentences are cut and counted."""
    tokens_per_batch: Union[int, Literal["auto"]] = "auto"
    """How many tokens, padding included, fill a batch; auto: by the cache of a CPU, by the memory of a GPU."""
    num_workers: int = 0
    """Processes that read and tokenise beside each process that runs a model."""
    num_shards: int = 1
    """Of how many tasks of an array this run consists; each does its share of the corpus, and merges nothing."""
    shard_index: Optional[int] = None
    """Which of them this is, from 0 on; null: SLURM_ARRAY_TASK_ID."""

    def __post_init__(self) -> None:
        make_plain_(self, "data")
        self.delimiter = _DELIMITER_NAMES.get(self.delimiter or "", self.delimiter)
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '\r\n"'):
            raise ReportedError(f"data.delimiter: got {self.delimiter!r}; expected one character, or tab")
        if self.encoding is not None:
            _check_encoding(self.encoding)
        if self.max_length is not None:
            _check_at_least("data.max_length", self.max_length, 3)
        if self.tokens_per_batch != "auto":
            _check_at_least("data.tokens_per_batch", self.tokens_per_batch, 1)
        _check_at_least("data.num_workers", self.num_workers, 0)
        _check_at_least("data.num_shards", self.num_shards, 1)
        if self.shard_index is not None and not 0 <= self.shard_index < self.num_shards:
            raise ReportedError(
                f"data.shard_index: got {self.shard_index}; expected a number from 0 to {self.num_shards - 1}, "
                "below data.num_shards"
            )


@dataclass
class TrainerSettings:
    """Where it runs: arguments of Lightning's Trainer."""

    accelerator: str = "auto"
    """cpu, gpu, ... or auto."""
    devices: Union[int, list[int], str] = "auto"
    """How many, or which, devices of each node."""
    num_nodes: int = 1
    """How many nodes."""
    strategy: str = "auto"
    """Lightning's strategy."""
    precision: Literal["32-true", "bf16-true", "16-true"] = "32-true"
    """Type of the weights and of the forward pass; the statistics are float32 always."""

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
    """Whether metrics, token probabilities and predictions are written as CSV: silly beyond a million sentences."""
    plots: bool = True
    """Whether plots are drawn."""
    parquet: bool = True
    """Whether every record is written as Parquet beside the CSV files."""
    part_megabytes: float = 16.0
    """A process writes its records to a file of shards when so much has come together."""
    part_seconds: float = 60.0
    """It writes them after so many seconds at the latest: what a kill costs; 0: after every batch."""

    def __post_init__(self) -> None:
        make_plain_(self, "output")
        _check_at_least("output.part_megabytes", self.part_megabytes, 0)
        _check_at_least("output.part_seconds", self.part_seconds, 0)


def default_models() -> dict[str, Union[str, ModelSettings]]:
    """Return the models of the default analysis: one causal, one masked."""
    return {"gpt2": ModelSettings("gpt2"), "bert": ModelSettings("google-bert/bert-base-uncased")}


@dataclass
class Settings:
    """One run, whole: what `config.yaml` holds."""

    seed: int = 0
    analysis: AnalysisSettings = field(default_factory=AnalysisSettings)
    models: dict[str, Union[str, ModelSettings]] = field(default_factory=default_models)
    data: DataSettings = field(default_factory=DataSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    output: OutputSettings = field(default_factory=OutputSettings)

    def __post_init__(self) -> None:
        _refuse_loaded(self.models)
        make_plain_(self)
        _check_at_least("seed", self.seed, 0)
        if not self.models:
            raise ReportedError("models: got none; expected at least one, as {gpt2: {name: gpt2}}")
        for key in self.models:
            if not key or not all(character.isalnum() or character in "-_." for character in key):
                raise ReportedError(f"models: the key {key!r} names files; use letters, digits, '-', '_' and '.'")


def _refuse_loaded(models: Any) -> None:
    """Refuse a model that has been loaded, of whatever library: it is read from where it lies, and written down so."""
    for key, model in models.items() if isinstance(models, Mapping) else ():
        if not isinstance(model, (str, os.PathLike, Mapping, ModelSettings)):
            raise ReportedError(
                f"models.{key}: got {type(model).__name__}; expected a hub name, a folder, or settings; save a model "
                "that is loaded, and its tokenizer, with save_pretrained(FOLDER), and give the folder"
            )


def _check_finite(key: str, numbers: Optional[Sequence[float]]) -> None:
    if numbers is not None and (not numbers or not all(math.isfinite(number) for number in numbers)):
        raise ReportedError(f"{key}: got {numbers}; expected finite numbers")


_DELIMITER_NAMES = {"tab": "\t", "\\t": "\t"}
"""What a shell or a YAML file lets through more easily than the character itself."""


def _check_encoding(encoding: str) -> None:
    try:
        "a".encode(encoding)
    except LookupError as error:
        raise ReportedError(
            f"data.encoding: got {encoding!r}; expected a name such as utf-8, cp1252 or utf-16"
        ) from error


def _check_at_least(key: str, number: float, least: int, otherwise: str = "") -> None:
    if not number >= least:
        raise ReportedError(f"{key}: got {number}; expected at least {least} {otherwise}".rstrip())


def to_plain(settings: Any) -> Any:
    """Return settings as plain dicts, lists and numbers, ready for YAML."""
    if isinstance(settings, dict):
        return {key: to_plain(value) for key, value in settings.items()}
    if isinstance(settings, (list, tuple)):
        return [to_plain(value) for value in settings]
    if hasattr(settings, "__dataclass_fields__"):
        return {name: to_plain(getattr(settings, name)) for name in settings.__dataclass_fields__}
    return settings
