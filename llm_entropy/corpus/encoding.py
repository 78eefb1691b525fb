"""Where a sentence is read and what is expected there: the one place where causal and masked models differ.

`Encoder` makes an `Example` of each sentence; after that nothing asks what kind of model it is.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

from llm_entropy.corpus.chats import render
from llm_entropy.corpus.draws import sampling_uniforms
from llm_entropy.corpus.tokens import MASK_MARK, UNKNOWN, TokenReader, Tokens, describe_tokenizer
from llm_entropy.errors import ReportedError
from llm_entropy.schema.batches import PREDICTED, Example
from llm_entropy.settings import Kind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CLOSING_CATEGORIES = {"Pd", "Pe", "Pf", "Pi", "Po"}
# Unicode counts these as punctuation, but in a sentence they are words: 50 %, R & D, C#.
_WORD_LIKE = set("#%&*@/\\‰")
# No token stands here, so that the draw that picks a mask shares no random number with the draws that pick tokens.
_MASK_DRAW = -1


class Encoded(NamedTuple):
    """An example, and what was done to its sentence."""

    example: Example
    was_cut: bool
    """Whether it was cut at `max_length`."""
    has_own_start: bool
    """Whether the text begins with what the tokenizer would have put before it."""


@dataclass(frozen=True)
class Encoder:
    """Turns sentences into examples: tokens, the positions to read, and the targets there.

    Causal models: special tokens that the tokenizer appends (an EOS) are left out, since the sentence does not hold
    them: the last token is the sentence's own. Those that it prepends (a BOS) stay, and are positions like others.
    Masked models: `[MASK]` in a sentence stands for the tokenizer's mask token, and such a sentence is taken as it is;
    if the cut at `max_length` removes its masks there is nothing to read. Unknown tokens are tokens of the sentence.
    A text that begins itself with what the tokenizer puts before it (a BOS, as `apply_chat_template` writes it) has
    that once.
    """

    tokenizer: PreTrainedTokenizerBase
    """Fast or slow; a slow one gives no offsets."""
    kind: Kind
    """Whether the model is causal or masked."""
    positions: Literal["last", "all", "generated"] = "last"
    """Causal models: which positions are read."""
    mask_strategy: Literal["last", "random", "each", "within_word_l2r"] = "last"
    """Masked models: which token of a sentence without a mask is masked."""
    seed: int = 0
    """With the sentence id, fixes what `random` masks."""
    max_length: int | None = None
    """Most tokens of an example, special tokens included; null: no limit."""
    num_embeddings: int | None = None
    """How many tokens the model knows: a sentence with others is refused; null: not checked."""
    words: bool = False
    """Whether examples say to which word each token belongs."""
    num_new_tokens: int = 0
    """Most tokens that the model writes behind a sentence, where it does."""
    reads_chats: bool = False
    """Whether sentences are chats, which the tokenizer's template writes, special tokens and all: only their last
    message is read, and what is too long loses its beginning."""

    def __post_init__(self) -> None:
        """Refuse a tokenizer or a length with which no sentence could be read."""
        if self.kind == "masked" and self.tokenizer.mask_token_id is None:
            raise ReportedError(
                f"models: the tokenizer of {self.tokenizer.name_or_path!r} has no mask token, "
                "which a masked model needs; give the model's own tokenizer"
            )
        if self.kind == "masked":
            self.refuse_unknown([self.tokenizer.mask_token_id], "")
        self._refuse_unreadable_words()
        added = self.tokenizer.num_special_tokens_to_add()
        if self.max_length is not None and self.max_length <= added:
            raise ReportedError(
                f"data.max_length: got {self.max_length}; expected more than the {added} special tokens that "
                f"the tokenizer of {self.tokenizer.name_or_path!r} adds"
            )

    def _refuse_unreadable_words(self) -> None:
        """Refuse words that no setting, or no tokenizer, lets a model read whole."""
        in_words = self.kind == "masked" and self.mask_strategy == "within_word_l2r"
        if self.words and self.kind == "causal" and self.positions != "all":
            raise ReportedError(
                f"analysis.words: got analysis.positions: {self.positions}; a causal model reads words with "
                "analysis.positions: all"
            )
        if self.words and self.kind == "masked" and not in_words:
            raise ReportedError(
                f"analysis.words: got analysis.mask_strategy: {self.mask_strategy}; a masked model reads words with "
                "analysis.mask_strategy: within_word_l2r"
            )
        if (self.words or in_words) and not self.tokenizer.is_fast:
            setting = "analysis.words" if self.words else "analysis.mask_strategy: within_word_l2r"
            raise ReportedError(
                f"{setting}: the tokenizer of {self.tokenizer.name_or_path!r} is a slow one, which does not say where "
                "in the text its tokens stand; give a model with a fast tokenizer (tokenizer.json)"
            )

    def __call__(self, sentence_ids: Sequence[int], sentences: Sequence[str]) -> list[tuple[Example, bool]]:
        """Return what `examples` makes, each with whether it was cut at `max_length`."""
        return [(encoded.example, encoded.was_cut) for encoded in self.examples(sentence_ids, sentences)]

    def examples(
        self, sentence_ids: Sequence[int], sentences: Sequence[str], *, reads_empty: bool = False
    ) -> Iterator[Encoded]:
        """Make the examples of some sentences, in order.

        A sentence without a readable token gives none; `mask_strategy: each` gives one for each token.

        Args:
            sentence_ids: [sentence], row numbers in the corpus.
            sentences: [sentence], the texts.
            reads_empty: Whether a sentence without text is read all the same: by causal models at the token that begins
                a text, by masked models at a mask.

        Raises:
            ReportedError: A sentence has a token that the model does not know.
        """
        turns = [0] * len(sentences)
        if self.reads_chats:
            rendered = [render(self.tokenizer, *one) for one in zip(sentences, sentence_ids, strict=True)]
            sentences, turns = [one.text for one in rendered], [one.turn_start for one in rendered]
        draws = sampling_uniforms(self.seed, sentence_ids, [_MASK_DRAW] * len(sentence_ids))
        for sentence_id, sentence, tokens, draw, turn in zip(
            sentence_ids, sentences, self.reader(sentences), draws, turns, strict=True
        ):
            if reads_empty and not sentence.strip():
                tokens = self._nothing
            read = (
                self._read_masked(sentence, tokens, draw) if self.kind == "masked" else self._read_causal(tokens, turn)
            )
            for number, (ids, positions, targets) in enumerate(read):
                if not number:  # the others hold the same tokens
                    self.refuse_unknown([*ids, *targets], f" in sentence {sentence_id}")
                starts, ends = (
                    [places[i] if i < len(ids) else UNKNOWN for i in positions]
                    for places in (tokens.starts, tokens.ends)
                )
                begins, stops = ([own[i] for i in positions] if own else [] for own in tokens.words)
                example = Example(int(sentence_id), sentence, ids, positions, targets, starts, ends, begins, stops)
                yield Encoded(example, tokens.was_cut, tokens.num_doubled > 0)

    @cached_property
    def may_be_unknown(self) -> bool:
        """Whether the tokenizer has tokens that the model does not know."""
        return self.num_embeddings is not None and max(self.tokenizer.get_vocab().values()) >= self.num_embeddings

    def refuse_unknown(self, ids: Sequence[int], where: str) -> None:
        """Refuse tokens for which the model has no embedding."""
        highest = max(ids)
        if self.num_embeddings is None or highest < self.num_embeddings:
            return
        token = self.tokenizer.convert_ids_to_tokens(highest)
        raise ReportedError(
            f"models: the tokenizer of {self.tokenizer.name_or_path!r} gives the token {token!r}{where} the id "
            f"{highest}, and the model's embeddings have {self.num_embeddings} rows; call "
            "model.resize_token_embeddings(len(tokenizer)) and save the model, or give the tokenizer that it was "
            "trained with"
        )

    @cached_property
    def fingerprint(self) -> str:
        """Name of everything that decides what an example is: the tokenizer and the settings."""
        settings = [self.kind, self.positions, self.mask_strategy, self.seed, self.max_length]
        settings += [True] if self.words else []
        settings += [self.num_new_tokens] if self.num_new_tokens else []
        settings += [self.tokenizer.chat_template] if self.reads_chats else []
        parts = [describe_tokenizer(self.tokenizer), json.dumps(settings)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]

    @cached_property
    def _nothing(self) -> Tokens:
        """A text without any, as it is read all the same."""
        if self.kind == "masked":
            return self.reader.whole([MASK_MARK])[0]
        start = self.start_id
        ids = [] if start is None else [start]
        return Tokens(ids, [False] * len(ids), [UNKNOWN] * len(ids), [UNKNOWN] * len(ids))

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(self.tokenizer.all_special_ids) - {self.tokenizer.unk_token_id}

    @cached_property
    def reader(self) -> TokenReader:
        """What reads its sentences as tokens."""
        return TokenReader(
            self.tokenizer,
            has_masks=self.kind == "masked",
            max_length=self.max_length,
            words=self.words,
            pieces=self.mask_strategy == "within_word_l2r",
            reads_chats=self.reads_chats,
        )

    @property
    def start_id(self) -> int | None:
        """The token that a causal model reads before a text without any: BOS, or EOS; None: there is neither."""
        tokenizer = self.tokenizer
        start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        return None if start is None else int(start)

    def _read_causal(self, tokens: Tokens, turn: int) -> Iterator[tuple[list[int], list[int], list[int]]]:
        end = len(tokens.ids)
        while end and tokens.added[end - 1]:
            end -= 1
        if not end:
            return
        ids = tokens.ids[:end]
        if self.positions == "last":
            yield ids, [len(ids) - 1], [PREDICTED]
        elif self.positions == "generated":
            end = len(ids) - 1 + self.num_new_tokens
            yield ids, list(range(len(ids) - 1, end)), [PREDICTED] * self.num_new_tokens
        else:
            first = next((i for i in range(end) if tokens.ends[i] > turn), 0) if turn else 0
            yield ids, list(range(first, len(ids))), [*ids[first + 1 :], PREDICTED]

    def _read_masked(
        self, sentence: str, tokens: Tokens, draw: float
    ) -> Iterator[tuple[list[int], list[int], list[int]]]:
        mask_id = self.tokenizer.mask_token_id
        masks = [i for i, token in enumerate(tokens.ids) if token == mask_id]
        if masks:
            yield tokens.ids, masks, [PREDICTED] * len(masks)
            return
        own = [i for i in range(len(tokens.ids)) if not tokens.added[i] and tokens.ids[i] not in self._special_ids]
        if not own or str(self.tokenizer.mask_token) in self.reader.with_own_mask(sentence):
            return
        if self.mask_strategy == "last":
            chosen = [next((i for i in reversed(own) if not self._is_closing(sentence, tokens, i)), own[-1])]
        elif self.mask_strategy == "random":
            chosen = [own[int(draw * len(own))]]
        else:
            chosen = own
        for i in chosen:
            stop = i + 1
            while self.mask_strategy == "within_word_l2r" and tokens.pieces[stop:][:1] == [tokens.pieces[i]]:
                stop += 1
            yield [*tokens.ids[:i], *[mask_id] * (stop - i), *tokens.ids[stop:]], [i], [tokens.ids[i]]

    def _is_closing(self, sentence: str, tokens: Tokens, i: int) -> bool:
        """Whether a token is closing punctuation or blank, so that nobody would ask a model for it."""
        if tokens.starts[i] == UNKNOWN:
            token = self.tokenizer.convert_ids_to_tokens(tokens.ids[i])
            text = self.tokenizer.convert_tokens_to_string([str(token)])
        else:
            text = sentence[tokens.starts[i] : tokens.ends[i]]
        return all(
            unicodedata.category(character) in _CLOSING_CATEGORIES and character not in _WORD_LIKE
            for character in text.strip()
        )
