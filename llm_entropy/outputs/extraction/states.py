"""The states of an extraction's shards, read one block at a time."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from llm_entropy.errors import ReportedError
from llm_entropy.outputs.parts import check_parts
from llm_entropy.schema.shape import ModelShape
from llm_entropy.schema.shards import SENTENCE_ID, STATE_NORMS, STATES, column, state_column, states_schema
from llm_entropy.store.ledger import Ledger

FEWEST_PAIRS = 6


class PairStates(NamedTuple):
    """Where the states of whole pairs are."""

    parts: list[Path]
    pairs: npt.NDArray[np.int64]
    """[pair], their numbers, ascending."""
    places: npt.NDArray[np.int64]
    """[text of all parts, in their order], 2 x place of its pair, plus 1 for the negative text; -1: it has no
    partner."""
    num_lost: int
    """Pairs of which the model could read one text alone."""

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """Return a column, [pair, positive and negative, number]."""
        read: npt.NDArray[np.float32] | None = None
        start = 0
        for part in self.parts:
            values = pq.read_table(part, columns=[column(STATES, name)]).column(0).combine_chunks()
            numbers = values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), -1)
            if read is None:
                read = np.empty((2 * len(self.pairs), numbers.shape[1]), np.float32)
            places = self.places[start : start + len(values)]
            read[places[places >= 0]] = numbers[places >= 0]
            start += len(values)
        assert read is not None
        return read.reshape(len(self.pairs), 2, -1)

    def block(self, block: int) -> npt.NDArray[np.float32]:
        """Return the states at the output of a block, [pair, positive and negative, hidden]."""
        return self.read(state_column(block))

    def norms(self) -> npt.NDArray[np.float32]:
        """Return the mean norms of the stream, [pair, positive and negative, block]."""
        return self.read(STATE_NORMS)


def find_states(ledger: Ledger, shape: ModelShape, model: str) -> PairStates:
    """Find the pairs of which both texts were read.

    Args:
        ledger: Of the model, complete.
        shape: Of the model.
        model: Its key, for messages.

    Raises:
        ReportedError: A part is corrupt, or there are too few pairs.
    """
    check_parts(ledger.markers, states_schema(shape, {}))
    parts = [marker.part for marker in ledger.markers if marker.num_records]
    ids = [pq.read_table(part, columns=[SENTENCE_ID]).column(0).to_numpy() for part in parts]
    texts = np.concatenate([np.empty(0, np.int64), *ids])
    numbers, counts = np.unique(texts // 2, return_counts=True)
    pairs = numbers[counts == 2]
    if len(pairs) < FEWEST_PAIRS:
        raise ReportedError(
            f"models.{model}: of {len(numbers)} pairs {len(pairs)} have two texts with tokens to read; expected at "
            f"least {FEWEST_PAIRS}; see extract.position, and data.max_length, at which texts are cut"
        )
    place = np.searchsorted(pairs, texts // 2).clip(max=len(pairs) - 1)
    places = np.where(pairs[place] == texts // 2, 2 * place + texts % 2, -1)
    return PairStates(parts, pairs, places, int((counts != 2).sum()))
