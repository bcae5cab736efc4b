"""What a model weighs and computes, counted from its config.json by family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Config = Mapping[str, Any]


class UnknownFamilyError(ValueError):
    """Nobody has written down how to count this family."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Counts of a decoder. Elements, not bytes; nothing here depends on a dtype."""

    family: str
    """`model_type` of the config."""
    layers: int
    vocab_size: int
    max_positions: int
    parameters: int
    """All of them; a head that is tied to the embeddings counts once."""
    body_parameters: int
    """Of the matrix products that a token goes through in the body; of experts, those chosen."""
    head_parameters: int
    """Of the head's matrix product."""
    kv_width: int
    """Elements of keys and values that all layers keep of a token."""
    pair_flops: int
    """FLOPs of attention for one (query, key) pair, all layers."""
    hidden: int
    """Elements of a state."""
    finishes_logits: bool
    """Whether logits are scaled or soft-capped after the head's product."""
    config: Config = field(repr=False, compare=False)
    """What was counted."""


@dataclass(frozen=True, slots=True)
class _Attention:
    """One layer's attention: parameters, and what it keeps and computes."""

    products: int
    """Parameters of its matrix products."""
    others: int
    """Biases and norms."""
    kv_width: int
    pair_width: int
    """Elements of a score and of a weighted value, all heads."""


@dataclass(frozen=True, slots=True)
class _FeedForward:
    """One layer's feed-forward part."""

    products: int
    """Parameters of all its matrix products."""
    active: int
    """Of those that a token goes through."""
    others: int = 0


def model_shape(config: Config) -> ModelShape:
    """Count a model.

    Raises:
        UnknownFamilyError: its family is none of those below.
        KeyError: the config lacks a number that its family needs.
    """
    config = {**config, **config.get("text_config", {})}
    family = str(config.get("model_type", ""))
    if family == "gpt2":
        return _gpt2(config)
    if family not in _FAMILIES:
        known = ", ".join(sorted([*_FAMILIES, "gpt2"]))
        raise UnknownFamilyError(
            f"no count for the family {family!r}; there is: {known}. It may be served all the "
            "same: to plan it, give a copy of its config.json with `model_type` set to the one of "
            "these whose layers are most like its own"
        )
    config = {**DEFAULTS.get(family, {}), **config}
    attention_of, feed_forward_of, norms = _FAMILIES[family]
    attention = attention_of(config)
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    blocks = [feed_forward_of(config, layer) for layer in range(layers)]
    norm = 2 * hidden if family in _BIASED_NORMS else hidden
    per_layer = attention.products + attention.others + norms * norm
    embeddings = config["vocab_size"] * hidden
    tied = config.get("tie_word_embeddings", family.startswith(("gemma", "cohere")))
    return ModelShape(
        family=family,
        layers=layers,
        vocab_size=config["vocab_size"],
        max_positions=config["max_position_embeddings"],
        parameters=embeddings * (1 if tied else 2)
        + (config["vocab_size"] if family == "phi" else 0)  # its head has a bias
        + norm
        + layers * per_layer
        + sum(block.products + block.others for block in blocks),
        body_parameters=layers * attention.products + sum(block.active for block in blocks),
        head_parameters=embeddings,
        kv_width=layers * attention.kv_width,
        pair_flops=2 * layers * attention.pair_width,
        hidden=hidden,
        finishes_logits=bool(config.get("final_logit_softcapping"))
        or any(config.get(name, 1) != 1 for name in ("logit_scale", "logits_scaling")),
        config=config,
    )


def _gpt2(config: Config) -> ModelShape:
    hidden, layers, vocab = config["n_embd"], config["n_layer"], config["vocab_size"]
    inner = config.get("n_inner") or 4 * hidden
    products = 4 * hidden * hidden + 2 * hidden * inner
    # Biases of four products and two norms with biases.
    others = 3 * hidden + hidden + inner + hidden + 4 * hidden
    return ModelShape(
        family="gpt2",
        layers=layers,
        vocab_size=vocab,
        max_positions=config["n_positions"],
        parameters=(vocab + config["n_positions"]) * hidden
        + layers * (products + others)
        + 2 * hidden,
        body_parameters=layers * products,
        head_parameters=vocab * hidden,
        kv_width=layers * 2 * hidden,
        pair_flops=2 * layers * 2 * hidden,
        hidden=hidden,
        finishes_logits=False,
        config=config,
    )


