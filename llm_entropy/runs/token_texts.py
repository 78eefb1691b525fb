"""What each token says, as the tables have it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llm_entropy.schema.batches import NO_TOKEN

REPLACEMENT = "\ufffd"
"""What decoding makes of a token that is only a part of a character."""


class TokenTexts:
    """What each token says, with the space that begins it: " the" and "the" are different tokens.

    Args:
        tokenizer: Of the model.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[int, Optional[str]] = {NO_TOKEN: None}

    def __call__(self, token_ids: Tensor) -> list[Optional[str]]:
        """Return the texts of tokens, in the order of the flattened tensor; None for `NO_TOKEN`."""
        ids = token_ids.flatten().tolist()
        for token_id in set(ids) - self._texts.keys():
            self._texts[token_id] = self._text(token_id)
        return [self._texts[token_id] for token_id in ids]

    def _text(self, token_id: int) -> str:
        piece = self._piece(token_id)
        if not piece:
            return f"<{token_id}>"  # vocabularies of models are padded beyond those of their tokenizers
        if piece.startswith("\u2581"):
            return piece.replace("\u2581", " ")  # SentencePiece's space, which decoding drops at the start
        text = str(self._tokenizer.decode([token_id], clean_up_tokenization_spaces=False))
        return piece if REPLACEMENT in text or not text else text

    def _piece(self, token_id: int) -> Optional[str]:
        piece = self._tokenizer.convert_ids_to_tokens(token_id) if token_id < len(self._tokenizer) else None
        assert piece is None or isinstance(piece, str)
        return piece

    def whole(self, token_ids: Sequence[int]) -> str:
        """Return the text that tokens make together, as it goes on from a sentence, without special tokens."""
        known = [token_id for token_id in token_ids if token_id < len(self._tokenizer)]
        text = str(self._tokenizer.decode(known, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        first = self._piece(known[0]) if known else None
        return f" {text}" if first and first.startswith("\u2581") and not text.startswith(" ") else text
