from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from transformers import BertTokenizerLegacy, PreTrainedTokenizerFast

from llm_entropy.corpus.batching import collate
from llm_entropy.corpus.draws import sampling_uniforms
from llm_entropy.corpus.encoded import EncodedSentences
from llm_entropy.corpus.encoding import Encoder
from llm_entropy.errors import ReportedError
from llm_entropy.schema.batches import PREDICTED, Example, narrowed

WORDS = ["the", "cat", "sat", "on", "mat", "it", "is", "##s", "50", "%", ".", ",", "!", '"', "[", "]", "\uff1f"]


def word_piece(mask: str = "[MASK]") -> PreTrainedTokenizerFast:
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", mask]
    vocabulary = {token: index for index, token in enumerate(special + WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token=mask, **names)


def byte_level(template: str | None = None) -> PreTrainedTokenizerFast:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat", "it is the cat"] * 3, trainer)
    if template is not None:
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def encode(encoder: Encoder, *sentences: str) -> list[Example]:
    return [example for example, _ in encoder(range(len(sentences)), sentences)]


def tokens_of(encoder: Encoder, example: Example) -> list[str]:
    return encoder.tokenizer.convert_ids_to_tokens(example.input_ids)


# --- causal ------------------------------------------------------------------------------------------------------


def test_a_causal_model_is_read_at_the_last_token_whose_target_is_predicted():
    encoder = Encoder(byte_level(), "causal")
    (example,) = encode(encoder, "the cat sat")
    assert example.input_ids == encoder.tokenizer("the cat sat")["input_ids"]
    assert example.positions == [len(example.input_ids) - 1]
    assert example.targets == [PREDICTED]
    assert "the cat sat"[example.starts[0] : example.ends[0]].strip() == "sat"


def test_at_all_positions_the_target_is_the_next_token_and_the_last_one_is_predicted():
    encoder = Encoder(byte_level("<s> $A"), "causal", positions="all")
    (example,) = encode(encoder, "the cat sat")
    assert example.input_ids[0] == 0, "the tokenizer's BOS is read like any other token"
    assert example.positions == list(range(len(example.input_ids)))
    assert example.targets == [*example.input_ids[1:], PREDICTED]
    assert (example.starts[0], example.ends[0]) == (-1, -1), "the BOS stands nowhere in the sentence"
    assert (
        "".join("the cat sat"[s:e] for s, e in zip(example.starts[1:], example.ends[1:], strict=True)) == "the cat sat"
    )


@pytest.mark.parametrize("positions", ["last", "all"])
def test_an_appended_end_token_is_not_part_of_the_sentence(positions: Any):
    with_end = encode(Encoder(byte_level("<s> $A </s>"), "causal", positions=positions), "the cat", "it")
    without = encode(Encoder(byte_level("<s> $A"), "causal", positions=positions), "the cat", "it")
    assert with_end == without


def test_an_end_token_that_the_sentence_itself_holds_is_read():
    encoder = Encoder(byte_level("<s> $A </s>"), "causal")
    (example,) = encode(encoder, "the cat</s>")
    assert example.input_ids[-1] == 1
    assert (example.starts, example.ends) == ([7], [11])


def test_a_causal_sentence_is_cut_at_the_end_and_flagged():
    encoder = Encoder(byte_level("<s> $A"), "causal", max_length=4)
    (long, long_cut), (short, short_cut) = encoder([5, 6], ["the cat sat on the mat", "it"])
    whole = encoder.tokenizer("the cat sat on the mat")["input_ids"]
    assert (long.input_ids, long_cut) == (whole[:4], True)
    assert (short.sentence_id, short_cut) == (6, False)


def test_a_sentence_without_tokens_gives_no_example():
    tokenizer = byte_level("<s> $A </s>")
    tokenizer.backend_tokenizer.normalizer = tokenizers.normalizers.Replace("\u200b", "")
    encoder = Encoder(tokenizer, "causal")
    assert [example.sentence_id for example in encode(encoder, "\u200b", "it", "\u200b\u200b")] == [1]


def test_no_sentences_give_no_examples():
    assert Encoder(byte_level(), "causal", max_length=5)([], []) == []


# --- texts that begin with what the tokenizer adds ---------------------------------------------------------------


@pytest.mark.parametrize("template", ["<s> $A", "<s> $A </s>", "<s> </s> $A"])
@pytest.mark.parametrize("positions", ["last", "all"])
def test_a_text_that_begins_with_the_bos_has_it_once(template: str, positions: Any):
    encoder = Encoder(byte_level(template), "causal", positions=positions)
    start = template.partition(" $A")[0].replace(" ", "")
    text = f"{start}the cat sat"
    own, plain = encoder.examples([0, 1], [text, "the cat sat"])
    assert own.example.input_ids == plain.example.input_ids
    assert own.example.positions == plain.example.positions
    assert own.example.targets == plain.example.targets
    assert [encoded.has_own_start for encoded in (own, plain)] == [True, False]
    read = "".join(text[s:e] for s, e in zip(own.example.starts, own.example.ends, strict=True))
    assert read.strip() == (text if positions == "all" else "sat")


def test_a_bos_within_a_text_stays():
    encoder = Encoder(byte_level("<s> $A"), "causal")
    (encoded,) = encoder.examples([0], ["the<s> cat"])
    assert encoded.example.input_ids == encoder.tokenizer("the<s> cat")["input_ids"]
    assert not encoded.has_own_start


def test_a_bos_that_the_text_itself_has_twice_stays():
    encoder = Encoder(byte_level("<s> $A"), "causal")
    (example,) = encode(encoder, "<s><s>it")
    assert example.input_ids[:2] == [0, 0]
    assert example.input_ids[2] != 0


def test_a_tokenizer_that_adds_nothing_leaves_the_texts_bos_alone():
    (encoded,) = Encoder(byte_level(), "causal").examples([0], ["<s>it"])
    assert encoded.example.input_ids[0] == 0
    assert not encoded.has_own_start


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_text_with_its_own_bos_is_cut_as_if_it_had_none(side: str):
    tokenizer = byte_level("<s> $A </s>")
    tokenizer.truncation_side = side
    whole = tokenizer("the cat sat on the mat")["input_ids"]
    for length in range(3, len(whole) + 1):
        encoder = Encoder(tokenizer, "causal", max_length=length)
        (own, own_cut), (plain, plain_cut) = encoder([0, 0], ["<s>the cat sat on the mat", "the cat sat on the mat"])
        assert own.input_ids == plain.input_ids
        assert own_cut == plain_cut == (length < len(whole))


@pytest.mark.parametrize("slow", [False, True])
def test_a_masked_text_with_its_own_special_tokens_has_them_once(slow: bool, tmp_path: Path):
    tokenizer: Any = word_piece()
    if slow:
        vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
        (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
        tokenizer = BertTokenizerLegacy(str(tmp_path / "vocab.txt"))
    encoder = Encoder(tokenizer, "masked")
    texts = ["the cat sat", "[CLS] the cat sat", "[CLS] the cat sat [SEP]", "[CLS] the [MASK] sat [SEP]"]
    plain, start, both, masked = encoder.examples(range(4), texts)
    assert plain.example.input_ids == start.example.input_ids == both.example.input_ids
    assert plain.example.positions == both.example.positions == [3]
    assert masked.example.positions == [2]
    assert tokens_of(encoder, masked.example) == ["[CLS]", "the", "[MASK]", "sat", "[SEP]"]
    assert [encoded.has_own_start for encoded in (plain, start, both, masked)] == [False, True, True, True]
    if not slow:
        assert (both.example.starts, both.example.ends) == ([14], [17])
        assert texts[2][14:17] == "sat"


def test_texts_with_their_own_bos_are_counted_once_each():
    encoder = Encoder(word_piece(), "masked", mask_strategy="each")
    encoded = EncodedSentences(encoder, [5, 6, 9], ["[CLS] the cat sat", "it is", "[CLS] it is"])
    assert (len(encoded), encoded.num_own_start) == (7, 2)


# --- tokens that the model does not know -------------------------------------------------------------------------


def test_a_token_beyond_the_embeddings_is_refused_with_its_sentence_and_both_numbers():
    tokenizer = byte_level()
    tokenizer.add_tokens(["<|user|>"])
    num_embeddings = len(tokenizer) - 1
    encoder = Encoder(tokenizer, "causal", num_embeddings=num_embeddings)
    assert encoder.may_be_unknown
    assert len(encoder([0], ["the cat"])) == 1
    with pytest.raises(
        ReportedError,
        match=rf"token '<\|user\|>' in sentence 7 the id {num_embeddings}, and the model's embeddings have "
        rf"{num_embeddings} rows; call model\.resize_token_embeddings",
    ):
        encoder([6, 7], ["the cat", "<|user|> sat"])


def test_an_added_end_that_is_not_read_may_be_unknown():
    tokenizer = byte_level()
    tokenizer.add_tokens(["<|end|>"])
    end = len(tokenizer) - 1
    tokenizer.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A <|end|>", special_tokens=[("<s>", 0), ("<|end|>", end)]
    )
    (example,) = encode(Encoder(tokenizer, "causal", num_embeddings=end), "the cat")
    assert max(example.input_ids) < end
    with pytest.raises(ReportedError, match=r"'<\|end\|>' in sentence 0"):
        encode(Encoder(tokenizer, "causal", num_embeddings=end), "the cat<|end|>")


@pytest.mark.parametrize("strategy", ["last", "random", "each"])
def test_a_masked_token_that_is_only_a_target_is_refused_too(strategy: Any):
    tokenizer = word_piece()
    tokenizer.add_tokens(["quay"])
    encoder = Encoder(tokenizer, "masked", mask_strategy=strategy, num_embeddings=len(tokenizer) - 1)
    with pytest.raises(ReportedError, match=r"'quay' in sentence 0"):
        encode(encoder, "quay")


def test_a_mask_token_beyond_the_embeddings_is_refused_before_any_sentence():
    tokenizer = word_piece()
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    with pytest.raises(ReportedError, match=r"gives the token '<mask>' the id 22, and the model's embeddings have 22"):
        Encoder(tokenizer, "masked", num_embeddings=22)


def test_a_tokenizer_that_is_smaller_than_the_embeddings_has_no_unknown_tokens():
    tokenizer = byte_level()
    assert not Encoder(tokenizer, "causal", num_embeddings=len(tokenizer)).may_be_unknown
    assert not Encoder(tokenizer, "causal").may_be_unknown


# --- masked ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sentence", "masked"),
    [
        ("The cat sat on the mat.", "mat"),
        ('"The cat sat on the mat!"', "mat"),
        ("the mat is 50%.", "%"),
        ("it is [cat]!", "cat"),
        ("the cats.", "s"),
        ("it is\uff1f", "is"),
    ],
)
def test_the_last_token_that_is_no_closing_punctuation_is_masked(sentence: str, masked: str):
    encoder = Encoder(word_piece(), "masked")
    (example,) = encode(encoder, sentence)
    (position,) = example.positions
    assert tokens_of(encoder, example)[position] == "[MASK]"
    assert encoder.tokenizer.convert_ids_to_tokens(example.targets)[0].removeprefix("##") == masked
    assert sentence[example.starts[0] : example.ends[0]].lower() == masked
    restored = [*example.input_ids[:position], example.targets[0], *example.input_ids[position + 1 :]]
    assert restored == encoder.tokenizer(sentence)["input_ids"]


