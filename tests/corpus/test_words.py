from __future__ import annotations

import pytest
import tokenizers
from test_encoding import byte_level, word_piece
from transformers import PreTrainedTokenizerFast

from llm_entropy.corpus.encoding import Encoder
from llm_entropy.corpus.words import Words, special_ids, without_cut, word_starts, words_of
from llm_entropy.errors import ReportedError
from llm_entropy.schema.batches import CUT_WORD, NO_WORD

PIECES = ["the", "cat", "sat", ".", ",", "s"]


def sentence_piece() -> PreTrainedTokenizerFast:
    """A BPE whose tokens begin with the space, as Llama's, with bytes for what it does not know."""
    letters = ["<unk>", "<s>", "</s>", "<0x0A>", "<0x20>", "<0x41>", "\u2581", *"acehst.,"]
    pieces = ["\u2581a", "\u2581t", "he", "\u2581the"]
    vocabulary = {piece: index for index, piece in enumerate([*letters, *pieces])}
    merges = [("\u2581", "a"), ("\u2581", "t"), ("h", "e"), ("\u2581t", "he")]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("\u2581"), tokenizers.normalizers.Replace(" ", "\u2581")]
    )
    decoders = tokenizers.decoders
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", add_bos_token=False
    )


def ends_words() -> PreTrainedTokenizerFast:
    """A BPE whose tokens end a word, as the first GPT's."""
    vocabulary = {piece: index for index, piece in enumerate(["<unk>", "a", "a</w>", ".</w>", ",</w>", "-</w>"])}
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocabulary, [], unk_token="<unk>", end_of_word_suffix="</w>")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = tokenizers.decoders.BPEDecoder(suffix="</w>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def with_decoder(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    tokenizer.backend_tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return tokenizer


# --- which tokens begin a word -----------------------------------------------------------------------------------


def test_tokens_of_bytes_begin_a_word_where_their_first_byte_is_white_space():
    tokenizer = with_decoder(byte_level())
    seen = word_starts(tokenizer, len(tokenizer) + 3, [tokenizer.eos_token_id, 10**6])
    pieces = [tokenizer.convert_ids_to_tokens(i) for i in seen.nonzero().flatten().tolist()]
    blanks = {chr(256 + byte) for byte in (*range(9, 14), *range(28, 33))}
    assert "</s>" in pieces
    assert {piece[0] for piece in pieces} == blanks | {"<"}
    assert "\u0120cat" in pieces
    assert "<s>" not in pieces
    assert seen.sum() == sum(token[0] in blanks for token in tokenizer.get_vocab()) + 1
    assert len(seen) == len(tokenizer) + 3


def test_tokens_of_sentencepiece_begin_a_word_with_their_mark_or_with_a_byte_of_white_space():
    tokenizer = sentence_piece()
    seen = word_starts(tokenizer, len(tokenizer), [tokenizer.eos_token_id])
    pieces = {tokenizer.convert_ids_to_tokens(i) for i in seen.nonzero().flatten().tolist()}
    assert pieces == {"</s>", "<0x0A>", "<0x20>", "\u2581", "\u2581a", "\u2581t", "\u2581the"}


@pytest.mark.parametrize("tokenizer", [word_piece(), ends_words()], ids=["pieces that continue", "pieces that end"])
def test_a_vocabulary_without_the_space_does_not_tell_where_words_begin(tokenizer: PreTrainedTokenizerFast):
    assert word_starts(tokenizer, len(tokenizer), [2]) is None


def test_a_token_that_stands_for_the_unknown_and_for_the_end_is_special():
    tokenizer = byte_level()
    assert special_ids(tokenizer) == {0, 1}
    tokenizer.unk_token = "</s>"
    assert special_ids(tokenizer) == {0, 1}
    assert 3 not in special_ids(word_piece()), "[UNK] is a word of the sentence"


# --- which word a token belongs to -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sentence", "tokens", "words"),
    [
        ("the cats", [(0, 3), (3, 7), (7, 8)], ["the", "cats", "cats"]),
        ("the  cat\n", [(0, 3), (3, 4), (4, 8), (8, 9)], ["the", "cat", "cat", None]),
        (" the", [(0, 1), (1, 4)], ["the", "the"]),
        ("of the cat", [(0, 6), (6, 10)], ["of the", "cat"]),
        ("a of the b", [(0, 1), (1, 4), (4, 8), (8, 10)], ["a", "of", "the", "b"]),
        ("ab cd ef", [(0, 1), (1, 4), (4, 7), (7, 8)], ["ab cd ef"] * 4),
        ("\u96e8 x", [(0, 1), (0, 1), (0, 1), (1, 3)], ["\u96e8", "\u96e8", "\u96e8", "x"]),
        ("the", [(-1, -1), (0, 3)], [None, "the"]),
        ("the cat", [(0, 3), (4, 4), (4, 7)], ["the", "cat", "cat"]),
        (" ", [(0, 1)], [None]),
    ],
)
def test_words_are_what_stands_between_white_space(
    sentence: str, tokens: list[tuple[int, int]], words: list[str | None]
):
    starts, ends = ([place[side] for place in tokens] for side in (0, 1))
    seen = words_of(sentence, starts, ends, [False] * len(tokens))
    assert [None if s == NO_WORD else sentence[s:e] for s, e in zip(*seen, strict=True)] == words


