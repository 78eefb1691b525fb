"""The prediction writer: records of a process into shards, each file whole or absent."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import lightning as L
import pyarrow as pa
import pyarrow.parquet as pq
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llm_entropy.schema import (
    POSITION,
    SENTENCE,
    SENTENCE_ID,
    TARGET,
    TARGET_ID,
    TOKEN,
    TOKEN_END,
    TOKEN_ID,
    TOKEN_START,
    TOP_PROBABILITIES,
    TOP_TOKENS,
    TRACKED_PROBABILITIES,
    TRACKED_TOKENS,
    Batch,
    Records,
    column,
)

PART_BYTES = 32 * 2**20
"""A part is written when so many bytes of records have come together."""
ROW_GROUP = 4096
"""Records of a part that are read together: the merge reads ranges of sentences."""
REPLACEMENT = "\ufffd"
"""What decoding makes of a token that is only a part of a character."""


class TokenTexts:
    """What each token says, with the space that begins it: " the" and "the" are different tokens.

    Args:
        tokenizer: Of the model.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[int, str] = {}

    def __call__(self, token_ids: Tensor) -> list[str]:
        """Return the texts of tokens, in the order of the flattened tensor."""
        ids = token_ids.flatten().tolist()
        for token_id in set(ids) - self._texts.keys():
            self._texts[token_id] = self._text(token_id)
        return [self._texts[token_id] for token_id in ids]

    def _text(self, token_id: int) -> str:
        piece = self._tokenizer.convert_ids_to_tokens(token_id) if token_id < len(self._tokenizer) else None
        if not piece:
            return f"<{token_id}>"  # vocabularies of models are padded beyond those of their tokenizers
        assert isinstance(piece, str)
        if piece.startswith("\u2581"):
            return piece.replace("\u2581", " ")  # SentencePiece's space, which decoding drops at the start
        text = str(self._tokenizer.decode([token_id], clean_up_tokenization_spaces=False))
        return piece if REPLACEMENT in text or not text else text


class ShardWriter(BasePredictionWriter):
    """Writes each process's records as Parquet parts below a model's folder of shards.

    Args:
        schema: `schema.shard_schema` of the model.
        tokenizer: Of the model, for the texts of tokens.
        part_bytes: How many bytes of records make a part.
    """

    folder: Optional[Path] = None
    """`shards/{model}` of the run; to be set before predicting, on rank 0, which tells the others."""

    def __init__(self, schema: pa.Schema, tokenizer: PreTrainedTokenizerBase, part_bytes: int = PART_BYTES) -> None:
        super().__init__(write_interval="batch")
        self.schema = schema
        self.num_records = self.num_sentences = self.num_tokens = 0
        self._texts = TokenTexts(tokenizer)
        self._part_bytes = part_bytes
        self._tables: list[pa.Table] = []
        self._num_parts = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Agree with the other processes on the run's folder."""
        folder = trainer.strategy.broadcast(self.folder)
        assert folder is not None, "rank 0 has no folder for the shards"
        self.folder = folder
        self._own = folder / "task-00000-of-00001" / f"rank-{trainer.global_rank:04d}"
        self._own.mkdir(parents=True, exist_ok=True)

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: Any,
        batch_indices: Optional[Sequence[int]],
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Take the records of a batch, and write a part when there are enough."""
        assert isinstance(prediction, Records)
        self._tables.append(records_table(prediction, self.schema, self._texts))
        self.num_records += len(prediction.positions)
        self.num_sentences += prediction.num_sentences
        self.num_tokens += prediction.num_tokens
        if sum(table.nbytes for table in self._tables) >= self._part_bytes:
            self._write_part()

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the last part."""
        if self._tables:
            self._write_part()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Wait until every process has written; one without batches comes here alone, past the other hooks."""
        trainer.strategy.barrier("every part is written")

    def _write_part(self) -> None:
        path = self._own / f"part-{self._num_parts:06d}.parquet"
        # the name tells two processes apart that believe to be the same rank
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        table = pa.concat_tables(self._tables).sort_by([(SENTENCE_ID, "ascending"), (POSITION, "ascending")])
        pq.write_table(table, temporary, compression="zstd", row_group_size=ROW_GROUP)
        os.replace(temporary, path)
        self._tables, self._num_parts = [], self._num_parts + 1


def records_table(records: Records, schema: pa.Schema, texts: TokenTexts) -> pa.Table:
    """Return the records of a batch as an Arrow table of the shards' schema.

    Args:
        records: Of one batch.
        schema: As `schema.shard_schema` makes it.
        texts: What the tokens say.
    """
    values: dict[str, pa.Array | list[str] | Any] = {
        SENTENCE_ID: records.sentence_ids.numpy(),
        SENTENCE: records.sentences,
        POSITION: records.positions.numpy(),
        TOKEN_ID: records.token_ids.numpy(),
        TOKEN: texts(records.token_ids),
        TOKEN_START: records.starts.numpy(),
        TOKEN_END: records.ends.numpy(),
    }
    for condition, own in records.conditions.items():
        named: dict[str, Any] = {
            TARGET_ID: own.target_ids.numpy(),
            TARGET: texts(own.target_ids),
            TOP_TOKENS: texts(own.top_ids),
            TOP_PROBABILITIES: own.top_probabilities,
            TRACKED_TOKENS: texts(own.tracked_ids),
            TRACKED_PROBABILITIES: own.tracked_probabilities,
            **own.metrics,
        }
        values |= {column(condition, name): value for name, value in named.items()}
    return pa.table([_array(values[field.name], field.type) for field in schema], schema=schema)


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    """Return a column; what is [record, ...] becomes a list of fixed size per record."""
    if not pa.types.is_fixed_size_list(kind):
        return pa.array(values, type=kind)
    flat = values.flatten().float().numpy() if isinstance(values, Tensor) else values
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, type=kind.value_type), kind.list_size)
