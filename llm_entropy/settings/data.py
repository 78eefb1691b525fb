"""Which sentences, and how their files are read: the settings of the corpus."""

from dataclasses import dataclass, field
from typing import Literal, Optional, Union

from llm_entropy.errors import ReportedError
from llm_entropy.settings.fields import check_at_least, make_plain_


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
    keep_columns: list[str] = field(default_factory=list)
    """Columns to copy into Parquet, into `{model}_sentences.csv`, and into the tables of words and texts."""
    target_column: Optional[str] = None
    """Column of right answers. Their surprisal is read after the sentence, or at the mask of a masked model."""
    foil_column: Optional[str] = None
    """Column of wrong answers, which are compared with `target_column`."""
    group_column: Optional[str] = None
    """Column of groups (at most 12). Curves are drawn by group; the groups of the standard run are compared."""
    pair_column: Optional[str] = None
    """Column that says which sentences of different groups belong together; null: groups are compared unpaired."""
    answer_delimiter: str = " "
    """Text between a sentence and its answer, if neither has white space there."""
    delimiter: Optional[str] = None
    """csv, tsv: the character between fields, or `tab`; null: detected among `,` `;` `|` and the tab."""
    quoting: Literal["auto", "minimal", "backslash", "none"] = "auto"
    """csv, tsv: minimal: fields may be quoted; backslash: quotes in them follow a backslash; none: quotes are text."""
    header: Union[bool, Literal["auto"]] = "auto"
    """csv, tsv: whether the first line names the columns; auto: detected."""
    encoding: Optional[str] = None
    """Encoding of csv, tsv, json, jsonl and txt, such as cp1252; null: UTF-8, or what a byte order mark says."""
    streaming: bool = False
    """Read rows as they come, instead of fetching the whole data set first, for corpora larger than the disk."""
    max_length: Optional[int] = None
    """Largest number of tokens of a sentence; null: the model's. Longer sentences are cut and counted."""
    tokens_per_batch: Union[int, Literal["auto"]] = "auto"
    """Number of tokens in a batch, padding included; auto: by the cache of a CPU or the memory of a GPU."""
    num_workers: int = 0
    """Processes that read and tokenise beside each process that runs a model."""
    num_shards: int = 1
    """Number of array tasks of this run. With several, `llm-entropy merge` makes the outputs at the end."""
    shard_index: Optional[int] = None
    """Number of this array task, counted from 0; null: SLURM_ARRAY_TASK_ID."""

    def __post_init__(self) -> None:
        make_plain_(self, "data")
        if self.pair_column is not None and self.group_column is None:
            raise ReportedError(
                f"data.pair_column: got {self.pair_column!r} without groups; name their column as data.group_column"
            )
        self.keep_columns = list(dict.fromkeys(self.keep_columns))
        if self.foil_column is not None and self.target_column is None:
            raise ReportedError(
                f"data.foil_column: got {self.foil_column!r} without right answers; name their column as "
                "data.target_column"
            )
        self.delimiter = _DELIMITER_NAMES.get(self.delimiter or "", self.delimiter)
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '\r\n"'):
            raise ReportedError(f"data.delimiter: got {self.delimiter!r}; expected one character, or tab")
        if self.encoding is not None:
            _check_encoding(self.encoding)
        if self.max_length is not None:
            check_at_least("data.max_length", self.max_length, 3)
        if self.tokens_per_batch != "auto":
            check_at_least("data.tokens_per_batch", self.tokens_per_batch, 1)
        check_at_least("data.num_workers", self.num_workers, 0)
        check_at_least("data.num_shards", self.num_shards, 1)
        if self.shard_index is not None and not 0 <= self.shard_index < self.num_shards:
            raise ReportedError(
                f"data.shard_index: got {self.shard_index}; expected a number from 0 to {self.num_shards - 1}, "
                "below data.num_shards"
            )

    @property
    def carried(self) -> dict[str, tuple[str, ...]]:
        """The settings that name columns which go with each sentence, and the columns, as far as there are any."""
        keys = ("keep_columns", "target_column", "foil_column", "group_column", "pair_column")
        named = {name: getattr(self, name) for name in keys}
        return {name: tuple([own] if isinstance(own, str) else own) for name, own in named.items() if own}

    @property
    def carried_columns(self) -> tuple[str, ...]:
        """The columns that go with each sentence, each once."""
        return tuple(dict.fromkeys(column for columns in self.carried.values() for column in columns))


_DELIMITER_NAMES = {"tab": "\t", "\\t": "\t"}
"""What a shell or a YAML file lets through more easily than the character itself."""


def _check_encoding(encoding: str) -> None:
    try:
        "a".encode(encoding)
    except LookupError as error:
        raise ReportedError(
            f"data.encoding: got {encoding!r}; expected a name such as utf-8, cp1252 or utf-16"
        ) from error