def test_of_a_sentence_of_punctuation_the_last_mark_is_masked():
    encoder = Encoder(word_piece(), "masked")
    (example,) = encode(encoder, '."!')
    assert encoder.tokenizer.convert_ids_to_tokens(example.targets) == ["!"]


def test_each_masks_every_token_once_and_no_special_one():
    encoder = Encoder(word_piece(), "masked", mask_strategy="each")
    examples = encode(encoder, "the cat [SEP] sat.", "it")
    whole = encoder.tokenizer("the cat [SEP] sat.")["input_ids"]
    assert [example.positions for example in examples] == [[1], [2], [4], [5], [1]]
    assert [example.targets for example in examples[:4]] == [[whole[i]] for i in (1, 2, 4, 5)]
    assert [example.sentence_id for example in examples] == [0, 0, 0, 0, 1]
    for example in examples:
        assert tokens_of(encoder, example).count("[MASK]") == 1


def test_an_unknown_word_is_a_token_like_others():
    encoder = Encoder(word_piece(), "masked")
    (example,) = encode(encoder, "the 🐈.")
    assert example.targets == [encoder.tokenizer.unk_token_id]
    assert example.sentence[example.starts[0] : example.ends[0]] == "🐈"


def test_random_masks_one_token_by_seed_and_sentence_id_alone():
    sentence = "the cat sat on the mat ."
    encoder = Encoder(word_piece(), "masked", mask_strategy="random", seed=3)
    together = encoder(range(200), [sentence] * 200)
    alone = [encoder([i], [sentence])[0] for i in reversed(range(200))][::-1]
    assert together == alone
    chosen = [example.positions[0] for example, _ in together]
    assert set(chosen) == set(range(1, 8)), "every token but [CLS] and [SEP] has its turn"
    other = Encoder(word_piece(), "masked", mask_strategy="random", seed=4)(range(200), [sentence] * 200)
    assert [example.positions[0] for example, _ in other] != chosen