def test_a_special_token_of_the_text_parts_words_and_is_none():
    sentence = "a<s>b <s> c"
    places = [(0, 1), (1, 4), (4, 5), (5, 6), (6, 9), (9, 11)]
    starts, ends = ([place[side] for place in places] for side in (0, 1))
    seen = words_of(sentence, starts, ends, [False, True, False, False, True, False])
    assert seen.starts == [0, NO_WORD, 4, NO_WORD, NO_WORD, 10]
    assert seen.ends == [1, NO_WORD, 5, NO_WORD, NO_WORD, 11]


def test_a_word_of_which_tokens_are_left_out_is_marked():
    whole = Words([NO_WORD, 0, 0, 4, 4], [NO_WORD, 3, 3, 7, 7])
    assert without_cut(Words(whole.starts[:4], whole.ends[:4]), whole) == Words(
        [NO_WORD, 0, 0, CUT_WORD], [NO_WORD, 3, 3, CUT_WORD]
    )


# --- examples ----------------------------------------------------------------------------------------------------


def test_masks_go_to_the_right_within_a_word_of_the_tokenizer():
    encoder = Encoder(word_piece(), "masked", mask_strategy="within_word_l2r", words=True)
    seen = [example for example, _ in encoder([0], ["cats it."])]
    tokens = [encoder.tokenizer.convert_ids_to_tokens(example.input_ids)[1:-1] for example in seen]
    mask = "[MASK]"
    assert tokens == [
        [mask, mask, "it", "."],
        ["cat", mask, "it", "."],
        ["cat", "##s", mask, "."],
        ["cat", "##s", "it", mask],
    ]
    assert [example.targets for example in seen] == [[encoder.tokenizer.vocab[t]] for t in ("cat", "##s", "it", ".")]
    assert [(*example.word_starts, *example.word_ends) for example in seen] == [(0, 4), (0, 4), (5, 8), (5, 8)]


def test_a_sentence_that_holds_masks_has_no_words():
    encoder = Encoder(word_piece(), "masked", mask_strategy="within_word_l2r", words=True)
    ((example, _),) = encoder([0], ["the [MASK] sat"])
    assert example.word_starts == [NO_WORD]


def test_a_slow_tokenizer_is_refused_where_words_are_read():
    class Slow:
        is_fast, mask_token_id, name_or_path, mask_token = False, 1, "slow", "[MASK]"

    for settings in ({"words": True}, {}):
        with pytest.raises(ReportedError, match="is a slow one, which does not say where"):
            Encoder(Slow(), "masked", mask_strategy="within_word_l2r", **settings)
