"""How a sentence and an answer become tokens, for every way in which tokenizers frame a text."""

from __future__ import annotations

import pytest
import tokenizers
from test_encoding import byte_level, word_piece
from transformers import PreTrainedTokenizerFast

from llm_entropy.corpus.answers import answer_examples, joined
from llm_entropy.corpus.encoded import EncodedSentences
from llm_entropy.corpus.encoding import Encoder
from llm_entropy.errors import ReportedError
from llm_entropy.schema.batches import FOIL_ANSWER, NO_ANSWER, TARGET_ANSWER, Example


def read(encoder: Encoder, sentence: str, answer: str, delimiter: str = " ") -> tuple[Example, bool]:
    (encoded,) = answer_examples(encoder, delimiter, [3], [sentence], [(answer, None)])
    return encoded.example, encoded.was_cut


def with_space_before_its_mask() -> PreTrainedTokenizerFast:
    """As RoBERTa's: byte-level, and the mask takes the space before it."""
    tokenizer = byte_level("<s> $A </s>")
    mask = tokenizers.AddedToken("<mask>", lstrip=True, special=True)
    tokenizer.add_special_tokens({"mask_token": mask})
    return tokenizer


@pytest.mark.parametrize("template", [None, "<s> $A", "<s> $A </s>"])
def test_an_answer_is_what_follows_the_tokens_of_the_sentence(template: str | None) -> None:
    encoder = Encoder(byte_level(template), "causal")
    tokenizer = encoder.tokenizer
    before, whole = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("the cat", "the cat is on it"))
    start = [] if template is None else [0]
    for sentence, answer in (("the cat", "is on it"), ("the cat", " is on it"), ("the cat ", "is on it")):
        example, was_cut = read(encoder, sentence, answer)
        assert example.input_ids == [*start, *whole], "what the tokenizer appends is left out"
        assert example.targets == whole[len(before) :]
        first = len(start) + len(before) - 1
        assert example.positions == list(range(first, first + len(example.targets)))
        assert (example.answer, example.sentence, was_cut) == (TARGET_ANSWER, sentence, False)


@pytest.mark.parametrize("template", [None, "<s> $A", "<s> $A </s>"])
def test_an_answer_to_nothing_begins_behind_one_bos(template: str | None) -> None:
    encoder = Encoder(byte_level(template), "causal")
    own = encoder.tokenizer("the cat", add_special_tokens=False)["input_ids"]
    example, _ = read(encoder, "", "the cat")
    assert example.input_ids == [0, *own]
    assert (example.positions, example.targets) == (list(range(len(own))), own)
    encoded = EncodedSentences(encoder, [3], [""], [("the cat", "the mat")])
    ordinary, right, wrong = (encoded[row] for row in range(3))
    assert (ordinary.input_ids, ordinary.positions) == ([0], [0])
    assert [one.answer for one in (ordinary, right, wrong)] == [NO_ANSWER, TARGET_ANSWER, FOIL_ANSWER]
    assert right.input_ids == example.input_ids


def test_a_tokenizer_without_bos_and_eos_reads_no_empty_sentence() -> None:
    tokenizer = byte_level()
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(ReportedError, match=r"sentence 3 is empty, .* neither a BOS nor an EOS token"):
        read(Encoder(tokenizer, "causal"), "", "the cat")


def test_an_answer_stays_whole_where_the_sentence_is_too_long() -> None:
    tokenizer = byte_level("<s> $A")
    whole = tokenizer("the cat sat on the mat is it")["input_ids"]
    num_own = len(whole) - len(tokenizer("the cat sat on the mat")["input_ids"])
    example, was_cut = read(Encoder(tokenizer, "causal", max_length=num_own + 3), "the cat sat on the mat", "is it")
    assert was_cut
    assert example.input_ids == [0, *whole[-num_own - 2 :]]
    assert example.targets == whole[-num_own:]
    assert [example.input_ids[position + 1] for position in example.positions] == example.targets
    with pytest.raises(ReportedError, match="does not fit into 3 tokens"):
        read(Encoder(tokenizer, "causal", max_length=3), "the cat", "sat on the mat is it")


def test_a_delimiter_stands_only_where_there_is_no_white_space() -> None:
    assert joined("a", "b", " ") == joined("a ", "b", " ") == joined("a", " b", " ") == "a b"
    assert joined("a", "b", "") == "ab"
    assert joined("", "b", " ") == "b"


@pytest.mark.parametrize("sentence", ["the [MASK] sat.", "the [MASK][MASK] sat.", "the [MASK] [MASK] [MASK] sat."])
def test_masks_become_as_many_as_the_answer_has_tokens(sentence: str) -> None:
    encoder = Encoder(word_piece(), "masked")
    tokenizer = encoder.tokenizer
    example, _ = read(encoder, sentence, "cat 50%")
    mask = tokenizer.mask_token
    assert tokenizer.convert_ids_to_tokens(example.input_ids) == [
        *("[CLS]", "the", mask, mask, mask, "sat", ".", "[SEP]")
    ]
    assert tokenizer.convert_ids_to_tokens(example.targets) == ["cat", "50", "%"]
    assert example.positions == [2, 3, 4]


def test_an_answer_behind_a_sentence_without_masks_stands_before_the_end() -> None:
    encoder = Encoder(word_piece("<mask>"), "masked")
    example, _ = read(encoder, "it is", "the cat")
    assert encoder.tokenizer.convert_ids_to_tokens(example.input_ids) == [
        *("[CLS]", "it", "is", "<mask>", "<mask>", "[SEP]")
    ]
    assert encoder.tokenizer.convert_ids_to_tokens(example.targets) == ["the", "cat"]


def test_a_token_that_begins_with_a_space_belongs_to_the_answer_at_a_mask() -> None:
    encoder = Encoder(with_space_before_its_mask(), "masked")
    tokenizer = encoder.tokenizer
    example, _ = read(encoder, "it is [MASK] mat", "the cat")
    own = tokenizer(" the cat", add_special_tokens=False)["input_ids"]
    assert example.targets == own
    left, right = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("it is", " mat"))
    assert example.input_ids == [0, *left, *[tokenizer.mask_token_id] * len(own), *right, 1]
    glued, _ = read(encoder, "the c[MASK]", "at")
    assert glued.targets == tokenizer("at", add_special_tokens=False)["input_ids"], "it would be a token with the c"


def test_a_long_masked_sentence_is_cut_far_from_the_answer() -> None:
    encoder = Encoder(word_piece(), "masked", max_length=6)
    example, was_cut = read(encoder, "the cat sat on [MASK] . it is the cat", "the mat")
    assert was_cut
    assert encoder.tokenizer.convert_ids_to_tokens(example.input_ids) == [
        "[CLS]",
        "sat",
        "on",
        "[MASK]",
        "[MASK]",
        "[SEP]",
    ]
    assert [example.input_ids[position] for position in example.positions] == [encoder.tokenizer.mask_token_id] * 2
