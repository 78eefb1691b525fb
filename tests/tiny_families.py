"""Tiny random models of families of transformers: its own default configurations, made small."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from tiny_models import randomise_
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llm_entropy.models.attention.interface import EAGER, READABLE
from llm_entropy.models.families import find_architecture

VOCAB = 151
_COUNTS = {"num_hidden_layers": 3, "n_layer": 3, "n_layers": 3, "num_layers": 3, "decoder_layers": 3}
_HEADS = {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_kv_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "attention_heads": 4,
    "decoder_attention_heads": 4,
    "head_dim": 8,
    "rotary_dim": 4,
}
_WIDTHS = {
    **dict.fromkeys(("hidden_size", "embedding_size", "n_embd", "d_model", "dim", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner", "d_ff", "hidden_dim"), 48),
    **dict.fromkeys(("decoder_ffn_dim", "block_ff_dim"), 48),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 64),
    **dict.fromkeys(("sliding_window", "attention_chunk_size"), 5),
}
_EXPERTS = {
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace"), 1),
}
_LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
_RECURRENT = {
    **dict.fromkeys(("state_size", "mamba_d_state", "mamba_n_heads", "linear_num_value_heads", "time_step_rank"), 4),
    **dict.fromkeys(("mamba_d_head", "linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("mamba_expand", "mamba_n_groups"), 1),
    "linear_num_key_heads": 2,
    "mamba_d_ssm": 32,
    "conv_L_cache": 3,
}
_TOKENS = {"vocab_size": VOCAB, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
SIZES: dict[str, Any] = {
    **_COUNTS,
    **_HEADS,
    **_WIDTHS,
    **_EXPERTS,
    **_LATENT,
    **_RECURRENT,
    **_TOKENS,
    "layer_types": None,
    "attention_probs_dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0,
    "use_cache": False,
}
"""What is made small of a default configuration, where it has it."""


class Family(NamedTuple):
    """How a family is made small, and where the reference finds its blocks."""

    blocks: str
    """The list of its blocks, by a dotted name in the model with its head."""
    options: Mapping[str, Any] = MappingProxyType({})
    """What else it needs."""
    budget: float = 2e-4
    """Of float32 against float64, relative: more where transformers computes a recurrence in float32 in either."""
    exact: torch.dtype = torch.float64
    """The type of the reference; one family writes a number into its scores that only float32 holds."""


_LAYERS, _H, _BERT, _TEXT = "model.layers", "transformer.h", "bert.encoder.layer", "model.language_model.layers"
_ROBERTA = Family("roberta.encoder.layer", {"type_vocab_size": 1})
_MIXED = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_LATENT_HEADS = Family(_LAYERS, {"num_key_value_heads": 4, "rope_interleave": True})
_MROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}}
_VISION = {"num_hidden_layers": 1, "depth": 1, "num_heads": 2, "image_size": 16, "patch_size": 8, "out_hidden_size": 32}

FAMILIES: dict[str, Family] = {
    "gpt2": Family(_H),
    "gpt_neo": Family(_H, {"attention_types": [[["global", "local", "global"], 1]], "window_size": 5}),
    "gpt_neox": Family("gpt_neox.layers"),
    "gptj": Family(_H),
    "gpt_bigcode": Family(_H),
    "gpt_oss": Family(_LAYERS, _MIXED),
    "codegen": Family(_H),
    "opt": Family("model.decoder.layers"),
    "xglm": Family(_LAYERS, exact=torch.float32),
    "bloom": Family(_H),
    "falcon": Family(_H, {"new_decoder_architecture": False, "multi_query": True}),
    "mpt": Family("transformer.blocks"),
    "llama": Family(_LAYERS),
    "llama4_text": Family(_LAYERS, {"layer_types": ["chunked_attention", "full_attention", "chunked_attention"]}),
    "mistral": Family(_LAYERS),
    "ministral3": Family(_LAYERS),
    "mixtral": Family(_LAYERS),
    "qwen2": Family(_LAYERS),
    "qwen2_moe": Family(_LAYERS),
    "qwen3": Family(_LAYERS),
    "qwen3_moe": Family(_LAYERS),
    "qwen3_next": Family(
        _LAYERS, {"layer_types": ["linear_attention", "linear_attention", "full_attention"]}, budget=2e-3
    ),
    "gemma": Family(_LAYERS),
    "gemma2": Family(_LAYERS, {**_MIXED, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 4.0}),
    "gemma3_text": Family(_LAYERS, {**_MIXED, "final_logit_softcapping": 4.0}),
    "phi": Family(_LAYERS, {"num_key_value_heads": 4}),
    "phi3": Family(_LAYERS),
    "olmo": Family(_LAYERS),
    "olmo2": Family(_LAYERS),
    "olmo3": Family(_LAYERS, _MIXED),
    "stablelm": Family(_LAYERS),
    "starcoder2": Family(_LAYERS),
    "glm": Family(_LAYERS),
    "glm4": Family(_LAYERS),
    "cohere": Family(_LAYERS, {"logit_scale": 0.6}),
    "cohere2": Family(_LAYERS, {**_MIXED, "logit_scale": 0.6}),
    "granite": Family(_LAYERS, {"logits_scaling": 1.7, "embedding_multiplier": 2.5}),
    "granitemoe": Family(_LAYERS, {"logits_scaling": 1.7}),
    "smollm3": Family(_LAYERS),
    "exaone4": Family(_LAYERS, _MIXED),
    "nemotron": Family(_LAYERS),
    "minicpm3": Family(_LAYERS, {"dim_model_base": 12, "scale_emb": 2.0}),
    "deepseek_v2": _LATENT_HEADS,
    "deepseek_v3": Family(_LAYERS, {**_LATENT_HEADS.options, "head_dim": 4}),
    "apertus": Family(_LAYERS),
    "mamba": Family("backbone.layers"),
    "flint": Family(_LAYERS),
    "laguna": Family(_LAYERS, {**_MIXED, "num_attention_heads_per_layer": [4, 2, 6]}),
    "falcon_h1": Family(_LAYERS, {"lm_head_multiplier": 0.7}),
    "lfm2": Family(_LAYERS, {"layer_types": ["conv", "full_attention", "conv"]}),
    "gemma3": Family(_TEXT, {"text_config": {**_MIXED, "final_logit_softcapping": 4.0}, "vision_config": _VISION}),
    "qwen2_5_vl": Family(_TEXT, {"text_config": _MROPE, "vision_config": _VISION}),
    "qwen3_vl": Family(_TEXT, {"vision_config": _VISION}),
    "llava": Family(_TEXT, {"vision_config": _VISION}),
    "mistral3": Family(_TEXT, {"vision_config": _VISION}),
    "internvl": Family(_TEXT, {"vision_config": _VISION}),
    "bert": Family(_BERT),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "distilbert": Family("distilbert.transformer.layer", {"n_heads": 4}),
    "electra": Family("electra.encoder.layer", {"embedding_size": 20}),
    "albert": Family("albert.encoder.albert_layer_groups.0.albert_layers", {"embedding_size": 20}),
    "modernbert": Family(_LAYERS, {"local_attention": 6}),
    "deberta": Family("deberta.encoder.layer", {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "deberta-v2": Family("deberta.encoder.layer", {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "mpnet": Family("mpnet.encoder.layer"),
    "esm": Family("esm.encoder.layer", {"mask_token_id": 4}),
    "eurobert": Family(_LAYERS),
    "nomic_bert": Family("nomic_bert.layers"),
    "rembert": Family("rembert.encoder.layer", {"input_embedding_size": 20, "output_embedding_size": 24}),
    "roformer": Family("roformer.encoder.layer"),
    "ernie": Family("ernie.encoder.layer"),
    "megatron-bert": Family(_BERT),
}
"""Families that are held against the reference, by `model_type`."""


OTHERS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "bert-generation": {"is_decoder": True},
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba"]},
}
"""What other families need."""


def tiny_config(model_type: str) -> PretrainedConfig:
    """Return a small configuration of a family."""
    options = FAMILIES[model_type].options if model_type in FAMILIES else OTHERS.get(model_type, {})
    return _small(CONFIG_MAPPING[model_type], options)


def _small(config_class: Any, options: Mapping[str, Any]) -> PretrainedConfig:
    default = config_class()
    have = {*vars(default), *config_class.attribute_map}
    made: dict[str, Any] = {}
    for name in getattr(config_class, "sub_configs", {}):
        if isinstance(getattr(default, name, None), PretrainedConfig):
            made[name] = _small(type(getattr(default, name)), options.get(name, {}))
    taken = {config_class.attribute_map.get(name, name) for name in (*options, *made)}
    for name, value in SIZES.items():
        real = config_class.attribute_map.get(name, name)
        is_fixed = isinstance(getattr(config_class, real, None), property)
        if name in have and real not in taken and not is_fixed:
            made[real] = value
    if "qk_rope_head_dim" in have:  # latent attention: one key head for each head, of which a part is rotated
        made |= {"num_key_value_heads": 4, "head_dim": options.get("head_dim", 4)}
    config = config_class(**{**options, **made})
    is_free = not isinstance(getattr(config_class, "layer_types", None), property)
    if is_free and set(getattr(config, "layer_types", None) or ()) == {"linear_attention"}:
        made["layer_types"] = ["linear_attention", "linear_attention", "full_attention"]
        config = config_class(**{**options, **made})
    return config  # type: ignore[no-any-return]


def make_tiny(model_type: str, attention: str | None = None, vocab: int = VOCAB) -> PreTrainedModel:
    """Return a random model of a family, float32, in eval mode; `attention` None: as it is loaded to be read."""
    config = tiny_config(model_type)
    config.vocab_size = vocab
    architecture = find_architecture(config, model_type)
    attention = attention or (EAGER if architecture.eager_only else READABLE)
    torch.manual_seed(0)  # some families draw biases, to which noise is added
    model = architecture.auto.from_config(config, attn_implementation=attention, dtype=torch.float32)
    randomise_(model, seed=0)
    return model.eval()
