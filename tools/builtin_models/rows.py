"""From documents to batches: the tokenizers, the rows that a model reads, and what it has to guess in them."""

import random
from collections import Counter

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import BertTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast

MAX_POSITIONS = 256
IGNORED = -100
BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
NUM_LETTERS = 200
"""Letters and signs that WordPiece knows; rarer ones are [UNK]."""
ROW_LIMITS = (0, 64, 128, MAX_POSITIONS)
ROW_WEIGHTS = (0.5, 0.3, 0.12, 0.08)


def train_gpt2_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that knows `<|endoftext|>`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    made: PreTrainedTokenizerFast = GPT2Tokenizer(tokenizer_object=tokenizer, model_max_length=MAX_POSITIONS)
    return made


def train_bert_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer, the same in each process.

    The trainer numbers the letters inside of words as they happen to come, and breaks ties between pairs by these
    numbers; so it gets them as tokens that it knows already.
    """
    learner = _word_piece({})
    letters = Counter(letter for text in texts for letter in learner.normalizer.normalize_str(text) if letter != " ")
    common = sorted(sorted(letters, key=lambda letter: (-letters[letter], letter))[:NUM_LETTERS])
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*BERT_SPECIAL, *(f"##{letter}" for letter in common)],
        initial_alphabet=common,
        limit_alphabet=len(common),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    tokenizer = _word_piece(learner.get_vocab())
    tokenizer.add_special_tokens(BERT_SPECIAL)
    special = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    made: PreTrainedTokenizerFast = BertTokenizer(
        tokenizer_object=tokenizer, model_max_length=MAX_POSITIONS, do_lower_case=True
    )
    return made


def _word_piece(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def make_rows(
    documents: list[list[int]], tokenizer: PreTrainedTokenizerFast, causal: bool, rng: random.Random
) -> list[list[int]]:
    """One epoch of rows, each beginning with a document's start.

    Half of the rows hold one document, as a sentence comes to the model in use; the others are filled up to 64, 128
    and 256 tokens, so that every position is trained.
    """
    order = rng.sample(range(len(documents)), len(documents))
    rows, place = [], 0
    while place < len(order):
        (limit,) = rng.choices(ROW_LIMITS, ROW_WEIGHTS)
        row: list[int] = []
        while place < len(order) and (not row or len(row) < limit):
            row += documents[order[place]] + ([tokenizer.eos_token_id] if causal else [])
            place += 1
        limit = limit or MAX_POSITIONS
        rows.append(row[:limit] if causal else [tokenizer.cls_token_id, *row[: limit - 2], tokenizer.sep_token_id])
    return rows


def make_batches(rows: list[list[int]], num_tokens: int, rng: random.Random) -> list[list[list[int]]]:
    """The rows in batches of similar lengths, of `num_tokens` at most with their padding, in random order."""
    rows = sorted(rows, key=len)
    batches: list[list[list[int]]] = [[]]
    for row in rows:
        if len(row) * (len(batches[-1]) + 1) > num_tokens:
            batches.append([])
        batches[-1].append(row)
    rng.shuffle(batches)
    return batches


def pad(rows: list[list[int]], filler: int) -> Tensor:
    """The rows as one tensor `[batch, seq]`, padded on the right."""
    longest = max(map(len, rows))
    return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])


def mask_tokens(
    ids: Tensor, tokenizer: PreTrainedTokenizerFast, share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Masks a share of the tokens, special tokens never.

    All of them become `[MASK]`; the original (Devlin et al. 2019, section 3.1) leaves or exchanges one in five, which
    serves fine-tuning on unmasked text. This model is read at `[MASK]` alone.

    Returns:
        The ids to read and the labels, both `[batch, seq]`; labels are -100 where nothing is to be guessed.
    """
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    guessed = (torch.rand(ids.shape, generator=generator) < share) & ~special
    return ids.masked_fill(guessed, tokenizer.mask_token_id), ids.masked_fill(~guessed, IGNORED)


def mask_one(ids: Tensor, tokenizer: PreTrainedTokenizerFast, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Masks one token of each row, special tokens never; what it takes and gives is as in `mask_tokens`."""
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    chance = torch.rand(ids.shape, generator=generator).masked_fill(special, -1.0)
    guessed = torch.zeros_like(special).scatter(1, chance.argmax(1, keepdim=True), True)
    return ids.masked_fill(guessed, tokenizer.mask_token_id), ids.masked_fill(~guessed, IGNORED)