@pytest.mark.parametrize("mask", ["[MASK]", "<mask>", "<a longer mask>"])
@pytest.mark.parametrize("strategy", ["last", "random", "each"])
def test_a_sentence_with_masks_is_taken_as_it_is_whatever_the_tokenizer_calls_them(mask: str, strategy: Any):
    encoder = Encoder(word_piece(mask), "masked", mask_strategy=strategy)
    sentence = "the [MASK] sat on [MASK] mat ."
    (example,) = encode(encoder, sentence)
    assert example.positions == [2, 5]
    assert example.targets == [PREDICTED, PREDICTED]
    assert example.sentence == sentence
    assert [sentence[s:e].strip() for s, e in zip(example.starts, example.ends, strict=True)] == ["[MASK]", "[MASK]"]
    assert len(example.input_ids) == 9


def test_a_sentence_that_loses_its_mask_to_the_cut_is_not_masked_elsewhere():
    encoder = Encoder(word_piece(), "masked", max_length=5)
    ((example, was_cut),) = encoder([0, 1], ["the cat sat on [MASK]", "the [MASK] sat on the mat"])
    assert (example.sentence_id, was_cut) == (1, True)
    assert example.positions == [2]


def test_a_cut_keeps_the_special_tokens():
    encoder = Encoder(word_piece(), "masked", max_length=5)
    ((example, was_cut),) = encoder([0], ["the cat sat on the mat"])
    assert tokens_of(encoder, example) == ["[CLS]", "the", "cat", "[MASK]", "[SEP]"]
    assert was_cut


