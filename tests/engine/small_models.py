"""Small models of many architectures, with weights large enough that capping and scaling show."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

VOCAB = 97
_LLAMA_LIKE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GPT_LIKE = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "initializer_range": 0.5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS = {"num_experts_per_tok": 2}
_QWEN2_MOE = {
    "num_experts": 4,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "use_sliding_window": True,
    "sliding_window": 8,
    "max_window_layers": 1,
    "layer_types": ["sliding_attention", "full_attention"],
    **_EXPERTS,
}
_DEEPSEEK = {
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    **_EXPERTS,
}
_LONGROPE = {
    "original_max_position_embeddings": 32,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
        "original_max_position_embeddings": 32,
    },
}
_LLAMA4 = {
    "head_dim": 8,
    "intermediate_size_mlp": 48,
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
    "attention_chunk_size": 8,
    "interleave_moe_layer_step": 2,
}


@dataclass(frozen=True)
class Architecture:
    """A configuration class of transformers, with what makes its model unlike the others."""

    name: str
    config: str
    settings: dict[str, Any]
    linear_head: bool = True
    head: dict[str, float] = field(default_factory=dict)
    """What its head is expected to have found out."""
    max_model_len: int | None = None
    """For models that name no number of positions."""
    packs: bool = True
    """Whether it is expected to take the packed path."""

    @property
    def experts(self) -> bool:
        """Whether tokens choose experts."""
        return any("experts" in name for name in self.settings)

    def __str__(self) -> str:
        return self.name


def _llama_like(
    name: str, config: str, linear: bool = True, packs: bool = True, **settings: Any
) -> Architecture:
    return Architecture(name, config, {**_LLAMA_LIKE, **settings}, linear, packs=packs)


ARCHITECTURES = [
    _llama_like("llama", "LlamaConfig"),
    _llama_like("mistral", "MistralConfig", sliding_window=8),
    _llama_like("qwen2", "Qwen2Config"),
    _llama_like("olmo2", "Olmo2Config"),
    _llama_like("gpt-neox", "GPTNeoXConfig"),
    _llama_like("deepseek-v3", "DeepseekV3Config", **_DEEPSEEK),
    _llama_like("phi3-longrope", "Phi3Config", packs=False, **_LONGROPE),
    _llama_like("llama4", "Llama4TextConfig", packs=False, **_LLAMA4),
    Architecture(
        "gemma2",
        "Gemma2Config",
        {
            **_LLAMA_LIKE,
            "head_dim": 8,
            "sliding_window": 8,
            "final_logit_softcapping": 3.0,
            "attn_logit_softcapping": 5.0,
        },
        head={"soft_cap": 3.0},
    ),
    Architecture(
        "gemma3",
        "Gemma3TextConfig",
        {
            **_LLAMA_LIKE,
            "head_dim": 8,
            "sliding_window": 8,
            # A layer of each kind, because each has rotary positions of its own.
            "layer_types": ["sliding_attention", "full_attention"],
            "final_logit_softcapping": 3.0,
        },
        head={"soft_cap": 3.0},
    ),
    Architecture(
        "cohere", "CohereConfig", {**_LLAMA_LIKE, "logit_scale": 0.25}, head={"multiplier": 0.25}
    ),
    Architecture(
        "granite",
        "GraniteConfig",
        {**_LLAMA_LIKE, "logits_scaling": 4.0, "residual_multiplier": 0.6},
        head={"multiplier": 1 / 4},
    ),
    Architecture("gpt2", "GPT2Config", _GPT_LIKE),
    Architecture("gptj", "GPTJConfig", {**_GPT_LIKE, "rotary_dim": 4}, packs=False),
    _llama_like("phi", "PhiConfig"),
    _llama_like("phi3", "Phi3Config"),
    _llama_like("qwen3", "Qwen3Config", head_dim=8),
    _llama_like("mixtral", "MixtralConfig", num_local_experts=4, **_EXPERTS),
    _llama_like("qwen3-moe", "Qwen3MoeConfig", num_experts=4, moe_intermediate_size=16, **_EXPERTS),
    _llama_like(
        "gpt-oss", "GptOssConfig", head_dim=8, num_local_experts=4, sliding_window=8, **_EXPERTS
    ),
    Architecture(
        "falcon-h1",
        "FalconH1Config",
        {
            **_LLAMA_LIKE,
            "lm_head_multiplier": 0.3,
            "mamba_d_ssm": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
            "mamba_chunk_size": 8,
        },
        head={"multiplier": 0.3},
        packs=False,
    ),
    Architecture(
        "mamba",
        "MambaConfig",
        {
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "state_size": 8,
            "initializer_range": 0.5,
        },
        max_model_len=64,
        packs=False,
    ),
    # It names a scale in words, which the model ignores.
    Architecture(
        "mpt",
        "MptConfig",
        {
            "vocab_size": VOCAB,
            "d_model": 32,
            "n_layers": 2,
            "n_heads": 4,
            "max_seq_len": 64,
            "initializer_range": 0.5,
            "logit_scale": "inv_sqrt_d_model",
        },
        max_model_len=64,
        packs=False,
    ),
    # It multiplies by what others divide by: no linear head of ours is its own.
    _llama_like("hyperclovax", "HyperCLOVAXConfig", linear=False, packs=False, logits_scaling=2.0),
    # Its layers do not tell the attention how far to look.
    _llama_like("qwen2-moe", "Qwen2MoeConfig", packs=False, **_QWEN2_MOE),
]


def save_model(architecture: Architecture, folder: Path) -> Path:
    """Saves a model with random weights, without a tokenizer."""
    torch.manual_seed(0)
    config = getattr(transformers, architecture.config)(**architecture.settings)
    network = transformers.AutoModelForCausalLM.from_config(config)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    network.save_pretrained(folder)
    return folder
