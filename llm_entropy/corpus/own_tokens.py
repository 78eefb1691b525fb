"""Texts that are read as they are, causal and masked models alike: which of their own tokens give their state."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from llm_entropy.corpus.encoding import Encoded, Encoder
from llm_entropy.corpus.tokens import UNKNOWN
from llm_entropy.errors import ReportedError
from llm_entropy.schema.batches import PREDICTED, Example
from llm_entropy.settings.extraction import TokenChoice


@dataclass(frozen=True)
class StateEncoder(Encoder):
    """Turns texts into examples whose positions are the tokens that give a text's state.

    Its own tokens are those that the tokenizer does not add: no [CLS], no [SEP], no BOS. Nothing is masked.
    """

    choice: TokenChoice = "last"
    """The last of them, all of them, or those behind the prompt."""
    prompt_ends: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """[text], by the text's id, in characters."""

    def __post_init__(self) -> None:
        """Refuse a tokenizer that does not tell where a prompt ends."""
        super().__post_init__()
        if self.choice == "completion" and not self.tokenizer.is_fast and self.prompt_ends.any():
            raise ReportedError(
                f"extract.position: got completion, but the tokenizer of {self.tokenizer.name_or_path!r} is a slow "
                "one, which does not tell where a token lies in the text; expected last or mean"
            )

    def examples(
        self, sentence_ids: Sequence[int], sentences: Sequence[str], *, reads_empty: bool = False
    ) -> Iterator[Encoded]:
        """Make the examples of some texts, in order; a text without such a token gives none.

        Args:
            sentence_ids: [text].
            sentences: [text].
            reads_empty: Without effect: a text without tokens has no state.

        Raises:
            ReportedError: A text has a token that the model does not know.
        """
        for sentence_id, sentence, tokens in zip(sentence_ids, sentences, self.reader(sentences), strict=True):
            own = [place for place, added in enumerate(tokens.added) if not added]
            # A causal model does not read what the tokenizer puts behind the text, as in `predict`.
            ids = tokens.ids[: own[-1] + 1] if own and self.kind == "causal" else tokens.ids
            positions = own[-1:]
            if self.choice == "mean":
                positions = own
            elif self.choice == "completion":
                end = int(self.prompt_ends[sentence_id])
                positions = [place for place in own if tokens.ends[place] > end or tokens.ends[place] == UNKNOWN]
            if not positions:
                continue
            self.refuse_unknown(ids, f" in text {sentence_id}")
            starts, ends = [tokens.starts[i] for i in positions], [tokens.ends[i] for i in positions]
            targets = [PREDICTED] * len(positions)
            example = Example(int(sentence_id), sentence, ids, positions, targets, starts, ends)
            yield Encoded(example, tokens.was_cut, tokens.num_doubled > 0)

    @cached_property
    def fingerprint(self) -> str:
        """Name of everything that decides what an example is."""
        return hashlib.sha256(f"{super().fingerprint} {self.choice}".encode()).hexdigest()[:32]
