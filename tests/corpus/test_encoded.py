"""The examples of a window: given back as they were made, kept once, and cut into slices."""

from __future__ import annotations

from typing import Any

import pytest
from test_encoding import byte_level, word_piece

from llm_entropy.corpus.encoded import EncodedSentences
from llm_entropy.corpus.encoding import Encoder


@pytest.mark.parametrize(
    ("tokenizer", "settings"),
    [
        (byte_level("<s> $A"), {"kind": "causal", "positions": "all"}),
        (word_piece(), {"kind": "masked", "mask_strategy": "each"}),
        (word_piece(), {"kind": "masked", "mask_strategy": "last"}),
        (word_piece(), {"kind": "masked", "mask_strategy": "within_word_l2r", "words": True}),
    ],
)
def test_encoded_sentences_give_the_examples_back_however_they_were_grouped(
    tokenizer: Any, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    encoder = Encoder(tokenizer, **settings, max_length=9)
    texts = ["the cat sat on the mat", "", "it", "the cat [MASK] on the [MASK]", "the mat " * 8, "it is"]
    ids = [3, 4, 9, 10, 20, 2**40]
    expected = [example for example, _ in encoder(ids, texts)]
    for characters in (1, 10, 10**6):
        monkeypatch.setattr("llm_entropy.corpus.encoded.CHARACTERS_AT_ONCE", characters)
        encoded = EncodedSentences(encoder, ids, texts)
        assert [encoded[index] for index in range(len(encoded))] == expected
        assert encoded.lengths.tolist() == [len(example.input_ids) for example in expected]
        assert encoded.num_cut == len({example.sentence_id for example, cut in encoder(ids, texts) if cut})


def test_what_every_token_of_a_document_is_masked_in_is_kept_once():
    encoder = Encoder(word_piece(), "masked", mask_strategy="each")
    few, many = (EncodedSentences(encoder, [0], ["the cat sat on the mat " * count]) for count in (10, 100))
    kept = [sum(len(lists._whole) for lists in encoded._numbers.values()) for encoded in (few, many)]
    assert len(many) == 10 * len(few)
    assert kept[1] < 11 * kept[0]


def test_slices_hold_every_record_and_follow_sizes_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("llm_entropy.corpus.encoded.SLICE_RECORDS", 10)
    encoder = Encoder(byte_level("<s> $A"), "causal", positions="all")
    texts = ["the cat sat on the mat", "it", "", "it", "it is the cat " * 20, "the"]
    encoded = EncodedSentences(encoder, range(5, 11), texts)
    counts = [len(encoded[index].positions) for index in range(len(encoded))]
    text_bytes = [len(text) for text in texts if text]
    slices = encoded.slices
    assert sum(one.num_records for one in slices) == sum(counts)
    assert sum(one.text_bytes for one in slices) == sum(text_bytes)
    assert sum(one.repeated_bytes for one in slices) == sum(a * b for a, b in zip(counts, text_bytes, strict=True))
    assert slices[0].first_id == 5
    assert 9 in [one.first_id for one in slices], "the long one begins a slice"
    assert EncodedSentences(encoder, [], []).slices == []
    monkeypatch.setattr("llm_entropy.corpus.encoded.SLICE_TEXT_BYTES", 4)
    assert len(EncodedSentences(encoder, range(5, 11), texts).slices) > len(slices)
