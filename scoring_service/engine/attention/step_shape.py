"""A model's config to the widths that decide how much memory its steps take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scoring_service.engine.head.tiles import block_rows, list_bytes, tile_rows
from scoring_service.kernels.key_parts import KEY_PARTS, PARTIAL_BYTES
from scoring_service.peak_memory import StepShape

SCORE_ELEMENTS = 8 << 20
"""Attention scores that torch's operators hold at once; beyond it, one head after another."""

GATHERED_TOKENS = 1 << 18
_CPU_GATHERED_TOKENS = 1 << 16

_GATED_COPIES, _PLAIN_COPIES = 3, 4
"""Gate, up and their product; an activation written out in torch has as many and one more."""

Config = Mapping[str, Any]


def gathered_tokens(device_type: str) -> int:
    """Keys of samples that torch's operators gather at once, in tokens."""
    return _CPU_GATHERED_TOKENS if device_type == "cpu" else GATHERED_TOKENS


def step_shape(
    config: Config,
    *,
    vocab_size: int,
    element_bytes: int,
    residual_bytes: int,
    logit_bytes: int,
    device_type: str,
    compiled_attention: bool,
    compiled_head: bool,
    finishes_logits: bool,
) -> StepShape:
    """The shape of a decoder's steps.

    Args:
        config: the text model's, under the names that transformers uses. What a family names in a
            way of its own is taken from what others have in common: an inner width of 4 hidden.
        vocab_size: rows of the head.
        element_bytes: of the body.
        residual_bytes: of what enters and leaves its layers.
        logit_bytes: of an element of the head's product.
        device_type: as torch names it.
        compiled_attention: whether kernels of ours do it.
        compiled_head: whether kernels of ours make numbers of logits.
        finishes_logits: whether logits are scaled or soft-capped after the product.

    Raises:
        KeyError: the config has no hidden size.
    """
    hidden = _number(config, "hidden_size", "n_embd", "d_model")
    if not hidden:
        raise KeyError("hidden_size")
    heads = _number(config, "num_attention_heads", "n_head", "n_heads") or 1
    kv_heads = _number(config, "num_key_value_heads") or heads
    queries, layer_kv, outputs = _attention(config, hidden, heads, kv_heads)
    return StepShape(
        hidden=hidden,
        # Queries and keys before and after rotation.
        attention_width=2 * queries + 2 * layer_kv + outputs,
        attention_output_width=outputs,
        feed_forward_width=_feed_forward(config, hidden),
        layer_kv_width=layer_kv,
        heads=heads,
        kv_heads=kv_heads,
        vocab_size=vocab_size,
        element_bytes=element_bytes,
        residual_bytes=residual_bytes,
        logit_bytes=logit_bytes,
        tile_rows=tile_rows(vocab_size, logit_bytes, device_type),
        block_rows=block_rows(vocab_size, device_type),
        list_bytes=list_bytes(device_type),
        compiled_attention=compiled_attention,
        compiled_head=compiled_head,
        finishes_logits=finishes_logits,
        score_elements=SCORE_ELEMENTS,
        gathered_tokens=gathered_tokens(device_type),
        on_host=device_type == "cpu",
        partial_bytes=PARTIAL_BYTES if device_type == "cuda" and compiled_attention else 0,
        part_keys=KEY_PARTS.few,
    )


def _attention(config: Config, hidden: int, heads: int, kv_heads: int) -> tuple[int, int, int]:
    """Elements of queries, of keys and values, and of outputs of one layer."""
    if rope := _number(config, "qk_rope_head_dim"):
        # Multi-head latent attention: keys and values are expanded for every head.
        key = _number(config, "qk_nope_head_dim") + rope
        value = _number(config, "v_head_dim")
        return heads * key, heads * (key + value), heads * value
    width = _number(config, "head_dim") or hidden // heads
    # Gemma 4 and others have layers of a second width.
    width = max(width, _number(config, "global_head_dim"))
    return heads * width, 2 * kv_heads * width, heads * width


def _feed_forward(config: Config, hidden: int) -> int:
    """Elements that one token has in a layer's feed-forward part, at most."""
    inner = _number(config, "intermediate_size", "n_inner", "ffn_dim") or 4 * hidden
    activation = str(config.get("hidden_act") or config.get("activation_function") or "")
    dense = inner * (_PLAIN_COPIES if "new" in activation else _GATED_COPIES)
    chosen = _number(config, "num_experts_per_tok", "num_experts_per_token")
    if not chosen:
        return dense
    own = _number(config, "moe_intermediate_size") or inner
    shared = _number(config, "shared_expert_intermediate_size", "n_shared_experts")
    shared = shared * own if 0 < shared < 64 else shared
    experts = _number(config, "num_experts", "num_local_experts", "n_routed_experts")
    # Rows sorted by expert, gate and up with a masked copy, and the router's weights in fp32.
    return max(dense, chosen * 4 * (hidden + own) + _GATED_COPIES * shared + 4 * experts)


def _number(config: Config, *names: str) -> int:
    """The first of them that the config has, the largest where layers differ; 0 without any."""
    for name in names:
        match config.get(name):
            case int(value):
                return value
            case [int(), *_] as values:
                return int(max(values))
    return 0
