"""Some sentences of a corpus, picked by a seed: what is looked at before a run begins."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from llm_entropy.corpus.corpus import Corpus, Window
from llm_entropy.store import windows
from llm_entropy.store.windows import Task


def sample_sentences(corpus: Corpus, number: int, seed: int) -> tuple[list[int], list[str]]:
    """Return the ids and the texts of some sentences, in corpus order: all of them where there are fewer.

    Only the windows that hold them are read. Of a stream they are picked from its first window that holds any.

    Args:
        corpus: As the model's kind reads it.
        number: How many.
        seed: Of the pick.
    """
    if corpus.num_sentences is None or corpus.num_windows is None:
        window = next((one for one in corpus.windows(Task()) if one.sentences), None)
        return ([], []) if window is None else _picked(window, _draw(len(window.sentences), number, seed))
    places = _draw(corpus.num_sentences, number, seed)
    owners = places // windows.WINDOW_ROWS
    unwanted = set(range(corpus.num_windows)) - set(owners.tolist())
    ids: list[int] = []
    sentences: list[str] = []
    for window in corpus.windows(Task(), unwanted):
        own = _picked(window, places[owners == window.number] % windows.WINDOW_ROWS)
        ids += own[0]
        sentences += own[1]
    return ids, sentences


def _draw(size: int, number: int, seed: int) -> npt.NDArray[np.int64]:
    """Return some of the numbers below a size, ascending."""
    return np.sort(np.random.default_rng(seed).choice(size, min(number, size), replace=False))


def _picked(window: Window, places: npt.NDArray[np.int64]) -> tuple[list[int], list[str]]:
    """Return the ids and the texts of some sentences of a window."""
    return [window.sentence_ids[place] for place in places], [window.sentences[place] for place in places]
