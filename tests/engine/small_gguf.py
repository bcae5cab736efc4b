"""The packaged model as a GGUF file, quantised as SmolLM2's is, and what its weights are then."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from scoring_service.models import tiny_model_path

Weights = dict[str, np.ndarray]

_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_small_gguf(file: Path, unpacked: Path) -> None:
    """Writes the file, and a folder with what every right reader makes of it in float32.

    The folder's numbers are those of the gguf package, and pass no reader of such files.
    """
    network = AutoModelForCausalLM.from_pretrained(tiny_model_path(), dtype=torch.float32)
    config = network.config
    writer = gguf.GGUFWriter(file, "llama")
    _add_config(writer, config)
    _add_tokenizer(writer)
    weights = network.state_dict()
    for name in [name for name in weights if name != "lm_head.weight"]:  # the embedding, again
        stored, kind = _stored_as(name), _kind_of(name)
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
        n = next((n for part, n in heads.items() if part in stored), None)
        values = weights[name].numpy()
        packed = gguf.quantize(values if n is None else _interleaved(values, n), kind)
        writer.add_tensor(stored, packed, raw_dtype=kind)
        # Blocks lie within a row, so that the order of rows makes no difference to them.
        weights[name] = torch.from_numpy(gguf.dequantize(gguf.quantize(values, kind), kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    network.load_state_dict({**weights, "lm_head.weight": weights["model.embed_tokens.weight"]})
    network.save_pretrained(unpacked)


def _stored_as(name: str) -> str:
    whole = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
    }
    if name in whole:
        return whole[name]
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{_NAMES[part]}.weight"


def _kind_of(name: str) -> gguf.GGMLQuantizationType:
    if "norm" in name:
        return gguf.GGMLQuantizationType.F32
    embedding = "embed_tokens" in name
    return gguf.GGMLQuantizationType.Q8_0 if embedding else gguf.GGMLQuantizationType.Q4_1


def _interleaved(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows in the order of llama.cpp's rotary positions: `permute` in its convert_hf_to_gguf.py."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def _add_config(writer: gguf.GGUFWriter, config: LlamaConfig) -> None:
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    model = json.loads((tiny_model_path() / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(tokens) - 1))
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
