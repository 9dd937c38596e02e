"""Configs of tiny decoders: transformers' defaults, shrunk by the names of their keys."""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

ARCHITECTURES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)  # config names, as in a config.json
VOCABULARY = 288  # of the tiny tokenizer, rounded up
EXPERTS = 12  # a multiple of the rows of a pass, and of those of a paired one

# One value for every key of that name, wherever a config has it.
_WIDTH = dict.fromkeys(
    ("hidden_size", "n_embd", "d_model", "dim_model", "attention_hidden_size", "embedding_size",
     "word_embed_proj_dim", "lru_width", "emb_dim", "embedding_dim", "input_embedding_size",
     "output_embedding_size"),
    64,
)  # fmt: skip
_BLOCKS = dict.fromkeys(
    ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers",
     "num_encoder_layers", "num_decoder_layers", "num_blocks"),
    4,
)  # fmt: skip
_HEADS = dict.fromkeys(
    ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads",
     "encoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads",
     "swa_num_attention_heads", "attention_heads", "linear_num_value_heads", "linear_num_heads"),
    4,
)  # fmt: skip
_FEW_HEADS = dict.fromkeys(
    ("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads", "index_n_heads",
     "linear_num_key_heads", "num_query_groups", "num_global_key_value_heads"),
    2,
)  # fmt: skip
_HEAD_WIDTH = dict.fromkeys(
    ("head_dim", "attention_head_size", "attention_head_dim", "swa_head_dim", "v_head_dim",
     "swa_v_head_dim", "linear_key_head_dim", "linear_value_head_dim", "linear_head_dim",
     "kv_channels", "qk_nope_head_dim", "global_head_dim", "d_head", "dim_head", "index_head_dim",
     "mamba_head_dim", "mamba_headdim", "mamba_d_head"),
    16,
)  # fmt: skip
_FEED_FORWARD = dict.fromkeys(
    ("intermediate_size", "ffn_dim", "d_ff", "dim_ff", "dff", "decoder_ffn_dim", "encoder_ffn_dim",
     "ffn_hidden_size", "feed_forward_size", "intermediate_size_mlp", "dense_intermediate_size"),
    96,
)  # fmt: skip
_EXPERT_WIDTH = dict.fromkeys(
    ("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size",
     "moe_shared_expert_intermediate_size", "shared_experts_intermediate_size",
     "expert_ffn_hidden_size", "router_hidden_size"),
    32,
)  # fmt: skip
_EXPERTS = dict.fromkeys(
    ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), EXPERTS
)
_REACHED = dict.fromkeys(
    ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"), 4
)
_SHARED = dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 1)
_STATES = {
    "mamba_d_state": 8, "state_size": 8, "ssm_state_size": 8, "mamba_n_heads": 8,
    "mamba_num_heads": 8, "mamba_n_groups": 2, "n_groups": 2, "mamba_ngroups": 2, "mamba_d_ssm": 128,
    "chunk_size": 8, "mamba_chunk_size": 8, "time_step_rank": 4, "mamba_dt_rank": 4,
}  # fmt: skip
_REST = {
    "q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "n_group": 1, "topk_group": 1,
    "num_expert_group": 1, "first_k_dense_replace": 1, "num_dense_layers": 1,
    "max_position_embeddings": 256, "n_positions": 256, "n_ctx": 256, "max_seq_len": 256,
    "context_length": 256, "max_source_positions": 64, "max_target_positions": 256,
    "sliding_window": 8, "window_size": 8, "attention_window_size": 8, "local_attention": 16,
    "attention_chunk_size": 8, "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8, "pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1,
    "eod_token_id": 1, "use_cache": False, "layerdrop": 0.0, "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0, "image_size": 32, "patch_size": 16, "index_topk": 64,
    "rotary_dim": 8, "is_decoder": True,
}  # fmt: skip
SIZES: dict[str, Any] = {
    **_WIDTH, **_BLOCKS, **_HEADS, **_FEW_HEADS, **_HEAD_WIDTH, **_FEED_FORWARD, **_EXPERT_WIDTH,
    **_EXPERTS, **_REACHED, **_SHARED, **_STATES, **_REST, "vocab_size": VOCABULARY,
}  # fmt: skip

