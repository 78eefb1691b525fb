"""Tiny random models of every family, and tokenizers made on the spot: no network, no stored weights.

Every parameter is drawn anew from a seed, away from its initial value: a norm that is forgotten, a bias that is left
out or a softcap that is skipped then changes the numbers, which it would not on a freshly initialised model.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from llm_entropy.models.attention.interface import EAGER, READABLE
from llm_entropy.models.families import find_architecture

HIDDEN = 32
NUM_HEADS = 4
MAX_POSITIONS = 64
CAUSAL_VOCAB = 331
MASKED_VOCAB = 149

SENTENCES = (
    "a",
    "the cat",
    "rain fell on the old stone bridge",
    'a quote " and, a comma',
    "the ship left the harbour before dawn, and nobody on the quay waved to the crew.",
    "why does iron rust?",
    "she counted the lamps along the river until the last of them went out in the fog",
    "the old bridge over the river was built of stone, and the ship that left the harbour in the rain sailed on.",
)
"""Sentences of different lengths, the shortest of one token; longer than every sliding window below."""

OPEN_SENTENCES = ("the [MASK] left the [MASK] before dawn.", "[MASK]")
"""Sentences that hold mask tokens already: two records, and one."""


class Family(NamedTuple):
    """One tiny model: what to make, and how its parts differ from its relatives."""

    kind: str
    """`causal` or `masked`."""
    model_type: str
    """Hugging Face's name."""
    num_blocks: int
    """L."""
    options: dict[str, Any]
    """The rest of the configuration."""


_GPT2 = {"n_embd": HIDDEN, "n_layer": 3, "n_head": NUM_HEADS, "n_positions": MAX_POSITIONS}
_GPT2_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def _sizes(num_blocks: int, **options: Any) -> dict[str, Any]:
    return {
        "hidden_size": HIDDEN,
        "num_hidden_layers": num_blocks,
        "num_attention_heads": NUM_HEADS,
        "intermediate_size": 48,
        "max_position_embeddings": MAX_POSITIONS,
        **options,
    }


_OPT = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 3,
    "num_attention_heads": NUM_HEADS,
    "ffn_dim": 48,
    "max_position_embeddings": MAX_POSITIONS,
}
_ALBERT = {"embedding_size": 20, "inner_group_num": 1}

