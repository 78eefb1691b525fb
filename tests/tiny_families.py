"""Tiny random models of families of transformers: its own default configurations, made small."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from tiny_models import randomise_
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llm_entropy.models.attention.interface import EAGER, READABLE, in_language_model
from llm_entropy.models.families import find_architecture

VOCAB = 151
_COUNTS = {"num_hidden_layers": 3, "n_layer": 3, "n_layers": 3, "num_layers": 3, "num_blocks": 3, "decoder_layers": 3}
_HEADS = {
    "num_attention_heads": 4,
    "num_attention_heads_per_layer": 4,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 8,
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
_INDEXED = {"index_topk": 4, "index_head_dim": 8, "index_n_heads": 8, "n_shared_experts": 1}
_TOWERS = {
    **dict.fromkeys(("embed_dim", "out_hidden_size", "output_dim", "text_hidden_size", "adapter_out_dim"), 32),
    **dict.fromkeys(("projection_dim", "projector_hidden_size", "hidden_size_global", "encoder_hidden_size"), 32),
    **dict.fromkeys(("depth", "encoder_layers"), 1),
    **dict.fromkeys(("encoder_attention_heads", "num_self_attention_heads", "num_cross_attention_heads"), 4),
    **dict.fromkeys(("encoder_ffn_dim", "mlp_dim", "projection_intermediate_size"), 48),
    **dict.fromkeys(("base_channels", "latent_channels", "num_embeddings", "codebook_size"), 32),
}
"""Sizes of what reads images and sounds, which are not shown any."""
_TOKENS = {"vocab_size": VOCAB, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
SIZES: dict[str, Any] = {
    **_COUNTS,
    **_HEADS,
    **_WIDTHS,
    **_EXPERTS,
    **_LATENT,
    **_RECURRENT,
    **_INDEXED,
    **_TOWERS,
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
    "dbrx": Family("transformer.blocks"),
    "deepseek_v32": Family(_LAYERS),
    "ernie4_5_moe": Family(_LAYERS),
    "gemma4_text": Family(_LAYERS),
    "glm4_moe": Family(_LAYERS),
    "glm_moe_dsa": Family(_LAYERS),
    "jamba": Family(_LAYERS),
    "lfm2_moe": Family(_LAYERS),
    "mistral4": Family(_LAYERS),
    "olmoe": Family(_LAYERS),
    "qwen3_5_text": Family(_LAYERS),
    "zaya": Family(_LAYERS),
    "deepseek_vl_hybrid": Family(_TEXT),
    "glm4v": Family(_TEXT),
    "muse_glimmer": Family(_TEXT),
    "qwen2_vl": Family(_TEXT),
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
    "esmc": Family("esmc.layers"),
    "layoutlm": Family("layoutlm.encoder.layer"),
    "luke": Family("luke.encoder.layer"),
    "neomme": Family(_LAYERS),
    "roc_bert": Family("roc_bert.encoder.layer"),
    "convbert": Family("convbert.encoder.layer"),
    "fnet": Family("fnet.encoder.layer"),
    "nystromformer": Family("nystromformer.encoder.layer"),
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


_ENTITY = {"entity_vocab_size": 11, "entity_emb_size": 16}
_SIGNS = {"pronunciation_vocab_size": 11, "pronunciation_embed_dim": 16, "shape_vocab_size": 11, "shape_embed_dim": 16}
_OTHER_HEADS = {
    **dict.fromkeys(("swa_num_attention_heads", "swa_num_key_value_heads"), 2),
    **{"swa_q_lora_rank": 16, "swa_kv_lora_rank": 16, "swa_v_head_dim": 8, "swa_head_dim": 12, "head_dim": 12},
    **{"swa_qk_nope_head_dim": 8, "shared_experts_intermediate_size": 24},
}
_HALF_MROPE = {"rope_parameters": {**_MROPE["rope_parameters"], "mrope_section": [1, 1, 0]}}
OTHERS: dict[str, dict[str, Any]] = {
    "apertus1p5": {
        "audio_config": {"codebook_dim": 32, "num_filters": 2},
        **{"image_token_offset": 40, "audio_token_offset": 72, "image_token_id": 140, "audio_token_id": 141},
    },
    "bamba": {"attn_layer_indices": [1]},
    "bert-generation": {"is_decoder": True},
    "chameleon": {"vocabulary_map": {"<image>": 5}},
    "cohere_compass": {"text_config": {"rope_parameters": {"full_attention": _MROPE["rope_parameters"]}}},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _MROPE["rope_parameters"]}},
    "cosmos3_edge": {"text_config": _MROPE},
    "deepseek_ocr2": {
        "text_config": {"mlp_layer_types": ["dense", "sparse", "sparse"]},
        "vision_config": {"sam_config": {"downsample_channels": [16, 32]}},
    },
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0}, "ffn_config": {"moe_top_k": 2}},
    "deepseek_vl_hybrid": {"high_res_vision_config": {"output_channels": 8}},
    "dots3_note": {
        "text_config": _OTHER_HEADS,
        "vision_config": {"adapter_in_dim": 32},
        "audio_config": {"adapter_input_size": 32},
    },
    "dots3_note_text": _OTHER_HEADS,
    "ernie4_5_vl_moe": {"text_config": {"rope_parameters": {**_MROPE["rope_parameters"], "mrope_section": [1, 1, 2]}}},
    "esmc": {"num_key_value_heads": 4},
    "gemma4": {"text_config": {"hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": VOCAB}},
    "gemma4_text": {"hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": VOCAB},
    "glm46v": {"text_config": _MROPE},
    "glm4v": {"text_config": _MROPE},
    "glm4v_moe": {"text_config": _HALF_MROPE},
    "glm_ocr": {"text_config": _HALF_MROPE},
    "glmga": {"text_config": _HALF_MROPE},
    "granite4_vision": {
        "vision_config": {"hidden_size": 64},
        "deepstack_layer_map": [[0, 0]],
        "downsample_rate": "1/2",
    },
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba"]},
    "hunyuan_vl": {"text_config": _MROPE},
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "luke": _ENTITY,
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "mistral4": {"head_dim": 12},
    "molmo2": {"adapter_config": {"vision_feature_layer": [-1, -2]}},
    "muse_spark": {"text_config": {"moe_hidden_size": 32}, "audio_config": {"hidden_sizes": [32, 32, 32]}},
    "nemotron_h_omni": {"vision_config": {"video_temporal_patch_size": 2}},
    "neomme": {
        "rope_parameters": {"full_attention": {"partial_rotary_factor": 0.5}},
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    },
    "paddleocr_vl": {"text_config": _MROPE},
    "qwen2_5_omni_thinker": {"text_config": _MROPE, "vision_start_token_id": 9},
    "qwen2_vl": {"text_config": _MROPE},
    "qwen3_omni_moe_thinker": {"text_config": _MROPE, "vision_start_token_id": 9},
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 8]},
    "roc_bert": _SIGNS,
    "unlimited_ocr": {
        "vision_config": {"sam_config": {"downsample_channels": [16, 32]}},
        "text_config": {"num_key_value_heads": 4},
    },
    "zamba": {"layers_block_type": ["linear_attention", "hybrid", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}
"""What families need to be small, beside their options above."""


def tiny_config(model_type: str) -> PretrainedConfig:
    """Return a small configuration of a family."""
    own = FAMILIES[model_type].options if model_type in FAMILIES else {}
    options = {**OTHERS.get(model_type, {}), **own}
    return _small(CONFIG_MAPPING[model_type], options)


def _small(config_class: Any, options: Mapping[str, Any]) -> PretrainedConfig:
    default = config_class()
    have = {*vars(default), *config_class.attribute_map}
    num_layers, few = getattr(default, "num_hidden_layers", 0), _COUNTS["num_hidden_layers"]
    made: dict[str, Any] = {}
    for name in getattr(config_class, "sub_configs", {}):
        if isinstance(getattr(default, name, None), PretrainedConfig):
            made[name] = _small(type(getattr(default, name)), options.get(name, {}))
    made |= {name: value for name, value in _of_few_layers(default).items() if name not in options}
    taken = {config_class.attribute_map.get(name, name) for name in (*options, *made)}
    for name, value in SIZES.items():
        real = config_class.attribute_map.get(name, name)
        is_fixed = isinstance(getattr(config_class, real, None), property)
        if name in have and real not in taken and not is_fixed:
            usual = vars(default).get(real)
            is_list = isinstance(usual, (list, tuple)) and isinstance(value, int)
            made[real] = [value] * (few if len(usual) == num_layers else len(usual)) if is_list else value
    if "qk_rope_head_dim" in have:  # latent attention: one key head for each head, of which a part is rotated
        made |= {"num_key_value_heads": 4, "head_dim": options.get("head_dim", 4)}
    config = config_class(**{**options, **made})
    is_free = not isinstance(getattr(config_class, "layer_types", None), property)
    if is_free and set(getattr(config, "layer_types", None) or ()) == {"linear_attention"}:
        made["layer_types"] = ["linear_attention", "linear_attention", "full_attention"]
        config = config_class(**{**options, **made})
    return config  # type: ignore[no-any-return]


def _of_few_layers(default: PretrainedConfig) -> dict[str, Any]:
    """Return the lists of a configuration that have an item for each layer, cut to few layers, of every kind one."""
    num_layers, few = getattr(default, "num_hidden_layers", 0), _COUNTS["num_hidden_layers"]
    lists = {
        name: value
        for name, value in vars(default).items()
        if isinstance(value, (list, tuple)) and len(value) == num_layers > few
        if not name.startswith("_") and (name not in SIZES or name == "layer_types")
    }
    if not set(lists) - {"layer_types"}:
        return {}  # a configuration makes the kinds of its layers by itself, of as many as there are
    kinds = [repr([value[layer] for value in lists.values()]) for layer in range(num_layers)]
    first = sorted(range(num_layers), key=lambda layer: (kinds.index(kinds[layer]) != layer, layer))[:few]
    return {name: [value[layer] for layer in sorted(first)] for name, value in lists.items()}


def make_tiny(model_type: str, attention: str | None = None, vocab: int = VOCAB) -> PreTrainedModel:
    """Return a random model of a family, float32, in eval mode; `attention` None: as it is loaded to be read."""
    config = tiny_config(model_type)
    if vocab != VOCAB:
        config.vocab_size = vocab
    architecture = find_architecture(config, model_type)
    attention = attention or (EAGER if architecture.eager_only else READABLE)
    torch.manual_seed(0)  # some families draw biases, to which noise is added
    model = architecture.auto.from_config(
        config, attn_implementation=in_language_model(config, attention), dtype=torch.float32
    )
    randomise_(model, seed=0)
    return model.eval()