# What the names of the keys do not say; of a part's config, its class or what changes in it.
_ALL_HEADS = {"num_key_value_heads": 4}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
SPECIAL: dict[str, dict[str, Any]] = {
    "axk1": _ALL_HEADS,
    "axk2": _ALL_HEADS,
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE},
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {
            "ffn_hidden_size": 32, "moe_num_experts": EXPERTS, "moe_top_k": 4, "hidden_size": 64,
        },
    },
    "deepseek_v2": _ALL_HEADS,
    "deepseek_v3": _ALL_HEADS,
    "deepseek_v32": _ALL_HEADS,
    "deepseek_v4": {"o_lora_rank": 16, "o_groups": 2},
    "dots3_note": _ALL_HEADS,
    "dots3_note_text": _ALL_HEADS,
    "falcon_h1": {"mamba_rms_norm": True, "mamba_d_head": 16},
    "fuyu": {"text_config": "persimmon"},
    "gemma3": {"vision_config": "siglip_vision_model"},
    "gemma4_unified": {"vision_config": {"mm_embed_dim": 64, "mm_posemb_size": 16}},
    "gemma3n_text": {
        "num_kv_shared_layers": 2, "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
        "layer_types": ["sliding_attention", "full_attention"] * 2, "laurel_rank": 8,
    },
    "gemma4_unified_text": {"num_kv_shared_layers": 0},
    "glm4_moe_lite": _ALL_HEADS,
    "glm_moe_dsa": _ALL_HEADS,
    "got_ocr2": {"text_config": "qwen2"},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "inkling_text": {"logits_mup_width_multiplier": 1.0},
    "jamba": {
        "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
        "expert_layer_offset": 0,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "longcat_flash": {**_ALL_HEADS, "head_dim": 8, "num_layers": 2, "zero_expert_num": 4},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "minicpm3": _ALL_HEADS,
    "moss_transcribe_diarize": {"text_config": "qwen3"},
    "qwen4_exp": {"text_config": {"split_ngram_parts": 4, "ple_embed_dim": 16, "hc_lowrank": 8}},
    "qwen4_exp_text": {"split_ngram_parts": 4, "ple_embed_dim": 16, "hc_lowrank": 8},
    "reformer": {"axial_pos_shape": [16, 16], "axial_pos_embds_dim": [16, 48]},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "roc_bert": {
        "pronunciation_embed_dim": 16, "shape_embed_dim": 16, "pronunciation_vocab_size": 32,
        "shape_vocab_size": 32,
    },
    "rwkv": {"rescale_every": 2},
    "xmod": {"default_language": "en_XX"},
    # transformers empties the padding word's row as it loads, whatever the file has; zoft does not.
    "youtu": {**_ALL_HEADS, "pad_token_id": None},
    "zamba": {
        "attention_hidden_size": 128, "attention_head_dim": 32, "num_key_value_heads": 4,
        "num_hidden_layers": 6, "attn_layer_period": 2, "attn_layer_offset": 1,
    },
    "zamba2": {
        "layer_types": ["mamba", "hybrid", "mamba", "hybrid"], "attention_hidden_size": 128,
        "attention_head_dim": 32, "num_key_value_heads": 4, "n_mamba_heads": 8,
        "hybrid_layer_ids": [1, 3], "adapter_rank": 8, "mamba_headdim": 16,
    },
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip


def tiny_config(name: str) -> PreTrainedConfig:
    """The config of a tiny model of that architecture. Raises what transformers raises for it."""
    return shrunk(CONFIG_MAPPING[name], SPECIAL.get(name, {}))


def shrunk(kind: type[PreTrainedConfig], special: dict[str, Any]) -> PreTrainedConfig:
    """A config of that class with SIZES for the keys that it has, its parts shrunk alike."""
    known: Any = kind.__dataclass_fields__
    aliases = {new: SIZES[old] for old, new in kind.attribute_map.items() if old in SIZES}
    values = {key: value for key, value in {**SIZES, **aliases}.items() if key in known}
    for key, part in kind.sub_configs.items():
        changes = special.get(key, {})
        if isinstance(changes, str):
            values[key] = shrunk(CONFIG_MAPPING[changes], {})
        elif key in known and hasattr(part, "__dataclass_fields__"):
            values[key] = shrunk(part, changes)
    values |= {key: value for key, value in special.items() if key not in kind.sub_configs}
    return kind(**values)