def test_a_masked_model_needs_a_tokenizer_with_a_mask_token():
    with pytest.raises(ValueError, match="no mask token"):
        Encoder(byte_level(), "masked")


def test_a_length_without_room_for_a_token_is_refused():
    with pytest.raises(ValueError, match=r"data\.max_length: got 2"):
        Encoder(word_piece(), "masked", max_length=2)


def test_a_slow_tokenizer_gives_the_same_examples_without_offsets(tmp_path):
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    (tmp_path / "vocab.txt").write_text("\n".join(special + WORDS) + "\n", encoding="utf-8")
    slow = BertTokenizerLegacy(str(tmp_path / "vocab.txt"))
    assert not slow.is_fast
    sentences = ['"the cat sat!"', "it is [MASK].", "the cat sat on the mat"]
    for strategy in ("last", "random", "each"):
        got = Encoder(slow, "masked", mask_strategy=strategy, max_length=6)(range(3), sentences)
        expected = Encoder(word_piece(), "masked", mask_strategy=strategy, max_length=6)(range(3), sentences)
        unplaced = [(e._replace(starts=[-1] * len(e.starts), ends=[-1] * len(e.ends)), cut) for e, cut in expected]
        assert got == unplaced


def test_the_fingerprint_tells_settings_apart_and_ignores_use():
    encoder = Encoder(word_piece(), "masked", max_length=8)
    before = encoder.fingerprint
    encoder([0], ["the cat sat on the mat it is the cat"])
    assert Encoder(encoder.tokenizer, "masked", max_length=8).fingerprint == before, "a cut left its mark"
    assert Encoder(word_piece(), "masked", max_length=8).fingerprint == before
    others = [
        Encoder(word_piece("<mask>"), "masked", max_length=8),
        Encoder(word_piece(), "masked", max_length=9),
        Encoder(word_piece(), "masked", max_length=8, mask_strategy="each"),
        Encoder(word_piece(), "masked", max_length=8, seed=1),
        Encoder(word_piece(), "causal", max_length=8),
    ]
    assert len({before, *(other.fingerprint for other in others)}) == 6


