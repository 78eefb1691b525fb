"""The batches of a run, dealt to its processes: each batch to one of them, their tokens nearly equal."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any, NamedTuple

import lightning
import numpy as np
import numpy.typing as npt
from datasets import Dataset
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from llm_entropy.corpus import numbers_of, plan_batches
from llm_entropy.positions import collate
from llm_entropy.schema import Batch, Example


class Totals(NamedTuple):
    """How much there is to do."""

    num_sentences: int
    """Rows of all batches; a masked model may make several of one sentence."""
    num_tokens: int
    """Real tokens."""
    num_batches: int
    """Batches."""


class PlannedBatches(TorchDataset[Batch]):
    """Batches made when they are asked for, out of the memory-mapped examples."""

    def __init__(self, examples: Dataset, plan: Sequence[Sequence[int]], pad_token_id: int, seed: int) -> None:
        """Keep the plan; nothing is read.

        Args:
            examples: Rows of `EncodedCorpus.examples`.
            plan: For each batch, the rows in it.
            pad_token_id: Fills the batches.
            seed: Of the random numbers with which tokens are sampled.
        """
        self.examples = examples.select_columns(list(Example._fields))
        self.plan = plan
        self.pad_token_id = pad_token_id
        self.seed = seed

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.plan)

    def __getitem__(self, index: int) -> Batch:
        """Return one batch, its rows in the order of the plan."""
        columns = self.examples[list(self.plan[index])]
        rows = zip(*(columns[name] for name in Example._fields), strict=True)
        return collate([Example(*row) for row in rows], self.pad_token_id, self.seed)


class SentenceDataModule(lightning.LightningDataModule):
    """Gives each process its share of the planned batches, whole, each batch exactly once.

    For a Trainer with `use_distributed_sampler=False`: the sharing is done here, where Lightning cannot repeat it. A
    process may get no batch at all.
    """

    def __init__(
        self, examples: Dataset, *, pad_token_id: int, tokens_per_batch: int, seed: int, num_workers: int = 0
    ) -> None:
        """Plan the batches of all processes; the same everywhere.

        Args:
            examples: Rows of `EncodedCorpus.examples`.
            pad_token_id: Fills the batches.
            tokens_per_batch: What a batch holds at most, padding included; a longer example is a batch of its own.
            seed: Of the random numbers with which tokens are sampled.
            num_workers: Processes that make batches beside this one.
        """
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.examples = examples
        self.pad_token_id = pad_token_id
        self.seed = seed
        self.num_workers = num_workers
        self.lengths: npt.NDArray[np.int64] = numbers_of(examples, "num_tokens").astype(np.int64)
        self.plan = plan_batches(self.lengths, tokens_per_batch)

    @property
    def totals(self) -> Totals:
        """What all processes do together."""
        return self._totals(self.plan)

    @property
    def rank_totals(self) -> Totals:
        """What this process does; known once a Trainer holds the data."""
        return self._totals(self._plan_of_this_rank())

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Return the batches of this process."""
        batches = PlannedBatches(self.examples, self._plan_of_this_rank(), self.pad_token_id, self.seed)
        # The batches are made already; without batch_size=None Lightning would put its own sampler in.
        return DataLoader(batches, batch_size=None, collate_fn=_as_it_is, num_workers=self.num_workers)

    def _plan_of_this_rank(self) -> list[list[int]]:
        assert self.trainer is not None
        # Padding is worked on as well: a batch weighs its longest row times its rows.
        weights = [int(self.lengths[rows].max()) * len(rows) for rows in self.plan]
        return [self.plan[i] for i in deal(weights, self.trainer.world_size)[self.trainer.global_rank]]

    def _totals(self, plan: Sequence[Sequence[int]]) -> Totals:
        num_tokens = sum(int(self.lengths[rows].sum()) for rows in plan)
        return Totals(sum(map(len, plan)), num_tokens, len(plan))


def deal(weights: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Deal items to ranks so that no rank has much more to do than another.

    The heaviest item goes first, each to the rank with the least so far (Graham 1969): the difference between two
    ranks is at most the weight of one item.

    Args:
        weights: [item].
        num_ranks: At least 1.

    Returns:
        For each rank its items, ascending.
    """
    hands: list[list[int]] = [[] for _ in range(num_ranks)]
    loads = [(0, rank) for rank in range(num_ranks)]
    for item in sorted(range(len(weights)), key=lambda item: -weights[item]):
        load, rank = loads[0]
        hands[rank].append(item)
        heapq.heapreplace(loads, (load + weights[item], rank))
    return [sorted(hand) for hand in hands]


def _as_it_is(batch: Any) -> Any:
    return batch
