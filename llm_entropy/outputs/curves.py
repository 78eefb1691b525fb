"""The curves of a run over depth, collected a chunk of sentences at a time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from llm_entropy.outputs.chunk import mean_by_group
from llm_entropy.outputs.comparison import Moments, evenly_spaced
from llm_entropy.outputs.tables import Curves, TokenTracks
from llm_entropy.outputs.views import Pair, View

SAMPLE_SIZE = 2_000
"""Most sentences whose rows are kept for distributions and single trajectories."""
NUM_EXAMPLES = 4
"""How many sentences show how their own tokens emerge."""


class CurveBuilder:
    """Collects the curve of one metric: under one condition, or of its differences in a comparison."""

    def __init__(self, metric: str, width: int, num_sentences: int) -> None:
        """Expect `num_sentences` rows of `width` numbers."""
        self._metric = metric
        self.moments = Moments.of(np.empty((0, width)))
        self._wanted = evenly_spaced(num_sentences, SAMPLE_SIZE)
        self._sample = np.full((len(self._wanted), width), np.nan, np.float32)

    def add(self, seen: View | Pair) -> None:
        """Take the next sentences."""
        rows = seen.rows(self._metric)
        first = self.moments.rows
        low, high = np.searchsorted(self._wanted, [first, first + len(rows)])
        with np.errstate(over="ignore"):
            self._sample[low:high] = rows[self._wanted[low:high] - first]
        self.moments += Moments.of(rows)

    def curves(self) -> Curves:
        """Return what was collected."""
        moments = self.moments
        return Curves(moments.rows, moments.mean, moments.deviation, self._sample)


class TrackBuilder:
    """Collects how the probability of the tracked tokens grows."""

    def __init__(self, num_tracked: int, num_layers: int, num_sentences: int) -> None:
        """Expect `num_sentences` sentences."""
        self._shape = (num_tracked, num_layers)
        self._moments = Moments.of(np.empty((0, num_tracked * num_layers)))
        self._wanted = evenly_spaced(num_sentences, NUM_EXAMPLES)
        self._examples: list[tuple[str, list[str], npt.NDArray[np.float32]]] = []

    def add(self, view: View) -> None:
        """Take the next sentences."""
        chunk, tokens, probabilities = view.chunk, view.tracked_tokens, view.tracked_probabilities
        first, num_tracked = self._moments.rows, self._shape[0]
        low, high = np.searchsorted(self._wanted, [first, first + len(chunk.counts)])
        firsts = np.cumsum(chunk.answer_counts) - chunk.answer_counts
        for index in (self._wanted[low:high] - first).tolist():
            answer = int(firsts[index])
            names = tokens.slice(answer * num_tracked, num_tracked).to_pylist()
            self._examples.append((chunk.sentences[index].as_py(), names, probabilities[answer].copy()))
        means = mean_by_group(probabilities, chunk.answer_counts)
        self._moments += Moments.of(means.reshape(len(means), -1))

    def tracks(self) -> TokenTracks:
        """Return what was collected."""
        return TokenTracks(self._moments.rows, self._moments.mean.reshape(self._shape), self._examples)