# --- batches -----------------------------------------------------------------------------------------------------


def test_a_batch_pads_on_the_right_and_lists_its_records():
    examples = [
        Example(7, "a b c", [4, 5, 6], [0, 2], [5, PREDICTED], [0, 4], [1, 5]),
        Example(3, "d", [8], [0], [9], [0], [1]),
    ]
    batch = collate(examples, pad_token_id=99, seed=1)
    assert batch.input_ids.tolist() == [[4, 5, 6], [8, 99, 99]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.rows.tolist() == [0, 0, 1]
    assert batch.positions.tolist() == [0, 2, 0]
    assert batch.targets.tolist() == [5, PREDICTED, 9]
    assert batch.sentence_ids.tolist() == [7, 7, 3]
    assert (batch.starts.tolist(), batch.ends.tolist()) == ([0, 4, 0], [1, 5, 1])
    assert batch.sentences == ["a b c", "d"]
    assert batch.uniforms.tolist() == sampling_uniforms(1, [7, 7, 3], [0, 2, 0]).tolist()
    assert batch.uniforms.dtype == torch.float64
    assert {batch.input_ids.dtype, batch.targets.dtype, batch.rows.dtype} == {torch.int64}


def test_a_random_number_depends_on_seed_sentence_and_position_alone():
    rng = np.random.default_rng(0)
    ids, positions = rng.integers(0, 10**12, 500), rng.integers(0, 4096, 500)
    together = sampling_uniforms(5, ids, positions)
    shuffled = rng.permutation(500)
    assert (sampling_uniforms(5, ids[shuffled], positions[shuffled]) == together[shuffled]).all()
    assert sampling_uniforms(5, [int(ids[9])], [int(positions[9])])[0] == together[9]
    for other in (sampling_uniforms(6, ids, positions), sampling_uniforms(5, ids + 1, positions)):
        assert not (other == together).any()
    assert not (sampling_uniforms(5, positions, ids) == together).any(), "sentence and position change places"


def test_the_random_numbers_do_not_change_between_versions():
    # Recorded: a run that is continued with a newer version must draw the same tokens.
    recorded = [0.13870941014555427, 0.2691303195904541, 0.18436667429957676]
    assert sampling_uniforms(0, [0, 1, 0], [0, 0, 1]).tolist() == recorded


def test_the_random_numbers_are_uniform_and_independent():
    grid = np.arange(400)
    ids, positions = (axis.ravel() for axis in np.meshgrid(grid, grid, indexing="ij"))
    for seed in (0, 1, 2**63 + 11):
        numbers = sampling_uniforms(seed, ids, positions)
        assert ((numbers >= 0) & (numbers < 1)).all()
        counts = np.histogram(numbers, bins=100, range=(0, 1))[0]
        # Chi-squared with 99 degrees of freedom: 160 has a probability of 1e-4.
        assert ((counts - 1600) ** 2 / 1600).sum() < 160
        table = numbers.reshape(400, 400)
        for neighbour in (np.roll(table, 1, 0), np.roll(table, 1, 1), table.T):
            off_diagonal = ~np.eye(400, dtype=bool)
            # The deviation of a correlation of 160,000 pairs is 0.0025.
            assert abs(np.corrcoef(table[off_diagonal], neighbour[off_diagonal])[0, 1]) < 0.0125
        assert len(np.unique(numbers)) == len(numbers)
    correlation = np.corrcoef(sampling_uniforms(0, ids, positions), sampling_uniforms(1, ids, positions))[0, 1]
    assert abs(correlation) < 0.0125


def test_random_numbers_are_cut_for_a_device_without_float64_and_never_become_one():
    draws = torch.from_numpy(sampling_uniforms(3, range(20_000), range(20_000)))
    draws[0] = 1.0 - 2.0**-53
    assert narrowed(draws, torch.float64) is draws
    narrow = narrowed(draws, torch.float32)
    assert narrow.dtype == torch.float32
    assert narrow.max() == 1.0 - 2.0**-24
    assert torch.equal((narrow.double() * 2.0**24).long(), (draws * 2.0**24).long())
    assert ((narrow.double() <= draws) & (draws - narrow.double() < 2.0**-24)).all()
