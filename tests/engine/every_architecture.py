"""A small model with random weights of every architecture that transformers calls a causal LM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB = 97
_WIDTH = 0.3
"""Standard deviation of weights: so large that what a layer leaves out shows."""

_SIZES: dict[int, tuple[str, ...]] = {
    VOCAB: ("vocab_size", "vocab_size_per_layer_input"),
    128: ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"),
    48: (
        *("intermediate_size", "ffn_dim", "d_ff", "n_inner", "decoder_ffn_dim", "encoder_ffn_dim"),
        *("ffn_hidden_size", "dim_ff", "dff", "hidden_dim", "d_inner", "intermediate_size_mlp"),
        *("dense_intermediate_size", "mlp_hidden_size", "ffn_size"),
    ),
    32: (
        *("hidden_size", "d_model", "n_embd", "embedding_size", "project_dim", "embed_dim"),
        *("emb_dim", "dim_model", "lru_width", "mamba_d_ssm"),
    ),
    16: (
        *("q_lora_rank", "kv_lora_rank", "q_rank", "moe_intermediate_size", "index_n_heads"),
        *("shared_expert_intermediate_size", "expert_ffn_hidden_size", "index_head_dim"),
        *("moe_shared_expert_intermediate_size", "expert_intermediate_size"),
        "shared_intermediate_size",
    ),
    8: (
        *("head_dim", "dim_head", "kv_channels", "d_kv", "swa_head_dim", "swa_v_head_dim"),
        *("global_head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
        *("linear_key_head_dim", "linear_value_head_dim", "hidden_size_per_layer_input"),
        *("mamba_d_head", "mamba_head_dim", "mamba_d_state", "ssm_state_size", "state_size"),
        *("d_state", "mamba_n_heads", "mamba_chunk_size", "chunk_size"),
        # Shorter than a chunk, which no sequence of the tests fits.
        *("sliding_window", "attention_window", "attention_window_size", "window_size"),
        *("attention_chunk_size", "index_topk"),
    ),
    4: (
        *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"),
        *("encoder_layers", "num_attention_heads", "n_head", "n_heads", "num_heads"),
        *("attention_heads", "decoder_attention_heads", "encoder_attention_heads"),
        *("swa_num_attention_heads", "mamba_num_heads", "linear_num_key_heads"),
        *("linear_num_value_heads", "n_routed_experts", "num_experts", "num_local_experts"),
        *("moe_num_experts", "rotary_dim", "laurel_rank", "mamba_d_conv"),
    ),
    2: (
        *("num_key_value_heads", "swa_num_key_value_heads", "num_global_key_value_heads"),
        *("num_attention_groups", "multi_query_group_num", "num_experts_per_tok", "moe_k"),
        *("n_group", "max_window_layers", "mamba_expand", "eos_token_id"),
    ),
    1: (
        *("topk_group", "first_k_dense_replace", "mamba_n_groups", "n_groups", "bos_token_id"),
        *("num_shared_experts", "n_shared_experts", "num_memory_blocks", "num_dense_layers"),
    ),
    0: ("pad_token_id", "num_kv_shared_layers"),
}
_KINDS = ("layer_types", "mlp_layer_types", "layers_block_type", "block_types", "mlp_types")

_LATENT = {"num_key_value_heads": 4}
_UNSCALED = {"logit_scale": 1.0}
_SETTINGS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        (
            *("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite"),
            *("glm_moe_dsa", "hy_v4", "longcat_flash", "minicpm3", "youtu"),
        ),
        _LATENT,
    ),
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere": _UNSCALED,
    "cohere2": _UNSCALED,
    "cohere2_moe": _UNSCALED,
    "falcon_h1": {"mamba_n_heads": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {**_LATENT, "num_experts_per_token": 2, "num_expert_group": 1},
    "lfm2": {"layer_types": ["conv", "full_attention", "full_attention", "conv"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "full_attention", "conv"]},
    "zaya": {"num_experts_per_tok": 1},
    "mamba2": {"num_heads": 16, "head_dim": 4},
}
"""What an architecture needs beside the sizes."""


def names() -> list[str]:
    """The `model_type` of every architecture."""
    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def save_small(name: str, folder: Path) -> Path:
    """Saves a model of an architecture with random weights, without a tokenizer.

    Raises:
        Exception: whatever its configuration says of these sizes.
    """
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(_config(name))
    for parameter in (parameter.detach() for parameter in network.parameters()):
        # A norm's weights stay about one.
        if parameter.is_floating_point() and parameter.numel() > 1:
            torch.nn.init.normal_(parameter, mean=float(parameter.mean()), std=_WIDTH)
    network.save_pretrained(folder)
    return folder


def _config(name: str) -> Any:
    kind = CONFIG_MAPPING[name]
    text = getattr(kind, "sub_configs", {}).get("text_config")
    if text is not None:
        text = type(kind().text_config)
        return kind(text_config=text(**_settings(text, name)).to_dict())
    config = kind(**_settings(kind, name))
    config.is_decoder, config.add_cross_attention = True, False
    return config


def _settings(kind: Any, name: str) -> dict[str, Any]:
    usual = kind().to_dict()
    sizes = {key: size for size, keys in _SIZES.items() for key in keys}
    found: dict[str, Any] = {
        key: size
        for key, size in sizes.items()
        if key in usual and not isinstance(usual[key], dict | list)
    }
    for key in _KINDS:
        if usual.get(key):
            # One of each, in turn.
            found[key] = (list(dict.fromkeys(usual[key])) * 4)[:4]
    return {**found, **_SETTINGS.get(name, {})}