FAMILIES: dict[str, Family] = {
    "gpt2": Family("causal", "gpt2", 3, {**_GPT2, **_GPT2_DROPOUT}),
    "gpt_neo": Family(
        "causal",
        "gpt_neo",
        4,
        {
            "hidden_size": HIDDEN,
            "num_layers": 4,
            "num_heads": NUM_HEADS,
            "attention_types": [[["global", "local"], 2]],
            "window_size": 5,
            "max_position_embeddings": MAX_POSITIONS,
        },
    ),
    "gpt_neox": Family("causal", "gpt_neox", 3, _sizes(3, tie_word_embeddings=False)),
    "opt": Family("causal", "opt", 3, {**_OPT, "word_embed_proj_dim": HIDDEN, "do_layer_norm_before": True}),
    "opt_projected": Family("causal", "opt", 3, {**_OPT, "word_embed_proj_dim": 20, "do_layer_norm_before": True}),
    "opt_post_norm": Family("causal", "opt", 3, {**_OPT, "word_embed_proj_dim": 20, "do_layer_norm_before": False}),
    "llama": Family("causal", "llama", 4, _sizes(4, num_key_value_heads=2)),
    "mistral": Family("causal", "mistral", 3, _sizes(3, num_key_value_heads=2, sliding_window=5)),
    "qwen2": Family("causal", "qwen2", 3, _sizes(3, num_key_value_heads=2, tie_word_embeddings=True)),
    "qwen3": Family("causal", "qwen3", 3, _sizes(3, num_key_value_heads=2, head_dim=12)),
    "gemma2": Family(
        "causal",
        "gemma2",
        4,
        _sizes(
            4,
            num_key_value_heads=2,
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=6,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=4.0,
        ),
    ),
    "phi": Family("causal", "phi", 3, _sizes(3, partial_rotary_factor=0.5)),
    "bloom": Family("causal", "bloom", 3, {"hidden_size": HIDDEN, "n_layer": 3, "n_head": NUM_HEADS}),
    "cohere": Family("causal", "cohere", 3, _sizes(3, num_key_value_heads=2, logit_scale=0.6)),
    "granite": Family(
        "causal",
        "granite",
        3,
        _sizes(
            3,
            num_key_value_heads=2,
            logits_scaling=1.7,
            embedding_multiplier=2.5,
            residual_multiplier=0.6,
            attention_multiplier=0.4,
        ),
    ),
    "bert": Family("masked", "bert", 3, _sizes(3)),
    "roberta": Family("masked", "roberta", 3, _sizes(3, type_vocab_size=1)),
    "xlm-roberta": Family("masked", "xlm-roberta", 3, _sizes(3, type_vocab_size=1)),
    "camembert": Family("masked", "camembert", 3, _sizes(3, type_vocab_size=1)),
    "distilbert": Family(
        "masked",
        "distilbert",
        3,
        {
            "dim": HIDDEN,
            "n_layers": 3,
            "n_heads": NUM_HEADS,
            "hidden_dim": 48,
            "max_position_embeddings": MAX_POSITIONS,
        },
    ),
    "electra": Family("masked", "electra", 3, _sizes(3, embedding_size=20)),
    "albert": Family("masked", "albert", 4, _sizes(4, num_hidden_groups=1, **_ALBERT)),
    "albert_two_groups": Family("masked", "albert", 4, _sizes(4, num_hidden_groups=2, **_ALBERT)),
    "modernbert": Family(
        "masked",
        "modernbert",
        4,
        _sizes(
            4,
            local_attention=6,
            layer_types=["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
            norm_bias=True,
            classifier_bias=True,
            cls_token_id=0,
            sep_token_id=2,
        ),
    ),
}
"""A row for every family, and for each variant of one that takes another way through the code."""

CAUSAL = tuple(name for name, family in FAMILIES.items() if family.kind == "causal")
MASKED = tuple(name for name, family in FAMILIES.items() if family.kind == "masked")


def make_model(family: str, seed: int = 0, attention: str | None = "eager") -> PreTrainedModel:
    """Return a random model of a family, float32, in eval mode; `attention` None: what transformers would choose."""
    row = FAMILIES[family]
    if row.kind == "causal":
        special = {"vocab_size": CAUSAL_VOCAB, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
        auto = AutoModelForCausalLM
    else:
        special = {"vocab_size": MASKED_VOCAB, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
        auto = AutoModelForMaskedLM
    config = AutoConfig.for_model(row.model_type, **special, **row.options)
    model = auto.from_config(config, attn_implementation=attention, dtype=torch.float32)
    randomise_(model, seed)
    return model.eval()


def readable_attention(family: str) -> str:
    """Return the implementation with which a family is loaded to read its attention."""
    return EAGER if is_eager_only(family) else READABLE


def is_eager_only(family: str) -> bool:
    """Return whether a family's attention can only be read from its maps."""
    return find_architecture(AutoConfig.for_model(FAMILIES[family].model_type), family).eager_only


def randomise_(model: PreTrainedModel, seed: int) -> None:
    """Draw every parameter anew; the distributions over the vocabulary come out far from uniform, and from certain."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if id(parameter) in embeddings:
                parameter.copy_(0.45 * noise)
            elif parameter.ndim == 1:
                parameter.add_(0.3 * noise)
            else:
                parameter.copy_(1.5 / math.sqrt(HIDDEN) * noise)


def make_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Return a tiny tokenizer learnt from the sentences: byte-level BPE (causal) or WordPiece (masked)."""
    return _make_byte_level() if kind == "causal" else _make_word_piece()


def _make_byte_level() -> PreTrainedTokenizerFast:
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = byte_level
    tokenizer.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    end = "<|endoftext|>"
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=CAUSAL_VOCAB - 3, special_tokens=[end], initial_alphabet=byte_level.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end, model_max_length=MAX_POSITIONS - 4
    )


def _make_word_piece() -> PreTrainedTokenizerFast:
    # Padding at 1 and [CLS] at 0, as RoBERTa has them: a padding id that is taken for granted shows.
    special = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"]
    letters = "abcdefghijklmnopqrstuvwxyz"
    # A written vocabulary: the trainer for WordPiece gives another one in each process. Rarer words come in pieces.
    words = sorted({word.strip('.,?"') for sentence in SENTENCES for word in sentence.split()} - {"a", "comma", "dawn"})
    vocabulary = [*special, *letters, *(f"##{letter}" for letter in letters), *".,?\"'-[]", *words]
    assert len(set(vocabulary)) == len(vocabulary) <= MASKED_VOCAB
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({token: index for index, token in enumerate(vocabulary)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = tokenizers.decoders.WordPiece()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token="[CLS]",
        pad_token="[PAD]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        mask_token="[MASK]",
        model_max_length=MAX_POSITIONS - 4,
    )


def save_model(family: str, folder: Path, seed: int = 0) -> Path:
    """Write a tiny model and its tokenizer as a local folder; return the folder."""
    make_model(family, seed).save_pretrained(folder)
    make_tokenizer(FAMILIES[family].kind).save_pretrained(folder)
    return folder