def _grouped(config: Config) -> _Attention:
    """Heads of one width, grouped or not."""
    family, hidden, heads = (
        config["model_type"],
        config["hidden_size"],
        config["num_attention_heads"],
    )
    grouped = family != "gpt_neox"  # whatever its file says
    kv_heads = (config.get("num_key_value_heads") if grouped else None) or heads
    head_dim = config.get("head_dim") or hidden // heads
    queries, keys = heads * head_dim, kv_heads * head_dim
    others = 0
    if family == "qwen2":
        others = queries + 2 * keys
    elif config.get("attention_bias", family in ("gpt_neox", "gpt_oss")) or family == "phi":
        others = queries + 2 * keys + hidden
    # Norms of queries and keys: of a head, of all heads apart or of all as one.
    if family in ("qwen3", "qwen3_moe", "gemma3_text"):
        others += 2 * head_dim
    elif family == "phi" and config.get("qk_layernorm"):
        others += 4 * head_dim
    elif family == "olmo2" or (family == "cohere" and config.get("use_qk_norm")):
        others += queries + keys
    if family == "gpt_oss":
        others += heads  # sinks
    return _Attention(
        products=hidden * (2 * queries + 2 * keys),
        others=others,
        kv_width=2 * keys,
        pair_width=2 * queries,
    )


def _latent(config: Config) -> _Attention:
    """Multi-head latent attention; keys and values are kept expanded, for every head."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    rope, nope = config["qk_rope_head_dim"], config["qk_nope_head_dim"]
    value, rank = config["v_head_dim"], config["kv_lora_rank"]
    key = nope + rope
    products = hidden * (rank + rope) + rank * heads * (nope + value) + heads * value * hidden
    others = rank
    if query_rank := config.get("q_lora_rank"):
        products += hidden * query_rank + query_rank * heads * key
        others += query_rank
    else:
        products += hidden * heads * key
    if config.get("attention_bias"):
        others += (query_rank or 0) + rank + rope + hidden
    return _Attention(products, others, heads * (key + value), heads * (key + value))


def _gated(config: Config, layer: int) -> _FeedForward:
    del layer  # all are alike
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    bias = 2 * inner + hidden if config.get("mlp_bias") else 0
    return _FeedForward(3 * hidden * inner, 3 * hidden * inner, bias)


def _plain(config: Config, layer: int) -> _FeedForward:
    """Two products with biases."""
    del layer  # all are alike
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    return _FeedForward(2 * hidden * inner, 2 * hidden * inner, inner + hidden)


def _mixtral(config: Config, layer: int) -> _FeedForward:
    del layer  # all are alike
    return _experts(
        config, config["num_local_experts"], config["num_experts_per_tok"],
        config["intermediate_size"],
    )  # fmt: skip


def _gpt_oss(config: Config, layer: int) -> _FeedForward:
    found = _mixtral(config, layer)
    biases = 2 * config["intermediate_size"] + config["hidden_size"] + 1  # the last: the router's
    return replace(found, others=config["num_local_experts"] * biases)


def _qwen3_moe(config: Config, layer: int) -> _FeedForward:
    # Files have the one name, transformers 5 writes the other.
    experts = config.get("num_experts") or config.get("num_local_experts") or 0
    dense = layer in (config.get("mlp_only_layers") or ())
    if dense or not experts or (layer + 1) % config.get("decoder_sparse_step", 1):
        return _gated(config, layer)
    inner = config["moe_intermediate_size"]
    return _experts(config, experts, config["num_experts_per_tok"], inner)


def _deepseek_v3(config: Config, layer: int) -> _FeedForward:
    if layer < config["first_k_dense_replace"]:
        return _gated(config, layer)
    inner = config["moe_intermediate_size"]
    routed = _experts(config, config["n_routed_experts"], config["num_experts_per_tok"], inner)
    shared = 3 * config["hidden_size"] * inner * config["n_shared_experts"]
    return _FeedForward(routed.products + shared, routed.active + shared)


def _experts(config: Config, experts: int, chosen: int, inner: int) -> _FeedForward:
    one, router = 3 * config["hidden_size"] * inner, experts * config["hidden_size"]
    return _FeedForward(router + experts * one, router + chosen * one)


_FAMILIES: dict[
    str, tuple[Callable[[Config], _Attention], Callable[[Config, int], _FeedForward], int]
] = {
    "llama": (_grouped, _gated, 2),
    "mistral": (_grouped, _gated, 2),
    "qwen2": (_grouped, _gated, 2),
    "qwen3": (_grouped, _gated, 2),
    "qwen3_moe": (_grouped, _qwen3_moe, 2),
    "mixtral": (_grouped, _mixtral, 2),
    "gemma2": (_grouped, _gated, 4),
    "gemma3_text": (_grouped, _gated, 4),
    "deepseek_v3": (_latent, _deepseek_v3, 2),
    "phi3": (_grouped, _gated, 2),
    "olmo2": (_grouped, _gated, 2),
    "granite": (_grouped, _gated, 2),
    "cohere": (_grouped, _gated, 1),
    "gpt_neox": (_grouped, _plain, 2),
    "phi": (_grouped, _plain, 1),
    "gpt_oss": (_grouped, _gpt_oss, 2),
}
"""By model_type: attention, feed-forward of a layer, and norms of a layer."""

_BIASED_NORMS = ("gpt_neox", "phi")
"""Families whose norms have biases beside their weights."""

DEFAULTS: dict[str, Config] = {
    "gemma3_text": {
        "vocab_size": 262_208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131_072,
    },
}
"""What transformers takes where the files of a family leave a number out, as Gemma 3's do."""
